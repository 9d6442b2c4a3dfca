"""Our forward against transformers', and its own equalities in float64."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import random_hf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanoqwenlong.attention import Packed
from nanoqwenlong.model import Qwen
from nanoqwenlong.pretrained import weights
from nanoqwenlong.pretrained.rope import rope_tables
from nanoqwenlong.pretrained.weights import read_config

MHA, MQA = {"num_key_value_heads": 4}, {"num_key_value_heads": 1}
YARN = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 3e4, "factor": 4.0, "beta_fast": 8,
                            "original_max_position_embeddings": 512}}          # the ramp: frequencies 1 to 4 of 8
LLAMA3 = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 3e4, "factor": 8.0, "low_freq_factor": 1.0,
                              "high_freq_factor": 4.0, "original_max_position_embeddings": 512}}   # between: 3 of 8
NORMALISED = {"norm_topk_prob": True}
CASES = {
    "qwen2": ("qwen2", {}),
    "qwen2-mha-tied": ("qwen2", MHA | {"tie_word_embeddings": True}),
    "qwen2-mqa-sharded": ("qwen2", MQA | {"sharded": True}),
    "qwen2-old": ("qwen2", {"old": True}),
    "qwen2-old-tied-sharded": ("qwen2", {"old": True, "tie_word_embeddings": True, "sharded": True}),
    "qwen2-eps-one-layer": ("qwen2", {"rms_norm_eps": 1e-2, "num_hidden_layers": 1}),
    "qwen3": ("qwen3", {}),
    "qwen3-tied-wide-heads": ("qwen3", {"tie_word_embeddings": True, "head_dim": 32}),
    "qwen3-mqa-narrow-heads": ("qwen3", MQA | {"head_dim": 6}),
    "qwen3-mha-old-sharded": ("qwen3", MHA | {"old": True, "sharded": True}),
    "qwen3-bias": ("qwen3", {"attention_bias": True}),
    "qwen3-bias-old": ("qwen3", {"attention_bias": True, "old": True, "tie_word_embeddings": True}),
    "qwen3-odd-sizes": ("qwen3", {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3,
                                  "vocab_size": 77}),
    "qwen2-yarn": ("qwen2", YARN | {"sharded": True}),
    "qwen2-yarn-old-tied": ("qwen2", YARN | {"old": "type", "tie_word_embeddings": True}),
    "qwen3-yarn": ("qwen3", YARN | {"head_dim": 32}),
    "qwen3-yarn-old-bias": ("qwen3", YARN | {"old": "rope_type", "attention_bias": True}),
    "llama": ("llama", {}),
    "llama-tied-old": ("llama", {"old": True, "tie_word_embeddings": True}),
    "llama-mha-wide-heads-sharded": ("llama", MHA | {"head_dim": 32, "sharded": True}),
    "llama-bias": ("llama", {"attention_bias": True}),
    "llama-bias-tied-mqa": ("llama", MQA | {"attention_bias": True, "tie_word_embeddings": True}),
    "llama3": ("llama", LLAMA3),
    "llama3-tied-old-type": ("llama", LLAMA3 | {"old": "type", "tie_word_embeddings": True, "sharded": True}),
    "llama3-bias-old": ("llama", LLAMA3 | {"old": "rope_type", "attention_bias": True}),
    "llama3-bias-tied-wide-heads": ("llama", LLAMA3 | {"attention_bias": True, "tie_word_embeddings": True,
                                                       "head_dim": 32}),
    "llama-yarn": ("llama", YARN),
    "llama-odd-sizes": ("llama", {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3,
                                  "rms_norm_eps": 1e-2, "vocab_size": 77, "pretraining_tp": 2}),
    "moe": ("qwen3_moe", {}),
    "moe-fused-tied-normalised": ("qwen3_moe", NORMALISED | {"fused": True, "tie_word_embeddings": True}),
    "moe-old-normalised-sharded": ("qwen3_moe", NORMALISED | {"old": True, "sharded": True}),
    "moe-old-fused-dense-layer": ("qwen3_moe", {"old": True, "fused": True, "mlp_only_layers": [1]}),
    "moe-fused-sharded-bias": ("qwen3_moe", NORMALISED | {"fused": True, "sharded": True, "attention_bias": True}),
    "moe-every-second-layer": ("qwen3_moe", NORMALISED | {"decoder_sparse_step": 2, "num_hidden_layers": 4}),
    "moe-second-layers-but-one": ("qwen3_moe", {"decoder_sparse_step": 2, "num_hidden_layers": 4, "fused": True,
                                                "mlp_only_layers": [3]}),
    "moe-one-expert-each": ("qwen3_moe", {"num_experts_per_tok": 1, "num_experts": 5, "tie_word_embeddings": True}),
    "moe-all-experts": ("qwen3_moe", NORMALISED | {"num_experts_per_tok": 3, "num_experts": 3}),
    "moe-more-experts-than-pairs": ("qwen3_moe", NORMALISED | {"num_experts": 150, "moe_intermediate_size": 2,
                                                              "num_hidden_layers": 2}),
    "moe-yarn": ("qwen3_moe", YARN | NORMALISED),
    "moe-yarn-fused-tied": ("qwen3_moe", YARN | {"fused": True, "tie_word_embeddings": True}),
    "moe-yarn-old-sharded": ("qwen3_moe", YARN | NORMALISED | {"old": "type", "sharded": True}),
    "moe-yarn-old-fused-tied": ("qwen3_moe", YARN | {"old": "rope_type", "fused": True, "tie_word_embeddings": True}),
}


def save(hf, directory: Path, sharded: bool = False, old: bool | str = False, fused: bool = False) -> Path:
    """transformers writes the directory; `old`: config.json is spelled as transformers 4 did, with the kind of rope
    under this name ("type", "rope_type") if it is not the plain one; fused: experts as they lie in memory."""
    hf.save_pretrained(directory, max_shard_size="40KB" if sharded else "5GB", save_original_format=not fused)
    assert (directory / "model.safetensors.index.json").exists() == sharded
    if old:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        rope = config.pop("rope_parameters")
        theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
        config |= {"rope_theta": theta, "torch_dtype": config.pop("dtype"), "transformers_version": "4.43.1",
                   "sliding_window": 4096, "use_sliding_window": False,
                   "rope_scaling": None if kind == "default" else {old: kind, **rope}}
        if "num_local_experts" in config:
            config["num_experts"] = config.pop("num_local_experts")
        config.pop("layer_types", None)
        path.write_text(json.dumps(config))
    return directory


def pair(name: str, directory: Path, dtype=torch.float32):
    """(transformers' model, ours read from its files, two rows of ids)."""
    kind, settings = CASES[name]
    flags = {key: settings[key] for key in ("sharded", "old", "fused") if key in settings}
    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}}
    hf = random_hf(kind, seed=len(name), **theta | {k: v for k, v in settings.items() if k not in flags})
    ours = Qwen.from_pretrained(save(hf, directory, **flags), dtype=dtype)
    return hf, ours, torch.randint(hf.config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_equal_transformers(name, tmp_path):
    """max |dlogit| <= 1e-5; every parameter's gradient of a weighted sum of log-probs within 1e-5 of its norm."""
    hf, ours, ids = pair(name, tmp_path)
    theirs, mine = hf(ids).logits, ours.logits(ids)
    assert theirs.abs().max() > 1                                              # the bar means something
    assert (mine - theirs).abs().max() <= 1e-5
    assert ours.fused_experts == bool(CASES[name][1].get("fused"))

    weights = torch.rand(2, 47, generator=torch.Generator().manual_seed(2))
    for logits in (theirs, mine):
        logprobs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        (weights * logprobs).sum().backward()
    gradients = {key: parameter.grad for key, parameter in ours.named_parameters()}
    assert gradients.keys() == dict(hf.named_parameters()).keys()
    for key, parameter in hf.named_parameters():
        assert (gradients[key] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), key


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "moe", "llama-bias", "llama3", "qwen2-yarn-old-tied", "moe-yarn"])
def test_keys_and_values_equal_transformers_cache_at_any_position(name, tmp_path):
    """Logits cannot see all positions shifted by one (rope is relative); the keys can."""
    hf, ours, ids = pair(name, tmp_path)
    positions = torch.arange(1000, 1048)
    cache = hf(ids[:1], position_ids=positions[None], use_cache=True).past_key_values
    nothing, keys_values = ours(ids[0], positions, Packed([0, 48]))
    assert nothing is None and len(keys_values) == hf.config.num_hidden_layers
    for (k, v), theirs in zip(keys_values, cache.layers):
        assert (k - theirs.keys[0].transpose(0, 1)).abs().max() <= 1e-5
        assert (v - theirs.values[0].transpose(0, 1)).abs().max() <= 1e-5


def test_rope_tables_at_real_size_equal_transformers():
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding
    positions = torch.tensor([0, 1, 2, 17, 4095, 32767, 131071])
    rope = {"rope_type": "default", "rope_theta": 1e6}
    theirs = Qwen3RotaryEmbedding(Qwen3Config(head_dim=128, rope_parameters=rope))(torch.zeros(1), positions[None])
    for table, expected in zip(rope_tables(positions, 128, 1e6, torch.float32), theirs):
        assert table.dtype == torch.float32 and (table[:, 0] - expected[0]).abs().max() <= 1e-6


def test_rope_tables_in_float64_are_the_formula():
    """cos and sin of position * theta^(-2i/D), the D/2 angles twice over."""
    positions, theta, D = [0, 1, 5, 60000], 1e6, 8
    angles = torch.tensor([[p * theta ** (-2 * i / D) for i in (0, 1, 2, 3, 0, 1, 2, 3)] for p in positions],
                          dtype=torch.float64)
    cos, sin = rope_tables(torch.tensor(positions), D, theta, torch.float64)
    assert (cos[:, 0] - angles.cos()).abs().max() <= 1e-10 and (sin[:, 0] - angles.sin()).abs().max() <= 1e-10
    for low, wide in zip(*(rope_tables(torch.tensor(positions), D, theta, dtype) for dtype in (torch.bfloat16,
                                                                                               torch.float32))):
        assert low.dtype == torch.bfloat16 and torch.equal(low, wide.bfloat16())


@pytest.mark.parametrize("name", ["qwen2-mqa-sharded", "qwen3-tied-wide-heads", "moe-yarn-fused-tied"])
def test_packed_sequences_are_the_separate_sequences(name, tmp_path):
    """float64, logits and gradients, sequences of one token included."""
    _, ours, ids = pair(name, tmp_path, torch.float64)
    lengths, row = [5, 1, 30, 12], ids[0]
    offsets = [0, 5, 6, 36, 48]
    positions = torch.cat([torch.arange(length) for length in lengths])
    packed, _ = ours(row, positions, Packed(offsets), head=F.linear)
    separate = torch.cat([ours.logits(piece) for piece in row.split(lengths)])
    assert (packed - separate).abs().max() <= 1e-12

    mix = torch.randn(packed.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = [torch.autograd.grad((mix * logits).sum(), list(ours.parameters())) for logits in (packed, separate)]
    for (key, _), one, other in zip(ours.named_parameters(), *gradients):
        assert (one - other).norm() <= 1e-12 * other.norm(), key


class NoSmallFloats(TorchDispatchMode):
    """Fails at the first operation that makes a float32, bfloat16 or float16 tensor."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                assert leaf.dtype == torch.float64, f"{function} makes {leaf.dtype}"
        return out


@pytest.mark.parametrize("name", ["qwen2", "qwen3-bias", "moe-yarn", "llama3"])
def test_a_float64_model_computes_in_float64_only(name, tmp_path):
    _, ours, ids = pair(name, tmp_path, torch.float64)
    with NoSmallFloats():
        ours.logits(ids).sum().backward()


def test_a_bfloat16_model_keeps_its_dtype_and_norms_in_float32(tmp_path):
    """Norms compute in float32: the bfloat16 result is the exact one, rounded once."""
    _, ours, ids = pair("qwen3", tmp_path, torch.bfloat16)
    assert ours.dtype == torch.bfloat16 and ours.logits(ids).dtype == torch.bfloat16
    norm, x = ours.model.norm, torch.randn(9, 64).bfloat16()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double()
    assert torch.equal(norm(x), exact.bfloat16())


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_bfloat16_errs_no_more_than_transformers_in_bfloat16(name, tmp_path):
    """Against the same rounded weights in float32, as root mean square; the two may round in another order."""
    hf, ours, ids = pair(name, tmp_path, torch.bfloat16)
    with torch.no_grad():
        theirs = hf.bfloat16()(ids).logits
        exact = hf.float()(ids).logits
        assert (ours.logits(ids) - exact).norm() <= 1.1 * (theirs - exact).norm()


def test_logits_of_one_sequence_and_of_a_batch(tmp_path):
    _, ours, ids = pair("qwen3", tmp_path, torch.float64)
    batch = ours.logits(ids)
    assert batch.shape == (2, 48, 128) and ours.logits(ids[:, :1]).shape == (2, 1, 128)
    assert ours.logits(ids[1]).shape == (48, 128) and (ours.logits(ids[1]) - batch[1]).abs().max() <= 1e-12


def test_positions_of_a_batch_start_anew_in_every_row(tmp_path):
    """The logits cannot tell (rope is relative), so the call is watched."""
    _, ours, ids = pair("qwen2", tmp_path)
    seen = []
    ours.register_forward_pre_hook(lambda module, args: seen.append(args[1].tolist()))
    ours.logits(ids)
    assert seen == [[*range(48), *range(48)]]


def test_no_token_sees_its_future(tmp_path):
    """Changing token t leaves the logits before t alone and changes those from t on."""
    _, ours, ids = pair("qwen2", tmp_path, torch.float64)
    changed = ids[0].clone()
    changed[20] = (changed[20] + 1) % 128
    moved = (ours.logits(ids[0]) - ours.logits(changed)).abs().amax(-1)
    assert moved[:20].max() == 0 and moved[20:].min() > 0


def test_a_tied_model_has_one_matrix(tmp_path):
    _, ours, _ = pair("qwen2-mha-tied", tmp_path)
    for model in (ours, Qwen.random(ours.config, 0), weights.allocate(Qwen(ours.config), torch.float32, "cpu")):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert "lm_head.weight" not in dict(model.named_parameters())


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe"])
def test_random_models_follow_the_seed_and_transformers_initialisation(kind, tmp_path):
    config = read_config(save(random_hf(kind, initializer_range=0.05), tmp_path))
    one, same, other = (Qwen.random(config, seed) for seed in (1, 1, 2))
    for (key, parameter), again, third in zip(one.named_parameters(), same.parameters(), other.parameters()):
        assert torch.equal(parameter, again)
        if parameter.ndim == 1:
            assert torch.all(parameter == (0 if key.endswith("bias") else 1)), key
        else:                                                                  # std of n normals: 5 sigma either side
            assert abs(parameter.std() / 0.05 - 1) < 5 / (2 * parameter.numel()) ** 0.5, key
            assert not torch.equal(parameter, third), key


@pytest.mark.parametrize("name, spared", [("qwen2", 5), ("qwen3", 5), ("moe", 3)])     # of a mixture: its router
def test_without_a_head_the_last_layer_computes_keys_and_values_only(name, spared, tmp_path):
    """Counted in matrix products; the keys and values are the same."""
    _, ours, ids = pair(name, tmp_path, torch.float64)
    products = []
    for module in ours.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, args, out: products.append(module))
    arguments = ids[0], torch.arange(48), Packed([0, 48])
    _, whole = ours(*arguments, head=F.linear)
    every = len(products)
    out, short = ours(*arguments)
    last = ours.model.layers[-1].self_attn
    assert out is None and len(products) - every == every - spared and products[-2:] == [last.k_proj, last.v_proj]
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(whole), tree_leaves(short), strict=True))
