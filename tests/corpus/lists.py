"""Right and wrong lists, rankings and tables, in English and Chinese: numbering, bullets, separators, fences, prose."""

import json

from .case import Case, bare, said

LISTS = [  # items in the right order, and as many others
    ("hemp rope;cane sugar;glass beads;goat hides", "raw silk;olive oil;pine tar;oak barrels"),
    ("Oslo;Bern;Rome;Kyiv;Lima", "Paris;Cairo;Tokyo;Quito;Minsk"),
    ("1.5 litres;2.25 litres;40 grams;7 hours", "1.6 litres;225 litres;4 grams;70 hours"),
    ("Marie Curie;Niels Bohr;Enrico Fermi", "Albert Einstein;Lise Meitner;Otto Hahn"),
    ("7. Symphony;Requiem;The Planets", "5. Symphony;Mass;The Seasons"),
    ("1984;Fahrenheit 451;Catch-22", "2001;Slaughterhouse-Five;Ulysses"),
    ("北京;上海;广州;深圳", "天津;重庆;南京;武汉"),
    ("秦始皇;汉武帝;唐太宗", "宋太祖;明太祖;清世祖"),
    ("长江;黄河;珠江;淮河;海河", "辽河;松花江;塔里木河;雅鲁藏布江;澜沧江"),
    ("人工智能;量子计算;基因编辑", "区块链;虚拟现实;脑机接口"),
]
ROMAN = "i ii iii iv v vi".split()
HAN = "一二三四五六"
NUMBERED = [  # how the k-th line begins
    lambda k: f"{k + 1}. ",
    lambda k: f"{k + 1}.",
    lambda k: f"{k + 1}) ",
    lambda k: f"({k + 1}) ",
    lambda k: f"[{k + 1}] ",
    lambda k: f"{k + 1}、",
    lambda k: f"{k + 1}．",
    lambda k: f"{chr(0xFF11 + k)}．",
    lambda k: f"（{k + 1}）",
    lambda k: f"{'abcdef'[k]}) ",
    lambda k: f"{'abcdef'[k]}. ",
    lambda k: f"({'abcdef'[k]}) ",
    lambda k: f"{ROMAN[k]}. ",
    lambda k: f"{ROMAN[k]}) ",
    lambda k: f"({ROMAN[k]}) ",
    lambda k: f"{ROMAN[k].upper()}. ",
    lambda k: f"{chr(0x2460 + k)} ",
    lambda k: chr(0x2460 + k),
    lambda k: f"{HAN[k]}、",
    lambda k: f"（{HAN[k]}）",
    lambda k: f"第{HAN[k]}、",
    lambda k: "- ",
    lambda k: "* ",
    lambda k: "• ",
    lambda k: "•",
    lambda k: "· ",
    lambda k: "– ",
    lambda k: "  - ",
    lambda k: f"**{k + 1}.** ",
    lambda k: f"{k + 1}: ",
    lambda k: "+ ",
]
ONE_LINE = [", ", "; ", "、", "，", "；", " → ", " -> ", "->", " => ", " > ", " --> ", "→", " ⇒ ", "; \n"]


def of_lists() -> tuple[list[Case], list[Case]]:
    hostile, true = [], []
    for number, (good, bad) in enumerate(LISTS):
        items, others = good.split(";"), bad.split(";")
        gold, chinese = "\n".join(items), number >= 6
        right = [
            "\n".join(begin(k) + item for k, item in enumerate(items))
            for begin in NUMBERED
            if not (items[0][0].isdigit() and begin(0)[-1] in ".、．")
        ]  # "1.1.5 litres"
        right += [mark.join(items) for mark in ONE_LINE]
        right += [
            f"\n\n{gold}\n",
            gold.replace("\n", "\n\n"),
            "\n".join(f"{item}{'。' if chinese else '.'}" for item in items),
        ]
        right += [
            "、".join(items[:-1]) + "和" + items[-1] + "。"
            if chinese
            else ", ".join(items[:-1]) + f", and {items[-1]}."
        ]
        mixed = [*others, items[-1]]
        wrong = ["\n".join(begin(k) + item for k, item in enumerate(others)) for begin in NUMBERED[::2]]
        wrong += [mark.join(mixed) for mark in ONE_LINE[:6]] + [" ".join(items), "".join(items)]
        wrong += [
            "\n".join(f"{'不是' if chinese else 'not '}{item}" for item in items),
            "\n".join(f"{k + 1}" for k in range(len(items))),
            "\n".join(begin(k) for k, begin in enumerate(NUMBERED[:4])),
            "\n".join(f"{item}{'或' if chinese else ' or '}{other}" for item, other in zip(items, others)),
            ", ".join(others),
            "\n".join(item[:-1] for item in items),
        ]
        question = "按顺序列出。" if chinese else "List them in order."
        for place, answer in enumerate(right):
            task = ("f1", "sub_em", "ndcg", "pairwise")[(place + number) % 4]
            for response in (bare(answer), said("\n" + answer, place, chinese)):
                true.append(Case(task, question, "", gold, response))
        for place, answer in enumerate(wrong):
            for task in ("f1", "sub_em", "ndcg"):
                hostile.append(
                    Case(task, question, "", gold, bare(answer) if place % 2 else said("\n" + answer, place, chinese))
                )
        backwards = [items[::-1], items[:1], items[:1] * 5]
        hostile += [
            Case("pairwise", question, "", gold, form("\n".join(begin(k) + item for k, item in enumerate(order))))
            for order in backwards
            for begin in NUMBERED[:6]
            for form in (bare, lambda text: said("\n" + text, 1, chinese))
        ]
    return hostile, true


TABLES = [
    ([["Oslo", 709000], ["Bergen", 289000]], [["Oslo", 907000], ["Bergen", 298000]]),
    ([["2019", "12.5%", "up"], ["2020", "-3.1%", "down"]], [["2019", "12.5%", "down"], ["2020", "3.1%", "up"]]),
    ([["北京", 2189], ["上海", 2487]], [["北京", 2487], ["上海", 2189]]),
    ([["甲公司", "1.2亿元"], ["乙公司", "3500万元"]], [["甲公司", "1.2万元"], ["乙公司", "3500亿元"]]),
]
WRAPPED = [
    "{}",
    "```json\n{}\n```",
    "Here is the table:\n\n```json\n{}\n```",
    "```json\n{}\n```\nAll figures are from the text.",
    "Here is the table:\n```\n{}\n```\nI took the figures from section 2.",
    "[Answer]\n```json\n{}\n```\n\nSee section 2.",
    "[Answer]\nThe table:\n```json\n{}\n```",
    "<answer>\nThe table:\n```json\n{}\n```\n</answer>",
    "<answer>{}</answer>",
    "Table:\n```json\n{}```",
    "Sure!\n\n{}",
    "``` json\n{}\n```",
    "```json {} ```",
    "```JSON\n{}\n```",
    "表格如下：\n\n```json\n{}\n```",
    "【答案】\n```json\n{}\n```",
    "答案：\n{}",
    "以下是表格：\n{}\n以上数据来自原文。",
    "The final answer is:\n```json\n{}\n```",
    "~~~json\n{}\n~~~",
]


def of_tables() -> tuple[list[Case], list[Case]]:
    hostile, true = [], []
    for rows, wrong in TABLES:
        gold = json.dumps({"data": rows})
        for place, form in enumerate(WRAPPED):
            for table in (rows, {"data": rows}, [rows[1], rows[0]]):
                for indent in (None, 2) if place < 4 else (None,):
                    text = json.dumps(table, ensure_ascii=place % 2 == 0, indent=indent)
                    true.append(Case("iou", "Give the table.", "", gold, bare(form.format(text))))
            for table in (
                wrong,
                {"data": wrong},
                [row[::-1] for row in rows],
                [row[:1] for row in rows],
                [],
                rows + wrong * 4,
            ):
                hostile.append(Case("iou", "Give the table.", "", gold, bare(form.format(json.dumps(table)))))
        hostile += [
            Case("iou", "Give the table.", "", gold, bare(text))
            for text in (f"not {json.dumps(wrong)}", f"First {gold}, but finally:\n```json\n{json.dumps(wrong)}\n```")
        ]
    return hostile, true


PARTS = [of_lists(), of_tables()]
HOSTILE = [case for hostile, _ in PARTS for case in hostile]
TRUE = [case for _, true in PARTS for case in true]
