"""Mixtures of experts: the router and its counts, files in both layouts, and that all else runs as for dense models.

Their logits and gradients are compared with transformers' in test_model.py, several ranks with one in test_parallel.py.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import EAGER, random_hf
from plain_paged import PlainGenerator
from safetensors.torch import load_file, save_file
from test_model import save
from test_weights import contents, edit, hf_logits, refused
from tiny_qwen import random_ids, tiny_config, tiny_qwen

import train_rl
import train_sft
from nanoqwenlong import group_pass, toy
from nanoqwenlong.analysis import step_metrics
from nanoqwenlong.attention import Packed
from nanoqwenlong.engine import paged
from nanoqwenlong.engine.cuda_step import is_capturable
from nanoqwenlong.errors import ModelError
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits
from nanoqwenlong.pretrained import weights
from nanoqwenlong.pretrained.config import ModelConfig
from nanoqwenlong.pretrained.mixture import Mixture, take_loads
from nanoqwenlong.pretrained.weights import INDEX
from nanoqwenlong.records import Branch

MOE = "qwen3_moe"
GATE_UP, DOWN = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"
ROUTER = "model.layers.0.mlp.gate.weight"


def ids_of(length: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(random_ids(length, seed))


def layer(normalised: bool = True, dtype=torch.float64, k: int = 2, E: int = 5) -> Mixture:
    model = tiny_qwen(MOE, dtype, norm_topk_prob=normalised, num_experts=E, num_experts_per_tok=k)
    return model.model.layers[0].mlp


# The layer

@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("k, E", [(1, 4), (2, 5), (4, 4)])
@pytest.mark.parametrize("T", [1, 2, 33])
def test_each_token_by_itself(T, k, E, normalised):
    """float64, value and gradient: a softmax over all experts, the k largest shares, made to add up to 1 or not."""
    mixture, x = layer(normalised, k=k, E=E), torch.randn(T, 32, dtype=torch.float64, requires_grad=True)
    gate_up, down = mixture.experts.gate_up_proj, mixture.experts.down_proj
    rows = []
    for token in x:
        shares = (mixture.gate.weight @ token).softmax(-1)
        chosen = sorted(range(E), key=lambda e: -shares[e])[:k]
        whole = sum(shares[e] for e in chosen) if normalised else 1
        rows.append(sum(shares[e] / whole * (down[e] @ (F.silu(gate_up[e, :24] @ token) * (gate_up[e, 24:] @ token)))
                        for e in chosen))
    expected, mix = torch.stack(rows), torch.randn(T, 32, dtype=torch.float64)
    found = mixture(x)
    assert (found - expected).abs().max() <= 1e-13
    wanted = [x, *mixture.parameters()]
    for a, b in zip(*(torch.autograd.grad((mix * out).sum(), wanted) for out in (found, expected))):
        assert (a - b).abs().max() <= 1e-12


@pytest.mark.parametrize("normalised", [True, False])
def test_shares_of_a_bfloat16_model_are_computed_in_float32_and_rounded_once(normalised):
    mixture, x, seen = layer(normalised, torch.bfloat16), torch.randn(40, 32).bfloat16(), []
    mixture.experts.register_forward_pre_hook(lambda module, args: seen.append(args))
    assert mixture(x).dtype == torch.bfloat16
    (rows, shares, ends), = seen
    exact, chosen = mixture.gate(x).double().softmax(-1).topk(2)
    exact = exact / exact.sum(-1, keepdim=True) if normalised else exact
    order = [(expert, token, place) for token, pair in enumerate(chosen.tolist()) for place, expert in enumerate(pair)]
    order.sort()
    assert rows.equal(x[[token for _, token, _ in order]])
    assert shares.equal(torch.stack([exact[token, place] for _, token, place in order])[:, None].float().bfloat16())
    assert ends.tolist() == [sum(expert <= e for expert, *_ in order) for e in range(5)]


def test_checkpointing_changes_no_bit():
    model, found = tiny_qwen(MOE, torch.float32), []
    for model.checkpointing in (False, True):
        model.zero_grad()
        logits = model.logits(ids_of(30))
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_packed_sequences_do_not_share_tokens():
    """Neither do their routes: a packed row is as it was alone, up to rounding."""
    model, lengths = tiny_qwen(MOE), [1, 7, 20]
    packed, _ = model(torch.cat([ids_of(n, n) for n in lengths]), torch.cat([torch.arange(n) for n in lengths]),
                      Packed([0, 1, 8, 28]), head=F.linear)
    assert (packed - torch.cat([model.logits(ids_of(n, n)) for n in lengths])).abs().max() <= 1e-12


@pytest.mark.parametrize("kind, dtype, capturable", [
    (MOE, torch.bfloat16, False), (MOE, torch.float32, False), (MOE, torch.float64, False),
    ("qwen3", torch.float32, True), ("qwen3", torch.bfloat16, True)])
def test_a_graph_can_capture_all_but_the_loop_over_experts(kind, dtype, capturable):
    assert is_capturable(tiny_qwen(kind, dtype)) == capturable


# Loads

def routes(hf, ids: torch.Tensor) -> list[list[int]]:
    """How often transformers' routers choose each expert, layer by layer."""
    chosen, hooks = [], []
    for block in hf.model.layers:
        if hasattr(block.mlp, "gate"):
            hooks.append(block.mlp.gate.register_forward_hook(lambda module, args, out: chosen.append(out[2])))
    hf(ids[None])
    [hook.remove() for hook in hooks]
    return [torch.bincount(pairs.flatten(), minlength=hf.config.num_experts).tolist() for pairs in chosen]


def test_loads_are_what_transformers_routers_choose(tmp_path):
    """Of passes with a gradient, added up until they are taken; the dense layer has none."""
    hf = random_hf(MOE, mlp_only_layers=[1])
    ours = Qwen.from_pretrained(save(hf, tmp_path))
    one, other = ids_of(40), ids_of(23, 1)
    assert take_loads(ours) == []
    ours.logits(one)
    with torch.no_grad():
        ours.logits(other)
        expected = routes(hf, one)
        assert [sum(load) for load in expected] == [80, 80]
        assert take_loads(ours) == expected and take_loads(ours) == []
        both = [[a + b for a, b in zip(*pair)] for pair in zip(expected, routes(hf, other))]
    for ids in (one, other):
        ours.logits(ids)
    assert take_loads(ours) == both


def test_a_lone_token_keeps_company_and_is_not_counted():
    model = tiny_qwen(MOE)
    model.logits(ids_of(1)).sum().backward()
    assert take_loads(model) == [] and step_metrics.expert_values(model) == {}
    model.logits(ids_of(2)).sum().backward()
    assert [sum(load) for load in take_loads(model)] == [4, 4]


def test_under_checkpointing_every_choice_counts_twice():
    model, values = tiny_qwen(MOE), []
    for model.checkpointing in (False, True):
        model.logits(ids_of(30)).sum().backward()
        loads = [module.load.tolist() for module in model.modules() if isinstance(module, Mixture)]
        assert [sum(load) for load in loads] == [60 * (1 + model.checkpointing)] * 2
        values.append(step_metrics.expert_values(model))
    assert values[0] == values[1]


def test_what_is_told_of_loads():
    """The busiest expert over the even share, the mean over layers; and how many had nothing to do."""
    model = tiny_qwen(MOE)
    first, second = (module for module in model.modules() if isinstance(module, Mixture))

    def told(*loads):
        first.load, second.load = (load and torch.tensor(load) for load in loads)
        return step_metrics.expert_values(model)
    assert told([4, 4, 4, 4, 4], [4, 4, 4, 4, 4]) == {"experts/max_load": 1, "experts/unused": 0}
    assert told([10, 10, 0, 0, 0], [2, 4, 6, 0, 8]) == {"experts/max_load": (2.5 + 2) / 2, "experts/unused": 0.4}
    assert told(None, None) == {} and step_metrics.expert_values(tiny_qwen("qwen3")) == {}
    assert told([5, 5, 0, 0, 0], None) == {"experts/max_load": 2.5, "experts/unused": 0.6}     # a layer without tokens


def test_a_stem_counts_though_no_branch_has_more_than_a_token():
    """The last layer computes nothing for a stem, and a branch of one token is not counted."""
    model = tiny_qwen(MOE)
    for stem in (6, 9):
        group_pass.backward(model, random_ids(stem), [Branch((3,), (4,), (1.0,))], lambda rows, lp, e: lp.sum())
    first, second = take_loads(model)
    assert sum(first) == 2 * (6 + 9) and second == [0] * 5 and take_loads(model) == []


# Files

def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_experts_come_back_in_the_layout_they_came_in(fused, sharded, tmp_path):
    """Names, shapes, values, and config.json; transformers computes from our copy what it computed before."""
    save(random_hf(MOE, mlp_only_layers=[1]), tmp_path / "theirs", fused=fused, sharded=sharded)
    model = Qwen.from_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "one")
    weights.write(tmp_path / "many", dict(model.named_parameters()), model.config, max_shard_bytes=50_000,
                  fused_experts=model.fused_experts)
    Qwen.from_pretrained(tmp_path / "many").save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "one") == contents(tmp_path / "again")
    theirs = tensors_of(tmp_path / "theirs")
    assert (GATE_UP in theirs) == fused
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    assert index["weight_map"].keys() == theirs.keys() and len(set(index["weight_map"].values())) > 3
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in theirs.values())
    for name in ("one", "many"):
        ours = tensors_of(tmp_path / name)
        assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
        assert json.loads((tmp_path / "theirs/config.json").read_text()) == json.loads(
            (tmp_path / name / "config.json").read_text())
        assert torch.equal(hf_logits(tmp_path / name), hf_logits(tmp_path / "theirs"))


def test_told_so_experts_change_their_layout(tmp_path):
    save(random_hf(MOE), tmp_path / "apart")
    save(random_hf(MOE), tmp_path / "fused", fused=True)
    for source, other in (("apart", "fused"), ("fused", "apart")):
        model = Qwen.from_pretrained(tmp_path / source)
        assert model.fused_experts == (source == "fused")
        model.fused_experts = not model.fused_experts
        model.save_pretrained(tmp_path / "new")
        new, expected = tensors_of(tmp_path / "new"), tensors_of(tmp_path / other)
        assert new.keys() == expected.keys() and all(torch.equal(new[key], expected[key]) for key in new)


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[bool, Path]:
    """One layer, five experts; by whether they are fused."""
    root, hf = tmp_path_factory.mktemp("mixture"), random_hf(MOE, num_hidden_layers=1, num_experts=5)
    return {fused: save(hf, root / str(fused), fused=fused) for fused in (False, True)}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 7])
def test_each_rank_reads_its_experts(fused, num_ranks, directories):
    """As torch.chunk deals them: of five experts to seven ranks, the last two get none."""
    expected = dict(Qwen.from_pretrained(directories[fused]).named_parameters())
    shapes, share = {name: p.shape for name, p in expected.items()}, -(-5 // num_ranks)
    for rank in range(num_ranks):
        rows = {name: slice(min(5, share * rank), min(5, share * (rank + 1))) for name in (GATE_UP, DOWN)}
        found = weights.find_tensors(directories[fused], shapes)
        for name, tensor in weights.read_tensors(found, rows=rows, check_finite=True):
            assert torch.equal(tensor, expected[name][rows.get(name, slice(None))]), name


def expert(number: int, part: str) -> str:
    return f"model.layers.0.mlp.experts.{number}.{part}_proj.weight"


BAD_TENSORS = {
    "an expert's part missing": (False, lambda t: t.pop(expert(3, "up")), [expert(3, "up"), "(24, 64)", "lacks"]),
    "an expert missing": (False, lambda t: [t.pop(expert(4, part)) for part in ("gate", "up", "down")],
                          [expert(4, "down"), "(64, 24)", "lacks"]),
    "an expert too many": (False, lambda t: t.update({expert(5, "up"): torch.ones(24, 64)}), [expert(5, "up"),
                                                                                             "place"]),
    "a misshapen expert": (False, lambda t: t.update({expert(2, "down"): torch.ones(24, 64)}),
                           [expert(2, "down"), "(24, 64)", "(64, 24)"]),
    "integers": (False, lambda t: t.update({expert(1, "gate"): torch.ones(24, 64).int()}), [expert(1, "gate"), "I32"]),
    "all experts missing": (True, lambda t: t.pop(DOWN), [expert(0, "down"), "lacks"]),
    "too few experts fused": (True, lambda t: t.update({DOWN: t[DOWN][:4].contiguous()}), [DOWN, "(4, 64, 24)",
                                                                                         "(5, 64, 24)"]),
    "both layouts": (True, lambda t: t.update({expert(0, "up"): torch.ones(24, 64)}),
                     [expert(0, "up"), "beside fused"]),
    "no router": (True, lambda t: t.pop(ROUTER), [ROUTER, "(5, 64)"]),
    "an MLP instead": (True, lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.ones(96, 64)}),
                       ["model.layers.0.mlp.up_proj.weight", "place"]),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_refused_experts(case, directories, tmp_path):
    fused, change, named = BAD_TENSORS[case]
    shutil.copytree(directories[fused], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    refused(tmp_path, str(tmp_path), *named)


def test_half_fused_and_half_apart_is_read(directories, tmp_path):
    """Each tensor is complete in one of the layouts: nothing is ambiguous."""
    shutil.copytree(directories[True], tmp_path, dirs_exist_ok=True)
    fused, apart = (load_file(directories[fused] / "model.safetensors") for fused in (True, False))
    del fused[DOWN]
    save_file(fused | {expert(e, "down"): apart[expert(e, "down")] for e in range(5)}, tmp_path / "model.safetensors")
    mixed, whole = Qwen.from_pretrained(tmp_path), Qwen.from_pretrained(directories[True])
    assert all(torch.equal(a, b) for a, b in zip(mixed.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("name", [expert(3, "up"), DOWN])
def test_damaged_experts_are_refused_where_asked(name, directories, tmp_path):
    shutil.copytree(directories[name == DOWN], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[name].view(-1)[-1] = math.nan
    save_file(tensors, tmp_path / "model.safetensors")
    Qwen.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="experts.*NaN"):
        Qwen.from_pretrained(tmp_path, check_finite=True)


@pytest.mark.parametrize("changes, named", [
    ({"num_experts_per_tok": 6}, ["num_experts_per_tok (6)", "num_experts (5)"]),
    ({"num_experts_per_tok": 0}, ["num_experts_per_tok is 0"]), ({"decoder_sparse_step": 0}, ["decoder_sparse_step"]),
    ({"moe_intermediate_size": 0}, ["moe_intermediate_size is 0"]),
    ({"num_local_experts": "many"}, ["num_experts is 'many'"]), ({"num_local_experts": None}, ["num_experts is None"]),
    ({"num_local_experts": -1}, ["num_experts is -1"]), ({"num_local_experts": 6}, [expert(5, "down")]),
    ({"mlp_only_layers": [0]}, ["model.layers.0.mlp.down_proj.weight"]), ({"hidden_act": "gelu"}, ["gelu"]),
    ({"use_sliding_window": True, "sliding_window": 64}, ["sliding_window"]),
    ({"architectures": ["Qwen3ForCausalLM"]}, ["Qwen3ForCausalLM"])])
def test_refused_config_of_a_mixture(changes, named, directories, tmp_path):
    shutil.copytree(directories[False], tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "config.json", **changes)
    refused(tmp_path, str(tmp_path), *named)


def test_a_mixture_of_no_experts_is_dense(tmp_path):
    hf = random_hf(MOE, num_experts=0, num_hidden_layers=2)
    ours = Qwen.from_pretrained(save(hf, tmp_path))
    assert not any(isinstance(module, Mixture) for module in ours.modules())
    assert (ours.logits(torch.arange(40)) - hf(torch.arange(40)[None]).logits[0]).abs().max() <= 1e-5


def test_which_layers_are_mixtures():
    """Every second one, of those that are not named; layers count from 1 for the step."""
    c = tiny_config(MOE, num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3])
    assert c.dense_layers == (0, 2, 3, 4) and [c.is_mixture(i) for i in range(6)] == [False, True, False, False, False,
                                                                                      True]
    dense = tiny_config("qwen3")
    assert dense.num_experts == dense.num_experts_per_tok == 0 and not dense.is_mixture(0) and not dense.dense_layers


# As for dense models

@pytest.mark.parametrize("settings, length", [({}, 8), ({"norm_topk_prob": False, "num_experts": 9, "rope_scaling": {
    "type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}}, 33)])
def test_greedy_equals_transformers_token_by_token(settings, length, tmp_path, monkeypatch):
    """12 x 45 tokens each, in float32; shared, by the slow reference, in small blocks, in a pool so narrow that answers
    are preempted."""
    from transformers import AutoModelForCausalLM
    monkeypatch.setattr(paged, "WORTH_SHARING", 0)
    model = tiny_qwen(MOE, torch.float32, seed=3, **settings)
    model.save_pretrained(tmp_path)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **EAGER)
    prompts = [random_ids(length, seed=i) for i in range(12)]
    ids = torch.tensor(prompts)
    theirs = hf.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, max_new_tokens=45,
                         eos_token_id=None)[:, length:]
    assert theirs.numel() == 540 and len(theirs.unique()) > 10
    expected = [tuple(row) for row in theirs.tolist()]
    few = 15
    for kind, num_blocks, block_size, n, tokens in (("shared", 300, 16, 1, 45), ("plain", 300, 4, 2, few),
                                                    ("shared", 3 * -(-(length + few) // 4), 4, 2, few),
                                                    ("shared", 2000, 1, 1, few)):
        generator = (Generator if kind == "shared" else PlainGenerator)(model, num_blocks, block_size)
        for group, answer in zip(generator.sample(prompts, n=n, temperature=0, max_new_tokens=tokens), expected,
                                 strict=True):
            assert {completion.ids for completion in group.completions} == {answer[:tokens]}


def test_log_probs_of_a_rollout_are_those_of_the_update(monkeypatch):
    """float64: of sampled answers, however they were sampled."""
    monkeypatch.setattr(paged, "WORTH_SHARING", 0)
    model, prompts = tiny_qwen(MOE, seed=1), [random_ids(9, 1), random_ids(14, 2)]
    for kind in (Generator, PlainGenerator):
        groups = kind(model, 64, 4).sample(prompts, n=3, temperature=0.8, max_new_tokens=10, seed=5)
        for group in groups:
            branches = [Branch((group.prompt_ids[-1], *c.ids[:-1]), c.ids, (1.0,) * len(c.ids))
                        for c in group.completions]
            found = group_pass.logprobs(model, group.prompt_ids[:-1], branches, temperature=0.8)
            for values, completion in zip(found, group.completions, strict=True):
                assert (values - torch.tensor(completion.logprobs, dtype=torch.float64)).abs().max() <= 1e-12


@pytest.fixture(scope="module")
def toy_mixture(toy_directory, tmp_path_factory) -> Path:
    """A random mixture with the toy's tokenizer: four experts, two for each token."""
    directory = tmp_path_factory.mktemp("toy_mixture")
    shutil.copytree(toy_directory, directory, dirs_exist_ok=True)
    changes = {name: value for name, value in toy.CONFIG.items() if name not in ("architectures", "model_type")}
    vocab_size = json.loads((directory / "config.json").read_text())["vocab_size"]
    config = ModelConfig.from_json({**changes, "model_type": MOE, "vocab_size": vocab_size, "head_dim": 16,
                                    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}, "toy")
    Qwen.random(config, 0).save_pretrained(directory)
    return directory


SFT = ("--toy-examples 8 --steps 2 --batch-size 4 --learning-rate 1e-2 --warmup-steps 0 --eval-questions 1 "
       "--eval-every 9 --max-new-tokens 2").split()
RL = ("--toy-examples 8 --prompts-per-step 2 --group-size 2 --max-new-tokens 4 --steps 2 --kl-coef 0.1 "
      "--kv-blocks 256 --updates-per-step 2").split()
SCRIPTS = {"sft": (train_sft, SFT), "rl": (train_rl, RL)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_train_a_mixture_and_tell_its_loads(name, toy_mixture, tmp_path, monkeypatch):
    from nanoqwenlong import rewards
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_rl, "score_all", lambda texts, examples, judge=None: [
        [rewards.Score(float(i % 2), 0.0, None, text) for i, text in enumerate(group)] for group in texts])
    script, flags = SCRIPTS[name]
    before = Qwen.from_pretrained(toy_mixture)
    assert exits.start(script.main, script.Config, script.PRESETS, ["--model", str(toy_mixture), *flags]) == 0
    rows = [json.loads(line) for line in (tmp_path / f"runs/{name}/metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert 1 <= row["experts/max_load"] <= 2 and 0 <= row["experts/unused"] <= 0.5         # E / k; k of E at least
    after = Qwen.from_pretrained(tmp_path / f"runs/{name}/checkpoints/step_000002")
    moved = {key: not torch.equal(a, b) for (key, a), b in zip(before.named_parameters(), after.parameters())}
    assert all(moved.values()), moved


def test_a_mixture_that_was_interrupted_ends_with_the_same_bits(toy_mixture, tmp_path, monkeypatch):
    """One step and three more, against four."""
    monkeypatch.chdir(tmp_path)
    for name, ends in (("whole", [4]), ("parts", [1, 4])):
        for steps in ends:
            flags = [str(steps) if before == "--steps" else flag for before, flag in zip(["", *SFT], SFT)]
            argv = ["--model", str(toy_mixture), *flags, "--name", name, "--final-fraction", "1"]
            assert exits.start(train_sft.main, train_sft.Config, train_sft.PRESETS, argv) == 0
    found = [{path.name: path.read_bytes() for path in Path(f"runs/{name}/checkpoints/step_000004").glob("*.saf*")}
             for name in ("whole", "parts")]
    assert found[0] == found[1] and len(found[0]) > 1
