"""Multiple choice: answers that choose B, answers that choose nothing, and golds that look like an option."""

import pytest

from nanoqwenlong.records import Example
from nanoqwenlong.reward.measures import accuracy
from nanoqwenlong.reward.options import choice, gold_choice
from nanoqwenlong.rewards import TASKS, gold_problem, score

# Multiple choice: echoes of all options, hedges, negations and corrections choose nothing

CHOOSE_B = [
    "B", "(B)", "b", "[B]", "【B】", "（B）", "Ｂ", "B.", "B)", "B:", "B,", "B，", "B。", "B、", "B；", "(B).", "(B),",
    "**B**", "**B.** Bananas", "**B**: Bananas", "B) **Bananas**", "B) 7", "B - x", "(B), 5", "B. 5", "B: x", "(B) 7",
    "B、香蕉", "B，香蕉", "B。香蕉", "B：香蕉", "（B）香蕉", "【B】香蕉", "选B", "选 B", "选项B", "选项 B", "应选B", "应该选B", "选B、香蕉", "选择B", "B项",
    "B选项", "B: Bananas", "B — Bananas", "B – Bananas", "B—Bananas", "B - Bananas", "B- Bananas", "B -- Bananas",
    "B, Bananas", "(B), Bananas", "(B): Bananas", "(B) - Bananas", "(B) Bananas", "[B] Bananas", "option B",
    "Option (B)", "choice B: Bananas", "B because it says so", "(B), because I think so", "B，因为文中说了", "B因为文中说了",
    "(B) because the log says so", "B) Not disclosed", "B) No change in revenue", "B. None of the above",
    "(B) Both A and C", "B. All of A, B and C", "B) Neither A nor C", "B、以上都是", "B. A和C都对", "B) is the year 1999",
    "(B): the U.S. bank", "(B) It was sold in 1999.", "(B) is liable for all damages", "B) Vitamin C", "(B) Plan A",
    "B) Hepatitis C virus", "B) E. coli", "(B) C. Darwin", "(B) John F. Kennedy", "B. John F. Kennedy", "B) C++",
    "B) C#", "B) D-Day landings", "B) A dog", "B. An apple", "B) I think, therefore I am", "B. False", "B) True",
    "B: 3/4", "B: -5", "B) x + y", "B) May 2010", "B is correct", "(B) is correct", "(B) is the right answer",
    "B是正确的", "B 是正确答案", "B) $5.20", "B. 《红楼梦》", "B. 正确", "B. 错误", "B、不能确定", "B) 维生素C", "B) 方案A", "(B) Côte d'Ivoire",
    "B) B. Bananas", "B: option B", '"B"', "'B'", "\\text{B}", "$B$", "\\(B\\)", "B) To be or not to be",
    "B) Wait for approval", "B. The company may terminate", "B. Probably the largest",
    "(B) Actually existing socialism", "B)Bananas", "B.Bananas", "B.香蕉", "B)香蕉", "(B)香蕉", "(b) bananas", "b. bananas",
    "b: bananas", 'B) "Bananas"', "B) Bananas and cherries", "B) He said no.", "B) It cannot be determined",
    "B. It is not mentioned", "B) Could not load", "B. 或然率", "B) 和平", "B. A 30-year lease", "(B) A$5 note",
    "B. A cat"]
CHOOSE_NOTHING = [
    "A) b", "A: c", "B - d",
    "Bananas", "Both", "A or B", "A, B", "A and B", "(A) or (B)", "A/B", "A-B", "A & B", "AB", "ABCD", "A B",
    "(A)(B)(C)(D)", "A) B) C) D)", "A. B. C. D.", "A) Apples B) Bananas", "A) Apples, B) Bananas", "(A): B", "A: B",
    "A.B", "A、B", "A、B、C", "A和B", "A或B", "A，B", "(A) (B)", "【A】【B】", "B, C and D", "(A) yearly (b) monthly",
    "(a) yearly (b) monthly (c) weekly (d) never", "a) monthly or b) weekly", "A: B, C, D", "A. maybe b",
    "(B) cannot be right", "(B) has been ruled out", "B. No, C", "A) no", "B, no, C", "B — no, C", "B. Wait, C",
    "B, wait, it is C", "B... actually C", "B, actually C", "B, sorry, C", "(B)? No, (C)", "A or not", "(A) or B",
    "(A), or maybe B", "(A) to D", "(A) is wrong", "(A) is not correct", "A) isn't right", "(A) isn't right", "A?",
    "(A) but not sure", "not B", "not (B)", "B不对", "B不是", "B是错的", "B错", "(B)错", "B 是错误的", "B不正确", "(B)不对",
    "B，不对，应该是C", "B，应该是C", "B、也可能是C", "B也可能", "B或C", "B，或者C", "B或者C", "B还是C", "不是B", "不选B", "B不对，选C",
    "A. Apples B. Bananas", "A. Apples; B. Bananas", "A. Apples C. Cherries D. Dates", "A: Apples B: Bananas",
    "A、苹果 B、香蕉", "A、苹果；B、香蕉", "A. 苹果 B. 香蕉", "A：苹果，B：香蕉", "（A）苹果（B）香蕉", "A）苹果 B）香蕉", "A) monthly, b) weekly",
    "A - Apples, B - Bananas", "[A] Apples [B] Bananas", "B) Bananas or C", "B) Bananas, or possibly C",
    "(B) Bananas (or C)", "(B) or C", "(B) and (C)", "B, but C is possible too", "B, C", "B; C", "B: maybe",
    "B, perhaps", "(B) might be right", "(B) may be right", "(B) could be", "(B) may or may not be right",
    "(B) is not the answer", "(B) is out", "B is incorrect", "(B) can't be right", "(B) was excluded",
    "(B) seems wrong", "B. Not C", "B. not C", "B) nope", "B) wrong", "(B) Bananas is wrong",
    "(B) Bananas. No, wait, cherries", "(B) Bananas — wrong", "B, not sure", "B，不确定是不是C", "B可能", "B 或 D", "选B或C",
    "选B和C", "B与C", "B及C", "B vs C", "B then C", "B rather than C", "B) should be C", "B: change to C", "B -> C",
    "B→C", "B? C!", "first B then C", "B. On second thought C", "B. On second thought, C", "B. Correction: C",
    "B, I mean C", "B, make that C", "B. It's C", "B — I meant C", "B. My final choice: C", "B, my answer is C",
    "B. The correct one: C"]


@pytest.mark.parametrize("answer", CHOOSE_B)
def test_a_letter_may_be_followed_by_its_option(answer):
    assert choice(answer) == "B" and accuracy(answer, "B") and not accuracy(answer, "C")


@pytest.mark.parametrize("answer", CHOOSE_NOTHING)
def test_what_names_several_letters_or_rejects_one_chooses_nothing(answer):
    assert choice(answer) == "" and not any(accuracy(answer, gold) for gold in "ABCD")


@pytest.mark.parametrize("task", ["choice", "accuracy"])
def test_options_in_whole_responses(task):
    def reward(text: str) -> float:
        return score(f"<think>A?</think>{text}", Example("e", "", "q", "B", task)).reward
    assert all(reward(text) == 1 for text in ("The answer is **B**.", "答案：B、香蕉", "【答案】（B）", "The answer is (B) — x",
                                              "The answer is B，香蕉。"))
    assert all(reward(text) == 0 for text in ("The answer is A.", "The answer is B or C.", "答案：B或C", "答案：不是B",
                                              "The answer is (B) cannot be right.", "【答案】A、B"))


# An initial in a gold text is not an option letter

@pytest.mark.parametrize("gold", ["E. coli", "C. Darwin", "J. K. Rowling", "A. thaliana", "B-52", "D-Day",
                                  "I, Claudius",
                                  "A dog", "E.coli", "A, C", "C. elegans", "D — Day", "F. 肖邦", "A、C"])
def test_a_gold_text_that_begins_with_a_letter_is_a_text(gold):
    assert gold_choice(gold) == "" and accuracy(gold, gold) and gold_problem("accuracy", gold) == ""
    for wrong in (gold[0], f"({gold[0]})", f"{gold[0]}.", f"{gold[0]}. other"):
        assert not accuracy(wrong, gold), wrong


@pytest.mark.parametrize("gold", ["B", "(B)", "b.", "B) Bananas", "(B) Bananas", "B: Bananas", "【B】", "选项B", "B。",
                                  "（B）香蕉", "B、香蕉"])
def test_a_gold_letter_is_a_letter(gold):
    assert gold_choice(gold) == "B" and accuracy("B", gold) and accuracy("(b) Bananas", gold)
    assert not accuracy("C", gold) and not accuracy("Bananas", gold) and gold_problem("choice", gold) == ""
    assert TASKS["choice"].measure("B", gold) and not TASKS["choice"].measure("A", gold)


@pytest.mark.parametrize("text, letter", [
    ("letter B", "B"), ("{B}", "B"), ("《B》", "B"), ("B 香蕉", "B"), ("B. I, II and III", "B"),
    ("B 或 C", ""), ("B 不对", ""), ("B, although C is better", ""), ("B. I or C", ""), ("B Bananas", "")])
def test_multiple_choice_letters_before_chinese_text_and_other_brackets(text, letter):
    assert choice(text) == letter
