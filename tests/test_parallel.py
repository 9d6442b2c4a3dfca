"""Many ranks are one: the same numbers on any number of them, whatever each has to do, and one end for all.

A test's work is a function of this file that the ranks run by its name (tests/ranks.py). `world(n)` are n ranks that
stay alive. The model is as uneven as possible: 4 ranks hold 2, 2, 2 and 0 rows of its keys.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from itertools import product
from pathlib import Path

import hypothesis.strategies as st
import pytest
import ranks as forked
import torch
from conftest import EAGER
from hypothesis import HealthCheck, Phase, given, settings
from ranks import Ranks, start
from safetensors.torch import load_file
from tiny_qwen import VOCAB, tiny_qwen

import eval as eval_script
import train_rl
import train_sft
from nanoqwenlong import errors, generate, group_pass, optim, parallel, rewards, toy
from nanoqwenlong.analysis import evaluate, step_metrics
from nanoqwenlong.engine.deal import Calls, calls_of
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import checkpoint, files
from nanoqwenlong.pretrained import weights
from nanoqwenlong.pretrained.config import ModelConfig
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.records import Branch, Family

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="autograd does not survive a fork once it has seen a "
                                "GPU: CUDA_VISIBLE_DEVICES= pytest tests/test_parallel.py")
ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"rl": train_rl, "sft": train_sft}
TIMES = ("step_time", "tokens_per_s", "elapsed", "timing_s/sample", "timing_s/reward", "timing_s/update")
RL = ("--toy-examples 8 --prompts-per-step 4 --group-size 3 --max-new-tokens 8 --phase-steps 2 3 --kv-blocks 512 "
      "--max-tokens 18 --learning-rate 3e-3 --weight-decay 0.1 --save-every 1 --keep 9").split()
SFT = ("--steps 5 --batch-size 6 --eval-every 2 --eval-questions 3 --max-new-tokens 4 --max-tokens 200 "
       "--learning-rate 3e-3 --warmup-steps 2 --save-every 1 --keep 9 --patience 0").split()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """world(n): n ranks. If a failed test has killed them, they are made again."""
    kept = {}

    def of(size: int) -> Ranks:
        if kept.get(size) not in Ranks.open:
            kept[size] = Ranks(size, tmp_path_factory.mktemp("world") / str(size))
        return kept[size]
    yield of
    for found in kept.values():
        found.kill()


def uneven_model(directory: Path, kind: str, seed: int, **changes) -> Path:
    """A random model whose answers end now and then, with the toy's tokenizer."""
    toy.save_tokenizer(directory)
    tokenizer = Tokenizer(directory)
    (directory / "generation_config.json").write_text(json.dumps(
        {"eos_token_id": [tokenizer.eos_id, *range(0, tokenizer.vocab_size, 9)]}))
    config = ModelConfig.from_json({
        "model_type": kind, "vocab_size": tokenizer.vocab_size | 1, "hidden_size": 20, "intermediate_size": 33,
        "num_hidden_layers": 2, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 6, "rope_theta": 1e4,
        "rms_norm_eps": 1e-6, "initializer_range": 0.25, **changes}, "uneven")
    model = Qwen.random(config, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(seed)) - 0.5)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    return uneven_model(tmp_path_factory.mktemp("tied"), "qwen3", 1, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> Path:
    return uneven_model(tmp_path_factory.mktemp("untied"), "qwen3", 2, tie_word_embeddings=False, attention_bias=True)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Path:
    """Five experts in the second of two layers: two ranks hold 3 and 2 of them, four 2, 2, 1 and 0."""
    return uneven_model(tmp_path_factory.mktemp("mixture"), "qwen3_moe", 3, tie_word_embeddings=False, num_experts=5,
                        num_experts_per_tok=2, moe_intermediate_size=7, norm_topk_prob=True, mlp_only_layers=[0])


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """Llama 3's rope leaves one of three frequencies, mixes one, lowers one."""
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256}
    return uneven_model(tmp_path_factory.mktemp("llama"), "llama", 4, tie_word_embeddings=True, rope_parameters=rope)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Two questions about each of five documents, one about each of four others."""
    path, lines = tmp_path_factory.mktemp("rows") / "rows.jsonl", []
    for number, e in enumerate(toy.examples(9, toy.SHORT, 0)):
        lines += [{"id": f"{e.id}/{i}", "context": e.document, "question": e.question + "?" * i, "answer": e.answer,
                   "response": e.response + " So." * i} for i in range(2 if number < 5 else 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# What the ranks do

def train(script: str, argv: list[str], change: str = "", **options) -> list:
    """A script with these flags, from start to end -> [exit code, stderr]."""
    with pytest.MonkeyPatch.context() as patch:
        if script == "rl":
            disagree(patch)
        if change:
            globals()[change](patch, **options)
        return list(start(SCRIPTS[script], argv))


def disagree(patch) -> None:
    """The answers of some groups earn different rewards: of all groups, of none, of the first, of all but it, and of
    all, step by step."""
    sample, now = generate.Generator.sample, []

    def noting(self, prompts, **options):
        now[:] = options["seed"]
        return sample(self, prompts, **options)

    def score_all(texts, examples, judge=None):
        step, last = now[1], len(texts) - 1
        informative = {2: [], 3: [last], 4: range(1, last + 1)}.get(step, range(last + 1))
        found = [[rewards.Score(float(len(text) + i) % 3 if row in informative else 1.0, 0.0, None, text)
                  for i, text in enumerate(group)] for row, group in enumerate(texts)]
        return found
    patch.setattr(generate.Generator, "sample", noting)
    patch.setattr(train_rl, "score_all", score_all)


def two_hosts(patch) -> None:
    patch.setattr(parallel, "num_hosts", lambda: 2)


def at_step(patch, act, steps, ranks=(1,)) -> None:
    """Do `act()` before the optimizer's steps of these numbers, on these ranks."""
    made, step = [], optim.step

    def noting(*args):
        made.append(1)
        if len(made) in steps and parallel.rank() in ranks:
            act()
        return step(*args)
    patch.setattr(optim, "step", noting)


def signalled(patch, number: int = signal.SIGTERM, step: int = 2) -> None:
    at_step(patch, lambda: os.kill(os.getpid(), number), [step])


def without_gradient(patch, steps: list[int], where: str) -> None:
    """NaN on rank 1: in its part of the gradient, or in its share of the loss."""
    backward_all, mean_loss, made = group_pass.backward_all, train_sft.mean_loss, []

    def poisoned(model, *args, **options):
        made.append(1)
        backward_all(model, *args, **options)
        if where == "gradient" and len(made) in steps and parallel.rank() == 1:
            parallel.local(next(model.parameters()).grad)[0] = torch.nan

    def poison(*args):
        loss = mean_loss(*args)
        return lambda *x: loss(*x) * (torch.nan if len(made) in steps and parallel.rank() == 1 else 1)
    patch.setattr(group_pass, "backward_all", poisoned)
    if where == "loss":
        patch.setattr(train_sft, "mean_loss", poison)


def full_disk(patch, save: int, rank: int) -> None:
    """No room for one rank's own file in the save of this number."""
    write_file, made = weights.write_file, []

    def refuse(path, *args):
        made.extend([1] if "optimizer-" in path.name else [])
        if len(made) == save and parallel.rank() == rank:
            raise OSError(28, "No space left on device", str(path))
        return write_file(path, *args)
    patch.setattr(weights, "write_file", refuse)


def slow_neighbour(patch) -> None:
    """The other rank is still writing, under another name, when the first one is done."""
    write_file = weights.write_file

    def write(path, *args):
        if parallel.rank() == 1:
            other = path.with_name(".tmpABCD")
            other.write_bytes(b"half")
            time.sleep(0.3)
            other.unlink()
        return write_file(path, *args)
    patch.setattr(weights, "write_file", write)


def killed(patch, event: str, number: int, rank: int = 0) -> None:
    """All ranks die when this one is at an event ("module.function") for the n-th time."""
    pids, made = parallel.gather(os.getpid()), []
    module, name = event.split(".")
    module = {"checkpoint": checkpoint, "optim": optim, "weights": weights, "group_pass": group_pass,
              "parallel": parallel}[module]
    function = getattr(module, name)

    def deadly(*args, **options):
        made.append(1)
        if len(made) == number and parallel.rank() == rank:
            for pid in sorted(pids, key=lambda pid: pid == os.getpid()):
                os.kill(pid, signal.SIGKILL)
        return function(*args, **options)
    patch.setattr(module, name, deadly)


def edited(patch, rank: int) -> None:
    """The source looks edited, on this rank only."""
    code = files.code
    if parallel.rank() == rank:
        patch.setattr(files, "code", lambda script: {**code(script), "nanoqwenlong/grpo.py": "0" * 64})


def dying(patch) -> None:
    at_step(patch, lambda: os.kill(os.getpid(), signal.SIGKILL), [2])


def listening(patch, path: str) -> None:
    """Writes down in which dtype is sampled."""
    answer = generate.Generator._answer

    def noting(self, answers, *args):
        with open(f"{path}.{parallel.rank()}", "a") as file:
            file.write(f"{self.model.dtype} {self.model.model.layers[0].mlp.up_proj.weight.dtype}\n")
        return answer(self, answers, *args)
    patch.setattr(generate.Generator, "_answer", noting)


# What they leave

def lines(run_directory: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run_directory / name).read_text().splitlines()]


def metrics(run_directory: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in lines(run_directory, "metrics.jsonl")]


def newest(run_directory: Path) -> Path:
    return checkpoint.all_of(run_directory / "checkpoints")[-1]


def parameters(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def distance(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def assert_same_run(a: Path, b: Path, bar: float = 1e-12, told: float = 1e-9) -> None:
    """Parameters, numbers, words."""
    assert newest(a).name == newest(b).name
    found = distance(parameters(newest(a)), parameters(newest(b)))
    assert found <= bar, found
    for one, other in zip(metrics(a), metrics(b), strict=True):
        assert one == {k: v and pytest.approx(v, rel=told, abs=told) for k, v in other.items()}
    assert words(a) == words(b)
    print(f"largest difference of a parameter: {found:.1e}")


def words(run_directory: Path) -> list[dict]:
    return lines(run_directory, "rollouts.jsonl") if (run_directory / "rollouts.jsonl").exists() else []


def assert_same_bits(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b) and words(a) == words(b) and newest(a).name == newest(b).name
    for path in sorted(newest(a).glob("*.safetensors")):
        assert path.read_bytes() == (newest(b) / path.name).read_bytes(), path.name


def argv(script: str, model: Path, runs: Path, name: str, *flags, data=None) -> list[str]:
    flags, base = [str(flag) for flag in flags], list(RL if script == "rl" else SFT)
    for flag in set(base) & set(flags) & {word for word in base if word.startswith("--")}:
        place = base.index(flag)
        del base[place:next((i for i in range(place + 1, len(base)) if base[i].startswith("--")), len(base))]
    return ["--model", str(model), "--runs-dir", str(runs), "--name", name, *base, *flags,
            *(["--data", str(data), "--heldout", str(data)] if data else [])]


# The same numbers

HARD = "--dtype float64 --updates-per-step 2 --kl-coef 0.1 --old-logprobs recompute".split()


@pytest.fixture(scope="module")
def rl_alone(world, tied, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("rl_alone")
    assert world(1).call(train, script="rl", argv=argv("rl", tied, runs, "a", *HARD)) == [[0, ""]]
    return runs / "a"


@pytest.fixture(scope="module")
def sft_alone(world, untied, rows, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("sft_alone")
    assert world(1).call(train, script="sft", argv=argv(
        "sft", untied, runs, "a", "--dtype", "float64", data=rows)) == [[0, ""]]
    return runs / "a"


@pytest.fixture(scope="module")
def rl_pair(world, tied, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("rl_pair")
    assert world(2).call(train, script="rl", argv=argv("rl", tied, runs, "a", *HARD)) == [[0, ""]] * 2
    return runs / "a"


@pytest.fixture(scope="module")
def sft_pair(world, untied, rows, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("sft_pair")
    assert world(2).call(train, script="sft", argv=argv(
        "sft", untied, runs, "a", "--dtype", "float64", data=rows)) == [[0, ""]] * 2
    return runs / "a"


def test_two_ranks_reinforce_as_one(rl_alone, rl_pair):
    """Two updates a step, a reference, old log-probs computed again; steps in which all groups teach something, none,
    one, and all but one."""
    assert_same_run(rl_pair, rl_alone)
    told = metrics(rl_alone)
    assert [row["updates"] for row in told] == [2, 0, 1, 2, 2]
    assert [row["kl"] > 0 for row in told][1:] == [True] * 4
    assert told[1]["frac_reward_zero_std"] == 1 and len({len(row["text"]) for row in words(rl_alone)}) > 5
    assert 0 < told[0]["completions/clipped_ratio"] < 1                         # groups differ in size


def test_two_ranks_refill_and_reweight_as_one(world, tied, tmp_path):
    """More prompts where groups agree, several tasks, an entropy bonus, answers that weigh alike."""
    flags = [*"--dtype float64 --steps 4 --max-refills 2 --advantages tmn_reweight --loss grpo".split(),
             *"--entropy-coef 0.01 --task qa f1 pairwise=2".split()]
    for num_ranks in (1, 2):
        words = argv("rl", tied, tmp_path, str(num_ranks), *flags)
        assert world(num_ranks).call(train, script="rl", argv=words) == [[0, ""]] * num_ranks
    assert_same_run(tmp_path / "2", tmp_path / "1")
    told = metrics(tmp_path / "1")
    assert max(row["sampling/refills"] for row in told) == 2 and any(row["sampling/missing"] for row in told)
    assert "reward_by_task/f1" in told[0]


def test_two_ranks_fine_tune_as_one(sft_alone, sft_pair):
    assert_same_run(sft_pair, sft_alone)
    assert [row["step"] for row in metrics(sft_alone) if "eval/acc" in row] == [2, 4, 5]


def test_two_ranks_fine_tune_a_llama_as_one(world, llama, rows, tmp_path):
    for size in (1, 2):
        assert world(size).call(train, script="sft", argv=argv(
            "sft", llama, tmp_path, str(size), "--dtype", "float64", "--steps", 2, data=rows)) == [[0, ""]] * size
    assert_same_run(tmp_path / "2", tmp_path / "1")


def evaluated(argv: list[str]) -> list:
    """eval.py, a few questions at a time -> [exit code, stderr]."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "AT_ONCE", 4)
        return list(start(eval_script, argv))


def test_two_ranks_evaluate_as_one_and_go_on_from_its_answers(world, tied, rows, tmp_path):
    """14 questions in batches of 4: the first of the ranks looks at the file, and both take its way."""
    argv = ["--model", str(tied), "--data", str(rows), *"--samples 2 --max-new-tokens 6 --dtype float64 --out".split()]
    outs = {size: tmp_path / str(size) for size in (1, 2)}
    for size, out in outs.items():
        assert world(size).call(evaluated, argv=[*argv, str(out)]) == [[0, ""]] * size
    read = lambda out: {path.name: path.read_bytes() for path in out.iterdir()}
    whole, answers = read(outs[1]), outs[2] / "answers.jsonl"
    assert read(outs[2]) == whole and whole["answers.jsonl"].count(b"\n") == 14
    answers.write_bytes(whole["answers.jsonl"][:len(whole["answers.jsonl"]) // 2])
    assert world(2).call(evaluated, argv=[*argv, str(outs[2])]) == [[0, ""]] * 2 and read(outs[2]) == whole
    (code, said), (other, nothing) = world(2).call(evaluated, argv=[*argv, str(outs[2]), "--seed", "1"])
    assert (code, other, nothing) == (78, 78, "") and "another --seed" in said
    answers.write_bytes(whole["answers.jsonl"].replace(b'"stop"', b"5", 1).replace(b'"id"', b'"key"'))
    (code, said), (other, nothing) = world(2).call(evaluated, argv=[*argv, str(outs[2])])
    assert (code, other, nothing) == (65, 65, "") and "another --out" in said


def test_two_ranks_reinforce_a_mixture_as_one(world, mixture, tmp_path):
    for size in (1, 2):
        assert world(size).call(train, script="rl", argv=argv("rl", mixture, tmp_path, str(size), *HARD, "--steps", 2,
                                                              "--group-size", 2)) == [[0, ""]] * size
    assert_same_run(tmp_path / "2", tmp_path / "1")
    first, second = metrics(tmp_path / "1")                                    # the second has nothing to learn from
    assert 1 <= first["experts/max_load"] <= 5 / 2 and 0 <= first["experts/unused"] < 1
    assert not {"experts/max_load", "experts/unused"} & second.keys()


@pytest.mark.full
def test_two_and_four_ranks_fine_tune_a_mixture_as_one(world, mixture, rows, tmp_path):
    for size in (1, 2, 4):
        assert world(size).call(train, script="sft", argv=argv(
            "sft", mixture, tmp_path, str(size), "--dtype", "float64", data=rows)) == [[0, ""]] * size
    flags = argv("sft", mixture, tmp_path, "moved", "--dtype", "float64", data=rows)
    found = world(2).call(train, script="sft", argv=flags, change="signalled")
    assert [code for code, _ in found] == [errors.STOPPED] * 2
    assert world(4).call(train, script="sft", argv=flags) == [[0, ""]] * 4    # one of which has no expert
    for name in ("2", "4", "moved"):
        assert_same_run(tmp_path / name, tmp_path / "1")
    assert all("experts/max_load" in row for row in metrics(tmp_path / "1"))


@pytest.mark.full
def test_in_single_precision_too(world, tied, untied, rows, tmp_path):
    for script, model, data in (("rl", tied, None), ("sft", untied, rows)):
        for size in (1, 2):
            assert world(size).call(train, script=script, argv=argv(
                script, model, tmp_path, f"{script}{size}", "--learning-rate", 1e-3, data=data)) == [[0, ""]] * size
        alone, pair = tmp_path / f"{script}1", tmp_path / f"{script}2"
        assert distance(parameters(newest(alone)), parameters(newest(pair))) <= 1e-4 and words(alone) == words(pair)
        assert all(abs(a["loss"] - b["loss"]) <= 1e-6 for a, b in zip(metrics(alone), metrics(pair), strict=True))


@pytest.mark.full
def test_four_ranks_are_one(world, tied, untied, rows, rl_alone, sft_alone, tmp_path):
    """Some of them without a group, without a document, without a row of some weights."""
    assert world(4).call(train, script="rl", argv=argv("rl", tied, tmp_path, "rl", *HARD)) == [[0, ""]] * 4
    assert_same_run(tmp_path / "rl", rl_alone)
    assert world(4).call(train, script="sft", argv=argv(
        "sft", untied, tmp_path, "sft", "--dtype", "float64", data=rows)) == [[0, ""]] * 4
    assert_same_run(tmp_path / "sft", sft_alone)


@pytest.mark.full
def test_fewer_prompts_than_ranks(world, tied, tmp_path):
    for size in (1, 4):
        assert world(size).call(train, script="rl", argv=argv(
            "rl", tied, tmp_path, str(size), *HARD, "--prompts-per-step", 2, "--steps", 3)) == [[0, ""]] * size
    assert_same_run(tmp_path / "4", tmp_path / "1")


@pytest.mark.full
def test_two_nodes_with_a_whole_model_each(world, untied, rows, sft_alone, rl_alone, tied, tmp_path):
    """HSDP: four ranks, of which two share the weights. Only one of each two writes a row of the optimizer's."""
    for script, model, data, flags, alone in (("sft", untied, rows, ["--dtype", "float64"], sft_alone),
                                              ("rl", tied, None, HARD, rl_alone)):
        assert world(4).call(train, script=script, change="two_hosts", argv=argv(
            script, model, tmp_path, script, *flags, data=data)) == [[0, ""]] * 4
        assert_same_run(tmp_path / script, alone)
        sizes = [path.stat().st_size for path in sorted(newest(tmp_path / script).glob("optimizer-*"))]
        assert len(sizes) == 4 and max(sizes[2:]) < min(sizes[:2]) / 4
        assert world(1).call(train, script=script, argv=argv(script, model, tmp_path, script, *flags, data=data)) == [
            [0, ""]]                                                           # goes on from it: is complete


@pytest.mark.full
def test_checkpointing_on_two_ranks_changes_no_bit(world, untied, rows, sft_pair, tmp_path):
    assert world(2).call(train, script="sft", argv=argv(
        "sft", untied, tmp_path, "a", "--dtype", "float64", "--checkpointing", data=rows)) == [[0, ""]] * 2
    assert_same_bits(tmp_path / "a", sft_pair)


@pytest.mark.full
def test_offloading_changes_nothing(world, tied, rl_alone, tmp_path):
    for size in (1, 2):
        assert world(size).call(train, script="rl", argv=argv("rl", tied, tmp_path, str(size), *HARD, "--offload")) == [
            [0, ""]] * size
        assert_same_run(tmp_path / str(size), rl_alone)


@pytest.mark.full
def test_bfloat16_computes_so_and_keeps_float32(world, untied, rows, tmp_path):
    for name, size, dtype in (("32", 1, "float32"), ("1", 1, "bfloat16"), ("2", 2, "bfloat16")):
        assert world(size).call(train, script="sft", change="listening", path=str(tmp_path / f"heard{name}"), argv=argv(
            "sft", untied, tmp_path, name, "--learning-rate", 1e-3, "--dtype", dtype, data=rows)) == [[0, ""]] * size
        heard = {line for path in tmp_path.glob(f"heard{name}.*") for line in path.read_text().splitlines()}
        assert heard == {f"torch.{dtype} torch.{dtype}"}
        files = [load_file(path) for path in newest(tmp_path / name).glob("*.safetensors")]
        assert len(files) == 1 + size
        assert {tensor.dtype for tensors in files for tensor in tensors.values()} == {torch.float32}
        for row, wide in zip(metrics(tmp_path / name), metrics(tmp_path / "32"), strict=True):
            assert row["loss"] == pytest.approx(wide["loss"], rel=0.01) and row["grad_norm"] > 0
        assert distance(parameters(newest(tmp_path / name)), parameters(newest(tmp_path / "32"))) < 0.02
    assert 0 < distance(parameters(newest(tmp_path / "1")), parameters(newest(tmp_path / "32")))
    for first, then in ((1, 2), (2, 1)):                       # each resumes the other's checkpoint
        name = f"{first}, then {then}"
        for size, steps in ((first, 2), (then, 5)):
            assert world(size).call(train, script="sft", argv=argv(
                "sft", untied, tmp_path, name, "--learning-rate", 1e-3, "--dtype", "bfloat16", "--steps", steps,
                data=rows)) == [[0, ""]] * size
        assert len(metrics(tmp_path / name)) == 5
        assert distance(parameters(newest(tmp_path / name)), parameters(newest(tmp_path / str(first)))) < 0.005


# Families over ranks

def branch(tokens: list[int], weighted: int) -> Branch:
    """The last `weighted` targets count."""
    return Branch(tuple(tokens[:-1]), tuple(tokens[1:]), (0.0,) * (len(tokens) - 1 - weighted) + (1.0,) * weighted)


@cache
def pair_of_models(kind: str):
    """The same model twice: one split over the ranks, one not."""
    models = [tiny_qwen(kind, tie_word_embeddings=kind == "qwen2", hidden_size=20, intermediate_size=33,
                        num_attention_heads=5, num_key_value_heads=1, head_dim=6) for _ in range(2)]
    return parallel.shard(models[0], models[0].model.layers, torch.float64), models[1]


def compute_families(kind: str, families: dict, max_tokens: int) -> list[float]:
    """Gradients and log-probs of families over all ranks, and the loads of experts: their largest distance from those
    of one process."""
    families = {name: Family(tuple(stem), tuple(branch(*b) for b in branches))
                for name, (stem, branches) in families.items()}
    found, loads = [], []
    for model, world_size in zip(pair_of_models(kind), (parallel.size(), 1)):
        with pytest.MonkeyPatch.context() as patch:
            if world_size == 1:
                patch.setattr(parallel, "size", lambda: 1)
                patch.setattr(parallel, "rank", lambda: 0)
            model.zero_grad()
            group_pass.backward_all(model, families, lambda name: lambda rows, logprobs, entropy: (
                (int(name) + 1) * logprobs.exp() - 0.3 * entropy.square()).sum(), max_tokens=max_tokens)
            values = group_pass.logprobs_all(model, families, max_tokens=max_tokens)
            loads.append(step_metrics.expert_values(model))
        found.append(({name: p.grad.full_tensor() if parallel.is_sharded(p) and p.grad is not None else p.grad
                       for name, p in model.named_parameters()}, values))
    (grads, values), (plain_grads, plain_values) = found
    empty, nothing = [torch.zeros(0)], torch.zeros(())
    assert set(values) - {None} <= set(plain_values) and values.get(None, []) == []
    assert loads[0] == pytest.approx(loads[1], rel=1e-12) and (kind == "qwen3_moe" or not loads[0])
    pairs = [[nothing if g is None else g for g in (grads[name], plain_grads[name])] for name in grads]
    return [max(float((a - b).abs().max()) for a, b in pairs),
            max([float((a - b).abs().max()) for name in set(values) - {None}
                 for a, b in zip(values[name] or empty, plain_values[name] or empty, strict=True) if len(a)] or [0.0])]


KINDS = ("qwen2", "qwen3", "qwen3_moe")
tokens = st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=7)
some_families = st.lists(st.tuples(st.lists(st.integers(0, VOCAB - 1), max_size=6), st.lists(
    st.tuples(tokens, st.integers(0, 1)), max_size=4)), max_size=5)
on_ranks = settings(deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
                    suppress_health_check=list(HealthCheck))      # shrinking would start new ranks each time


@settings(on_ranks, max_examples=15)
@given(st.sampled_from(KINDS), some_families, st.integers(1, 20))
def test_any_families_on_two_ranks_give_the_gradient_of_one(world, kind, found, max_tokens):
    """Any number of them, none included; stems that are empty, families without branches, branches without targets,
    more micro-batches here than there."""
    families = {str(number): family for number, family in enumerate(found)}
    for distances in world(2).call(compute_families, seconds=60, kind=kind, families=families, max_tokens=max_tokens):
        assert max(distances) <= 1e-12, distances


@pytest.mark.full
def test_any_families_on_four_ranks_give_the_gradient_of_one(world):
    @settings(on_ranks, max_examples=40)
    @given(st.sampled_from(KINDS), some_families, st.integers(1, 20))
    def check(kind, found, max_tokens):
        families = {str(number): family for number, family in enumerate(found)}
        for distances in world(4).call(compute_families, kind=kind, families=families, max_tokens=max_tokens):
            assert max(distances) <= 1e-12, distances
    check()


@settings(deadline=None, max_examples=60)
@given(some_families, st.integers(1, 5), st.integers(1, 20))
def test_every_family_is_dealt_once_and_all_ranks_make_the_same_calls(found, size, max_tokens):
    families = {f"f{number}": Family(tuple(stem), tuple(branch(*b) for b in branches))
                for number, (stem, branches) in enumerate(found)}
    model, shares = tiny_model(), []
    for rank in range(size):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel, "size", lambda: size)
            patch.setattr(parallel, "rank", lambda: rank)
            shares.append(group_pass.deal(model, families, max_tokens))
    assert sorted(name for share in shares for name, *_ in share if name is not None) == sorted(families)
    assert len({tuple(calls for *_, calls in share) for share in shares}) == 1
    for place, (*_, calls) in enumerate(shares[0]):
        own = [calls_of(families[share[place][0]], max_tokens) for share in shares if share[place][0]]
        assert calls == (any(c.stem for c in own), max(c.branches for c in own))       # what is needed, and no more


@cache
def tiny_model():
    return tiny_qwen()


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 30), max_size=6), st.integers(1, 3))
def test_the_dearest_share_is_at_most_a_third_above_the_best_possible(costs, parts):
    """Graham's bound for dealing the dearest first, against all ways to deal."""
    dealt = parallel.balance(costs, parts)
    assert sorted(item for part in dealt for item in part) == list(range(len(costs))) and len(dealt) == parts

    def dearest(places) -> int:
        return max(sum(cost for cost, at in zip(costs, places) if at == part) for part in range(parts))
    best = min(dearest(places) for places in product(range(parts), repeat=len(costs)))
    assert max(sum(costs[item] for item in part) for part in dealt) <= (4 / 3 - 1 / (3 * parts)) * best + 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stem", [(), (3, 1, 4, 1, 5)])
def test_calls_that_only_keep_company_change_no_bit(kind, stem):
    model = tiny_qwen(kind, tie_word_embeddings=kind == "qwen2")
    branches = [branch([9, 2, 6, 5], 2), branch([3, 5], 1), branch([8, 9, 7, 9, 3], 4)]
    own, found, num_calls, forward = calls_of(Family(stem, branches), 4), [], [], model.forward
    model.forward = lambda *args: (num_calls.append(1), forward(*args))[1]
    for calls in (None, own, Calls(True, own.branches + 3)):
        model.zero_grad()
        num_calls.clear()
        group_pass.backward(model, stem, branches, lambda rows, logprobs, entropy: (logprobs * entropy).sum(), 0.7, 4,
                            calls)
        values = group_pass.logprobs(model, stem, branches, 0.7, 4, calls)
        assert len(num_calls) == 2 * sum(calls or own)
        found.append([*(p.grad.clone() for p in model.parameters()), *values])
    for other in found[1:]:
        assert all(a.equal(b) for a, b in zip(found[0], other, strict=True))
    model.zero_grad()                                                          # nothing of its own at all
    group_pass.backward(model, (), (), None, calls=Calls(True, 2))
    assert group_pass.logprobs(model, (), (), calls=Calls(True, 2)) == []
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


# Weights in one piece

def sample_in_turns() -> list[float]:
    """Differently many calls on each rank while the weights are whole, a whole inside a whole, an error in it; then
    training -> the largest distance of parameters from those of one process."""
    pair_of_models.cache_clear()
    model, plain = pair_of_models("qwen3")
    ids = torch.arange(20) % VOCAB
    expected = plain.logits(ids).detach()

    def same() -> bool:
        for p in model.parameters():
            assert not parallel.is_sharded(p)
        return all(model.logits(ids).equal(expected) for _ in range((3, 7)[parallel.rank() % 2]))
    with torch.no_grad(), parallel.whole(model):
        assert same()
        with parallel.whole(model):
            assert same()
        assert same()
    with pytest.raises(ZeroDivisionError), torch.no_grad(), parallel.whole(model):
        1 / 0
    assert all(parallel.is_sharded(p) for p in model.parameters())
    norms = []
    for one in (model, plain):
        adamw, told = optim.adamw(one, 0.01, 0.1), []
        for step in range(3):
            part = 1 if one is plain else parallel.size()                      # each rank adds an equal share
            (one.logits((ids + step) % VOCAB).log_softmax(-1)[:, 0].sum() / 20 / part).backward()
            told.append(optim.step(adamw, list(one.parameters()), 0.01, 0.05))
            if one is model:
                with torch.no_grad(), parallel.whole(model):                   # sees what was just learned
                    after = model.logits(ids)
        norms.append(told)
    assert norms[0] == pytest.approx(norms[1], rel=1e-12) and (after - plain.logits(ids)).abs().max() <= 1e-12
    pair_of_models.cache_clear()
    return [float((a.full_tensor() - b).abs().max()) for a, b in zip(model.parameters(), plain.parameters())]


def test_sharded_weights_in_one_piece_and_back(world):
    assert max(map(max, world(2).call(sample_in_turns))) <= 1e-12


# What ranks tell each other

def talk(values: list, numbers: list, sums: list[dict], flags: list[bool], failing: list[bool]) -> list:
    own = parallel.rank()

    def work():
        if failing[own]:
            raise OSError(5 + own, "broken", f"/disk{own}")
        return values[own]
    try:
        done = parallel.on_all_ranks(work, "cannot work")
    except OSError as error:
        done = [error.errno, str(error)]
    return [parallel.gather(values[own]), parallel.gather(numbers[own]), parallel.reduce(sums[own], highest=("max",)),
            any(parallel.gather(flags[own])), done]


something = st.recursive(st.none() | st.booleans() | st.integers(-2**60, 2**60) | st.floats(allow_nan=False) |
                         st.text(st.characters(exclude_categories=())), lambda x: st.lists(x, max_size=3) |
                         st.dictionaries(st.text(max_size=3), x, max_size=3), max_leaves=5)
bits = st.tuples(st.booleans(), st.booleans())
NUMBERS = [st.integers(-2**63, 2**63 - 1), st.floats(allow_nan=False)]
some_sums = st.fixed_dictionaries({"a": st.integers(-9, 9), "max": st.floats(-9, 9)}) | st.just({})


@settings(on_ranks, max_examples=40)
@given(values=st.tuples(something, something), flags=bits, failing=bits, sums=st.tuples(some_sums, some_sums),
       numbers=st.sampled_from(NUMBERS).flatmap(lambda number: st.tuples(*[st.lists(number, max_size=9)] * 2)))
def test_all_ranks_hear_what_each_says(world, values, numbers, sums, flags, failing):
    total = {key: max(row[key] for row in sums if row) if key == "max" else sum(row.get(key, 0) for row in sums)
             for key in (sums[0] or sums[1])}
    done = [*values]
    if any(failing):
        first = failing.index(True)
        done = [5 + first, f"[Errno {5 + first}] cannot work: /disk{first}: broken (rank {first})"]
    for heard in world(2).call(talk, values=values, numbers=numbers, sums=sums, flags=flags,
                               failing=failing):
        assert heard == [[*values], [*numbers], total, any(flags), done]


# Bad news

@pytest.mark.parametrize("where", ["gradient", pytest.param("loss", marks=pytest.mark.full)])
def test_what_is_not_finite_on_one_rank_updates_none(world, untied, rows, tmp_path, where):
    """Steps 2, 4 and 5 of 5 are; two in a row end the run."""
    runs = tmp_path / "runs"
    found = world(2).call(train, script="sft", change="without_gradient", steps=[2, 4, 5], where=where, argv=argv(
        "sft", untied, runs, "a", "--max-bad-updates", 2, "--eval-every", 0, data=rows))
    assert [code for code, _ in found] == [errors.INTERNAL] * 2
    assert found[0][1].count("\n") == 1 and "not finite 2 times in a row, up to step 5" in found[0][1]
    first, second, third, fourth = checkpoint.all_of(runs / "a/checkpoints")
    for before, after, changed in ((first, second, False), (second, third, True), (third, fourth, False)):
        for path in before.glob("*.safetensors"):
            assert (path.read_bytes() != (after / path.name).read_bytes()) == changed, (path, changed)
    skipped, told = lines(runs / "a", "skipped.jsonl"), metrics(runs / "a")
    assert [row["step"] for row in skipped] == [2, 4, 5] and all(len(set(row["ids"])) == 6 for row in skipped)
    assert [row["loss"] is None for row in told] == [row["grad_norm"] is None for row in told] == [False, True, False,
                                                                                                  True]
    left = json.loads((runs / "a/exit.json").read_text())
    assert left["code"] == errors.INTERNAL and left["step"] == 4 and left["checkpoint"] == str(fourth)


@pytest.mark.full
def test_a_disk_that_is_full_for_one_rank_stops_all(world, untied, rows, sft_pair, tmp_path):
    flags = argv("sft", untied, tmp_path, "a", "--dtype", "float64", data=rows)
    found = world(2).call(train, script="sft", argv=flags, change="full_disk", save=3, rank=1)
    assert [code for code, _ in found] == [errors.IO_ERROR] * 2
    assert all("No space left on device (rank 1)" in said and said.count("\n") == 1 for _, said in found)
    left = json.loads((tmp_path / "a/exit.json").read_text())
    assert (left["code"], left["step"]) == (errors.IO_ERROR, 3) and left["checkpoint"].endswith("step_000002")
    assert checkpoint.verify(Path(left["checkpoint"])) == [] and newest(tmp_path / "a").name == "step_000002"
    assert world(2).call(train, script="sft", argv=flags, change="slow_neighbour") == [[0, ""]] * 2    # with room again
    assert checkpoint.verify(newest(tmp_path / "a")) == []
    assert_same_bits(tmp_path / "a", sft_pair)


def test_a_signal_to_one_rank_stops_all_after_the_same_step(world, untied, rows, sft_pair, tmp_path):
    """And the run resumes to the same bits."""
    flags = argv("sft", untied, tmp_path, "a", "--dtype", "float64", "--save-every", 4, data=rows)
    found = world(2).call(train, script="sft", argv=flags, change="signalled")
    assert [code for code, _ in found] == [errors.STOPPED] * 2 and found[0][1].count("\n") == 1
    left = json.loads((tmp_path / "a/exit.json").read_text())
    assert (left["code"], left["step"]) == (errors.STOPPED, 2)
    assert left["checkpoint"].endswith("checkpoints/step_000002")
    command = r"(\.venv/bin/)?torchrun --standalone --nproc_per_node=2 \S*train_sft.py --"
    assert re.match(command, left["resume_command"])
    assert left["reason"].endswith(left["resume_command"]) and checkpoint.verify(Path(left["checkpoint"])) == []
    assert [path.name for path in checkpoint.all_of(tmp_path / "a/checkpoints")] == ["step_000002"]
    again = left["resume_command"].split("train_sft.py ")[1].split()
    assert world(2).call(train, script="sft", argv=again) == [[0, ""]] * 2
    assert_same_bits(tmp_path / "a", sft_pair)


@pytest.mark.full
def test_a_run_goes_on_with_any_number_of_ranks(world, tied, rl_alone, rl_pair, tmp_path):
    """With the same number to the same bits; with others, two nodes among them, to the same numbers."""
    flags = argv("rl", tied, tmp_path, "b", *HARD, "--save-every", 4)
    found = world(2).call(train, script="rl", argv=flags, change="signalled")
    assert [code for code, _ in found] == [errors.STOPPED] * 2
    for size in (2, 1, 4):
        runs = tmp_path / str(size)
        shutil.copytree(tmp_path / "b", runs / "b")
        assert world(size).call(train, script="rl", argv=argv("rl", tied, runs, "b", *HARD)) == [[0, ""]] * size
        assert_same_run(runs / "b", rl_alone)
    assert_same_bits(tmp_path / "2/b", rl_pair)
    flags = argv("rl", tied, tmp_path, "a", *HARD)
    for size, change, code in ((2, "signalled", errors.STOPPED), (4, "signalled", errors.STOPPED),
                               (4, "two_hosts", None), (1, "", 0)):
        if code is None:
            found = world(size).call(train, script="rl", argv=[*flags, "--steps", "3"], change=change)
            assert found == [[0, ""]] * size
        else:
            found = world(size).call(train, script="rl", argv=flags, change=change)
            assert [x for x, _ in found] == [code] * size
    assert_same_run(tmp_path / "a", rl_alone)


def test_the_first_rank_decides_whether_the_code_has_changed(world, untied, rows, sft_pair, tmp_path):
    flags = argv("sft", untied, tmp_path, "a", "--dtype", "float64", "--save-every", 4, data=rows)
    assert [code for code, _ in world(2).call(train, script="sft", argv=flags, change="signalled")] == [75, 75]
    found = world(2).call(train, script="sft", argv=flags, change="edited", rank=0)
    assert [code for code, _ in found] == [errors.BAD_CONFIG] * 2 and found[1][1] == ""
    assert "made its 2 steps: nanoqwenlong/grpo.py; " in found[0][1] and found[0][1].count("\n") == 1
    assert world(2).call(train, script="sft", argv=flags, change="edited", rank=1) == [[0, ""]] * 2
    assert_same_bits(tmp_path / "a", sft_pair)
    assert world(2).call(train, script="sft", argv=[*flags, "--resume", "restart"]) == [[0, ""]] * 2
    assert_same_bits(tmp_path / "a", sft_pair)
    assert_same_bits(tmp_path / "a.1", sft_pair)


# Deaths

KILLS = [("optim.step", 3, 0), ("group_pass.backward", 9, 1), ("checkpoint.sync", 9, 0), ("checkpoint.sync", 4, 1),
         ("weights.write_file", 5, 0), ("checkpoint._seal", 2, 0), ("checkpoint._remove", 3, 0),
         ("checkpoint.prune", 3, 1), ("parallel.gather", 40, 1)]


@pytest.mark.full
@pytest.mark.parametrize("event, number, rank", KILLS)
def test_a_job_that_is_killed_goes_on_to_the_same_bits(world, untied, rows, sft_pair, tmp_path, event, number, rank):
    flags = argv("sft", untied, tmp_path, "a", "--dtype", "float64", data=rows)
    with forked.ranks(2, tmp_path / "doomed") as doomed:
        assert doomed.call(train, mortal=True, script="sft", argv=flags, change="killed", event=event, number=number,
                           rank=rank) == [None, None]
    assert len(lines(tmp_path / "a", "metrics.jsonl")) < 5
    assert world(2).call(train, script="sft", argv=flags) == [[0, ""]] * 2
    assert_same_bits(tmp_path / "a", sft_pair)
    assert not list((tmp_path / "a/checkpoints").glob(".*"))


@pytest.mark.full
def test_the_others_leave_a_rank_that_died_and_name_it(untied, rows, tmp_path):
    with forked.ranks(2, tmp_path / "doomed", wait=30) as doomed:
        started = time.monotonic()
        left, died = doomed.call(train, mortal=True, script="sft", argv=argv("sft", untied, tmp_path, "a", data=rows),
                                 change="dying")
        assert died is None and left[0] == errors.INTERNAL and time.monotonic() - started < 15
    assert left[1].count("\n") == 1 and "rank 0 lost rank 1" in left[1] and "--timeout-minutes" in left[1]
    found = json.loads((tmp_path / "a/exit.json").read_text())
    assert found["code"] == errors.INTERNAL and found["step"] == 1 and found["reason"] + "\n" == left[1]
    assert checkpoint.verify(Path(found["checkpoint"])) == []


def come_late(argv: list[str], late: float) -> list:
    if parallel.rank() == 1:
        time.sleep(late)
        return []
    return train("sft", argv)


@pytest.mark.full
def test_a_rank_that_does_not_come_is_waited_for_as_long_as_asked(untied, rows, tmp_path):
    with forked.ranks(2, tmp_path / "late", wait=2) as late:
        (code, said), _ = late.call(come_late, late=12, argv=argv(
            "sft", untied, tmp_path, "a", "--timeout-minutes", 2 / 60, data=rows))
    assert code == errors.INTERNAL and said.count("\n") == 1 and "0.0333333 minutes" in said
    assert "rank 0 lost rank 1" in said and "--timeout-minutes" in said and not (tmp_path / "a").exists()


# Files

def export(source: str, directory: str, max_shard_bytes: int) -> dict[str, list[int]]:
    """Read by all ranks, written by all -> the shapes that this one has read."""
    shapes, read = {}, weights.read_tensors

    def noting(*args):
        for name, tensor in read(*args):
            shapes[name] = list(tensor.shape)
            yield name, tensor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "read_tensors", noting)
        model = Qwen.from_pretrained(source, prepare=lambda model: parallel.shard(model, model.model.layers,
                                                                                  torch.float32))
    model.save_pretrained(Path(directory) / "one")
    weights.write(Path(directory) / "many", dict(model.named_parameters()), model.config, max_shard_bytes)
    return shapes


@pytest.mark.parametrize("kind", ["tied", "untied", "mixture"])
def test_any_number_of_ranks_writes_the_same_model_and_reads_its_own_rows(world, kind, request, tmp_path):
    source = request.getfixturevalue(kind)
    alone, = world(1).call(export, source=str(source), directory=str(tmp_path / "alone"), max_shard_bytes=20_000)
    for shapes, rank in zip(world(2).call(export, source=str(source), directory=str(tmp_path / "pair"),
                                          max_shard_bytes=20_000), range(2)):
        assert shapes.keys() == alone.keys()
        assert weights.take_apart({name: torch.empty(shape, device="meta") for name, shape in alone.items()}
                                  ).keys() == parameters(source).keys()        # in the file experts lie one by one
        for name, (num, *rest) in alone.items():
            share = -(-num // 2)
            assert shapes[name] == [share if rank == 0 else num - share, *rest], name
    for form in ("one", "many"):
        files = [{path.name: path.read_bytes() for path in (tmp_path / who / form).iterdir()}
                 for who in ("alone", "pair")]
        assert files[0] == files[1] and (len(files[0]) > 4) == (form == "many")
    from transformers import AutoModelForCausalLM
    ids = torch.arange(30)[None]
    theirs = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **EAGER)(ids).logits.detach()
              for path in (source, tmp_path / "pair/one", tmp_path / "pair/many")]
    assert theirs[0].equal(theirs[1]) and theirs[0].equal(theirs[2])
    assert (Qwen.from_pretrained(source).logits(ids) - theirs[0]).abs().max() <= 1e-5


# No pickle

def unpickle(path: str) -> None:
    """Under a function that claims to stand in this file."""
    exec(compile("import sys; sys.audit('pickle.find_class', 'builtins', 'sorted')", path, "exec"), {})


def test_the_watch_for_pickles_sees_the_project_and_its_ranks(world, monkeypatch, tmp_path):
    """And nothing else; conftest.py fails the run for what it has seen."""
    import conftest
    with open(tmp_path / "seen", "w") as file, monkeypatch.context() as patch:
        patch.setattr(conftest, "UNPICKLED", file)
        for path in (ROOT / "nanoqwenlong/evil.py", ROOT / "train_rl.py", ROOT / "tests/evil.py", "/evil.py"):
            unpickle(str(path))
    seen = (tmp_path / "seen").read_text().splitlines()
    assert [line.split(" under ")[1] for line in seen] == [f"{ROOT}/nanoqwenlong/evil.py:1", f"{ROOT}/train_rl.py:1"]
    assert world(2).call(watching) == [True] * 2


def watching() -> bool:
    """Whether this rank, forked before, would be heard."""
    import conftest
    return os.path.samefile(conftest.UNPICKLED.name, f"/proc/{os.getppid()}/fd/{conftest.UNPICKLED.fileno()}")


# As the shell starts them

def torchrun(script: str, flags: list[str], *more) -> subprocess.Popen:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *more,
             f"train_{script}.py", *flags]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)


def workers(agent: subprocess.Popen) -> list[int]:
    """The process ids of its ranks."""
    path = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
    return [int(pid) for pid in path.read_text().split() if b"train_" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for(agent: subprocess.Popen, path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert agent.poll() is None and time.monotonic() < end, agent.communicate(timeout=5)[0]
        time.sleep(0.02)


@pytest.mark.full
@pytest.mark.parametrize("script", ["sft", "rl"])
def test_torchrun(script, tied, untied, rows, tmp_path):
    """Two ranks from start to end. Then a run that is stopped by a signal (to one rank, to all) and killed (all, one
    rank), and resumed each time: it ends in the same bits."""
    model, data = (untied, rows) if script == "sft" else (tied, None)
    steps = ["--steps", 12] if script == "sft" else ["--phase-steps", 4, 8]
    flags = argv(script, model, tmp_path, "a", "--dtype", "float64", *steps, data=data)
    whole = torchrun(script, flags)
    said = whole.communicate(timeout=100)[0]
    assert whole.returncode == 0, said
    flags[flags.index("a")], left, step = "b", tmp_path / "b/exit.json", 0
    for act in ("worker", "kill") if script == "sft" else ("agent", "kill worker"):
        agent = torchrun(script, flags)
        wait_for(agent, tmp_path / f"b/checkpoints/step_{step + 2:06d}")
        pids = workers(agent)
        assert len(pids) == 2
        if act == "kill":
            for pid in (agent.pid, *pids):
                os.kill(pid, signal.SIGKILL)
        elif act == "kill worker":
            os.kill(pids[1], signal.SIGKILL)
        else:
            os.kill(pids[1] if act == "worker" else agent.pid, signal.SIGTERM)
        said = agent.communicate(timeout=60)[0]
        assert agent.returncode and "is complete" not in said, said
        if act in ("worker", "agent"):
            found = json.loads(left.read_text())
            assert found["code"] == errors.STOPPED and found["step"] < 12, (found, said)
            assert checkpoint.verify(Path(found["checkpoint"])) == []
            assert f"resume with: {found['resume_command']}" in said and "--nproc_per_node=2" in said
        step = int(newest(tmp_path / "b").name[5:])
    last = torchrun(script, flags)
    said = last.communicate(timeout=100)[0]
    assert last.returncode == 0 and "Traceback" not in said, said
    assert_same_bits(tmp_path / "b", tmp_path / "a")
