"""Rows of verl, as DocQA-RL-1.6K and GoLongRL are released. docs/data.md shows one."""

import re

from ..errors import DataError
from ..records import Example
from ..reward.tasks import LISTS, SINGLE, TASKS, extract
from . import fields

PARTS = {"docmath": "number", "long_toc_choices": "choice", "multihoprag": "qa", "musique": "qa",
         "math_longcot_math_verify": "math"}                           # the task, if data_source contains this
SOURCES = {"EM": "em", "selection": "accuracy", "multitableqa_pretraining": "iou"}
GOLONGRL = [                                                           # task, measure, ability, sub-tasks
    ("em", "EM", "Precise Long-Range Information Retrieval", ""),
    ("accuracy", "Accuracy", "Evidence-Grounded Comprehension and Reasoning", "T3.1 T3.2 T11.1 T11.2"),
    ("f1", "F1_Score", "High-Recall Exhaustive Retrieval and Verification", "T5.1 T5.2 T6.2 T7.1 T7.2 T7.3 T9.1 T9.2"),
    ("math", "math_verify", "Numerical Extraction and Quantitative Reasoning", ""),
    ("iou", "IoU", "Multi-Table Structured Extraction", ""),
    ("sub_em", "SubEM", "Fragment-Level Structured Matching and Induction", "T6.1 T8.1 T8.2 T8.3 T10.1 T10.2"),
    ("ndcg", "NDCG", "Dimension-Quantified Retrieval and Graded Ranking", "T1.1 T1.2"),
    ("pairwise", "Pairwise_Accuracy", "Sequence Reconstruction and Ordering", "T2.1 T2.2 T6.3"),
    ("rouge_l", "Summary", "Long Document Summarization", "T4.1 T4.2"),
]
MODES = {name: task for task, measure, _, subtasks in GOLONGRL for name in (measure, *subtasks.split())}
ABILITIES = {ability: task for task, _, ability, _ in GOLONGRL}


def read(row: dict) -> Example:
    """DocQA's gold answer is a sentence, parsed like any answer. GoLongRL's is an object, or a list that ends with one:
    `doc_ids` holds a list's items, a summary's references, or longbench_pro's answer, `golden_label` any other one."""
    row = fields.without_nulls(row)
    source, messages = fields.text(row, "data_source"), fields.chat(row, "prompt")
    task = _task(row, source)
    name = "reward_model.ground_truth"
    gold = fields.at(row, name)
    if isinstance(gold, list):
        name, gold = fields.items(gold, name)[-1]
    if isinstance(gold, dict):
        has_items = source == "longbench_pro" or task in (*LISTS, "rouge_l")
        field = "doc_ids" if has_items else "golden_label"
        name, gold = f"{name}.{field}", fields.at(gold, field, under=f"{name}.")
    else:
        fields.written(gold, name)
    if task in SINGLE and isinstance(gold, list) and len(gold) > 1:
        raise DataError(f'"{name}" holds {len(gold)} answers; the task {task} takes one')
    if task in SINGLE and isinstance(gold, str):
        gold = extract(f"</think>{gold}", task) or gold        # without a statement, the whole text counts
    index = fields.id_of(row, "extra_info.index")
    question = fields.question_of(row, messages, "extra_info.question", "extra_info.input_question")
    return Example(fields.id_of(row) or (f"{source}/{index}" if index else ""), "", question,
                   fields.golds(gold, name, task), task, messages, source=source)


def _task(row: dict, source: str) -> str:
    """The task that data_source names. "longbench_pro" leaves it to reward_mode (a sub-task's number, or a measure), or
    else to ability. A misspelt name must not become a task."""
    if "task" in row:
        return fields.one_of(TASKS, fields.text(row, "task"), "task")
    if source != "longbench_pro":
        field, tasks = "data_source", {**PARTS, **SOURCES, "longbench_pro": ""}         # the last is for the error
        name = next((part for part in PARTS if part in source), source)
    elif fields.at(row, "extra_info.reward_mode", None) is not None:
        field, tasks = "extra_info.reward_mode", MODES
        mode = fields.text(row, field)
        number = re.sub(r"^(T\d+\.\d+) .*", r"\1", mode)
        name = number if number in MODES else mode
    else:
        field, tasks, name = "ability", ABILITIES, fields.text(row, "ability")
    return tasks[fields.one_of(tasks, name, field)]
