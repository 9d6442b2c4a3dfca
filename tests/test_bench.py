"""The comparisons of bench/ at tiny shapes: they end with a table and a JSON line, and notice a wrong result.

The measured times mean nothing at these sizes. That all sides compute the same does."""

import json
import os
import time
from dataclasses import dataclass, replace

import pytest
import torch
from bench import common, gpu, group_update, growth, logprob, moe, precision, rl_step, rollout
from safetensors.torch import save_file
from tiny_qwen import tiny_qwen

from nanoqwenlong.ops import exits

MODEL = ["--hidden", "64", "--layers", "2", "--heads", "4", "--kv-heads", "2", "--intermediate", "96", "--vocab", "100"]
MIXTURE = [*MODEL[:-4], "--intermediate", "16", "--vocab", "100", "--experts", "8", "--chosen", "3"]
HEAD = ["--tokens", "8", "--answer", "4", "--hidden", "16", "--vocab", "50", "--memory-hidden", "8"]
MEASURED = {"median", "seconds", "cpu_seconds", "peak_mb"}


def start(script, capfd, *argv, shape=MODEL) -> tuple[list[str], dict]:
    """The lines that a script prints before the JSON line, and the content of that line."""
    assert exits.start(script.main, script.Config, {}, [*shape, *map(str, argv)]) == 0, capfd.readouterr().err
    *lines, last = capfd.readouterr().out.splitlines()
    assert not any(line.startswith("{") for line in lines)
    return lines, json.loads(last)


def assert_compared(lines: list[str], found: dict, sides: list[str], rounds: int) -> None:
    assert found["check"]["passed"] is True
    assert list(found["results"]) == list(found["ratios"]) == sides
    for values in found["results"].values():
        assert values.keys() == MEASURED and len(values["seconds"]) == rounds and min(values["seconds"]) > 0
    head = next(place for place, line in enumerate(lines) if "x our time" in line)
    table = lines[head:head + 2 + len(sides)]
    assert len(set(map(len, table))) == 1 and [line.startswith(side) for line, side in zip(table[2:], sides)]


@pytest.mark.parametrize("flags", [[], ["--checkpointing", "--max-tokens", 10]])
def test_group_update(capfd, flags):
    lines, found = start(group_update, capfd, "--prompt", 40, "--answer", 6, "--group-size", 3, "--rounds", 2, *flags)
    assert_compared(lines, found, ["ours", "transformers, one batch", "transformers, one by one"], 2)
    assert found["config"]["prompt"] == 40 and found["versions"].keys() == {"torch", "transformers"}


def test_rollout(capfd):
    lines, found = start(rollout, capfd, "--prompt", 40, "--new", 6, "--group-size", 3, "--rounds", 1)
    assert_compared(lines, found, ["ours", "generate", "prefilled once", "continuous batching"], 1)
    assert found["check"]["tokens compared"] == 3 * 3 * 6 and found["check"]["distinct in an answer"] > 1


def test_a_model_that_is_given_is_measured(capfd, tmp_path):
    """Its vocabulary is that of its config. Alone, ours is compared with nobody, in bfloat16 too."""
    tiny_qwen(dtype=torch.float32).save_pretrained(tmp_path)
    model = ["--model", tmp_path, "--rounds", 1, "--prompt", 20]
    lines, found = start(group_update, capfd, *model, "--answer", 6, "--group-size", 3, shape=[])
    assert found["check"]["passed"] is True and found["share_of_product_rate"] > 0
    assert any(f"{tmp_path.name}, hidden 32, 2 layers" in line for line in lines)
    lines, found = start(rollout, capfd, *model, "--new", 6, "--dtype", "bfloat16", "--alone", shape=[])
    assert list(found["results"]) == ["ours"] and found["decoding_step"]["bytes_need"] > 0
    assert any("times what its bytes need" in line for line in lines)


def test_useful_operations_are_those_of_a_small_model_by_hand():
    """Two layers of 32 x (32 + 2 x 16 + 32) + 3 x 32 x 48 weights, 3 tokens of a stem, 2 answers of 5 tokens."""
    cfg = group_update.Config(prompt=4, answer=5, group_size=2)
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    stem = 3 * layer + 3 * 2 * 32 * 16                                         # the last layer: keys and values only
    products = stem + 10 * 2 * layer + 10 * 32 * 53
    pairs = 3 * 3 / 2 + 2 * 2 * (5 * 3 + 5 * 5 / 2)                            # the stem's in one layer only
    assert group_update.useful_operations(tiny_qwen(), cfg) == 3 * (2 * products + 4 * 32 * pairs)


def test_rl_step(capfd):
    pytest.importorskip("trl")
    lines, found = start(rl_step, capfd, "--prompt", 40, "--answer", 6, "--group-size", 4, "--prompts", 2, "--rounds",
                         1, "--trl-batches", 8, 4)
    fastest = min(found["first_steps"], key=lambda name: found["first_steps"][name]["cpu_seconds"])
    assert_compared(lines, found, ["ours", fastest], 1)
    assert found["check"]["steps of TRL compared"] == 2


def test_logprob(capfd):
    lines, found = start(logprob, capfd, "--memory-tokens", 8, 12, "--rounds", 2, shape=HEAD)
    missing = [line.removeprefix("left out: ").split(" (")[0] for line in lines if line.startswith("left out: ")]
    sides = [name for name in logprob.SIDES if name not in missing]
    assert sides[:2] == ["ours", "naive torch"]
    assert_compared(lines, found, sides, 2)
    assert list(found["check"]) == [*(f"{side!r} off by" for side in sides[1:]), "passed"]
    assert {name: list(sizes) for name, sizes in found["memory"].items()} == {name: ["8", "12"] for name in sides}
    assert any(line.startswith("ours from 8 to 12 tokens: ") for line in lines)


def test_logprob_without_its_peers(capfd, monkeypatch):
    monkeypatch.setattr(logprob, "find_spec", lambda name: None)
    monkeypatch.delattr(logprob.F, "linear_cross_entropy", raising=False)
    monkeypatch.setattr(logprob, "NAIVE_BYTES", logprob.NAIVE_BLOCKS * 4 * 4 * 50)
    lines, found = start(logprob, capfd, "--memory-tokens", 4, 8, "--rounds", 1, shape=HEAD)
    assert [line.split(" (")[0] for line in lines[:3]] == [f"left out: {name}" for name in list(logprob.SIDES)[2:]]
    assert_compared(lines, found, ["ours", "naive torch"], 1)
    assert found["memory"]["ours"].keys() == {"4", "8"} and found["memory"]["naive torch"].keys() == {"4"}
    assert found["versions"].keys() == {"torch", "transformers"}


def warmer(cfg, tokens: int, width: int) -> dict:
    return logprob.naive(replace(cfg, temperature=cfg.temperature * 1.01), tokens, width)


def test_logprobs_that_differ_are_noticed(capfd, monkeypatch):
    monkeypatch.setattr(logprob, "SIDES", {"ours": logprob.ours, "naive torch": logprob.naive, "warmer": warmer})
    with pytest.raises(SystemExit, match="did not compute the same"):
        start(logprob, capfd, "--memory-tokens", 8, "--rounds", 1, shape=HEAD)
    check = json.loads(capfd.readouterr().out.splitlines()[-1])["check"]
    assert check["'naive torch' off by"] < 1e-5 and check["'warmer' off by"] > 1e-3 and check["passed"] is False


WAYS = ["eager", "grouped_mm", "batched_mm"]


def test_moe(capfd, monkeypatch):
    """batched_mm is left out of the model, where it would copy too much."""
    monkeypatch.setattr(moe, "COPIED_BYTES", 4 * 20 * 3 * 3 * 16 * 64)
    lines, found = start(moe, capfd, "--tokens", 20, "--layer-tokens", 20, "--rounds", 1, shape=MIXTURE)
    assert_compared(lines, found, ["ours", *WAYS[:2]], 1)
    assert list(found["check"]) == [*(f"{way!r} off by" for way in WAYS), "passed"]
    assert list(found["layer"]) == [f"20 tokens, {what}" for what in ("forward", "and backward")]
    assert all(list(times) == ["ours", *WAYS] for times in found["layer"].values())
    head = next(place for place, line in enumerate(lines) if "x batched_mm" in line)
    assert [line.split("  ")[0] for line in lines[head + 2:head + 4]] == list(found["layer"])


def unnormalised(cfg, directory: str) -> dict:
    model = moe.Qwen.from_pretrained(directory)
    for layer in model.model.layers:
        layer.mlp.normalised = False
    return moe.side(cfg, model, model.logits, model.model.layers[0].mlp)


def test_mixtures_that_differ_are_noticed(capfd, monkeypatch):
    monkeypatch.setattr(moe, "SIDES", {"ours": (moe.ours,), "eager": moe.SIDES["eager"], "wrong": (unnormalised,)})
    with pytest.raises(SystemExit, match="did not compute the same"):
        start(moe, capfd, "--tokens", 20, "--layer-tokens", 2, "--rounds", 1, shape=MIXTURE)
    check = json.loads(capfd.readouterr().out.splitlines()[-1])["check"]
    assert check["'eager' off by"] < 1e-5 and check["'wrong' off by"] > 1e-2 and check["passed"] is False


def test_precision(capfd):
    flags = "--prompt 9 --answer 3 --new-tokens 2 --rounds 1"
    assert exits.start(precision.main, precision.Config, {}, flags.split()) == 0
    shown = capfd.readouterr().out
    assert all(f"\n{what}" in shown for what in ("32 x 64 x 192", "update", "rollout", "AdamW", "what --dtype auto"))


def test_growth(capfd, tmp_path):
    pytest.importorskip("matplotlib")
    lines, found = start(growth, capfd, "--group-size", 4, "--groups", 4, 16, "--prompt", 32, "--prompts", 64,
                         "--answer", 2, "--answers", 4, "--rounds", 1, "--out", tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert any(line.startswith("update time from G=4 to G=16 at R = P/16 grows x ") for line in lines)
    assert len(found["results"]) == 2 * 4 and found["growth_from_4_to_16"].keys() == {"update", "rollout"}
    base = next(row for row in found["results"] if (row["G"], row["P"], row["R"]) == (4, 32, 2))
    assert base["predicted"] == base["median"] and base["predicted_mb"] == base["peak_mb"]


@pytest.mark.skipif(gpu.GPU, reason="bench/gpu.sh runs it, and its processes must be the first to ask for the GPU")
def test_gpu(capfd, tmp_path):
    lines, found = start(gpu, capfd, "--tiny", "--out", tmp_path / "gpu", shape=[])
    assert list(found["sections"]) == list(gpu.SECTIONS) and found["versions"]["torch"] == torch.__version__
    for name, section in found["sections"].items():
        assert section["rows"] and section["failures"] == [], name
        assert all(row["value"] >= 0 and (row["limit"] is None or row["limit"] >= 0) for row in section["rows"])
    assert json.loads((tmp_path / "gpu" / "gpu.json").read_text()) == found
    text = (tmp_path / "gpu" / "gpu.md").read_text().splitlines()
    assert [line for line in text if line.startswith("## ")] == [f"## {name}" for name in gpu.SECTIONS]
    assert "- CUDA graph and none, mixture: needs a GPU" in text
    assert len([line for line in text if line in lines]) == len(text)


def broken(s):
    s.row("first", 1.0, "s")
    with s.attempt("a peer", peer=True):
        raise ImportError("not here")
    s.row("second", 3.0, "", "torch", 1.0, most=2.0, must=True)
    raise torch.OutOfMemoryError("too large")


def gone(s):
    s.row("first", 1.0, "s")
    os._exit(3)


def endless(s):
    while True:
        time.sleep(1)


def test_a_section_of_gpu_that_breaks_tells_what_it_found():
    found = gpu.watch(broken, True, {}, 60)
    assert [row["reached"] for row in found["rows"]] == [None, False]
    assert found["notes"] == ["did not run: a peer: ImportError: not here"]
    assert found["failures"][0] == "second: wrong"
    assert found["failures"][1].startswith("broken: OutOfMemoryError: too large [test_bench.py:")
    assert gpu.markdown("x", found).count("FAILED") == 2
    found = gpu.watch(gone, True, {}, 60)
    assert len(found["rows"]) == 1 and found["failures"] == ["the process ended with exit code 3"]
    assert gpu.watch(endless, True, {}, 1)["failures"] == ["stopped after 1 seconds"]


def test_the_formulas_of_growth():
    """By hand: two layers of one head of width 2, one key-value head, C 2, intermediate 1, V 5; G 3, P 4, R 2."""
    cfg = growth.Config(hidden=2, layers=2, heads=1, kv_heads=1, intermediate=1, vocab=5)
    A, keys_values, pairs = 4 * 4 + 3 * 2, 2 * 4, 4**2 / 2 + 2 * (3 * 4 * 2 + 3 * 2**2 / 2)
    tokens, head = (A + keys_values) * 4 + A * 2 * 3 * 2, 3 * 2 * 5 * 2
    assert growth.operations("update", cfg, 3, 4, 2) == 6 * tokens + 14 * 2 * pairs + 8 * head
    assert growth.operations("rollout", cfg, 3, 4, 2) == 2 * tokens + 4 * 2 * pairs + 2 * head
    repeated = 6 * A * 2 * 3 * 6 + 14 * 2 * 2 * 3 * 6**2 / 2 + 8 * head
    assert growth.operations("update", cfg, 3, 4, 2, shared=False) == repeated


def test_gradients_that_differ_are_noticed(tmp_path):
    right, wrong, other, broken = (tmp_path / name for name in ("right", "wrong", "other", "broken"))
    save_file({"a": torch.tensor([3.0, 4.0]), "b": torch.ones(1)}, right)
    save_file({"a": torch.tensor([3.0, 4.5]), "b": torch.ones(1)}, wrong)
    save_file({"a": torch.tensor([3.0, 4.0])}, other)
    save_file({"a": torch.tensor([3.0, torch.nan]), "b": torch.ones(1)}, broken)
    assert common.largest_difference(right, right) == 0
    assert not common.largest_difference(broken, right) < 1
    assert common.largest_difference(wrong, right) == pytest.approx(0.1)
    with pytest.raises(SystemExit, match="different parameters.*b"):
        common.largest_difference(right, other)


def test_tokens_that_differ_are_noticed():
    cfg = rollout.Config(new=2, group_size=2)
    said = [[1, 2], [1, 2]]
    assert rollout.same_tokens({"ours": said, "a": said}, cfg)["passed"]
    assert rollout.same_tokens({"ours": said, "a": [[1, 2], [1, 3]]}, cfg)["sides that differ"] == "a"
    for rows in ([[1, 2], [1, 3]], [[1, 2]]):
        assert not rollout.same_tokens({"ours": said, "a": rows}, cfg)["passed"]
    assert not rollout.same_tokens({"ours": [[1], [1]], "a": [[1], [1]]}, cfg)["passed"]        # too few, all alike


def test_steps_that_differ_are_noticed():
    cfg = rl_step.Config(prompt=2, answer=1, group_size=2, prompts=1)
    group = {"prompt_ids": [1, 2], "completion_ids": [[3], [4]], "rewards": [0.0, 1.0]}
    theirs, mine = {"sampled": [group], "grad_norm": 2.0}, {"rewards": [[0.0, 1.0]], "grad_norm": 2.00001}
    assert rl_step.same_steps([theirs], [mine], cfg)["passed"]
    for own in ({**mine, "grad_norm": 2.001}, {**mine, "grad_norm": float("nan")}, {**mine, "rewards": [[1.0, 0.0]]}):
        assert not rl_step.same_steps([theirs, theirs], [mine, own], cfg)["passed"]
    longer = {**theirs, "sampled": [{**group, "prompt_ids": [1, 2, 3]}]}
    assert not rl_step.same_steps([theirs, longer], [mine, mine], cfg)["passed"]


@dataclass(frozen=True)
class Nothing:
    pass


def test_a_failed_check_ends_the_program_after_its_json_line(capfd):
    results = {"ours": {"median": 1.0, "seconds": [1.0], "cpu_seconds": [1.0], "peak_mb": 2.0}}
    with pytest.raises(SystemExit, match="did not compute the same"):
        common.report("x", Nothing(), results, {"passed": False})
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["check"] == {"passed": False}


def allocating(megabytes: int) -> dict:
    def work():
        block = torch.ones(megabytes * 2**18)
        return {"sum": float(block.sum())}
    return {"run": work, "fail": lambda: 1 / 0}


def test_a_side_tells_its_time_and_its_peak_and_its_failure_ends_all():
    with pytest.raises(SystemExit, match="(?s)'small' failed:.*ZeroDivisionError"):
        with common.processes({"large": (allocating, 64), "small": (allocating, 8)}) as asks:
            results, outcomes = common.take_turns(asks, 2)
            assert outcomes["large"]["sum"] == 64 * 2**18
            assert 60 < results["large"]["peak_mb"] < 90 and results["small"]["peak_mb"] < 30
            asks["small"]("fail")
    with pytest.raises(SystemExit, match="process of 'lost' ended"), common.processes({"lost": (os._exit, 1)}):
        pass


@pytest.mark.parametrize("script, argv, told", [
    (group_update, ["--heads", "3"], "--hidden 64 must be an even multiple of --heads 3"),
    (rollout, ["--new", "0"], "--new must be at least 1"),
    (growth, ["--out", "nowhere/growth.png"], "nowhere is not a directory"),
    (logprob, ["--memory-tokens", "8", "6"], "--memory-tokens 6 is not a multiple of --answer 4"),
    (logprob, ["--temperature", "0"], "--temperature must be above 0"),
    (moe, ["--chosen", "65"], "--chosen 65 is more than --experts 64"),
    (moe, ["--layer-tokens", "0"], "--layer-tokens must be at least 1"),
    (rl_step, ["--trl-batches", "5"], "--trl-batches 5 does not divide the 32 answers")])
def test_what_cannot_be_run_gets_one_sentence(script, argv, told, capfd):
    if script is rl_step:
        pytest.importorskip("trl")
    shape = HEAD if script is logprob else MODEL
    shape = [word for word in shape if "--heads" not in argv or word not in ("--heads", "4")]
    assert exits.start(script.main, script.Config, {}, [*shape, *argv]) == 78
    assert told in capfd.readouterr().err


@pytest.mark.parametrize("script, package, extra", [(rl_step, "trl", "bench"), (growth, "matplotlib", "plots")])
def test_a_missing_extra_gets_one_sentence(script, package, extra, capfd, monkeypatch):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    assert exits.start(script.main, script.Config, {}, []) == 78
    assert f"{package}: pip install '.[{extra}]'" in capfd.readouterr().err
