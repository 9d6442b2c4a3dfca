"""How often is the model right, for documents of each length? Also pass@k, and scores for the training scripts.

Every question is answered --samples times at the training temperature; an answer is right if the same rule says so that
rewards training. The table has one row per model, one column per length bucket, with a 95 % interval over questions.

    python eval.py                                                       the tiny models, on held-out toy documents
    python eval.py --model DIR --data heldout.jsonl --max-new-tokens 10000 --lengths 20000 60000
    python eval.py --model DIR --data heldout.jsonl --max-new-tokens 10000 --samples 4 --pass-at 1 4
    torchrun --standalone --nproc_per_node=8 eval.py --device cuda --model DIR --data heldout.jsonl
    python eval.py --model DIR --data train.jsonl --max-new-tokens 10000 --samples 8 --difficulty difficulty.json
    python eval.py --model DIR --data train.jsonl --max-new-tokens 10000 --samples 8 --keep-correct sft.jsonl

The last two write what train_rl.py --difficulty and train_sft.py --data read.
"""

import json
import math
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from nanoqwenlong import data, evaluate, parallel, run, schemas, toy
from nanoqwenlong.config import ConfigError, at_least
from nanoqwenlong.generate import Generator
from nanoqwenlong.judge import connect
from nanoqwenlong.model import Qwen
from nanoqwenlong.rewards import lacking
from nanoqwenlong.tokenizer import Tokenizer


@dataclass(frozen=True)
class Config:
    model: tuple[str, ...] = ("assets/nano-base", "assets/nano-sft")    # Hugging Face directories, a row each
    data: tuple[str, ...] = ()          # JSONL or parquet files; none: the toy task's held-out documents
    task: tuple[str, ...] = ()          # only examples of these tasks, in these shares: qa=2 f1=1; none: as they come
    skip_bad_rows: bool = False         # leave out rows that cannot be used, and say so, instead of refusing them all
    toy_examples: int = 200             # of the toy task for each length, when no --data is given
    max_prompt_tokens: int = 120000     # longer prompts are dropped and counted, never cut
    lengths: tuple[int, ...] = ()       # where length buckets end (document + question tokens); none: one bucket
    samples: int = 1                    # answers per question
    pass_at: tuple[int, ...] = ()       # also report pass@k for these k (at most --samples)
    temperature: float = 1.0            # 0: greedy
    top_p: float = 1.0
    max_new_tokens: int = 48
    seed: int = 0
    judge: str = ""                     # asked for answers that the rule rejects: the URL of an OpenAI-style server
                                        # (its key: JUDGE_API_KEY in the environment) or a Hugging Face directory
    judge_model: str = ""               # its name on that server
    judge_minutes: float = 30.0         # that a server may take for all answers
    judge_concurrency: int = 16         # requests at once
    difficulty: str = ""                # write each question's mean reward there, as JSON
    keep_correct: str = ""              # write one right answer per question there, as rows for SFT
    metrics: str = ""                   # write the table there, as JSON
    kv_blocks: int = 16384              # of the paged KV cache
    block_size: int = 16
    device: str = "cpu"                 # under torchrun, "cuda" gives each process a GPU of its own
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"  # bfloat16 on a GPU, else float32
    timeout_minutes: float = 60.0       # that ranks wait for each other
    check_finite: bool = False          # refuse a model whose weights hold NaN or infinity
    threads: int = 1


MAX_UNSCORABLE = 0.25                   # of all answers; above it a judge's accuracy is none


def main(cfg: Config) -> None:
    at_least(cfg, samples=1, threads=1, max_new_tokens=1, temperature=0, toy_examples=1, kv_blocks=1, block_size=1,
             timeout_minutes=1e-9, judge_minutes=1e-9, judge_concurrency=1)
    torch.set_num_threads(cfg.threads)
    if not all(1 <= k <= cfg.samples for k in cfg.pass_at):
        raise ConfigError(f"--pass-at takes numbers from 1 to --samples ({cfg.samples}), got {cfg.pass_at}")
    if list(cfg.lengths) != sorted(set(cfg.lengths)) or min(cfg.lengths, default=1) < 1:
        raise ConfigError(f"--lengths should rise from 1 or more, got {cfg.lengths}")
    if len(cfg.model) > 1 and (cfg.difficulty or cfg.keep_correct):
        raise ConfigError("--difficulty and --keep-correct are about one model; give one --model")
    if cfg.judge and cfg.judge_minutes >= cfg.timeout_minutes:
        raise ConfigError(f"--judge-minutes {cfg.judge_minutes:g} should be less than --timeout-minutes "
                          f"{cfg.timeout_minutes:g}, that other ranks wait for the one that asks")
    check_outputs(cfg)
    device, first = parallel.start(cfg.device, cfg.timeout_minutes), parallel.rank() == 0
    shares = data.shares(cfg.task)
    tell = (print if first else lambda text: None) if cfg.skip_bad_rows else None
    examples = data.read(cfg.data, need_question=True, tell=tell) if cfg.data else [
        example for records in (toy.SHORT, toy.LONG)
        for example in toy.examples(cfg.toy_examples, records, 0, "heldout", tuple(shares))]
    if shares:
        examples = data.mix(examples, shares, cfg.seed)
    if (note := lacking({example.task for example in examples})) and first:
        print(note)
    lengths = cfg.lengths or (() if cfg.data else toy.LENGTHS)
    judge = connect(cfg.judge, cfg.judge_model, os.environ.get("JUDGE_API_KEY", ""), seed=cfg.seed, device=device,
                    dtype=run.computing_dtype(cfg), deadline=60 * cfg.judge_minutes,
                    concurrency=cfg.judge_concurrency) if cfg.judge else None
    rows, failures = [], []
    for directory in cfg.model:
        model = Qwen.from_pretrained(directory, run.computing_dtype(cfg), device, check_finite=cfg.check_finite)
        tokenizer = Tokenizer(directory)
        kept, num_dropped = data.tokenize(examples, tokenizer, cfg.max_prompt_tokens)
        if num_dropped and first:
            print(f"{directory}: {num_dropped} questions dropped, their prompt is over {cfg.max_prompt_tokens} tokens")
        groups, texts, scores = evaluate.answer_examples(
            Generator(model, cfg.kv_blocks, cfg.block_size), tokenizer, kept, cfg.samples, judge,
            seed=cfg.seed, temperature=cfg.temperature, top_p=cfg.top_p, max_new_tokens=cfg.max_new_tokens)
        del model                                                              # before the next one is read
        open_answers = [math.isnan(s.reward) for question in scores for s in question]
        if sum(open_answers) > MAX_UNSCORABLE * len(open_answers):
            failures.append(f"{directory}: the judge left {sum(open_answers)} of {len(open_answers)} answers open: "
                            f"{judge.trouble()}")
        rows.append({"model": directory, **summarise(cfg, kept, scores, lengths)})
        if cfg.difficulty and first and not failures:
            means = {e.id: mean for e, mean in zip(kept, evaluate.mean_rewards(scores)) if not math.isnan(mean)}
            run.put(Path(cfg.difficulty), {"mean_rewards": means})
        if cfg.keep_correct and first:
            num_kept = write_correct(Path(cfg.keep_correct), kept, groups, texts, scores)
            print(f"{num_kept} of {len(kept)} questions have a right answer that ended by itself: {cfg.keep_correct}")
    if first:
        print(table(rows))
    if cfg.metrics and first:
        Path(cfg.metrics).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if failures:
        raise run.JudgeUnavailable(f"{'; '.join(failures)}; difficulties are not written, and accuracies stand for the "
                                   "rest only")


def summarise(cfg: Config, examples, scores, lengths) -> dict:
    """{bucket or task: {"accuracy", "low", "high", "questions", "pass@k", ...}}, shortest bucket first, tasks (if there
    are several) last. Answers that a judge left open are in "unscorable"; they are not in the accuracy, but low counts
    them wrong and high right, so that an outage looks like what it is."""
    result = {}
    for name, questions in {**evaluate.by_bucket(examples, scores, lengths),
                            **evaluate.by_task(examples, scores)}.items():
        low, high = (evaluate.interval(evaluate.accuracy(questions, unscorable), len(questions))[unscorable]
                     for unscorable in (0, 1))
        rate = evaluate.accuracy(questions)
        result[name] = {"accuracy": None if math.isnan(rate) else rate, "low": low, "high": high,
                        "questions": len(questions)}
        if num_unscorable := sum(math.isnan(s.reward) for q in questions for s in q):
            result[name]["unscorable"] = num_unscorable
        for k in cfg.pass_at:
            result[name][f"pass@{k}"] = sum(evaluate.pass_at_k(len(q), sum(s.reward == 1 for s in q), k)
                                            for q in questions) / len(questions)
    return result


def table(rows: list[dict]) -> str:
    """Markdown: models down, length buckets and tasks across."""
    buckets = list(dict.fromkeys(name for row in rows for name in row if name != "model"))
    lines = [["model", *(f"{name} tokens" if name[0].isdigit() else name for name in buckets)]]
    for row in rows:
        cells = []
        for cell in (row.get(name) for name in buckets):
            extra = "".join(f", {k} {100 * v:.1f}" for k, v in (cell or {}).items() if k.startswith("pass@"))
            extra += f", {cell['unscorable']} answers unscorable" if cell and "unscorable" in cell else ""
            rate = cell and ("?" if cell["accuracy"] is None else f"{100 * cell['accuracy']:.1f}")
            cells.append(f"{rate} % [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}], "
                         f"n={cell['questions']}{extra}" if cell else "")
        lines.append([row["model"], *cells])
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def check_outputs(cfg: Config) -> None:
    """Before any work: every output can be written, and none of them is another one or an input."""
    names = [name for name in (cfg.difficulty, cfg.keep_correct, cfg.metrics) if name]
    places = [Path(name).resolve() for name in (*names, *cfg.data)]
    for place in places[:len(names)]:
        if places.count(place) > 1:
            raise ConfigError(f"{place} would be written over; give every output a file of its own")
        if place.is_dir() or not os.access(place if place.exists() else place.parent, os.W_OK):
            raise ConfigError(f"{place} cannot be written; name a file in a directory that is there")


def write_correct(path: Path, examples, groups, texts, scores) -> int:
    """The first right and finished answer to each question, as a row of SFT data. Returns how many there are."""
    rows = []
    for example, group, group_texts, group_scores in zip(examples, groups, texts, scores):
        right = [text for text, answer, score in zip(group_texts, group.completions, group_scores)
                 if score.reward == 1 and answer.finish_reason == "stop"]
        if right:
            rows.append(schemas.row(replace(example, response=right[0])))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


if __name__ == "__main__":
    sys.exit(run.start(main, Config, {}, sys.argv[1:]))
