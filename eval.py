"""How often is the model right, for documents of each length? Also pass@k, and scores for the training scripts.

Every question counts: a document that is too long is cut in the middle, and an answer without a verdict counts as
wrong. docs/evaluation.md explains the scores, the tables and their 95 % intervals. The last two of these commands write
what train_rl.py --difficulty and train_sft.py --data read.

    python eval.py                                                       the tiny models, on held-out toy documents
    python eval.py --model DIR --data heldout.jsonl --max-new-tokens 10000 --lengths 20000 60000
    python eval.py --model DIR --data heldout.jsonl --max-new-tokens 10000 --samples 4 --out DIR
    python eval.py --preset paper --model DIR --data hotpotqa.jsonl frames.jsonl docmath.json --out DIR
    torchrun --standalone --nproc_per_node=8 eval.py --device cuda --model DIR --data heldout.jsonl
    python eval.py --model DIR --data train.jsonl --max-new-tokens 10000 --samples 8 --difficulty difficulty.json
    python eval.py --model DIR --data train.jsonl --max-new-tokens 10000 --samples 8 --keep-correct sft.jsonl
"""

import json
import math
import os
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from nanoqwenlong.ops import flags, presets
from nanoqwenlong.ops.settings import Common, Rows, computing_dtype, fixed


@dataclass(frozen=True)
class Config(Common, Rows):
    preset: str = ""                    # a named set of values, listed below. Those of models read them from models/
    model: tuple[str, ...] = ("assets/nano-base", "assets/nano-sft", "assets/nano-rl")    # directories or
                                        # hub ids, a row each
    seed: int = 0                       # decides every sample
    # data
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
                                        # key: JUDGE_API_KEY in the environment), a Hugging Face directory or a hub id
    judge_model: str = ""               # the judge's name on that server
    judge_tokens: int = fixed(4096, least=1)  # room for a reply of the judge, with its thinking
    judge_minutes: float = fixed(30.0, least=1e-9)  # time limit of a server for all answers
    # output
    difficulty: str = ""                # write each question's mean reward to this JSON file
    keep_correct: str = ""              # write one right answer per question to this file, as rows for SFT
    out: str = ""                       # a directory for answers.jsonl, results.json and table.md. The same command
                                        # resumes. With another judge or --lengths, it only scores the answers again
    # memory and machine
    kv_blocks: int = fixed(16384, least=1)  # of the paged KV cache, 16 tokens each
    timeout_minutes: float = fixed(60.0, least=1e-9)  # ranks wait this long for each other
    check_finite: bool = False          # refuse a model whose weights contain NaN or infinity


PRESETS = presets.EVAL

if __name__ == "__main__" and "RANK" not in os.environ:
    flags.check(Config, sys.argv[1:], PRESETS)      # before the next imports, which take seconds

import torch

from nanoqwenlong import build, data, parallel, toy
from nanoqwenlong.analysis import evaluate, tables
from nanoqwenlong.analysis.doctor import MAX_UNSCORABLE
from nanoqwenlong.errors import ConfigError, JudgeUnavailable, ModelError
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits, files
from nanoqwenlong.ops.console import printable, say
from nanoqwenlong.pretrained import hub
from nanoqwenlong.pretrained.digest import file_digest, model_digests
from nanoqwenlong.pretrained.template import read_template
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.pretrained.weights import read_config, read_json

SETTINGS = ("task", "max_paragraphs", "samples", "temperature", "top_p", "max_new_tokens", "max_prompt_tokens", "seed",
            "prompt_template")
OUTPUTS = ("settings.json", "answers.jsonl", "results.json", "table.md")       # in --out


def main(cfg: Config) -> None:
    # 1. Check the settings before any work
    torch.set_num_threads(cfg.threads)
    flags.rising(cfg, "lengths")
    if len(cfg.model) > 1 and (cfg.difficulty or cfg.keep_correct):
        raise ConfigError("--difficulty and --keep-correct are about one model: give one --model")
    build.check_judge(cfg)
    check_outputs(cfg)
    cfg = replace(cfg, model=tuple(str(Path(directory)) for directory in cfg.model),       # DIR/ is DIR
                  prompt_template=read_template(cfg.prompt_template))
    device = parallel.start(cfg.device, cfg.timeout_minutes)
    first = parallel.rank() == 0
    places = {name: hub.directory(name) for name in cfg.model}                 # {as it was given: its directory}

    # 2. Questions, judge, and the answers that --out holds already
    tell = say if first else lambda text: None
    examples = build.questions(cfg, tell, "heldout")
    judge = build.judge_of(cfg, os.environ.get("JUDGE_API_KEY", ""), device, computing_dtype(cfg))
    settings, saved = settings_of(cfg), None
    if cfg.out:
        settings, problem = parallel.on_all_ranks(lambda: open_out(cfg, places), f"cannot use {Path(cfg.out)}")[0]
        if problem:
            raise ConfigError(problem)
        saved = evaluate.SavedAnswers(Path(cfg.out) / "answers.jsonl")
    lengths = cfg.lengths or (() if cfg.data else toy.LENGTHS)

    # 3. One model after another: answer, score, write what was asked for
    models, failures = [], []
    for name, directory in places.items():
        tokenizer = build.prepared(Tokenizer(directory), cfg.prompt_template, tell)
        asked, _ = data.tokenize(examples, tokenizer, cfg.max_prompt_tokens, cut=True)
        longest_prompt = max(len(example.prompt_ids) for example in asked)
        read_config(directory).require_window(longest_prompt + cfg.max_new_tokens - 1)
        answers = evaluate.answer_examples(sampler(cfg, directory, device), tokenizer, asked, cfg.samples, saved,
                                           name, seed=cfg.seed, temperature=cfg.temperature, top_p=cfg.top_p,
                                           max_new_tokens=cfg.max_new_tokens)
        scores = evaluate.score_answers(asked, answers, judge)
        models.append(tables.summarise(name, asked, answers, scores, lengths))
        unscorable = [math.isnan(score.reward) for question in scores for score in question]
        if sum(unscorable) > MAX_UNSCORABLE * len(unscorable):
            failures.append(f"{name}: the judge left {sum(unscorable)} of {len(unscorable)} answers open: "
                            f"{judge.trouble()}")
        if cfg.difficulty and first and not failures:
            means = zip(asked, evaluate.mean_rewards(scores))
            files.put(Path(cfg.difficulty), {"mean_rewards": {e.id: mean for e, mean in means if not math.isnan(mean)}})
        if cfg.keep_correct and first:
            write_correct(cfg.keep_correct, asked, answers, scores)

    # 4. Report
    results = {"settings": {**settings, "judge": cfg.judge_model or cfg.judge}, "models": models}
    table = printable(tables.markdown(results))
    if first:
        say(table)
    if first and cfg.out:
        files.put(Path(cfg.out) / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
        files.put(Path(cfg.out) / "table.md", table + "\n")
    if failures:
        again = "; the same command asks again, and samples nothing" if cfg.out else ""
        raise JudgeUnavailable("; ".join(failures) +
                               f"; difficulties are not written, and open answers count as wrong{again}")


def sampler(cfg: Config, directory: str, device: torch.device):
    """Generator.sample of a model that is loaded at the first call, and freed together with this function."""
    generator = cache(lambda: Generator(Qwen.from_pretrained(
        directory, computing_dtype(cfg), device, check_finite=cfg.check_finite), cfg.kv_blocks))
    return lambda *args, **options: generator().sample(*args, **options)


def settings_of(cfg: Config) -> dict:
    """The settings that decide the answers up to rounding. How they are scored is not among them."""
    settings = {name: value for name, value in flags.as_json(cfg).items() if name in SETTINGS}
    dtype = str(computing_dtype(cfg)).removeprefix("torch.")
    return {**settings, "dtype": dtype, "toy_examples": None if cfg.data else cfg.toy_examples}


def open_out(cfg: Config, places: dict[str, str]) -> tuple[dict, str]:
    """Settings with the SHA-256 of all files that decide the answers, and why they do not fit those in --out, or "".
    A new --out records them. Only the first rank does this."""
    if parallel.rank() > 0:
        return {}, ""
    out, record, answers = (Path(cfg.out) / name for name in ("", "settings.json", "answers.jsonl"))
    settings = {**settings_of(cfg), "data": {path: file_digest(Path(path)) for path in cfg.data},
                "model": {name: model_digests(Path(directory)) for name, directory in places.items()}}
    out.mkdir(parents=True, exist_ok=True)
    if not answers.exists() or not answers.stat().st_size:
        files.put(record, json.dumps(settings, indent=1) + "\n")
        return settings, ""
    if not record.exists():
        return settings, f"{out} holds answers, but no settings.json that says how they were made: take another --out"
    try:
        before = {"prompt_template": "", **read_json(record)}
    except ModelError as error:
        return settings, str(error)
    for name, now in settings.items():
        then = before.get(name)
        if name not in before or json.dumps(then) != json.dumps(now):          # the order of files counts as well
            new, old = (" ".join(each) or "none" if isinstance(each, dict | list) else each for each in (now, then))
            how = f"now it is {new}, then it was {old}" if new != old else "the files have changed since"
            return settings, (f"{out} holds answers of another {flags.flag_of(name)} ({how}): restore it or take "
                              "another --out")
    return settings, ""


def check_outputs(cfg: Config) -> None:
    """Raises ConfigError unless every output can be written, and none is the same as another one or as an input."""
    outputs = [Path(name).resolve() for name in (cfg.difficulty, cfg.keep_correct) if name]
    in_out = [(Path(cfg.out) / name).resolve() for name in OUTPUTS if cfg.out]
    used = [*outputs, *in_out, *(Path(name).resolve() for name in (*cfg.data, cfg.prompt_template))]
    for path in (*outputs, *in_out):
        if used.count(path) > 1:
            raise ConfigError(f"{path} would be written over: give every output a file of its own")
        parent = path.parent
        while path in in_out and not parent.exists():                          # --out may be made
            parent = parent.parent
        writable = os.access(path if path.exists() else parent, os.W_OK)
        if path.exists() and not path.is_file() or not parent.is_dir() or not writable:
            raise ConfigError(f"{path} cannot be written: name a file in a directory that exists")


def write_correct(path: str, examples, answers, scores) -> None:
    """Write one SFT row per question: its first right answer that ended by itself."""
    lines = []
    for example, sampled, rewarded in zip(examples, answers, scores):
        right = [answer.text for answer, score in zip(sampled, rewarded)
                 if score.reward == 1 and answer.finish_reason == "stop"]
        if right:
            row = data.as_row(replace(example, response=right[0]))
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    files.put(Path(path), "".join(lines))
    say(f"{len(lines)} of {len(examples)} questions have a right answer that ended by itself: {path}")


if __name__ == "__main__":
    exits.start(main, Config, PRESETS, sys.argv[1:], leave=exits.exit_process)
