"""How often is the model right, for documents of each length? Also pass@k, and scores for the training scripts.

Every question is answered --samples times; an answer is right if the rule that rewards training, or the judge, says so.
No question is left out: what is too long is cut in its middle, what the judge leaves open counts as wrong; both are
told. The tables have one row per model and a column per length bucket, task and source, with 95 % intervals over
questions (docs/evaluation.md).

    python eval.py                                                       the tiny models, on held-out toy documents
    python eval.py --model DIR --data heldout.jsonl --max-new-tokens 10000 --lengths 20000 60000
    python eval.py --model DIR --data heldout.jsonl --max-new-tokens 10000 --samples 4 --out DIR
    python eval.py --preset paper --model DIR --data hotpotqa.jsonl frames.jsonl docmath.json --out DIR
    torchrun --standalone --nproc_per_node=8 eval.py --device cuda --model DIR --data heldout.jsonl
    python eval.py --model DIR --data train.jsonl --max-new-tokens 10000 --samples 8 --difficulty difficulty.json
    python eval.py --model DIR --data train.jsonl --max-new-tokens 10000 --samples 8 --keep-correct sft.jsonl

The last two write what train_rl.py --difficulty and train_sft.py --data read. With --out, DIR keeps every answer as it
is given: an evaluation that was stopped goes on where it was when it is started again, and one that is complete can be
scored again, by another judge or in other length buckets, without a token sampled.
"""

import json
import math
import os
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from nanoqwenlong import build, data, errors, parallel, toy
from nanoqwenlong.analysis import evaluate, tables
from nanoqwenlong.errors import ConfigError, ModelError
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits, files, presets
from nanoqwenlong.ops.flags import as_json, rising
from nanoqwenlong.ops.settings import Machine, computing_dtype, fixed
from nanoqwenlong.pretrained.digest import file_digest, model_digests
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.pretrained.weights import read_config, read_json


@dataclass(frozen=True)
class Config(Machine):
    preset: str = ""                    # a named set of values that replace these defaults, listed below. paper and
                                        # golongrl: how those are evaluated. A model's preset also reads it from models/
    model: tuple[str, ...] = ("assets/nano-base", "assets/nano-sft")    # Hugging Face directories, a row each
    seed: int = 0                       # decides every sample
    # data
    data: tuple[str, ...] = ()          # JSONL, JSON or parquet files, also benchmarks as they are released. None: the
                                        # toy task's held-out documents
    task: tuple[str, ...] = ()          # use only these tasks, mixed in these shares: qa=2 f1=1. None: as they come
    skip_bad_rows: bool = False         # leave out rows that cannot be used and report them, instead of refusing all
    toy_examples: int = fixed(200, least=1)  # of the toy task for each length, if no --data is given
    max_prompt_tokens: int = 120000     # longer prompts lose the middle of their document
    lengths: tuple[int, ...] = ()       # upper ends of the length buckets (document + question tokens). None: one
    # answers
    samples: int = fixed(1, least=1)    # answers per question. Several: also pass@k for k = 1, 2, 4, ...
    temperature: float = 1.0            # 0: greedy
    top_p: float = 1.0
    max_new_tokens: int = fixed(48, least=1)
    # reward
    judge: str = ""                     # scores answers that the rule rejects: the URL of an OpenAI-style server (its
                                        # key: JUDGE_API_KEY in the environment) or a Hugging Face directory
    judge_model: str = ""               # the judge's name on that server
    judge_minutes: float = fixed(30.0, least=1e-9)  # time limit of a server for all answers
    # output
    difficulty: str = ""                # write each question's mean reward to this JSON file
    keep_correct: str = ""              # write one right answer per question to this file, as rows for SFT
    out: str = ""                       # a directory for answers.jsonl, results.json and table.md. The same command
                                        # continues from the answers there. What decides the answers may not change.
                                        # The judge and --lengths may, and nothing is sampled again
    # memory and machine
    kv_blocks: int = fixed(16384, least=1)  # of the paged KV cache, 16 tokens each
    timeout_minutes: float = fixed(60.0, least=1e-9)  # ranks wait this long for each other
    check_finite: bool = False          # refuse a model whose weights contain NaN or infinity


PRESETS = presets.EVAL
SETTINGS = ("task", "samples", "temperature", "top_p", "max_new_tokens", "max_prompt_tokens", "seed")
OUTPUTS = ("settings.json", "answers.jsonl", "results.json", "table.md")       # in --out
MAX_UNSCORABLE = 0.25                   # of all answers; above it a judge's accuracy is none


def main(cfg: Config) -> None:
    torch.set_num_threads(cfg.threads)
    rising(cfg, "lengths")
    if len(cfg.model) > 1 and (cfg.difficulty or cfg.keep_correct):
        raise ConfigError("--difficulty and --keep-correct are about one model; give one --model")
    build.check_judge(cfg)
    check_outputs(cfg)
    cfg = replace(cfg, model=tuple(map(str, map(Path, cfg.model))))            # DIR/ is DIR
    device, first = parallel.start(cfg.device, cfg.timeout_minutes), parallel.rank() == 0
    examples = build.questions(cfg, print if first else lambda text: None, "heldout")
    lengths = cfg.lengths or (() if cfg.data else toy.LENGTHS)
    judge = build.judge_of(cfg, os.environ.get("JUDGE_API_KEY", ""), device, computing_dtype(cfg))
    settings = take_out(cfg) if cfg.out else settings_of(cfg)
    saved = evaluate.SavedAnswers(Path(cfg.out) / "answers.jsonl") if cfg.out else None
    models, failures = [], []
    for directory in cfg.model:
        tokenizer = Tokenizer(directory)
        asked, _ = data.tokenize(examples, tokenizer, cfg.max_prompt_tokens, cut=True)
        read_config(directory).require_window(max(len(e.prompt_ids) for e in asked) + cfg.max_new_tokens - 1)
        answers = evaluate.answer_examples(sampler(cfg, directory, device), tokenizer, asked, cfg.samples, saved,
                                           directory, seed=cfg.seed, temperature=cfg.temperature, top_p=cfg.top_p,
                                           max_new_tokens=cfg.max_new_tokens)
        scores = evaluate.score_answers(asked, answers, judge)
        open_answers = [math.isnan(s.reward) for question in scores for s in question]
        if sum(open_answers) > MAX_UNSCORABLE * len(open_answers):
            failures.append(f"{directory}: the judge left {sum(open_answers)} of {len(open_answers)} answers open: "
                            f"{judge.trouble()}")
        models.append(tables.summarise(directory, asked, answers, scores, lengths))
        if cfg.difficulty and first and not failures:
            means = {e.id: mean for e, mean in zip(asked, evaluate.mean_rewards(scores)) if not math.isnan(mean)}
            files.put(Path(cfg.difficulty), {"mean_rewards": means})
        if cfg.keep_correct and first:
            num_right = write_correct(Path(cfg.keep_correct), asked, answers, scores)
            print(f"{num_right} of {len(asked)} questions have a right answer that ended by itself: "
                  f"{cfg.keep_correct}")
    results = {"settings": {**settings, "judge": cfg.judge_model or cfg.judge}, "models": models}
    text = tables.markdown(results)
    if first:
        print(text)
    if cfg.out and first:
        files.put(Path(cfg.out) / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
        files.put(Path(cfg.out) / "table.md", text + "\n")
    if failures:
        again = "; the same command asks again, and samples nothing" * bool(cfg.out)
        raise errors.JudgeUnavailable(f"{'; '.join(failures)}; difficulties are not written, and open answers count as "
                                   f"wrong{again}")


def sampler(cfg: Config, directory: str, device: torch.device):
    """Generator.sample of a model that is read when it is first asked, and gone when this function is."""
    generator = cache(lambda: Generator(
        Qwen.from_pretrained(directory, computing_dtype(cfg), device, check_finite=cfg.check_finite),
        cfg.kv_blocks))
    return lambda *args, **options: generator().sample(*args, **options)


def settings_of(cfg: Config) -> dict:
    """What decides the answers, up to rounding; not how they are scored."""
    chosen = {name: value for name, value in as_json(cfg).items() if name in SETTINGS}
    dtype = str(computing_dtype(cfg)).removeprefix("torch.")
    return {**chosen, "dtype": dtype, "toy_examples": None if cfg.data else cfg.toy_examples}


def take_out(cfg: Config) -> dict:
    """The settings with the sha256 of every file that decides the answers. Answers that --out holds already have to be
    of the same settings: ConfigError if not. All ranks do as the first one found."""
    out, settings = Path(cfg.out), settings_of(cfg)

    def compare():
        settings["data"] = {path: file_digest(Path(path)) for path in cfg.data}
        settings["model"] = {directory: model_digests(Path(directory)) for directory in cfg.model}
        out.mkdir(parents=True, exist_ok=True)
        answers, path = out / "answers.jsonl", out / "settings.json"
        if not answers.exists() or not answers.stat().st_size:
            files.put(path, json.dumps(settings, indent=1) + "\n")
            return settings, ""
        try:
            before = read_json(path) if path.exists() else None
        except ModelError as error:
            return settings, str(error)
        if before is None:
            return settings, f"{out} holds answers, but no settings.json that says of what: take another --out"
        changed = [name for name in settings if name not in before
                   or json.dumps(before[name]) != json.dumps(settings[name])]          # the order of files as well
        if not changed:
            return settings, ""
        flag, (old, new) = f"--{changed[0].replace('_', '-')}", (side.get(changed[0]) for side in (before, settings))
        same = isinstance(old, dict) and list(old) == list(new)
        how = "the files have changed since" if same else f"now it is {brief(new)}, then it was {brief(old)}"
        return settings, f"{out} holds answers of another {flag} ({how}): take another --out, or what was"

    settings, problem = parallel.on_all_ranks(lambda: parallel.rank() == 0 and compare(), f"cannot use {out}")[0]
    if problem:
        raise ConfigError(problem)
    return settings


def brief(value) -> str:
    """A setting as it is shown: of files their names."""
    value = list(value) if isinstance(value, dict) else value
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def check_outputs(cfg: Config) -> None:
    """Before any work: every output can be written, and none of them is another one or an input."""
    out = Path(cfg.out)
    names = [name for name in (cfg.difficulty, cfg.keep_correct) if name] + [
        str(out / name) for name in OUTPUTS if cfg.out]
    places = [Path(name).resolve() for name in (*names, *cfg.data)]
    for place in places[:len(names)]:
        if places.count(place) > 1:
            raise ConfigError(f"{place} would be written over; give every output a file of its own")
        above = place.parent
        while cfg.out and place.name in OUTPUTS and not above.exists():        # --out may be made
            above = above.parent
        if place.exists() and not place.is_file() or not above.is_dir() or (
                not os.access(place if place.exists() else above, os.W_OK)):
            raise ConfigError(f"{place} cannot be written; name a file in a directory that is there")


def write_correct(path: Path, examples, answers, scores) -> int:
    """The first right and finished answer to each question, as a row of SFT data. Returns how many there are."""
    rows = []
    for example, sampled, rewarded in zip(examples, answers, scores):
        right = [answer.text for answer, score in zip(sampled, rewarded)
                 if score.reward == 1 and answer.finish_reason == "stop"]
        if right:
            rows.append(data.as_row(replace(example, response=right[0])))
    files.put(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


if __name__ == "__main__":
    exits.exit_process(exits.start(main, Config, PRESETS, sys.argv[1:]))
