"""Right and wrong answers in English, by class of fault. A row is: gold ¦¦ right ¦ right ¦¦ wrong ¦ wrong ¦¦ judged.
The gold answer itself is a right one. `judged` are right too, but only a judge can know it."""

from .case import of_options, of_rows, table

SIGNS = table("""
p < .05 ¦¦ p<.05 ¦ p < 0.05 ¦ P < .05 ¦¦ p > .05 ¦ p = .05 ¦ p ≥ .05 ¦ p >= .05 ¦ p < .5
p > 0.01 ¦¦ p>0.01 ¦ P > .01 ¦¦ p < 0.01 ¦ p <= 0.01 ¦ p > 0.1
HER2- ¦¦ HER2− ¦ her2- ¦¦ HER2+ ¦ HER2
HER2+ ¦¦ her2+ ¦ HER2＋ ¦¦ HER2- ¦ HER2− ¦ HER3+
CD4+ T cells ¦¦ CD4+ T-cells ¦ cd4+ t cells ¦¦ CD4- T cells ¦ CD8+ T cells
Rh- ¦¦ Rh− ¦¦ Rh+ ¦ Rh
O+ ¦¦ O＋ ¦¦ O- ¦ O− ¦ A+
Na+ ¦¦ Na＋ ¦¦ Na- ¦ K+ ¦ Cl-
-$0.35 per share ¦¦ −$0.35 per share ¦¦ $0.35 per share ¦ +$0.35 per share ¦ -$0.53 per share
-$5k ¦¦ −$5k ¦¦ $5k ¦ -$5m ¦ +$5k
-12 dB ¦¦ −12 dB ¦¦ 12 dB ¦ +12 dB ¦ -21 dB
12 dB ¦¦ 12 dB. ¦¦ - 12 dB ¦ -12 dB ¦ −12 dB
-5 °C ¦¦ −5 °C ¦¦ 5 °C ¦ +5 °C ¦ -5 °F
-40 degrees ¦¦ −40 degrees ¦¦ 40 degrees ¦ +40 degrees
A++ ¦¦ a++ ¦¦ A ¦ A+ ¦ A-
C++ ¦¦ c++ ¦¦ C ¦ C+ ¦ C#
C# ¦¦ c# ¦¦ C ¦ C++ ¦ F#
F# minor ¦¦ F♯ minor ¦¦ F minor ¦ F major ¦ G# minor
BBB- ¦¦ BBB− ¦¦ BBB+ ¦ BBB ¦ BB-
Disney+ ¦¦ disney+ ¦¦ Disney
Sagittarius A* ¦¦ sagittarius A* ¦¦ Sagittarius A ¦ Sagittarius B2
O(2^n) ¦¦ O(2^{n}) ¦ $O(2^n)$ ¦¦ O(2n) ¦ O(n^2) ¦ O(n)
O(n^2) ¦¦ O(n²) ¦ $O(n^2)$ ¦¦ O(2n) ¦ O(n2) ¦ O(2^n)
O(n log n) ¦¦ $O(n log n)$ ¦¦ O(n + log n) ¦ O(log n)
10^6 cells ¦¦ 10⁶ cells ¦ 10^{6} cells ¦¦ 10*6 cells ¦ 106 cells ¦ 10^-6 cells ¦ 10^9 cells
10^-3 mol ¦¦ 10⁻³ mol ¦ 10^{-3} mol ¦¦ 10^3 mol ¦ 10-3 mol ¦ 103 mol
x >= y ¦¦ x ≥ y ¦ x>=y ¦¦ x <= y ¦ x > y ¦ x ≤ y ¦ x = y
2x + 3 ¦¦ 2x+3 ¦ $2x + 3$ ¦¦ 2x / 3 ¦ 2x - 3 ¦ 2x * 3 ¦ 2x3
a && b ¦¦ a&&b ¦¦ a || b ¦ a & !b
∞ ¦¦ $∞$ ¦¦ -∞ ¦ −∞
(3, 4] ¦¦ (3,4] ¦¦ [3, 4) ¦ (3, 4) ¦ [3, 4] ¦ 3, 4
[0, 1) ¦¦ [0,1) ¦¦ (0, 1] ¦ [0, 1] ¦ (0, 1)
A → B ¦¦ A -> B ¦ A→B ¦¦ A ← B ¦ B → A ¦ A <-> B
glucose → pyruvate ¦¦ glucose -> pyruvate ¦ glucose => pyruvate ¦¦ glucose ← pyruvate ¦ pyruvate → glucose
5! ¦¦ 5!. ¦¦ 5 ¦ 51 ¦ 5!!
±0.5 mm ¦¦ ±0.5 mm. ¦ +/-0.5 mm ¦¦ 0.5 mm ¦ -0.5 mm ¦ +0.5 mm
5' end ¦¦ 5′ end ¦¦ 5 end ¦ 3' end
f'(x) ¦¦ f′(x) ¦¦ f(x) ¦ f''(x)
< €5 million ¦¦ <€5 million ¦ less than €5 million ¦¦ > €5 million ¦ €5 million ¦ < €5 billion
> five years ¦¦ >five years ¦ more than five years ¦¦ < five years ¦ five years ¦ less than five years
≤ 3 days ¦¦ <= 3 days ¦ at most 3 days ¦¦ ≥ 3 days ¦ < 3 days ¦ > 3 days
45% of voters ¦¦ 45 % of voters ¦ 45 percent of voters ¦¦ 45 of voters ¦ 54% of voters
10² ¦¦ 10^2 ¦¦ 102 ¦ 10^-2 ¦ 20
2/3 of members ¦¦ 2/3 of members. ¦¦ 2*3 of members ¦ 23 of members ¦ 3/2 of members
v2.1 ¦¦ V2.1 ¦¦ v21 ¦ v2-1 ¦ v1.2
192.168.0.1 ¦¦ 192.168.0.1. ¦¦ 19216801 ¦ 192.168.0.10
KRAS- ¦¦ KRAS− ¦¦ KRAS+ ¦ KRAS
S&P 500 ¦¦ s&p 500 ¦¦ SP 500 index funds ¦ S-P 600
x = 3 ¦¦ x=3 ¦¦ x ≠ 3 ¦ x > 3 ¦ x = -3 ¦ x = 4
x != 0 ¦¦ x ≠ 0 ¦¦ x = 0 ¦ x > 0
3:1 ¦¦ 3 : 1 ¦¦ 1:3 ¦ 31 ¦ 3/10
C major 7 ¦¦ c major 7 ¦¦ C minor 7 ¦ C major -7
""")
WORDS = table("""
the U.K. ¦¦ UK ¦ The U.K. ¦ U.K ¦¦ U.S. ¦ not the U.K. ¦ the U.K. or Ireland
well-known author ¦¦ well known author ¦ a well-known author ¦¦ unknown author ¦ author
1914-1918 ¦¦ 1914–1918 ¦ 1914−1918 ¦¦ 1914 ¦ 1918 ¦ 1941-1918 ¦ 1914-1981
Kim's house ¦¦ Kim’s house ¦ kim's house ¦¦ Tim's house ¦ Kim's horse
AT&T ¦¦ At&t ¦¦ T&T ¦ AB&B
1,250 people ¦¦ 1250 people ¦¦ 125 people ¦ 12,500 people ¦ 1.25 people
The Beatles ¦¦ Beatles ¦ the beatles ¦ "The Beatles" ¦¦ The Beat ¦ The Rolling Stones ¦ Not the Beatles
a dog ¦¦ dog ¦ A dog ¦ the dog ¦¦ a cat ¦ no dog ¦ a dog or a cat
an apple ¦¦ apple ¦ the apple ¦¦ apples or pears ¦ an apple, a pear
"To be, or not to be" ¦¦ To be, or not to be ¦ to be or not to be ¦¦ To be ¦ not to be ¦ To be and not to be
St. Petersburg ¦¦ St Petersburg ¦ st. petersburg ¦¦ Petersburg, Virginia ¦ St. Paul
Dr. Smith ¦¦ Dr Smith ¦ dr. smith ¦¦ Dr. Jones ¦ Smith or Jones
north-west ¦¦ north west ¦ North-West ¦¦ north-east ¦ northwards
café ¦¦ cafe\u0301 ¦ Café ¦¦ coffee ¦ cave
20.4 km ¦¦ 20.4 km. ¦¦ 204 km ¦ 20.4 m ¦ 2.04 km ¦ -20.4 km
May 9, 2010 ¦¦ May 9 2010 ¦ may 9, 2010. ¦¦ May 19, 2010 ¦ May 9, 2001 ¦ March 9, 2010
New York City ¦¦ new york city ¦ **New York City** ¦¦ New York State ¦ York ¦ Newark City
Charles de Gaulle ¦¦ charles de gaulle ¦¦ Charles ¦ Gaulle and Churchill
War and Peace ¦¦ *War and Peace* ¦ "War and Peace" ¦ _War and Peace_ ¦¦ War or Peace ¦ War ¦ Peace and War
3 May 2020 at noon ¦¦ 3 May 2020, at noon ¦¦ 3 May 2020 at night ¦ 3 May 2002 at noon
""")
LETTERS = table("""
hepatitis A virus ¦¦ Hepatitis A virus ¦ the hepatitis A virus ¦¦ hepatitis virus ¦ hepatitis B virus
vitamin A ¦¦ Vitamin A ¦ vitamin A. ¦¦ vitamin ¦ vitamin B ¦ vitamins
vitamin A deficiency ¦¦ Vitamin A deficiency ¦¦ vitamin deficiency ¦ vitamin D deficiency
Exhibit A ¦¦ exhibit A ¦¦ Exhibit ¦ Exhibit B ¦ an exhibit
group A streptococcus ¦¦ Group A streptococcus ¦¦ group streptococcus ¦ group B streptococcus
A, C ¦¦ A,C ¦ A, C. ¦¦ C ¦ A ¦ A, B ¦ B, C ¦ A, C, D
A, B and D ¦¦ A, B and D. ¦¦ B and D ¦ A and D ¦ A, B ¦ A, B and C
influenza A ¦¦ Influenza A ¦¦ influenza ¦ influenza B
Plan A ¦¦ plan A ¦¦ plan ¦ Plan B
Schedule A tax ¦¦ schedule A tax ¦¦ schedule tax ¦ Schedule B tax
type A personality ¦¦ Type A personality ¦ a type A personality ¦¦ type personality ¦ type B personality
point A to point B ¦¦ Point A to point B ¦¦ point B to point A ¦ point to point B
""")
INITIALS = table("""
E. coli ¦¦ e. coli ¦ *E. coli* ¦ E. coli. ¦¦ E ¦ (E) ¦ E. faecalis ¦ coli ¦ S. aureus
C. Darwin ¦¦ c. darwin ¦ C. Darwin. ¦¦ C ¦ (C) ¦ C. Linnaeus ¦ A. Wallace ¦ E. Darwin
J. K. Rowling ¦¦ J.K. Rowling ¦ j. k. rowling ¦¦ J ¦ (J) ¦ J. R. R. Tolkien ¦ Rowlings
A. thaliana ¦¦ a. thaliana ¦ *A. thaliana* ¦¦ A ¦ (A) ¦ B. napus ¦ A. lyrata
B. subtilis ¦¦ *B. subtilis* ¦¦ B ¦ (B) ¦ B. cereus
D. H. Lawrence ¦¦ D.H. Lawrence ¦¦ D ¦ D. H. Hubel ¦ T. E. Lawrence
G. Verdi ¦¦ G Verdi ¦ g. verdi ¦¦ G ¦ (G) ¦ G. Puccini
B-52 ¦¦ b-52 ¦¦ B ¦ B-1 ¦ B-25 ¦ (B)
H. pylori ¦¦ h. pylori ¦¦ H ¦ H. influenzae
F. Scott Fitzgerald ¦¦ F Scott Fitzgerald ¦¦ F ¦ F. Scott ¦ Z. Fitzgerald
I. Newton ¦¦ i. newton ¦¦ I ¦ R. Hooke
D. melanogaster ¦¦ D melanogaster ¦¦ D ¦ D. simulans ¦ M. musculus
""")
NUMBERS = table(r"""
3441.43 ¦¦ 3,441.43 ¦ 3441.43. ¦ $3,441.43 ¦ \boxed{3441.43} ¦¦ 1204500/350 ¦ 1204500 / 350 ¦ \frac{1204500}{350}
24.5 ¦¦ 24.50 ¦ 24.5. ¦ $24.5 ¦ 24.5% ¦¦ 49/2 - 1 ¦ 245 ¦ 2.45 ¦ -24.5 ¦ 24.5/25.5 ¦ 98/40
0.75 ¦¦ .75 ¦ 3/4 ¦ 75% ¦ \frac{3}{4} ¦¦ 4/3 ¦ 0.57 ¦ 7.5% ¦ -0.75
2020 ¦¦ 2,020 ¦ 2020. ¦¦ 4040/2 ¦ 2002 ¦ 20.20 ¦ 20/20 ¦ 10100/5
10080 ¦¦ 10,080 ¦ \boxed{10,\!080} ¦ 10{,}080 ¦ 10\,080 ¦¦ 10,08 ¦ 1,0080 ¦ 10.080 ¦ 10,\!08 ¦ 100,80
1234567 ¦¦ 1,234,567 ¦ 1 234 567 ¦ 1 234 567 ¦ 1,\!234,\!567 ¦¦ 1,234,576 ¦ 12,345,67 ¦ 1.234567
-12.5 ¦¦ −12.5 ¦ –12.5 ¦ (-12.5) ¦¦ 12.5 ¦ 25/2 ¦ -25/-2 ¦ -1.25 ¦ ±12.5
0.2 ¦¦ 1/5 ¦ 20% ¦ 0.20 ¦¦ 5 ¦ 0.02 ¦ 2% ¦ 1/5/2020 ¦ 1-5
6 ¦¦ 6.0 ¦ 6. ¦¦ 12/2 ¦ 3*2 ¦ 3+3 ¦ 3! ¦ 6 or 7 ¦ 5-6 ¦ 600/100
3500000 ¦¦ 3,500,000 ¦ 3.5 million ¦ 3.5e6 ¦ $3.5 million ¦ 350万 ¦¦ 3.5 billion ¦ 35 million ¦ 7000000/2 ¦ 3.5 thousand
14.3% ¦¦ 14.3 % ¦ 14.3 percent ¦ 0.143 ¦ 14.3\% ¦¦ 1.43% ¦ 143% ¦ -14.3% ¦ 14.3/3
""")
EXACT = table(r"""
3/4/2020 ¦¦ 3/4/2020. ¦¦ 4/3/2020 ¦ 3/4 ¦ 0.75 ¦ 3/4/2002
25/12 ¦¦ 25/12. ¦¦ 12/25 ¦ 25-21
9/11 ¦¦ 9/11. ¦¦ 0.8181 ¦ 11/9 ¦ 9/12
2008-08-08 ¦¦ 2008-08-08. ¦ 2008–08–08 ¦¦ 2008-08-18 ¦ 2008-09-08 ¦ 1992
""")
SCALES = table("""
24.5 ¦¦ 24.50 ¦ $24.5 ¦¦ 24.5 billion ¦ 245 million ¦ -24.5 million ¦ 24.5 thousand ¦¦ $24.5 million ¦ 24.5 million
3.1 ¦¦ 3.10 ¦ €3.1 ¦¦ 3.1 million ¦ 31 billion ¦ -3.1 billion ¦ 1.3 billion ¦¦ €3.1 billion ¦ 3.1 billion
120 ¦¦ 120.0 ¦ 120. ¦¦ 120 million ¦ 12 thousand ¦ 102 thousand ¦¦ 120 thousand ¦ 120k
""")
OPTIONS = "Which fruit was shipped?\n(A) Apples\n(B) Bananas\n(C) Cherries\n(D) Dates"
CHOSEN = (
    "{0}|({0})|{0}.|{0})|[{0}]|**{0}**|{0}: {1}|{0} - {1}|{0} – {1}|{0} — {1}|({0}) {1}|"
    "({0}), {1}|{0}, {1}|{0}) {1}|**{0}. {1}**|option {0}|Option ({0})|choice {0}|"
    "\\boxed{{{0}}}|\\boxed{{\\text{{({0})}}}}|{0}) 7|{0} - x|({0}): 5|"
    "{0} because the log says so|{0}, since page 3 says so|({0}) {1}, as stated on page 2"
).split("|")
UNCHOSEN = (
    "not {0}|not ({0})|{0} or {2}|({0}) or ({2})|{0}, {2}|{0} and {2}|{0}/{2}|{0}? No.|"
    "{0} is wrong|({0}) cannot be right|({0}) has been ruled out|({0}) is not correct|"
    "{0}. No, {2}|{0}) no|{0}... actually {2}|{0}, wait, {2}|{0}: {2}|{0}. maybe {2}|"
    "maybe {0} or {2}|either {0} or {2}|{0}) {1} or {2}) {3}|({0}) {1} ({2}) {3}|"
    "{0}. {1} {2}. {3}|(a) Apples (b) Bananas (c) Cherries (d) Dates|"
    "A. Apples\tB. Bananas\tC. Cherries\tD. Dates|A, B, C, D|A: B, C, D|ABCD|A B C D|"
    "any of A to D|all of them|{2}|({2})|{2}) {3}|{2}, not {0}|({2}) {1}|"
    "{0} is incorrect, so {2}|{0}? I would say {2}|first {0}, then {2}|{0} isn't right|"
    "{0}, or possibly {2}|{0} - no, {2}|neither {0} nor {2}|everything but {0}|"
    "anything except ({0})"
).split("|")
FRUIT = {"A": "Apples", "B": "Bananas", "C": "Cherries", "D": "Dates"}


WHO = "What does the report name?"
PARTS = [
    of_rows(SIGNS, ("qa", "em"), WHO, ways=2),
    of_rows(WORDS, ("qa", "em"), WHO, ways=2),
    of_rows(LETTERS, ("qa", "em"), WHO, ways=2),
    of_rows(INITIALS, ("qa", "em", "accuracy"), WHO),
    of_rows(NUMBERS, ("number", "qa"), "How much was it?", ways=2),
    of_rows(SCALES, ("number",), "How many million was it?"),
    of_rows(EXACT, ("qa", "em"), "When was it?"),
    of_options(FRUIT, CHOSEN, UNCHOSEN, OPTIONS, chinese=False),
]
JUDGED = {row.gold: tuple(row.judged) for row in SCALES}
HOSTILE = [case for hostile, _ in PARTS for case in hostile]
TRUE = [case for _, true in PARTS for case in true]
