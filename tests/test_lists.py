"""Lists and tables in all their forms: numbering, bullets, arrows, Chinese separators, JSON within prose."""

import json
import time

import pytest

from nanoqwenlong.records import Example
from nanoqwenlong.reward.lists import items
from nanoqwenlong.reward.measures import f1, iou, ndcg, pairwise, sub_em
from nanoqwenlong.rewards import score

# List numbering and bullets: each is the list Oslo, Bern, Rome

CITIES = "Oslo\nBern\nRome"
FORMS = [
    "1.Oslo\n2.Bern\n3.Rome", "(1) Oslo\n(2) Bern\n(3) Rome", "1) Oslo\n2) Bern\n3) Rome", "1)Oslo\n2)Bern\n3)Rome",
    "[1] Oslo\n[2] Bern\n[3] Rome", "a) Oslo\nb) Bern\nc) Rome", "(a) Oslo\n(b) Bern\n(c) Rome",
    "A. Oslo\nB. Bern\nC. Rome", "i. Oslo\nii. Bern\niii. Rome", "I. Oslo\nII. Bern\nIII. Rome",
    "(i) Oslo\n(ii) Bern\n(iii) Rome", "①Oslo\n②Bern\n③Rome", "① Oslo\n② Bern\n③ Rome", "①、Oslo\n②、Bern\n③、Rome",
    "１．Oslo\n２．Bern\n３．Rome", "１、Oslo\n２、Bern\n３、Rome", "1、Oslo\n2、Bern\n3、Rome", "一、Oslo\n二、Bern\n三、Rome",
    "（1） Oslo\n（2） Bern\n（3）Rome", "（一）Oslo\n（二）Bern\n（三）Rome", "第一，Oslo\n第二，Bern\n第三，Rome",
    "第一：Oslo\n第二：Bern\n第三：Rome", "第1名：Oslo\n第2名：Bern\n第3名：Rome", "First: Oslo\nSecond: Bern\nThird: Rome",
    "Firstly, Oslo\nSecondly, Bern\nThirdly, Rome", "1st: Oslo\n2nd: Bern\n3rd: Rome", "-Oslo\n-Bern\n-Rome",
    "•Oslo\n•Bern\n•Rome", "● Oslo\n● Bern\n● Rome", "–Oslo\n–Bern\n–Rome", "· Oslo\n· Bern\n· Rome",
    "* Oslo\n* Bern\n* Rome", "*Oslo\n*Bern\n*Rome", "+ Oslo\n+ Bern\n+ Rome", "- 1. Oslo\n- 2. Bern\n- 3. Rome",
    "**1.** Oslo\n**2.** Bern\n**3.** Rome", "**1. Oslo**\n**2. Bern**\n**3. Rome**",
    "1. **Oslo**\n2. **Bern**\n3. **Rome**", "1 - Oslo\n2 - Bern\n3 - Rome", "1: Oslo\n2: Bern\n3: Rome",
    "> Oslo\n> Bern\n> Rome", "→ Oslo\n→ Bern\n→ Rome", "-> Oslo\n-> Bern\n-> Rome", "1.\tOslo\n2.\tBern\n3.\tRome",
    "1\\. Oslo\n2\\. Bern\n3\\. Rome", "Oslo -> Bern -> Rome", "Oslo → Bern → Rome", "Oslo=>Bern=>Rome",
    "Oslo --> Bern --> Rome", "Oslo ⇒ Bern ⇒ Rome", "Oslo ➔ Bern ➔ Rome", "Oslo > Bern > Rome", "Oslo>Bern>Rome",
    "Oslo->Bern->Rome", "Oslo＞Bern＞Rome", "Oslo ⟶ Bern ⟶ Rome", "Oslo ➜ Bern ➜ Rome", "Oslo —> Bern —> Rome",
    "Oslo >> Bern >> Rome", "Oslo, Bern, Rome", "Oslo, Bern and Rome", "Oslo, Bern, and Rome.", "Oslo、Bern、Rome",
    "Oslo，Bern，Rome", "Oslo、Bern和Rome", "Oslo、Bern 和 Rome", "Oslo、Bern及Rome", "Oslo、Bern与Rome", "Oslo、Bern以及Rome。",
    "Oslo；Bern；Rome", "Oslo; Bern; Rome", "Oslo; Bern; and Rome", "Oslo, Bern & Rome", "1. Oslo 2. Bern 3. Rome",
    "1) Oslo, 2) Bern, 3) Rome", "(1) Oslo; (2) Bern; (3) Rome", "(1) Oslo, (2) Bern and (3) Rome", "①Oslo②Bern③Rome",
    "① Oslo ② Bern ③ Rome", "a) Oslo, b) Bern, c) Rome", "（1）Oslo（2）Bern（3）Rome", "1、Oslo 2、Bern 3、Rome",
    "1. Oslo, 2. Bern, 3. Rome", "1.Oslo 2.Bern 3.Rome", "1. Oslo; 2. Bern; 3. Rome.", '["Oslo", "Bern", "Rome"]',
    "['Oslo', 'Bern', 'Rome']", "(Oslo, Bern, Rome)", "{Oslo, Bern, Rome}", "i) Oslo ii) Bern iii) Rome",
    "一、Oslo 二、Bern 三、Rome", "一、Oslo；二、Bern；三、Rome", "Oslo,\nBern,\nRome", "Oslo;\nBern;\nRome.",
    "`Oslo`\n`Bern`\n`Rome`", '"Oslo"\n"Bern"\n"Rome"', "「Oslo」\n「Bern」\n「Rome」", "1. Oslo;\n2. Bern;\n3. Rome。",
    "❶ Oslo\n❷ Bern\n❸ Rome", "⑴ Oslo\n⑵ Bern\n⑶ Rome", "0. Oslo\n1. Bern\n2. Rome",
    "- [x] Oslo\n- [x] Bern\n- [ ] Rome", "#1 Oslo\n#2 Bern\n#3 Rome", "#1: Oslo\n#2: Bern\n#3: Rome",
    "Rank 1: Oslo\nRank 2: Bern\nRank 3: Rome", "1. Oslo\n\n2. Bern\n\n3. Rome\n", "  1. Oslo\n  2. Bern\n  3. Rome"]


@pytest.mark.parametrize("answer", FORMS)
def test_a_list_may_be_numbered_and_separated_in_any_usual_way(answer):
    assert items(answer, items(CITIES)) == ["oslo", "bern", "rome"]
    assert all(measure(answer, CITIES) == 1 for measure in (f1, sub_em, ndcg, pairwise))
    assert pairwise(answer, "Rome\nBern\nOslo") == 0 and f1(answer, "Paris\nLima\nKyiv") == 0


# List numbering is stripped only if it is consecutive, and items that begin with a number stay whole: (gold, answer)

RIGHT = [
    ("1.5 litres\n2.25 litres", "1、1.5 litres\n2、2.25 litres"), ("1984\n2001", "一、1984\n二、2001"),
    ("1.5 litres\n2.5 litres\n3.5 litres", "1.5 litres\n2.5 litres\n3.5 litres"), ("2.5\n3.5", "2.5\n3.5"),
    ("1984\n3 Idiots\nEmma", "1984\n3 Idiots\nEmma"), ("1984\n3 Idiots\nEmma", "1. 1984\n2. 3 Idiots\n3. Emma"),
    ("1984\n3 Idiots\nEmma", "Emma, 1984, 3 Idiots"), ("7. Symphony\n8. Symphony", "8. Symphony\n7. Symphony"),
    ("7. Symphony\n8. Symphony", "1. 7. Symphony\n2. 8. Symphony"),
    ("A. thaliana\nB. subtilis\nE. coli", "E. coli\nB. subtilis\nA. thaliana"),
    ("A. thaliana\nB. subtilis", "B. subtilis\nA. thaliana"),
    ("A. thaliana\nB. subtilis", "A. thaliana, B. subtilis"), ("-5\n3", "-5\n3"),
    ("第一次世界大战\n第二次世界大战", "第一次世界大战\n第二次世界大战"), ("第一次世界大战\n第二次世界大战", "第一次世界大战和第二次世界大战"), ("和平\n战争", "战争、和平"),
    ("北京\n上海\n广州", "北京、上海和广州"), ("北京\n上海", "北京和上海"), ("北京\n上海", "北京，上海。"), ("p > 0.05\nq", "p > 0.05\nq"),
    ("1\n2\n3", "1, 2, 3"), ("1\n2\n3", "1,2,3"), ("3\n1\n2", "3 > 1 > 2"),
    ("1. FC Köln\nBayern", "1. FC Köln\nBayern"), ("1. FC Köln\nBayern", "1. 1. FC Köln\n2. Bayern"),
    ("AC/DC\nQueen", "Queen, AC/DC"), ("C++\nC#", "C++, C#"), ("vitamin A\nvitamin C", "vitamin A, vitamin C"),
    ("A\nC", "A, C"), ("tea\nsalt", "The tea\na salt"), ("1:30\n2:45", "1:30\n2:45"), ("i\nj", "i, j"),
    ("Smith, John\nDoe, Jane", "Smith, John\nDoe, Jane"), ("first aid\nsecond hand", "first aid, second hand"),
    ("First, Oslo\nx", "First, Oslo\nx"), ("12 Angry Men\n8 Mile", "1. 12 Angry Men\n2. 8 Mile"),
    ("> 5 years\n< 3 years", "> 5 years\n< 3 years"), ("A → B\nC", "A -> B\nC"), ("2.5\n3.5", "2.5, 3.5"),
    ("10,000\n20,000", "10,000, 20,000"), ("①\n②", "①\n②"), ("x\ny", "-x\n-y"), ("-5\n3", "- 5\n- 3")]
WRONG = [
    ("2.5\n3.5", "5\n5"), ("7. Symphony\n8. Symphony", "Symphony\nSymphony"),
    ("1.5 litres\n2 litres", "5 litres\n2 litres"), ("-5\n3", "5\n3"), ("第一次世界大战\n第二次世界大战", "次世界大战\n次世界大战"),
    ("p > 0.05\nq", "p < 0.05\nq"), ("tea\nsalt", "2. tea\n1. salt"), ("tea\nsalt", "1. tea\n1. salt"),
    ("tea\nsalt", "5. tea\n9. salt"), ("C++\nC#", "C, C++"), ("A\nC", "C"),
    ("12 Angry Men\n8 Mile", "Angry Men\nMile"), ("5 years\n3 years", "> 5 years\n> 3 years"),
    ("tea\nsalt", "① tea\n③ salt"), ("Oslo\nBern", "1. Oslo\n3. Bern"), ("Oslo\nBern", "b) Oslo\nc) Bern"),
    ("Oslo\nBern", "一、Oslo\n三、Bern"), ("7. Symphony\nRequiem", "5. Symphony\nRequiem"), ("5 litres\ntea",
    "1.5 litres\ntea")]


@pytest.mark.parametrize("gold, answer", RIGHT)
def test_the_same_items(gold, answer):
    assert f1(answer, gold) == f1(gold, gold) == 1


@pytest.mark.parametrize("gold, answer", WRONG)
def test_not_the_same_items(gold, answer):
    assert f1(answer, gold) < 1


# A fenced table with prose around it

TABLE = '{"data": [["Oslo", 709000], ["Bergen", 289000]]}'
OTHER = '{"data": [["Oslo", 1], ["Lima", 2]]}'
FENCED = f"```json\n{TABLE}\n```"
PRETTY = json.dumps(json.loads(TABLE), indent=2)


def reward(text: str, gold: str = TABLE) -> float:
    return score(f"<think>x</think>{text}", Example("e", "", "q", gold, "iou")).reward


@pytest.mark.parametrize("text", [
    TABLE, FENCED, f"Here is the table:\n\n{FENCED}", f"Here is it:\n{FENCED}\nAll figures are from the text.",
    f"[Answer]\n{FENCED}\n\nI took the figures from section [2].", f"[Answer]\nThe table:\n{FENCED}",
    f"<answer>\nThe table:\n{FENCED}\n</answer>", f"Table:\n```json\n{TABLE}```", f"Sure!\n\n{TABLE}",
    f"The answer is {TABLE}.",
    f"``` json\n{TABLE}\n```", f"```json {TABLE} ```", f"```JSON\n{PRETTY}\n```", f"~~~\n{TABLE}\n~~~",
    f"如下表所示：\n{FENCED}\n完。",
    f"See [1] and [2, 3].\n{TABLE}\nThe row [\"Oslo\", 709000] is from page [4].",
    f"Not {OTHER}, but this one:\n{FENCED}",
    f"Set {{x | x > 1}} [sic].\n{TABLE}", TABLE.removeprefix('{"data": ').removesuffix("}"),
    f"<answer>{TABLE}</answer>"])
def test_the_last_complete_table_counts_whatever_is_around_it(text):
    assert reward(text) == 1


@pytest.mark.parametrize("text", [
    f"{FENCED}\nNo, it is this one:\n{OTHER}", f"{TABLE}\nor\n{OTHER}", TABLE[:-1], TABLE[:-2], PRETTY[:-2],
    f"```json\n{TABLE[:-1]}\n```",
    f"```json\n{PRETTY[:-1]}```\nThat is all.", TABLE.replace("data", "rows"),
    TABLE.replace('"', "'"), "Oslo 709000, Bergen 289000",
    '["Oslo", 709000]', f"I give up: {{}} {OTHER}", f"<answer>{OTHER}</answer>", "[1]", f"</think>{TABLE}<think>"])
def test_another_table_an_incomplete_one_or_none_earns_nothing(text):
    assert reward(text) == 0


def test_lists_in_prose_are_tables_only_if_there_is_no_other():
    assert iou("The empty table: []", "[]") == 1 and iou("The answer [1] is: [[2], [3]]", "[[2], [3]]") == 1
    assert iou('["a", "b"]', '[["a"], ["b"]]') == 1 and iou('["a", "b"] and [["c"]]', '["a", "b"]') == 0


# Long lines: each item is normalised once or twice, so a line of garbage takes a second or two

@pytest.mark.parametrize("item", ["({}) ", "[{}, ", "{},", "- {}\n", "a{}, ", "①", "first, "])
def test_a_line_of_many_items_takes_no_longer_than_its_length(item):
    text = "".join(map(item.format, range(50_000)))[:50_000]
    start = time.process_time()
    items(text, ["a"])
    assert time.process_time() - start < 2.5


@pytest.mark.parametrize("answer, same", [
    ("‣ tea\n‣ 10%", True), ("🔹 tea\n🔹 10%", True), ("※tea\n※10%", True), ("A.tea\nB.10%", True),
    ("❶ tea\n❷ 10%", True), ("A.tea\nC.10%", False), ("1.tea\n2.10%", False)])      # a decimal stays intact
def test_list_numbering_and_bullets_of_any_symbol(answer, same):
    assert (items(answer, ["tea", "10 percent"]) == ["tea", "10 percent"]) == same
