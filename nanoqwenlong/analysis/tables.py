"""The results of an evaluation, as a record for JSON and as Markdown tables."""

from collections import Counter
from collections.abc import Sequence
from math import isnan

from ..curriculum import bucket
from ..records import Example
from ..rewards import Score
from . import evaluate
from .evaluate import Answer

MAX_COLUMNS = 12                # more sources than this are only in results.json
PAPER_ORDER = ("docmath", "frames", "2wikimqa", "hotpotqa", "musique", "narrativeqa", "qasper")  # QwenLong-L1, Table 4
TITLES = {"by_length": "accuracy, %", "by_task": "by task, %", "by_source": "by source, %"}
Row = tuple[Example, Sequence[Answer], Sequence[Score]]         # one question


def summarise(model: str, examples: Sequence[Example], answers: Sequence, scores: Sequence, lengths=()) -> dict:
    """Return one model's results. Buckets end at `lengths` (tokens), shortest first, without empty ones. "by_task" and
    "by_source" are {} if there is only one task or source. "average" is the mean over sources, or None."""
    rows = list(zip(examples, answers, scores, strict=True))
    results = {"model": model, "all": cell(rows), "by_length": {}, "by_task": {}, "by_source": {}, "average": None}
    for kind, name_of in (("by_length", lambda example: bucket(example.length, lengths)),
                          ("by_task", lambda example: example.task), ("by_source", lambda example: example.source)):
        groups: dict[str, list[Row]] = {}
        for row in sorted(rows, key=lambda row: row[0].length) if kind == "by_length" else rows:
            groups.setdefault(name_of(row[0]), []).append(row)
        if kind == "by_length" or len(groups) > 1:
            results[kind] = {name: cell(group) for name, group in groups.items()}
    if sources := results["by_source"].values():
        rate, low, high = evaluate.average([(source["accuracy"], source["low"], source["high"]) for source in sources])
        results["average"] = dict(accuracy=rate, low=low, high=high, questions=len(rows), sources=len(sources))
    return results


def cell(rows: Sequence[Row]) -> dict:
    """Return the results of some questions, with pass@k for k = 1, 2, 4, ... and all samples if there are several.
    An unscorable answer (no verdict) is wrong in "accuracy" and "low", and right in "high"."""
    scores = [question for _, _, question in rows]
    sampled = [answer for _, answers, _ in rows for answer in answers]
    counted = Counter(map(evaluate.outcome, sampled, [score for question in scores for score in question]))
    accuracy = evaluate.accuracy(scores)
    low, _ = evaluate.interval(accuracy, len(rows))
    _, high = evaluate.interval(evaluate.accuracy(scores, unscorable=1.0), len(rows))
    result = {"accuracy": accuracy, "low": low, "high": high, "questions": len(rows),
              "mean_length": sum(answer.length for answer in sampled) / len(sampled),
              "clipped_ratio": sum(answer.finish_reason == "length" for answer in sampled) / len(sampled),
              "outcomes": {name: counted[name] / len(sampled) for name in evaluate.OUTCOMES}}
    counts = {"unscorable": sum(isnan(score.reward) for question in scores for score in question),
              "cut": sum(example.num_cut > 0 for example, _, _ in rows)}
    result |= {name: count for name, count in counts.items() if count}
    n = len(scores[0])
    for k in sorted({1 << i for i in range(n.bit_length())} | {n}) if n > 1 else []:
        chances = [evaluate.pass_at_k(n, sum(s.reward == 1 for s in question), k) for question in scores]
        result[f"pass@{k}"] = sum(chances) / len(rows)
    return result


def markdown(results: dict) -> str:
    """Return the tables, a row per model: by length, by task, by source with the average, pass@k, what
    became of the answers. Remarks follow."""
    models, parts = results["models"], []
    for kind, title in TITLES.items():
        names = list(dict.fromkeys(name for model in models for name in model[kind]))
        if len(names) > MAX_COLUMNS:
            parts.append(f"{len(names)} {kind[3:]}s: their results are in results.json, with --out.")
        elif names:
            names.sort(key=lambda name: PAPER_ORDER.index(name) if name in PAPER_ORDER else len(PAPER_ORDER))
            columns = {name: [model[kind].get(name) for model in models] for name in names}
            average = {"average": [model["average"] for model in models]} if kind == "by_source" else {}
            parts.append(table(title, models, columns | average))
    passes: dict[str, list[dict]] = {}
    for cell in [model["all"] for model in models]:
        for name in [name for name in cell if name.startswith("pass@")]:
            low, high = evaluate.interval(cell[name], cell["questions"])
            passes.setdefault(name, []).append({**cell, "accuracy": cell[name], "low": low, "high": high})
    parts += [table("at least one of k right, %", models, passes)] if passes else []
    remarks = [remark(model, results.get("settings", {})) for model in models]
    return "\n\n".join(filter(None, [*parts, outcomes(models), "\n".join(filter(None, remarks))]))


def table(title: str, models: Sequence[dict], columns: dict[str, list[dict | None]]) -> str:
    """Return a Markdown table: a row per model, and a column per name with its number of questions."""
    lines = [[title]]
    for name, column in columns.items():
        counts = sorted({cell["questions"] for cell in column if cell})    # differ if tokenizers count other lengths
        unit = " tokens" if name[0].isdigit() and name not in PAPER_ORDER else ""
        lines[0].append(f"{plain(name)}{unit} (n={'-'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))})")
    for model, *cells in zip(models, *columns.values()):
        rates = [[100 * cell[name] for name in ("accuracy", "low", "high")] if cell else [] for cell in cells]
        lines.append([plain(model["model"]), *("{:.1f} [{:.1f}, {:.1f}]".format(*r) if r else "" for r in rates)])
    return aligned(lines)


def outcomes(models: Sequence[dict]) -> str:
    """Return a Markdown table of what became of the answers: a row per model and length bucket. Each row adds up to
    100 %. Failures that no answer has are left out."""
    cells = [cell["outcomes"] for model in models for cell in model["by_length"].values()]
    shown = [name for name in evaluate.OUTCOMES if name in ("right", "wrong") or any(cell[name] for cell in cells)]
    lines = [["answers, %", *map(evaluate.OUTCOMES.get, shown)]]
    for model in models:
        for bucket, cell in model["by_length"].items():
            part = f", {bucket} tokens" if len(model["by_length"]) > 1 else ""
            lines.append([plain(model["model"]) + part, *(f"{100 * cell['outcomes'][name]:.1f}" for name in shown)])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as a Markdown table. The first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    text = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    return "\n".join([text[0], rule, *text[1:]])


def plain(name: str) -> str:
    """Return a name, which a stranger may have chosen, so that it breaks no table and no terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name).replace("|", "\\|")


def remark(model: dict, settings: dict) -> str:
    """Return how many documents were cut and how many answers were unscorable. "" if none were."""
    cell, parts = model["all"], []
    if cell.get("cut"):
        parts.append(f"{cell['cut']} of {cell['questions']} documents were cut in their middle to fit "
                     f"{settings.get('max_prompt_tokens')} tokens")
    if cell.get("unscorable"):
        parts.append(f"{cell['unscorable']} answers unscorable: no verdict (counted wrong, and right in "
                     "the upper end of the interval)")
    return f"{plain(model['model'])}: {'; '.join(parts)}." if parts else ""
