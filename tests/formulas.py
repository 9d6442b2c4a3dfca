r"""Formulas of real mathematics, in families. The formulas of one line all differ, though they are written alike: the
same letters with moved brackets, signs and exponents. So each is a gold answer that its neighbours must not earn.
"""

FAMILIES = r"""
fractions
\frac{x+1}{2} || x+\frac{1}{2} || \frac{x}{2}+1 || \frac{2}{x+1}
\frac{1}{x+1} || \frac{1}{x}+1 || \frac{1}{x-1}
\frac{2}{x-1} || \frac{2}{x}-1 || \frac{x-1}{2}
\frac{a}{b+c} || \frac{a}{b}+c || \frac{a+c}{b} || \frac{a}{bc}
\frac{a+b}{c+d} || \frac{a}{c+d}+b || a+\frac{b}{c}+d || \frac{a+d}{c+b}
\frac{1}{2}x || \frac{1}{2x} || \frac{1}{2}x^2 || 2x
\frac{2}{3}\pi || \frac{2}{3\pi} || \frac{3}{2}\pi || \frac{2\pi}{9}
\frac{n^2+n}{2} || n^2+\frac{n}{2} || \frac{n^2-n}{2} || \frac{n^2}{2}+n
\dfrac{x^2-1}{x+2} || \dfrac{x^2-1}{x-2} || \dfrac{x^2+1}{x+2} || x^2-\dfrac{1}{x}+2
\frac{\sqrt{3}}{3} || \sqrt{\frac{3}{2}} || \frac{\sqrt{3}}{2} || -\frac{\sqrt{3}}{3}
\frac{1}{1+\frac{1}{x}} || \frac{1}{1+x} || 1+\frac{1}{1+x}
\tfrac{5}{8} || \tfrac{8}{5} || -\tfrac{5}{8} || \tfrac{5}{18}
\cfrac{1}{n(n+1)} || \cfrac{1}{n}(n+1) || \cfrac{1}{n^2+1}
mixed numbers
2\frac{1}{2} || 2+\frac{1}{3} || 1 || \frac{21}{2}
3\frac{2}{5} || \frac{6}{5} || 3\frac{5}{2} || -3\frac{2}{5}
12\frac{3}{4} || 12\frac{1}{4} || 9 || 1\frac{23}{4}
powers
2^{n+1} || 2^n+1 || 2^{n-1} || (n+1)^2
x^{2y} || x^2y || x^{2+y} || y^{2x}
e^{-x} || e^x || -e^x || e^{-1}x
10^{-3} || 10^3 || -10^3 || 10^{-2}
x^{-1} || x-1 || -x || x^{1}
(x+1)^2 || x+1^2 || x^2+1 || (x-1)^2
-x^2 || (-x)^2 || -x^{-2} || -2x
a^{b^c} || (a^b)^c || a^{c^b}
x^{\frac{1}{3}} || x^{\frac{2}{3}} || \frac{x}{3} || x^{-\frac{1}{3}}
2^{2n} || 2^{n^2} || 2^2n || 4^{2n}
e^{x^2} || e^{2x} || (e^x)^x+1 || x^{2e}
3\cdot 10^{8} || 3\cdot 10^{-8} || 3\cdot 10^{7} || 310^8
(ab)^3 || ab^3 || a^3b || (a+b)^3
roots
\sqrt{x+1} || \sqrt{x}+1 || \sqrt{x-1} || \sqrt[3]{x+1}
2\sqrt{3} || 3\sqrt{2} || \sqrt{6} || \sqrt[3]{2}
\sqrt[3]{x} || 3\sqrt{x} || \sqrt{3x} || \sqrt[4]{x}
\sqrt{a^2+b^2} || a+b || \sqrt{a^2-b^2} || a^2+b^2
1+\sqrt{5} || \sqrt{1+5} || 1-\sqrt{5} || \sqrt{5}
\frac{1+\sqrt{5}}{2} || 1+\frac{\sqrt{5}}{2} || \frac{1-\sqrt{5}}{2} || \frac{1}{2}+\sqrt{5}
\sqrt{2+\sqrt{3}} || \sqrt{2}+\sqrt{3} || \sqrt{2-\sqrt{3}} || \sqrt{2\sqrt{3}}
polynomials
x^2+2x+1 || x^2-2x+1 || 2x^2+x+1 || x^2+2x-1
3x^2y || 3xy^2 || 3x^2+y || -3x^2y
(x-1)(x+2) || (x+1)(x-2) || x-1(x+2) || (x-1)+(x+2)
a-(b-c) || a-b-c || (a-c)-b || b-(a-c)
x^3-3x || x^3+3x || 3x^3-x || x^2-3x
2(x+y) || 2x+y || x+2y || 2xy
xy || x+y || x-y || \frac{x}{y}
letters
x || -x || 2x || x! || x^2 || x' || |x|
ab || a-b || a+b || \frac{a}{b} || ab! || a^b
n || N || n! || 2n || n-1
y || -y || 1/y || y_1
k || K || k+1 || \bar{k}
\alpha || -\alpha || \beta || 2\alpha
\pi || -\pi || 2\pi || \frac{\pi}{2}
f(x) || f'(x) || f''(x) || g(x) || f(-x)
y' || y'' || y || -y'
x_1 || x_2 || x_{12} || x^1_2
a_{n+1} || a_n+1 || a_{n-1}
A^T || A || A^{-1} || A^2
\vec{a} || \vec{b} || -\vec{a} || |\vec{a}|
sets
\{1,2\} || \{1,3\} || (1,2) || \{1\} || \{1,2,3\} || [1,2]
\{-1,1\} || \{1\} || \{0,1\} || [-1,1] || (-1,1)
\{x \mid x>1\} || \{x \mid x<1\} || \{x \mid x\ge 1\}
\{a,b\} || (a,b) || \{a\} || \{a,b,c\}
\emptyset || \{0\} || 0 || \{1\}
A\cup B || A\cap B || A\setminus B || A\subset B
\mathbb{R} || \mathbb{Z} || \mathbb{N} || \mathbb{Q}
intervals
(1,2) || [1,2] || (1,2] || [1,2) || (2,1) || \{1,2\}
(-\infty,5] || (-\infty,5) || [5,\infty) || (-5,\infty)
[0,1) || (0,1] || (0,1) || [0,1]
(-\infty,1)\cup(2,\infty) || (-\infty,1]\cup(2,\infty) || (1,2) || (-\infty,1)\cup[2,\infty)
\left(0,\frac{1}{2}\right] || \left(0,\frac{1}{2}\right) || \left[0,\frac{1}{2}\right] || (0,2]
[-2,3] || [2,3] || (-2,3) || [-3,2]
matrices
\begin{pmatrix}1&2\\3&4\end{pmatrix} || \begin{pmatrix}1&3\\2&4\end{pmatrix} || \begin{pmatrix}1&2&3&4\end{pmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix} || \begin{vmatrix}1&2\\3&4\end{vmatrix}
\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix} || \begin{bmatrix} 0 & 1 \\ 1 & 0 \end{bmatrix}
\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix} || \begin{bmatrix} 1 & 0 \\ 0 & -1 \end{bmatrix}
\begin{pmatrix}a&b\\c&d\end{pmatrix} || \begin{pmatrix}a&c\\b&d\end{pmatrix} || \begin{pmatrix}d&-b\\-c&a\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} || \begin{pmatrix}1&2\end{pmatrix} || \begin{pmatrix}2\\1\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} || \begin{pmatrix}12\end{pmatrix}
\begin{pmatrix} 2\\ -1\\ 0 \end{pmatrix} || \begin{pmatrix} 2\\ 1\\ 0 \end{pmatrix}
\begin{pmatrix} 2\\ -1\\ 0 \end{pmatrix} || \begin{pmatrix} -2\\ 1\\ 0 \end{pmatrix}
systems
x=1, y=2 || x=2, y=1 || x=1, y=-2 || x=1
\begin{cases}x=1\\y=2\end{cases} || \begin{cases}x=2\\y=1\end{cases} || \begin{cases}x=1\\y=-2\end{cases}
\left\{\begin{array}{l}x=1\\y=2\end{array}\right. || \left\{\begin{array}{l}x=2\\y=1\end{array}\right.
\left\{\begin{array}{l}x=1\\y=2\end{array}\right. || \left\{\begin{array}{l}x=1\\y=3\end{array}\right.
\begin{cases}x & x>0\\-x & x<0\end{cases} || \begin{cases}x & x<0\\-x & x>0\end{cases}
\begin{cases}x & x>0\\-x & x<0\end{cases} || \begin{cases}x & x\ge 0\\-x & x<0\end{cases}
f(x)=\begin{cases}1&x>0\\0&x\le 0\end{cases} || f(x)=\begin{cases}1&x\ge 0\\0&x<0\end{cases}
f(x)=\begin{cases}1&x>0\\0&x\le 0\end{cases} || f(x)=\begin{cases}0&x>0\\1&x\le 0\end{cases}
vectors and points
\langle 1,2,3\rangle || \langle 1,3,2\rangle || \langle 1,2,-3\rangle || \langle 1,2\rangle
(1,-2,3) || (1,2,3) || (-1,2,-3) || (3,-2,1)
\vec{a}+\vec{b} || \vec{a}-\vec{b} || \vec{a}\cdot\vec{b} || \vec{b}-\vec{a}
2\mathbf{i}+3\mathbf{j} || 3\mathbf{i}+2\mathbf{j} || 2\mathbf{i}-3\mathbf{j}
\overrightarrow{AB} || \overrightarrow{BA} || \overline{AB} || AB
\left(\frac{1}{2},3\right) || \left(3,\frac{1}{2}\right) || \left(\frac{1}{2},-3\right) || \left(2,3\right)
logarithms
\log_2 x || \log_3 x || \log x^2 || 2\log x
\ln(x+1) || \ln x+1 || \ln(x-1) || \log_2(x+1)
\ln 2 || \ln 3 || -\ln 2 || \ln^2 2
\log_{10} 5 || \log_{5} 10 || \log_{10} 50
x\ln x-x || x\ln x || \ln x-x || x\ln x+x
trigonometry
\sin x || \cos x || \sin(-x) || \sin 2x
\sin^2 x || \sin x^2 || \sin 2x || \cos^2 x
\sin(x+1) || \sin x+1 || \sin(x-1) || \sin(1-x)
\tan\frac{x}{2} || \frac{\tan x}{2} || \tan 2x || \cot\frac{x}{2}
2\sin x\cos x || 2\sin x+\cos x || \sin x\cos x || 2\cos x^2
\arcsin x || \arccos x || \frac{1}{\sin x} || \arctan x
A\sin(\omega t+\varphi) || A\sin(\omega t)+\varphi || A\cos(\omega t+\varphi) || A\sin(\omega t-\varphi)
units
12\,\text{cm} || 12\,\text{m} || 12\,\text{cm}^2 || 21\,\text{cm}
5\text{ m/s} || 5\text{ km/h} || 5\text{ m/s}^2 || 5\text{ m}
9.8\ \mathrm{m/s^2} || 9.8\ \mathrm{m/s} || 8.9\ \mathrm{m/s^2}
24\text{ cm}^3 || 24\text{ cm}^2 || 24\text{ m}^3 || 42\text{ cm}^3
3\text{ hours} || 3\text{ minutes} || 3\text{ days}
6\pi\text{ cm}^2 || 6\text{ cm}^2 || 6\pi\text{ m}^2 || 6\pi^2\text{ cm}
5\text{ apples} || 5\text{ pears} || 6\text{ apples}
2\frac{1}{2}\text{ miles} || 2\frac{1}{2}\text{ km} || 1\text{ mile}
1.5\times 10^{3}\,\text{kg} || 1.5\times 10^{3}\,\text{g} || 1.5\times 10^{-3}\,\text{kg}
degrees
90^\circ || 30^\circ || 9^\circ || 900 || 90^2
60^{\circ} || 120^{\circ} || 6^{\circ} || -60^{\circ}
\angle ABC || \angle ACB || \triangle ABC
30^\circ 15' || 30^\circ 51' || 15^\circ 30'
25^\circ\text{C} || 25^\circ\text{F} || -25^\circ\text{C}
inequalities
x>5 || x<5 || x\ge 5 || x>-5
x\le 3 || x\ge 3 || x<3 || x\le -3
1<x<2 || 1\le x<2 || 1<x\le 2 || -1<x<2
x\neq 1 || x=1 || x\neq -1 || x>1
a\geq b || a\leq b || a>b
x<-1 \text{ or } x>1 || -1<x<1 || x<-1 || x\le -1 \text{ or } x\ge 1
equations
x=5 || y=5 || x=-5 || x=15
y=2x+1 || y=2x-1 || y=x+2 || x=2y+1
x^2+y^2=1 || x^2+y^2=2 || x^2-y^2=1 || x+y=1
\frac{x^2}{4}+\frac{y^2}{3}=1 || \frac{x^2}{3}+\frac{y^2}{4}=1 || \frac{x^2}{4}-\frac{y^2}{3}=1 || \frac{x^2}{4}+y^2=3
x=1\text{ or }x=2 || x=1\text{ or }x=3 || x=1 || x=2
y-3=2(x-1) || y-3=2x-1 || y+3=2(x-1) || y-1=2(x-3)
x=\pm 2 || x=2 || x=-2 || x=\pm 3
V=\frac{4}{3}\pi r^3 || V=\frac{4}{3}\pi r^2 || V=\frac{3}{4}\pi r^3 || V=4\pi r^2
complex numbers
1+2i || 1-2i || 2+i || -1+2i
3i || -3i || 3 || 3+i
e^{i\pi/3} || e^{-i\pi/3} || e^{i\pi/4} || e^{\pi/3}
\bar{z} || z || -z || |z|
\frac{1+i}{2} || \frac{1-i}{2} || 1+\frac{i}{2} || \frac{1}{2}+i
calculus
\frac{dy}{dx} || \frac{dx}{dy} || \frac{y}{x} || \frac{dz}{dx}
\frac{d^2y}{dx^2} || \frac{dy}{dx} || \frac{d^2x}{dy^2}
\int_0^1 x^2 dx || \int_0^2 x^2 dx || \int_0^1 x^3 dx || \int_1^0 x^2 dx
\frac{x^3}{3}+C || \frac{x^3}{3}-x || x^3+C || \frac{x^2}{3}+C
\sum_{i=1}^{n} i || \sum_{i=0}^{n-1} i || \sum_{i=1}^{n} i^2 || \prod_{i=1}^{n} i
\lim_{x\to 0} f(x) || \lim_{x\to 1} f(x) || \lim_{x\to 0} g(x)
\frac{\partial f}{\partial x} || \frac{\partial f}{\partial y} || \frac{\partial g}{\partial x}
\nabla f || \Delta f || \nabla g
counting and numbers
n! || (n-1)! || (2n)! || 2n!
\binom{n}{2} || \binom{2}{n} || \binom{n}{3} || \frac{n}{2}
\binom{5}{2}p^2(1-p)^3 || \binom{5}{2}p^3(1-p)^2 || \binom{5}{3}p^2(1-p)^2
10{,}080 || 10{,}800 || 1080 || -10{,}080
10\,080 || 10.080 || 108\,00
1:2 || 2:1 || 1:3
101_2 || 101_3 || 110_2
50\% || 5\% || 500\% || -50\%
\$5.50 || \$5.05 || \$55
0.\overline{3} || 0.3 || 0.\overline{6}
a\equiv b\pmod 3 || a\equiv b\pmod 5 || a\equiv c\pmod 3
7\times 10^{-4} || 7\times 10^{4} || 7\times 10^{-3}
logic and functions
p\land q || p\lor q || \neg p
p\to q || q\to p || p\leftrightarrow q
x\in A || x\notin A || x\in B
\lfloor x\rfloor || \lceil x\rceil || x
|x-1| || x-1 || |x|-1 || |x+1|
\max(a,b) || \min(a,b) || \max(a,c)
P(A|B) || P(B|A) || P(A) || P(A\cap B)
O(n^2) || O(2n) || O(2^n) || O(n)
H_2O || HO_2 || H_2O_2
texts
\text{yes} || \text{no} || \text{yes and no}
\text{Monday} || \text{Sunday} || \text{not Monday}
increasing || decreasing || not increasing
\text{(B)} || \text{(A)} || \text{(A), (B)}
\text{odd} || \text{even} || \text{neither}
\text{red and blue} || \text{red} || \text{red or blue}
正确 || 错误 || 不正确
3 apples, 2 pears || 2 apples, 3 pears || 3 apples
"""


def lines() -> list[list[str]]:
    """The formulas of each line."""
    return [line.split(" || ") for line in FAMILIES.strip().split("\n") if " || " in line]


GOLDS = [formula for line in lines() for formula in line]
DIFFERENT = [(line[0], other) for line in lines() for other in line[1:]]         # (gold, answer)
