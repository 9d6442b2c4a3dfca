"""All forms of a row (docs/data.md). A new one is a line of the table FORMATS and a function from row to Example.
Another function gives the paragraphs of a document that has some. They are joined into "context" before it is read."""

import re
from collections import Counter, namedtuple
from dataclasses import replace

from ..records import Example
from ..reward import answers
from ..reward.options import choice
from ..reward.tasks import TASKS, gold_problem
from . import fields, passages, verl

LETTERS = "ABCDEFGHIJ"
OPTION = re.compile(r"([A-J])|(?:answer_)?(?:choice|option)s?(?:_?(\w|\d\d))?")    # a column with options
ASKED = {"context", "document", "system", "system_prompt", "instruction", "instructions", "hint", "hints", "candidates",
         "demonstrations", "few_shot", "input_output", "image", "images", "audio", "audios", "video", "videos", "tools",
         "chat_template_kwargs"}                               # columns that change what is asked
EMPTY = (None, "", [], {})
ANSWERS = ("answer", "answers", "answer_aliases")
RULER_QA = "Answer the question based on the given documents"          # in the prompts of its tasks qa_1 and qa_2
ACCEPTED = {"true": ["True", "yes"], "yes": ["True", "yes"], "false": ["False", "no"], "no": ["False", "no"]}


def plain(row: dict, messages=(), response: str = "") -> Example:
    """A question about a document, or a prompt. TRL's rows give messages and a response, and then need no answer."""
    document = ""
    if has_document(row) and not messages:
        document = fields.text(row, "document" if "document" in row else "context")
        question = fields.text(row, "question")
    else:
        messages = messages or fields.chat(row, "prompt")
        question = fields.question_of(row, messages, "question")
    task = fields.one_of(TASKS, fields.text(row, "task", "qa"), "task")
    answer = "" if response and "answer" not in row else fields.golds(fields.at(row, "answer"), "answer", task)
    return Example(fields.id_of(row), document, question, answer, task, messages,
                   response or fields.text(row, "response", ""), source=fields.text(row, "source", ""))


def option_columns(row: dict) -> dict[str, str]:
    """{name: letter} of the columns with options. The letter of a column that holds all of them is ""."""
    matches = [OPTION.fullmatch(name) for name in row if row[name] not in EMPTY]
    return {match[0]: (match[1] or match[2] or "").upper() for match in matches if match}


def choices(row: dict) -> Example:
    """A plain row with options, asked for as in LongBench v2 (Bai et al. 2024, its prompts/0shot.txt). The answer is a
    letter, or the text of one option."""
    columns = option_columns(row)
    first = next(iter(columns))
    given = {letter: row[name] for name, letter in columns.items()} if len(columns) > 1 else row[first]
    if isinstance(given, list):
        given = dict(zip(LETTERS + "?", given))                # "?": there are too many
    letters = "".join(sorted(given)) if isinstance(given, dict) else ""
    fields.require(LETTERS.startswith(letters) and len(letters) >= max(2, len(columns)),
                   f'"{first}": options should be columns choice_A, choice_B, ... or a list of 2 to 10')
    options = {letter: fields.written(given[letter], f"option {letter}").strip() for letter in letters}
    answer = fields.at(row, "answer")
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    meant = [letter for letter in letters if choice(str(answer)) == letter or options[letter] == answer]
    fields.require(isinstance(answer, str) and len(meant) == 1,
                   f'"answer" is {str(answer)[:40]!r}; it should be the letter of one option, or its text')
    question = f"What is the correct answer to this question: {fields.text(row, 'question').strip()}\nChoices:"
    for letter in letters:
        question += f"\n({letter}) {options[letter]}"
    task = fields.one_of(("choice", "accuracy"), fields.text(row, "task", "choice"), "task")
    return plain({**row, "question": question, "answer": meant[0], "task": task})


def dialogue(row: dict) -> Example:
    """TRL's messages, of which the last is the response, or its prompt and completion."""
    if "messages" in row:
        turns = fields.chat(row, "messages")
        fields.require([role for role, _ in turns[-2:]] == ["user", "assistant"],
                       '"messages" should end with a turn of the user and one of the assistant, the response')
        return plain(row, turns[:-1], turns[-1][1])
    messages, turns = fields.chat(row, "prompt"), fields.chat(row, "completion", "assistant")
    fields.require([role for role, _ in turns] == ["assistant"],
                   '"completion" should be a string, or one turn of the assistant')
    return plain(row, messages, turns[0][1])


def page(row: dict) -> Example:
    return Example(fields.id_of(row), fields.text(row, "text"), "", "", "text", source=fields.text(row, "source", ""))


def as_row(example: Example) -> dict:
    """The row that is read as this example."""
    document, task = ("text", "") if example.task == "text" else ("context", example.task)
    row = {"id": example.id, "prompt": [{"role": role, "content": content} for role, content in example.messages],
           document: example.document, "question": example.question, "answer": example.answer, "task": task,
           "response" if example.answer else "completion": example.response, "source": example.source}
    return {name: value for name, value in row.items() if value}


def accepting(row: dict, question: str = "question", *names: str) -> Example:
    """A question with all accepted answers in these fields, by default in those of ANSWERS that the row has: a text, a
    list of texts or of objects with a text, or SQuAD's {"text": [...]}. An answer that cannot earn full reward, such as
    bare punctuation, is dropped. Raises Unanswerable if the row says so."""
    no_texts = row.get("answers") == {"text": [], "answer_start": []}          # SQuAD 2.0 on the hub
    if row.get("is_impossible") is True or row.get("answerable") is False or no_texts:
        raise fields.Unanswerable
    problems = {}                                              # {answer: what is wrong with it}
    for name in names or [name for name in ANSWERS if row.get(name, []) != []] or ANSWERS[:1]:
        value = fields.at(row, name)
        if isinstance(value, dict):
            name, value = f"{name}.text", fields.at(value, "text", under=f"{name}.")
        for place, item in fields.items([value] if isinstance(value, str) else value, name):
            item = fields.at(item, "text", under=f"{place}.") if isinstance(item, dict) else item
            answer = " ".join(fields.written(item, place).split())
            problems[answer] = gold_problem("qa", answer)
    usable = [answer for answer in problems if not problems[answer]]
    fields.require(usable, f'"{name}" cannot be used: {next(iter(problems.values()))}')
    return plain({**row, "question": fields.text(row, question), "answer": usable[0] if usable == [
        row.get("answer")] else usable})


def longbench(row: dict) -> Example:
    example = accepting(row, "input", "answers")
    return replace(example, id=fields.id_of(row, "_id", "id"), source=fields.text(row, "dataset", ""))


def ruler(row: dict) -> Example:
    """The prompt, word for word. RULER's question answering accepts any output (string_match_part). Its other tasks
    earn the share of the outputs that are given (string_match_all), here F1: a list of everything earns little."""
    prompt, outputs = fields.text(row, "input"), fields.items(fields.at(row, "outputs"), "outputs")
    task = "f1" if len(outputs) > 1 and RULER_QA not in prompt else "em"
    example = plain({**row, "prompt": prompt, "answer": "any", "task": task})
    return replace(example, answer=fields.golds(row["outputs"], "outputs", task))


def frames(row: dict) -> Example:
    """A row with the texts of its Wikipedia pages. As released, Frames has only links to them."""
    fields.require("wiki_items" in row, 'the field "wiki_items" is missing: Frames only has links. Download the pages '
                   'in "wiki_links" and add them as "wiki_items": [{"title": ..., "text": ...}]', fields.WrongForm)
    pages = fields.items(row["wiki_items"], "wiki_items")
    texts = [fields.text(page, name, under=f"{place}.") for place, page in pages for name in ("title", "text")]
    gold = " ".join(fields.written(fields.at(row, "Answer"), "Answer").split())
    return Example(fields.id_of(row), "\n".join(texts), fields.text(row, "Prompt"), fields.golds(gold, "Answer", "qa"),
                   source="frames")


def docmath(row: dict) -> Example:
    """A number may be near its gold answer. Any other answer has to be the same. A boolean means yes or no."""
    paragraphs = fields.items(fields.at(row, "paragraphs"), "paragraphs")
    document = "\n".join(fields.check(text, str, place) for place, text in paragraphs)
    gold = fields.at(row, "ground_truth")
    if isinstance(gold, int | float):
        fields.require(abs(gold) < 1e308, f'"ground_truth" is {str(gold)[:20]}, which no answer can match')
        gold = repr(gold)                                      # "True", or the shortest digits that give this number
    gold = fields.string(gold, "ground_truth").strip()
    task = "number" if answers.number(gold) else "qa"
    accepted = fields.golds(ACCEPTED.get(gold.lower(), gold), "ground_truth", task)
    return Example(fields.id_of(row, "question_id", "id"), fields.string(document, "paragraphs"),
                   fields.text(row, "question"), accepted, task, source="docmath")


def has_document(row: dict) -> bool:
    return "context" in row or "document" in row


def has_paragraphs(row: dict) -> bool:
    """Whether the context consists of paragraphs, maybe as JSON text, as in HotpotQA and 2WikiMultihopQA."""
    context = row.get("context")
    if isinstance(context, str):
        return context.lstrip().startswith(("[", "{")) and {"question", "supporting_facts"} <= row.keys()
    first = context[0] if isinstance(context, list) and context else context
    return "question" in row and (isinstance(first, list) or isinstance(first, dict) and "title" in first)


Format = namedtuple("Format", "name matches read paragraphs", defaults=[None])
FORMATS = [                                                    # the first one that matches reads the row
    Format("verl", lambda row: "reward_model" in row or {"prompt", "data_source"} <= row.keys() and {
        "answer", "completion", "messages", "context", "document"}.isdisjoint(row), verl.read),
    Format("LongBench v2", lambda row: has_document(row) and "question" in row and option_columns(row), choices),
    Format("HotpotQA", has_paragraphs, accepting, lambda row: passages.read(row, "context")),
    Format("SQuAD", lambda row: "context" in row and "question" in row and "answer" not in row
           and ("answers" in row or "is_impossible" in row), accepting, lambda row: [
               passages.Paragraph(str(row.get("title", "")).replace("_", " "), fields.text(row, "context"))]),
    Format("context and question", lambda row: has_document(row) and "question" in row, plain),
    Format("KILT", lambda row: "input" in row and isinstance(row.get("output"), list), lambda row: accepting(
        {**row, "output": [each["answer"] for each in row["output"] if isinstance(each, dict) and each.get("answer")]},
        "input", "output"), passages.kilt),
    Format("LongBench", lambda row: has_document(row) and ("input" in row or "answers" in row), longbench),
    Format("Frames", lambda row: "wiki_items" in row or "Prompt" in row, frames),
    Format("MuSiQue", lambda row: "paragraphs" in row and "ground_truth" not in row
           and ("answer" in row or "answerable" in row), accepting, lambda row: passages.read(row, "paragraphs")),
    Format("DocMath-Eval", lambda row: "paragraphs" in row or "ground_truth" in row, docmath),
    Format("ctxs", lambda row: "ctxs" in row, accepting, lambda row: passages.read(row, "ctxs")),
    Format("RULER", lambda row: "input" in row and "outputs" in row, ruler),
    Format("messages, prompt and completion", lambda row: "messages" in row or "completion" in row, dialogue),
    Format("prompt and answer", lambda row: "prompt" in row and not has_document(row), plain),
    Format("text", lambda row: "text" in row and "question" not in row, page),
]


def is_asked(value, example: Example) -> bool:
    """Whether the prompt of the example says this text. A value that is empty or a number says nothing."""
    said = [content for _, content in example.messages] or [example.document, example.question]
    if not isinstance(value, str | list | dict) or value in EMPTY:
        return True
    return isinstance(value, str) and any(value.strip() in text for text in said)


def parse(row: dict, max_paragraphs: int = 0, counts: Counter | None = None) -> Example:
    """The example in a row. Its id is "" if the row has none. Unknown fields are ignored, unless they change what is
    asked. A document loses distractors until max_paragraphs are left (0: no limit). counts["long"] rises if more are
    left, or if the document has no paragraphs. Raises DataError."""
    for form in FORMATS:
        if form.matches(row):
            paragraphs = passages.keep(form.paragraphs(row), max_paragraphs) if form.paragraphs else []
            row = {**row, "context": passages.join(paragraphs)} if paragraphs else row
            example = form.read(row)
            unused = [*option_columns(row)] if form.read is not choices else []
            unused += [name for name in row if name in ASKED and not is_asked(row[name], example)]
            if example.document:
                unused += [name for name in ("prompt", "messages") if isinstance(row.get(name), str | list)]
            if unused:
                raise fields.WrongForm(f'"{unused[0]}" changes what is asked, but a row of the form "{form.name}" does '
                                       "not use it; write it into the text that is asked, or remove it")
            if counts is not None:
                counts["long"] += not 0 < len(paragraphs) <= max_paragraphs
            return example
    missing = "question" if has_document(row) else "context"
    names = ", ".join(form.name for form in FORMATS)
    raise fields.WrongForm(f'the field "{missing}" is missing; the forms of a row are: {names} (docs/data.md)')
