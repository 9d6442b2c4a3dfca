"""What an evaluation found, as records for JSON and as Markdown tables."""

from collections.abc import Callable, Sequence
from math import isnan

from ..curriculum import bucket
from ..records import Example
from ..rewards import Score
from . import evaluate
from .evaluate import Answer

MOST = 12                       # columns of a table; where there are more sources only results.json has them
PAPER = ("docmath", "frames", "2wikimqa", "hotpotqa", "musique", "narrativeqa", "qasper")
PAPERS = {                      # QwenLong-L1, Table 4: accuracy in percent on the seven sets, in this order
    "OpenAI-o1-preview": (64.5, 80.8, 87.5, 83.5, 69.0, 68.0, 57.0),
    "DeepSeek-R1": (66.0, 79.6, 89.9, 82.5, 74.5, 59.5, 53.0),
    "Claude-3.7-Sonnet-Thinking": (67.5, 70.9, 86.5, 84.4, 68.3, 61.5, 56.0),
    "Qwen3-235B-A22B": (67.5, 74.6, 91.5, 84.4, 63.3, 60.0, 53.0),
    "OpenAI-o3-mini": (66.5, 75.5, 86.5, 83.5, 66.5, 59.0, 55.0),
    "Qwen3-Plus": (66.0, 73.6, 90.5, 82.4, 69.8, 57.5, 52.5),
    "QwQ-Plus": (64.5, 73.5, 89.0, 81.0, 66.5, 62.0, 53.5),
    "QwQ-32B": (59.5, 72.9, 90.5, 78.5, 66.0, 58.0, 57.5),
    "Qwen3-32B": (58.0, 70.0, 87.0, 83.4, 62.8, 57.5, 56.0),
    "Gemini-2.0-Flash-Thinking": (63.0, 69.8, 82.9, 79.5, 62.5, 57.0, 45.5),
    "R1-Distill-Qwen-14B": (61.0, 64.2, 87.0, 77.5, 58.0, 51.0, 51.0),
    "14B + SFT": (60.0, 65.7, 88.5, 80.5, 60.0, 52.0, 48.5),
    "14B + GRPO": (65.0, 68.7, 88.5, 86.5, 63.5, 53.5, 51.5),
    "14B + DAPO": (65.5, 67.4, 89.0, 84.0, 63.0, 57.0, 52.5),
    "R1-Distill-Qwen-32B": (62.5, 67.0, 84.0, 80.5, 61.0, 54.0, 50.0),
    "32B + SFT": (65.0, 71.6, 87.0, 80.5, 65.5, 57.5, 54.0),
    "32B + GRPO": (68.0, 72.2, 87.0, 82.0, 66.0, 61.0, 56.0),
    "32B + DAPO": (67.5, 70.1, 90.5, 83.0, 69.0, 56.0, 58.5),
}


def summarise(model: str, examples: Sequence[Example], answers: Sequence[Sequence[Answer]],
              scores: Sequence[Sequence[Score]], lengths: Sequence[int] = ()) -> dict:
    """One model's figures: {"model", "all": cell, "by_length": {bucket: cell}, "by_task", "by_source", "average"}, for
    JSON. Buckets that have a question, shortest first; tasks and sources are {} where there is but one."""
    places = sorted(range(len(examples)), key=lambda i: examples[i].length)

    def cells(name: Callable[[Example], str], places: Sequence[int]) -> dict[str, dict]:
        found: dict[str, list[int]] = {}
        for i in places:
            found.setdefault(name(examples[i]), []).append(i)
        return {name: cell(*([column[i] for i in some] for column in (examples, answers, scores)))
                for name, some in found.items()}

    by_task, by_source = (cells(name, range(len(examples))) for name in (lambda e: e.task, lambda e: e.source))
    average = None
    if len(by_source) > 1:
        rate, low, high = evaluate.average([(c["accuracy"], c["low"], c["high"]) for c in by_source.values()])
        average = {"accuracy": rate, "low": low, "high": high, "questions": len(examples), "sources": len(by_source)}
    return {"model": model, "all": cell(examples, answers, scores),
            "by_length": cells(lambda e: bucket(e.length, lengths), places),
            "by_task": by_task if len(by_task) > 1 else {}, "by_source": by_source if len(by_source) > 1 else {},
            "average": average}


def cell(examples: Sequence[Example], answers: Sequence[Sequence[Answer]], scores: Sequence[Sequence[Score]]) -> dict:
    """The figures of some questions. accuracy and low count an answer that a judge left open as wrong, high counts it
    as right. pass@k for k = 1, 2, 4, ... and the number of samples, if there are several."""
    num, sampled = len(scores), [answer for question in answers for answer in question]
    (low, _), (_, high) = (evaluate.interval(evaluate.accuracy(scores, open), num) for open in (0.0, 1.0))
    found = {"accuracy": evaluate.accuracy(scores), "low": low, "high": high, "questions": num,
             "mean_length": sum(answer.length for answer in sampled) / len(sampled),
             "clipped_ratio": sum(answer.finish_reason == "length" for answer in sampled) / len(sampled)}
    if num_open := sum(isnan(score.reward) for question in scores for score in question):
        found["unscorable"] = num_open
    if num_cut := sum(example.num_cut > 0 for example in examples):
        found["cut"] = num_cut
    for k in ks(len(scores[0])):
        found[f"pass@{k}"] = sum(evaluate.pass_at_k(len(question), sum(score.reward == 1 for score in question), k)
                                 for question in scores) / num
    return found


def ks(samples: int) -> list[int]:
    """For which k pass@k is told.

    >>> ks(1), ks(2), ks(6), ks(8)
    ([], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8])
    """
    return sorted({1 << i for i in range(samples.bit_length())} | {samples}) if samples > 1 else []


# Tables

def tables(results: dict) -> str:
    """Markdown: models down; across the length buckets, then (where there are several) the tasks, the sources with
    their average, and pass@k. What the figures alone would hide is said below."""
    models = results["models"]
    parts = [table("accuracy, %", models, _columns(models, "by_length"))]
    for kind, title in (("by_task", "by task, %"), ("by_source", "by source, %")):
        columns = _columns(models, kind)
        number = len(columns) - ("average" in columns)
        if number > MOST:
            parts.append(f"{number} {kind.removeprefix('by_')}s: their figures are in results.json, with --out.")
        elif columns:
            parts.append(table(title, models, columns, *_papers(columns)))
    if passes := [name for name in models[0]["all"] if name.startswith("pass@")]:
        columns = {name: [_passed(model["all"], name) for model in models] for name in passes}
        parts.append(table("at least one of k right, %", models, columns))
    notes = [note for model in models if (note := remark(model, results.get("settings", {})))]
    return "\n\n".join([*parts, *["\n".join(notes)] * bool(notes)])


def _passed(cell: dict, name: str) -> dict:
    low, high = evaluate.interval(cell[name], cell["questions"])
    return {**cell, "accuracy": cell[name], "low": low, "high": high}


def _columns(models: Sequence[dict], kind: str) -> dict[str, list[dict | None]]:
    """{name: each model's cell}; the paper's sources first, in its order, and the average of the sources last."""
    names = list(dict.fromkeys(name for model in models for name in model[kind]))
    if kind == "by_source":
        names.sort(key=lambda name: PAPER.index(name) if name in PAPER else len(PAPER))
    columns = {name: [model[kind].get(name) for model in models] for name in names}
    return {**columns, "average": [model["average"] for model in models]} if kind == "by_source" and names else columns


def _papers(columns: dict) -> list[list[str]]:
    """The rows of the paper's table for these sources, if it has all of them, under a line that says whose they are."""
    sources = list(columns)[:-1]
    if not sources or "average" not in columns or not set(sources) <= set(PAPER):
        return []
    rows = [[f"{rates[PAPER.index(name)]:.1f}" for name in sources]
            + [f"{sum(rates[PAPER.index(name)] for name in sources) / len(sources):.1f}"] for rates in PAPERS.values()]
    return [["*QwenLong-L1, Table 4: theirs, not measured here*", *[""] * len(columns)],
            *([name, *row] for name, row in zip(PAPERS, rows))]


def table(title: str, models: Sequence[dict], columns: dict[str, list[dict | None]], *more: list[str]) -> str:
    """A row per model, a column per name with its number of questions, and more rows below."""
    head = [title]
    for name, cells in columns.items():
        numbers = sorted({cell["questions"] for cell in cells if cell})        # tokenizers differ, and so may lengths
        head.append(f"{plain(name)}{' tokens' if name[0].isdigit() and name not in PAPER else ''} "
                    f"(n={'-'.join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))})")
    rows = [[plain(model["model"]), *(shown(cells[place]) for cells in columns.values())]
            for place, model in enumerate(models)]
    lines = [head, *rows, *more]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["| " + " | ".join(part.ljust(width) for part, width in zip(line, widths)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def plain(name: str) -> str:
    """A name, which may be of anybody's making, as it can stand in a table and on a terminal.

    >>> plain("a|b\\n\\x1b[2J")
    'a\\\\|b\\\\n\\\\x1b[2J'
    """
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)
    return text.replace("|", "\\|")


def shown(cell: dict | None) -> str:
    return "" if cell is None else f"{100 * cell['accuracy']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def remark(model: dict, settings: dict) -> str:
    """What befell a model's questions and answers, in a sentence; "" if nothing did."""
    cell, said = model["all"], []
    if cell.get("cut"):
        said.append(f"{cell['cut']} of {cell['questions']} documents were cut in their middle to fit "
                    f"{settings.get('max_prompt_tokens', 'so many')} tokens")
    if cell["clipped_ratio"]:
        said.append(f"{100 * cell['clipped_ratio']:.1f} % of the answers were stopped at "
                    f"{settings.get('max_new_tokens', 'so many')} tokens")
    if cell.get("unscorable"):
        said.append(f"{cell['unscorable']} answers unscorable: the judge left them open (counted wrong, and right in "
                    "the upper end of the interval)")
    return f"{plain(model['model'])}: {'; '.join(said)}." if said else ""
