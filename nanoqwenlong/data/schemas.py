"""What a row of data means: one function per schema, from the fields of a row to an Example. No files here (data.py).

    {"id": "q1", "context": "...", "question": "...", "answer": "Oslo"}             a question about a document
    {"prompt": "..." or [{"role": "user", "content": "..."}, ...], "answer": ...}   a prompt, left as it is
    {"data_source": ..., "prompt": [...], "reward_model": {"ground_truth": ...}}    verl: DocQA-RL-1.6K, GoLongRL
    {"prompt": ..., "completion": ...}, {"messages": [...]}                         TRL, for supervised fine-tuning
    {"text": "..."}                                                                 language modelling

and of the benchmarks that QwenLong-L1 is evaluated on, as they are released:

    {"input": "...", "context": "...", "answers": ["Oslo"], "dataset": "hotpotqa", "_id": ...}  LongBench's
    {"Prompt": "...", "Answer": "...", "wiki_items": [{"title": "...", "text": "..."}]}         Frames, with its pages
    {"question_id": ..., "question": "...", "paragraphs": ["..."], "ground_truth": 20.4}        DocMath-Eval

`document` may stand for `context`. `id` may be missing. `task`, "qa" if missing, says how an answer is rewarded
(rewards.TASKS). `response` is a worked answer to learn from, its thinking included. `source` names the benchmark that
a row belongs to. Other fields are ignored.

An `answer` is text, or a list of accepted texts. Where the task is one of rewards.LISTS it is a list of items, or text
with an item a line; for iou it is a table, as JSON or as text that holds JSON. A number is written as text, for its
digits count: 4.50 says more than 4.5. An answer that its own measure would not find right is refused.
"""

import json
import re

from .. import rewards
from ..errors import DataError
from ..records import Example
from ..reward import answers
from .prompt import question_in

ROLES = ("system", "user", "assistant")
SINGLE = ("qa", "number", "choice", "em", "accuracy", "math")                  # tasks whose answer is one value

# verl's data_source says what the task is. In GoLongRL "longbench_pro" leaves that to extra_info.reward_mode, which is
# a sub-task of the benchmark (by its number) or a measure, and without that to ability.
PARTS = {"docmath": "number", "long_toc_choices": "choice", "multihoprag": "qa", "musique": "qa",
         "math_longcot_math_verify": "math"}
SOURCES = {"EM": "em", "selection": "accuracy", "multitableqa_pretraining": "iou"}
GOLONGRL = [("em", "EM", "Precise Long-Range Information Retrieval", ""),
            ("accuracy", "Accuracy", "Evidence-Grounded Comprehension and Reasoning", "T3.1 T3.2 T11.1 T11.2"),
            ("f1", "F1_Score", "High-Recall Exhaustive Retrieval and Verification",
             "T5.1 T5.2 T6.2 T7.1 T7.2 T7.3 T9.1 T9.2"),
            ("math", "math_verify", "Numerical Extraction and Quantitative Reasoning", ""),
            ("iou", "IoU", "Multi-Table Structured Extraction", ""),
            ("sub_em", "SubEM", "Fragment-Level Structured Matching and Induction", "T6.1 T8.1 T8.2 T8.3 T10.1 T10.2"),
            ("ndcg", "NDCG", "Dimension-Quantified Retrieval and Graded Ranking", "T1.1 T1.2"),
            ("pairwise", "Pairwise_Accuracy", "Sequence Reconstruction and Ordering", "T2.1 T2.2 T6.3"),
            ("rouge_l", "Summary", "Long Document Summarization", "T4.1 T4.2")]
MODES = {name: task for task, measure, _, subtasks in GOLONGRL for name in (measure, *subtasks.split())}
ABILITIES = {ability: task for task, _, ability, _ in GOLONGRL}


def parse(row: dict) -> Example:
    """The example that a row is; its id is "" if the row has none. Raises DataError without the place: the caller knows
    it."""
    has_document = "context" in row or "document" in row
    if "reward_model" in row:
        schema = verl
    elif has_document and "question" in row:
        schema = question
    elif has_document and ("input" in row or "answers" in row):
        schema = longbench
    elif "wiki_items" in row or "Prompt" in row:
        schema = frames
    elif "paragraphs" in row or "ground_truth" in row:
        schema = docmath
    elif "messages" in row:
        schema = conversation
    elif "completion" in row:
        schema = completion
    elif "prompt" in row and not has_document:
        schema = verl if "data_source" in row and "answer" not in row else prompt
    else:
        schema = page if "text" in row and "question" not in row else question
    return schema(row)


def row(example: Example) -> dict:
    """The row that `parse` reads as this example."""
    source = {"source": example.source} if example.source else {}
    if example.task == "text":
        return {"id": example.id, "text": example.document, **source}
    asked = {"context": example.document, "question": example.question} if not example.messages else {
        "prompt": [{"role": role, "content": content} for role, content in example.messages],
        **({"question": example.question} if example.question else {})}
    answer = {"answer": example.answer} if example.answer else {}
    response = {"response" if example.answer else "completion": example.response} if example.response else {}
    return {"id": example.id, **asked, **answer, "task": example.task, **response, **source}


# Schemas

def question(row: dict) -> Example:
    document = _text(row, "document" if "document" in row else "context")
    return _example(row, document=document, question=_text(row, "question"))


def prompt(row: dict) -> Example:
    return _example(row, messages=_prompt(row))


def completion(row: dict) -> Example:
    """TRL's prompt and completion; with an answer it can be rewarded as well."""
    messages, turns = _prompt(row), _messages(row, "completion", "assistant")
    if len(turns) != 1 or turns[0][0] != "assistant":
        raise DataError('"completion" should be a string, or one turn of the assistant')
    return _example(row, messages=messages, response=turns[0][1])


def conversation(row: dict) -> Example:
    """TRL's messages: the last turn is the response, those before it are its prompt."""
    turns = _messages(row, "messages")
    if [role for role, _ in turns[-2:]] != ["user", "assistant"]:
        raise DataError('"messages" should end with a turn of the user and one of the assistant, the response')
    return _example(row, messages=turns[:-1], response=turns[-1][1])


def page(row: dict) -> Example:
    return Example(_id(row, "id", ""), _text(row, "text"), question="", answer="", task="text", source=_source(row))


def _example(row: dict, document: str = "", question: str = "", messages=(), response: str = "") -> Example:
    """A row with an answer; one with a response need not have it."""
    task = _task(row)
    answer = "" if response and "answer" not in row else _golds(_at(row, "answer"), "answer", task)
    response = response or (_text(row, "response") if "response" in row else "")
    return Example(_id(row, "id", ""), document, question or _asked(row, messages, "question"), answer, task, messages,
                   response, source=_source(row))


def verl(row: dict) -> Example:
    """A row of DocQA-RL-1.6K or GoLongRL. The prompt is kept word for word: each asks for its own form of answer.

    DocQA's gold answer is a sentence ("Therefore, the answer is Oslo"), parsed like any answer. GoLongRL's is an
    object, or a list that ends with one: for longbench_pro `doc_ids` has the items of a list, the references of a
    summary, or one answer; for the others `golden_label` has it. `summary` names a language, which nothing needs."""
    row = without_nulls(row)
    source, messages = _text(row, "data_source"), _prompt(row)
    task, name, gold = _verl_task(row, source), "reward_model.ground_truth", _at(row, "reward_model.ground_truth")
    if isinstance(gold, list) and gold:
        name, gold = f"{name}[{len(gold) - 1}]", gold[-1]
    if isinstance(gold, dict):
        field = "doc_ids" if source == "longbench_pro" or task in (*rewards.LISTS, "rouge_l") else "golden_label"
        name, gold = f"{name}.{field}", _at(gold, field, under=f"{name}.")
    else:
        _string(gold, name)
    if task in SINGLE and isinstance(gold, str):
        gold = rewards.extract(f"</think>{gold}", task) or gold                          # a bare one is taken as it is
    if task in SINGLE and isinstance(gold, list) and len(gold) > 1:
        raise DataError(f'"{name}" holds {len(gold)} answers; for {task} there is one')
    index = _id(row, "extra_info.index", "")
    return Example(_id(row, "id", f"{source}/{index}" if index else ""), "",
                   _asked(row, messages, "extra_info.question", "extra_info.input_question"),
                   _golds(gold, name, task), task, messages, source=source)


def _verl_task(row: dict, source: str) -> str:
    """A name that nobody knows is an error; taken as it is, a misspelt one would be a task of its own."""
    if "task" in row:
        return _task(row)
    if source != "longbench_pro":
        field, value, known = "data_source", source, [*PARTS, *SOURCES, "longbench_pro"]
        task = SOURCES.get(source) or next((task for part, task in PARTS.items() if part in source), None)
    elif _at(row, "extra_info.reward_mode", None) is not None:
        field, value, known = "extra_info.reward_mode", _text(row, "extra_info.reward_mode"), MODES
        task = MODES.get(re.sub(r"^(T\d+\.\d+) .*", r"\1", value))
    else:
        field, value, known = "ability", _text(row, "ability"), ABILITIES
        task = ABILITIES.get(value)
    if task is None:
        raise DataError(f'"{field}" is {value[:40]!r}, which names no task; known are {", ".join(known)}')
    return task


# Benchmarks

def longbench(row: dict) -> Example:
    """A row of LongBench. Any of the references will do, where its authors' measures and ours take the best one."""
    references = _at(row, "answers")
    if not isinstance(references, list):
        raise DataError(f'"answers" should be a list, it is {kind(references)}')
    return Example(_id(row, "_id", ""), _text(row, "context"), _text(row, "input"),
                   _references(references, "answers[{}]"), source=_text(row, "dataset") if "dataset" in row else "")


def frames(row: dict) -> Example:
    """A row of Frames that carries the texts of its Wikipedia pages; as released it has only links to them."""
    pages = _at(row, "wiki_items")
    if not isinstance(pages, list) or not pages:
        raise DataError(f'"wiki_items" should be a list of pages, it is {"empty" if pages == [] else kind(pages)}')
    document = "\n".join(f"{_text(page, 'title', name)}\n{_text(page, 'text', name)}"
                         for name, page in ((f"wiki_items[{i}].", page) for i, page in enumerate(pages)))
    (gold,) = _references([_text(row, "Answer")], "Answer")
    return Example(_id(row, "id", ""), document, _text(row, "Prompt"), gold, source="frames")


def docmath(row: dict) -> Example:
    """A row of DocMath-Eval. A number may be near its gold answer, all else has to be the same."""
    paragraphs, gold = _at(row, "paragraphs"), _at(row, "ground_truth")
    if not isinstance(paragraphs, list) or not all(isinstance(paragraph, str) for paragraph in paragraphs):
        raise DataError('"paragraphs" should be a list of strings')
    if isinstance(gold, int | float) and not isinstance(gold, bool):
        if not abs(gold) < 1e308:                                              # an integer may be larger than any float
            raise DataError(f'"ground_truth" is {str(gold)[:20]}, which nobody can answer')
        gold = repr(gold)                                                      # the shortest digits that say it
    gold = _string(str(gold) if isinstance(gold, bool) else gold, "ground_truth").strip()
    same = next((words for words in (("True", "yes"), ("False", "no")) if gold.lower() in map(str.lower, words)), gold)
    task = "number" if answers.number(gold) else "qa"
    return Example(_id(row, "question_id", ""), _string("\n".join(paragraphs), "paragraphs"), _text(row, "question"),
                   _golds(list(same) if isinstance(same, tuple) else same, "ground_truth", task), task,
                   source="docmath")


def _references(values: list, name: str) -> tuple[str, ...]:
    """A benchmark's accepted answers, each in one line. Those that could not earn full reward for themselves (such as
    bare punctuation) are left out, as long as there are others."""
    golds = tuple(" ".join(_string(value, name.format(i)).split()) for i, value in enumerate(values))
    problems = [rewards.gold_problem("qa", gold) for gold in golds]
    usable = tuple(gold for gold, problem in zip(golds, problems) if not problem)
    if not usable:
        name = name.removesuffix("[{}]")
        raise DataError(f'"{name}" ' + (f"cannot be used: {problems[0]}" if golds else "is an empty list"))
    return usable


# Fields

def without_nulls(value):
    """Of objects within objects, the fields that hold something: a column that a row does not have is null in Parquet,
    and in JSON made of it."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def kind(value) -> str:
    return {"NoneType": "null", "dict": "an object", "list": "a list", "str": "a string", "bool": "a boolean",
            "int": "a number", "float": "a number"}.get(type(value).__name__, f"of type {type(value).__name__}")


def _at(fields, path: str, *default, under: str = ""):
    """What stands at a path of names with points between them; `under` says where `fields` stands itself."""
    names = path.split(".")
    for depth, name in enumerate(names):
        if not isinstance(fields, dict):
            place = (under + ".".join(names[:depth])).rstrip(".")
            raise DataError(f'"{place}" should be an object, it is {kind(fields)}')
        if name not in fields and not default:
            raise DataError(f'the field "{under}{".".join(names[:depth + 1])}" is missing')
        if name not in fields:
            return default[0]
        fields = fields[name]
    return fields


def _text(fields, path: str, under: str = "") -> str:
    return _string(_at(fields, path, under=under), under + path)


def _string(value, name: str) -> str:
    """A string with something in it."""
    if not isinstance(value, str):
        raise DataError(f'"{name}" should be a string, it is {kind(value)}')
    if not value or value.isspace():
        raise DataError(f'"{name}" is empty')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f'"{name}" holds half of a surrogate pair (\\ud800-\\udfff), which no text encoding can write'
                        ) from None
    return value


def _id(row: dict, path: str, default: str) -> str:
    value = _at(row, path, ...)
    return default if value is ... else str(value) if type(value) is int else _string(value, path)


def _source(row: dict) -> str:
    return _text(row, "source") if "source" in row else ""


def _task(row: dict) -> str:
    task = _text(row, "task") if "task" in row else "qa"
    if task not in rewards.TASKS:
        raise DataError(f'"task" is {task[:40]!r}; known are {", ".join(rewards.TASKS)}')
    return task


def _messages(row: dict, name: str, speaker: str = "user") -> tuple[tuple[str, str], ...]:
    """(role, content) of each turn; a string is one turn of the speaker."""
    turns = _at(row, name)
    if not isinstance(turns, list):
        return ((speaker, _string(turns, name)),)
    messages = tuple((_text(turn, "role", f"{name}[{i}]."), _text(turn, "content", f"{name}[{i}]."))
                     for i, turn in enumerate(turns))
    for i, (role, _) in enumerate(messages):
        if role not in ROLES:
            raise DataError(f'"{name}[{i}].role" is {role[:40]!r}; known are {", ".join(ROLES)}')
    if not messages:
        raise DataError(f'"{name}" is an empty list')
    return messages


def _prompt(row: dict) -> tuple[tuple[str, str], ...]:
    messages = _messages(row, "prompt")
    if messages[-1][0] != "user":
        raise DataError(f'"prompt" should end with a turn of the user, not of the {messages[-1][0]}')
    return messages


def _asked(row: dict, messages, *paths: str) -> str:
    """What was asked, for a judge: a field, or what stands between the marks of the paper's prompt; "" if neither is
    there. The last of the marks count, for a document may hold such marks too."""
    for path in paths:
        if _at(row, path, "") != "":
            return _text(row, path)
    return question_in(messages[-1][1])


# Gold answers

def _golds(value, name: str, task: str) -> str | tuple[str, ...]:
    """The gold answer or answers, as text that can earn full reward."""
    if task in rewards.LISTS:
        gold = _lines(value, name)
    elif task == "iou" and isinstance(value, dict | list):
        gold = _json(value, name)
    elif isinstance(value, list):
        gold = tuple(_string(item, f"{name}[{i}]") for i, item in enumerate(value))
    else:
        gold = _string(value, name)
    if not gold:
        raise DataError(f'"{name}" is an empty list')
    for one in gold if isinstance(gold, tuple) else (gold,):
        if problem := rewards.gold_problem(task, one):
            raise DataError(f'"{name}" cannot be used: {problem}')
    return gold


def _lines(value, name: str) -> str:
    """The items of a list, one a line."""
    value = value if isinstance(value, list) else _string(value, name).strip().splitlines()
    items = [_string(item, f"{name}[{i}]").strip() for i, item in enumerate(value)]
    for i, item in enumerate(items):
        problem = ("has a line break in it; an item is one line" if len(item.splitlines()) > 1 else
                   "is nothing but punctuation" if not answers.normalise(item) else "")
        if problem:
            raise DataError(f'"{name}[{i}]" {problem}')
    return "\n".join(items)


def _json(value, name: str) -> str:
    try:
        return _string(json.dumps(value, ensure_ascii=False, allow_nan=False), name)
    except DataError:
        raise
    except (TypeError, ValueError, RecursionError) as error:                   # Parquet has dates, bytes and NaN
        raise DataError(f'"{name}" cannot be written as JSON: {str(error)[:80]}') from None
