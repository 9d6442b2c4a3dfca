"""Words are compared with the signs that carry meaning: pairs that say the same, and pairs that do not."""

import time

import pytest

from nanoqwenlong.records import Example
from nanoqwenlong.reward.answers import matches
from nanoqwenlong.reward.words import normalise
from nanoqwenlong.rewards import score

# Signs that carry meaning: the same words, written in other ways

SAME = [
    ("U.K.", "UK"), ("well-known", "well known"), ("1914-1918", "1914–1918"), ("1914 - 1918", "1914–1918"),
    ("Kim's", "Kim’s"), ("AT&T", "at&t"), ("Johnson & Johnson", "Johnson and Johnson"),
    ("Titanic (1997)", "Titanic 1997"), ("Titanic (1997)", "titanic (1997)."), ("R&D", "R & D"), ("Oslo!", "Oslo"),
    ("Yahoo!", "Yahoo"), ('"Oslo"', "Oslo"), ("5 °C", "5°C"), ("5℃", "5 °C"), ("H₂O", "H2O"), ("10² m", "10^2 m"),
    ("5 µm", "5 μm"), ("p < .05", "p<0.05"), ("p < 0.05", "p<.05"), ("x ≥ y", "x >= y"), ("A -> B", "A→B"),
    ("A => B", "A ⇒ B"), ("**Oslo** (Norway)", "Oslo, Norway"), ("5'10\"", "5′10″"), ("f'", "f′"),
    ("U.S. dollars", "US dollars"), ("1,000 people", "1000 people"), ("- Oslo", "Oslo"), ("5 ± 2", "5 +/- 2"),
    ("~5 km", "about 5 km"), ("-5 °C", "−5 °C"), ("– 5 °C", "-5 °C"), ("AA-", "AA−"),
    ("HER2- breast cancer", "her2- breast cancer"), ("HER2-positive", "HER2 positive"), ("x² + 1", "x^2 + 1"),
    ("pre- and post-war", "Pre- and Post-War"), ("PRE- AND POST-WAR", "pre- and post-war"),
    ("2- or 3-year plan", "2 or 3 year plan"), ("two-thirds", "two thirds"), ("rock 'n' roll", "rock n roll"),
    ("No. 5", "No 5"), ("No.5", "No. 5"), ("Viagra®", "Viagra"), ("Oslo, Norway", "Oslo (Norway)"),
    ("$5 per share", "US$5 per share"), ("\"Who's there?\"", "Who's there"), ("Smith,John", "Smith, John"),
    ("10 x 6 cells", "10*6 cells"), ("C++", "C plus plus"), ("50 per cent of it", "50% of it"),
    ("d'Artagnan", "d’Artagnan"), ("Beyoncé", "BEYONCÉ"), ("+5 km", "5 km"), ("snake_case", "snake_case"),
    ("_Oslo_", "Oslo"), ("$x$ and $y$", "x and y"), ("Dr. Strangelove", "Dr Strangelove"),
    ("Sagittarius A*", "sagittarius A*"), ("f(x)", "f(x)."), ("Rh+", "rh+"), ("Mary-Kate Olsen", "Mary Kate Olsen"),
    ("it’s", "it's"), ("3:16", "3:16"), ("16:9", "16 : 9"), ("J. K. Rowling", "J.K. Rowling"),
    ("F# minor", "F♯ minor")]


@pytest.mark.parametrize("a, b", SAME)
def test_formatting_and_other_spellings_do_not_count(a, b):
    assert matches(a, b) and matches(b, a), (normalise(a), normalise(b))


# Signs that carry meaning: the same words, but not the same

OTHER_SIGNS = [
    ("Rh- to Rh+", "Rh to Rh+"), ("ER-/PR+", "ER+/PR+"), ("CD4- and CD8+", "CD4+ and CD8+"), ("Canal+", "Canal"),
    ("B♭ major", "B major"), ("100+ people", "100 people"), ("x = -y", "x = y"), ("[1, 5)", "(1, 5]"),
    ("< 5 years", "5 years"), ("a + b", "+ b"), ("A → B", "A B"),
    ("p < .05", "p > .05"), ("HER2-", "HER2+"), ("HER2-", "HER2"), ("HER2- breast cancer", "HER2 breast cancer"),
    ("Rh+", "Rh"), ("A++", "A"), ("A*", "A"), ("A+", "A-"), ("C#", "C"), ("A++", "A+"), ("x!", "x"),
    ("5! ways", "5 ways"), ("-x", "x"), ("!x", "x"), ("-sin x", "sin x"), ("5'", '5"'), ("5 ft", "5' ft"),
    ("f'", "f"), ("f''", "f'"), ("f''(x)", "f'(x)"), ("10² m", "102 m"), ("½ cup", "12 cup"), ("5%-10%", "5-10"),
    ("[0, 1)", "[0, 1]"), ("[0, 1]", "(0, 1)"), ("(0, 1)", "(0, 1]"), ("{1, 2}", "[1, 2]"), ("-∞", "∞"), ("+∞", "-∞"),
    ("a → b", "a ← b"), ("a -> b", "a b"), ("A => B", "A <= B"), ("a ≠ b", "a = b"), ("a != b", "a = b"),
    ("x ± 1", "x + 1"), ("2 * 3 cells", "2 / 3 cells"), ("m/s", "ms"), ("x^2", "x2"), ("x^2", "2x"), ("5 °C", "5 C"),
    ("5 °C", "-5 °C"), ("€5 million people", "$5 million people"), ("-$5 per share", "$5 per share"),
    ("$-5 per share", "$5 per share"), ("2(x+1)", "2x+1"), ("(a+b)c", "a+bc"), ("-(a+b)", "a+b"),
    ("a && b", "a || b"), ("!a", "a"), ("#1", "@1"), ("~p", "p"), ("20.4 km", "204 km"), ("v1.2", "v12"),
    ("∂f/∂x", "f/x"), ("O(n log n)", "O(n) log n"), ("log_2 n", "log^2 n"), ("x < y < z", "x > y > z"),
    ("BRCA1-", "BRCA1+"), ("CD4+ CD25- cells", "CD4+ CD25+ cells"), ("CD4- T cells", "CD4 T cells"), ("👍", "👎"),
    ("√2", "2"), ("2√2", "2+√2"), ("x'", "x"), ("3:2", "3/2"), ("5:30", "530"), ("5‰ of it", "5% of it")]


@pytest.mark.parametrize("a, b", OTHER_SIGNS)
def test_signs_that_carry_meaning_count(a, b):
    assert not matches(a, b) and not matches(b, a), (normalise(a), normalise(b))
    assert matches(a, a) and matches(b, b)


def test_if_only_the_signs_differ_the_judge_decides():
    class Yes:
        def ask(self, questions):
            self.questions = questions
            return [1.0] * len(questions)

    judge, example = Yes(), Example("e", "", "q", "HER2-")
    assert score("</think>The answer is HER2", example).reward == 0
    assert score("</think>The answer is HER2", example, judge).reward == 1 and len(judge.questions) == 1
    assert score("</think>The answer is HER2-", example, judge).reward == 1 and judge.questions == []


@pytest.mark.parametrize("text", ["The State of Israel", "HER2- (a + b)c", "U.S. dollars", "5'10\"", "[0, 1)",
                                  "北京 2008 年"])
def test_formatting_around_a_text_does_not_count(text):
    for form in ("**{}**", "__{}__", '"{}"', "“{}”", "  {}  ", "「{}」"):
        assert matches(form.format(text), text) and matches(text.upper(), text) and matches(text.lower(), text), form


# Articles, and the capital letters that look like one

ARTICLES_DO_NOT_COUNT = [
    ('the "Beatles"', "Beatles"), ("The Beatles", "beatles"), ("A dog", "dog"), ("a dog", "A dog"),
    ("hepatitis A virus", "Hepatitis a virus"), ("Exhibit A", "exhibit a"), ("vitamin A", "Vitamin A."),
    ("the 1980s", "1980s"), ("A, C", "a, c"), ("(A, C)", "A, C"), ("Plan A and B", "plan a and b"),
    ("The Who", "Who"), ("the State of Israel", "State of Israel"), ("an MBA", "MBA")]
NAMES = [
    ("hepatitis A virus", "hepatitis virus"), ("A, C", "C"), ("Exhibit A", "Exhibit"), ("A", "the"),
    ("vitamin A", "vitamin"), ("A, B and C", "B and C"), ("Plan A and B", "Plan and B"),
    ("group A streptococcus", "group streptococcus"), ("types A, B", "types B"), ("A or C", "or C or")]


@pytest.mark.parametrize("a, b", ARTICLES_DO_NOT_COUNT)
def test_an_article_before_a_word_does_not_count(a, b):
    assert matches(a, b) and matches(b, a)


@pytest.mark.parametrize("a, b", NAMES)
def test_a_capital_letter_is_a_name(a, b):
    assert not matches(a, b) and not matches(b, a) and matches(a, a)


# Not only Latin punctuation: Chinese texts

CHINESE = [
    ("北京 2008 年", "北京2008年"), ("北京。", "北京"), ("《红楼梦》", "红楼梦"), ("「东京」", "东京"), ("ＡＢＣ公司", "abc公司"), ("第 3 章", "第3章"),
    ("马丁·路德·金", "马丁路德金"), ("五月天（乐队）", "五月天(乐队)"), ("张三，李四", "张三、李四"), ("增长率为-3.5%", "增长率为 －３．５％"), ("第3-5页", "第3–5页")]
OTHER_CHINESE = [
    ("北京", "-北京"), ("≤5毫克", "≥5毫克"), ("＞5毫克", "＜5毫克"), ("零下5度", "5度"), ("增长率为-3.5%", "增长率为3.5%"),
    ("GDP增长5.2%", "GDP增长-5.2%"), ("北京。", "南京。"), ("（3，4］", "［3，4）"), ("2008年", "2009 年")]


@pytest.mark.parametrize("a, b", CHINESE)
def test_chinese_punctuation_and_spaces_do_not_count(a, b):
    assert matches(a, b) and matches(b, a)


@pytest.mark.parametrize("a, b", OTHER_CHINESE)
def test_signs_in_chinese_texts_count(a, b):
    assert not matches(a, b) and not matches(b, a)


@pytest.mark.parametrize("unit", ["1", "[1,", "(", "(a", "-", "=", " ", "*", "'", '"', "1'", "$", "²", "a-", "[9",
                                  "x", "北 "])
def test_long_texts_are_normalised_in_linear_time(unit):
    start = time.process_time()
    normalise("[" + unit * (20_000 // len(unit)) + "a")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("a, b, equal", [
    ("A minor", "minor", False), ("A and C", "and C", False), ("A dog", "dog", True), ("A minority", "minority", True),
    ("D. C.", "D.C.", True), ("D. C.", "D. C", True), ("D. C.", "D. B.", False)])
def test_article_rule_keeps_keys_and_letters_and_points_after_initials(a, b, equal):
    assert (normalise(a) == normalise(b)) == equal
