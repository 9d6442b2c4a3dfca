"""Model directories: what goes through unchanged, what transformers makes of our files, and what is refused."""

import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import random_hf
from safetensors.torch import load_file, save_file

from nanoqwenlong import errors
from nanoqwenlong.errors import ModelError
from nanoqwenlong.model import Qwen
from nanoqwenlong.pretrained import weights
from nanoqwenlong.pretrained.weights import INDEX

IDS = torch.arange(40)[None]
SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "generation_config.json"}


def edit(path: Path, **changes) -> None:
    """Sets keys of a JSON file; a value of ... removes the key."""
    content = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}
    path.write_text(json.dumps(content))


def hf_logits(directory: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        return model(IDS).logits


# What goes through

VARIANTS = {"qwen2": ("qwen2", torch.float32, {}),
            "qwen2-bf16-tied": ("qwen2", torch.bfloat16, {"tie_word_embeddings": True}),
            "qwen3": ("qwen3", torch.float32, {"attention_bias": True}),
            "llama": ("llama", torch.float32, {}),
            "llama-bias-tied": ("llama", torch.bfloat16, {"attention_bias": True, "tie_word_embeddings": True}),
            "qwen3-tied": ("qwen3", torch.float32, {"tie_word_embeddings": True})}


@pytest.mark.parametrize("name", VARIANTS)
def test_load_save_load_save_changes_nothing(name, tmp_path):
    """Tensors as transformers wrote them, names included; our second copy equals our first byte for byte; and
    transformers computes from it what it computed before."""
    kind, dtype, settings = VARIANTS[name]
    random_hf(kind, **settings).to(dtype).save_pretrained(tmp_path / "theirs")
    Qwen.from_pretrained(tmp_path / "theirs", dtype=dtype).save_pretrained(tmp_path / "ours")
    again = Qwen.from_pretrained(tmp_path / "ours", dtype=dtype)
    again.save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "ours") == contents(tmp_path / "again")

    theirs, ours = (load_file(tmp_path / d / "model.safetensors") for d in ("theirs", "again"))
    assert theirs.keys() == ours.keys() and ("lm_head.weight" in ours) == (not settings.get("tie_word_embeddings"))
    assert all(torch.equal(theirs[key], ours[key]) and theirs[key].dtype == ours[key].dtype for key in theirs)
    assert json.loads((tmp_path / "theirs/config.json").read_text()) == json.loads(
        (tmp_path / "again/config.json").read_text())
    assert torch.equal(hf_logits(tmp_path / "theirs"), hf_logits(tmp_path / "again"))


def test_shards_of_ours_load_in_transformers_and_here(tmp_path):
    hf = random_hf("qwen3")
    hf.save_pretrained(tmp_path / "theirs")
    model = Qwen.from_pretrained(tmp_path / "theirs")
    weights.write(tmp_path / "ours", dict(model.named_parameters()), model.config, max_shard_bytes=50_000)
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 3 and not (tmp_path / "ours/model.safetensors").exists()
    assert all(path.stat().st_size < 50_000 + 4096 for path in files)          # header besides
    index = json.loads((tmp_path / "ours" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in hf.parameters())
    assert torch.equal(hf_logits(tmp_path / "ours"), hf_logits(tmp_path / "theirs"))
    again = Qwen.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters()))


@pytest.mark.parametrize("keys", [{"dtype"}, {"torch_dtype"}, {"dtype", "torch_dtype"}, set()])
def test_exported_metadata_the_dtype_is_right_under_every_key_that_was_there(keys, tmp_path):
    """transformers 5 writes dtype, older versions torch_dtype. Some directories have both."""
    random_hf("qwen2").save_pretrained(tmp_path / "a")
    edit(tmp_path / "a/config.json", **({"dtype": ...} | dict(zip(sorted(keys), ("float32", "float16")))))
    Qwen.from_pretrained(tmp_path / "a", dtype=torch.bfloat16).save_pretrained(tmp_path / "b")
    written = json.loads((tmp_path / "b/config.json").read_text())
    expected = dict.fromkeys(keys or {"dtype"}, "bfloat16")
    assert {key: written[key] for key in {"dtype", "torch_dtype"} & written.keys()} == expected
    assert {t.dtype for t in load_file(tmp_path / "b/model.safetensors").values()} == {torch.bfloat16}


def test_settings_that_mean_nothing_here_survive(tmp_path):
    random_hf("qwen2").save_pretrained(tmp_path / "a")
    edit(tmp_path / "a/config.json", max_position_embeddings=131072, my_note={"ü": [1, None]})
    Qwen.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    one, other = (json.loads((tmp_path / d / "config.json").read_text()) for d in "ab")
    assert one == other


def test_a_tied_directory_may_repeat_the_head(tmp_path):
    random_hf("qwen2", tie_word_embeddings=True).save_pretrained(tmp_path)
    expected = hf_logits(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert (Qwen.from_pretrained(tmp_path).logits(IDS) - expected).abs().max() <= 1e-5


def test_ropes_frequencies_in_old_files_of_llama_are_passed_over(tmp_path):
    """transformers 4 wrote them, and 5 leaves them out."""
    random_hf("llama").save_pretrained(tmp_path)
    expected = hf_logits(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(3):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(hf_logits(tmp_path), expected)
    assert (Qwen.from_pretrained(tmp_path).logits(IDS) - expected).abs().max() <= 1e-5


# What is refused

@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("single")
    random_hf("qwen2", num_hidden_layers=1).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("sharded")
    random_hf("qwen2", num_hidden_layers=1).save_pretrained(directory, max_shard_size="120KB")
    assert sorted(p.name for p in directory.glob("*.safetensors")) == [SHARD_1, SHARD_2]
    return directory


def refused(directory: Path, *named: str, kind=ModelError) -> None:
    """from_pretrained raises `kind` with one sentence that names all of `named`."""
    with pytest.raises(kind) as error:
        Qwen.from_pretrained(directory)
    assert "\n" not in str(error.value) and all(name in str(error.value) for name in named), str(error.value)


BAD_CONFIGS = {
    "another model": ({"model_type": "mistral"}, ["model_type", "mistral", "qwen3_moe, llama"]),
    "no model type": ({"model_type": ...}, ["model_type"]),
    "model type is a list": ({"model_type": ["qwen2"]}, ["model_type"]),
    "another architecture": ({"architectures": ["Qwen2ForSequenceClassification"]}, ["Qwen2ForSequenceClassification"]),
    "another kind's architecture": ({"architectures": ["Qwen3ForCausalLM"]}, ["Qwen3ForCausalLM"]),
    "sliding window": ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, ["sliding_window"]),
    "sliding layers": ({"layer_types": ["sliding_attention"], "sliding_window": 64, "use_sliding_window": True},
                       ["sliding_window"]),
    "linear rope": ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, ["linear"]),
    "unknown rope": ({"rope_parameters": {"rope_type": "banana", "rope_theta": 1e4}}, ["banana"]),
    "rope is a number": ({"rope_parameters": 7}, []),
    "rope for kinds of layers": ({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
                                 ["kinds of layers"]),
    "two spellings of yarn": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0},
                               "rope_scaling": {"type": "yarn", "factor": 2.0}}, ["rope_parameters and rope_scaling"]),
    "a factor of 400 digits": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 10**400}},
                               ["factor is 1000"]),
    "odd heads": ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 15}, ["head_dim", "15"]),
    "negative heads": ({"head_dim": -2}, ["head_dim is -2"]),
    "a size of thirty digits": ({"hidden_size": 10**30}, ["hidden_size is 1000", "100,000,000"]),
    "a vocabulary of thirty digits": ({"vocab_size": 10**30}, ["vocab_size"]),
    "heads of thirty digits": ({"head_dim": 10**30}, ["head_dim is 1000"]),
    "experts of thirty digits": ({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"],
                                  "num_experts": 10**30}, ["num_experts is 1000"]),
    "heads with a fraction": ({"head_dim": 2.5}, ["head_dim"]),
    "sizes that no memory holds": ({"hidden_size": 10**7, "num_attention_heads": 4}, ["shape"]),
    "layers without end": ({"num_hidden_layers": 10**30}, ["num_hidden_layers is 1000"]),
    "biases in the MLP": ({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "mlp_bias": True},
                          ["mlp_bias"]),
    "interleaved rope": ({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_interleaved": True},
                         ["rope_interleaved"]),
    "dropout": ({"attention_dropout": 0.1}, ["attention_dropout"]),
    "activation": ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
    "heads do not divide": ({"num_key_value_heads": 3}, ["num_attention_heads (4)", "num_key_value_heads (3)"]),
    "no heads": ({"num_key_value_heads": 0}, ["num_key_value_heads"]),
    "a size is a word": ({"hidden_size": "wide"}, ["hidden_size"]),
    "a size is null": ({"vocab_size": None}, ["vocab_size"]),
    "a size is negative": ({"intermediate_size": -1}, ["intermediate_size"]),
    "a size that no tensor has": ({"vocab_size": 129}, ["model.embed_tokens.weight", "(129, 64)", "(128, 64)"]),
    "a layer too many": ({"num_hidden_layers": 2, "layer_types": ...}, ["model.layers.1."]),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_refused_config(case, single, tmp_path):
    changes, named = BAD_CONFIGS[case]
    shutil.copytree(single, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "config.json", **changes)
    refused(tmp_path, str(tmp_path), *named)


@pytest.mark.parametrize("content", [b"{", b"[]", b"", b"\xff\xfe{}", b"[" * 100_000, b'{"model_type": '])
def test_refused_config_that_is_no_json_object(content, single, tmp_path):
    shutil.copytree(single, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_bytes(content)
    refused(tmp_path, str(tmp_path / "config.json"))


K = "model.layers.0.self_attn.k_proj.weight"
BAD_TENSORS = {
    "missing": (lambda t: t.pop(K), [K, "(32, 64)"]),
    "extra": (lambda t: t.update({"model.layers.7.mlp.up_proj.weight": torch.ones(2)}), ["model.layers.7.mlp.up_proj"]),
    "transposed": (lambda t: t.update({K: t[K].T.contiguous()}), [K, "(64, 32)", "(32, 64)"]),
    "integers": (lambda t: t.update({K: t[K].to(torch.int8)}), [K, "I8"]),
    "booleans": (lambda t: t.update({K: t[K] > 0}), [K, "BOOL"]),
    "no dimension": (lambda t: t.update({K: torch.tensor(1.0)}), [K, "()", "(32, 64)"]),
    "a dimension too many": (lambda t: t.update({K: t[K][None]}), [K, "(1, 32, 64)"]),
    "a row too many": (lambda t: t.update({K: torch.ones(33, 64)}), [K, "(33, 64)"]),
    "nothing": (lambda t: t.update({K: torch.ones(0, 64)}), [K, "(0, 64)"]),
    "eight-bit floats without their scale": (lambda t: t.update({K: t[K].to(torch.float8_e4m3fn)}), [K, "F8"]),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_refused_tensor(case, single, tmp_path):
    change, named = BAD_TENSORS[case]
    shutil.copytree(single, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    refused(tmp_path, str(tmp_path), *named)


def test_missing_files_are_named(single, tmp_path):
    refused(tmp_path / "nowhere", "nowhere is not there", kind=FileNotFoundError)
    refused(tmp_path, str(tmp_path), "config.json", kind=FileNotFoundError)
    shutil.copy(single / "config.json", tmp_path)
    refused(tmp_path, str(tmp_path), "model.safetensors", kind=FileNotFoundError)


def test_truncated_files_are_refused(single, tmp_path):
    shutil.copytree(single, tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for length in [0, 1, 7, 8, 9, 500, len(whole) // 2, len(whole) - 1]:
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        refused(tmp_path, str(tmp_path / "model.safetensors"))


def test_a_damaged_header_is_refused_or_changes_nothing(single, tmp_path):
    """150 random bit flips in the header: a ModelError, or (padding, metadata) the very same tensors."""
    shutil.copytree(single, tmp_path, dirs_exist_ok=True)
    whole, rng = (tmp_path / "model.safetensors").read_bytes(), random.Random(0)
    expected = load_file(single / "model.safetensors")
    shapes, num_refused = {name: tensor.shape for name, tensor in expected.items()}, 0
    for _ in range(150):
        place = rng.randrange(8 + int.from_bytes(whole[:8], "little"))
        (tmp_path / "model.safetensors").write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1:])
        try:
            read = dict(weights.read_tensors(weights.find_tensors(tmp_path, shapes)))
            assert all(torch.equal(read[name], expected[name]) for name in expected)
        except ModelError:
            num_refused += 1
    assert num_refused > 100


def safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def test_headers_made_to_do_harm_are_refused(single, tmp_path):
    """A header longer than the file, than memory, than safetensors reads; tensors that overlap, leave a hole, end
    outside, or whose size overflows; the same name twice; no JSON."""
    shutil.copytree(single, tmp_path, dirs_exist_ok=True)
    entry = '{"dtype":"F32","shape":%s,"data_offsets":%s}'
    two = '{"a":%s,"b":%s}'
    cases = [safetensors(b"{}", length=n) for n in (3, 10**6, 100_000_001, 2**31, 2**40, 2**63, 2**64 - 1)]
    cases += [safetensors(header.encode(), bytes(8)) for header in (
        two % (entry % ([1], [0, 4]), entry % ([1], [0, 4])), two % (entry % ([1], [0, 4]), entry % ([1], [2, 6])),
        two % (entry % ([0], [0, 0]), entry % ([1], [4, 8])), '{"a":%s}' % entry % ([1], [4, 8]),
        '{"a":%s}' % entry % ([2], [0, 4]), '{"a":%s}' % entry % ([2**32, 2**32], [0, 8]),
        '{"a":%s}' % entry % ([-1], [0, 8]), '{"a":%s}' % entry % ([4], [0, 16]), '{"a":%s}' % entry % ([2], [8, 0]),
        '{"a":%s,"a":%s}' % (entry % ([1], [0, 4]), entry % ([1], [4, 8])), "[" * 50_000, '{"a":', "null", "")]
    cases += [safetensors(b" " * 100_000_001)]
    for content in cases:
        (tmp_path / "model.safetensors").write_bytes(content)
        refused(tmp_path, str(tmp_path))


def test_refused_shards(sharded, tmp_path):
    """A shard that is not there, a tensor listed but absent, one present but not listed, an index that is no index."""
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    first = next(name for name, file in index.items() if file == SHARD_1)
    second = next(name for name, file in index.items() if file == SHARD_2)

    def broken(change: Callable[[Path], None], *named: str):
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
        shutil.copytree(sharded, tmp_path / "m")
        change(tmp_path / "m")
        refused(tmp_path / "m", *named)

    broken(lambda d: (d / SHARD_2).unlink(), INDEX, SHARD_2)
    broken(lambda d: edit(d / INDEX, weight_map=index | {first: SHARD_2}), first)
    broken(lambda d: edit(d / INDEX, weight_map=index | {"model.new": SHARD_1}), "model.new", SHARD_1)
    broken(lambda d: edit(d / INDEX, weight_map={k: v for k, v in index.items() if k != second}), second)
    broken(lambda d: save_file(load_file(d / SHARD_1) | {second: torch.ones(2)}, d / SHARD_1), second, SHARD_1)
    broken(lambda d: edit(d / INDEX, weight_map=...), INDEX, "weight_map")
    broken(lambda d: edit(d / INDEX, weight_map={first: 1}), INDEX, "weight_map")
    broken(lambda d: edit(d / INDEX, weight_map={}), "lm_head.weight")
    broken(lambda d: (d / INDEX).write_text("{"), INDEX)


@pytest.mark.parametrize("entry", [
    "../outside.safetensors", "../m/" + SHARD_1, "ABSOLUTE", "sub/" + SHARD_1, "./" + SHARD_1, "sub/../" + SHARD_1,
    SHARD_1 + "\0", "..\\outside.safetensors", "C:\\outside.safetensors", "C:/outside.safetensors",
    "sub/link.safetensors", "sub", "", ".", "..", "~/outside.safetensors", "file:///etc/passwd", "model.bin",
    "outside.safetensors.bin", SHARD_1 + "/"])
def test_index_entries_that_leave_the_directory_are_refused(entry, sharded, tmp_path):
    """Even where the entry leads to a file that could be read."""
    directory = tmp_path / "m"
    shutil.copytree(sharded, directory)
    (directory / "sub").mkdir()
    for place in (tmp_path / "outside.safetensors", directory / "sub" / SHARD_1, directory / "model.bin",
                  directory / "..\\outside.safetensors", directory / "C:\\outside.safetensors"):
        shutil.copy(sharded / SHARD_1, place)
    os.symlink(tmp_path / "outside.safetensors", directory / "sub" / "link.safetensors")
    entry = str(tmp_path / "outside.safetensors") if entry == "ABSOLUTE" else entry
    index = json.loads((directory / INDEX).read_text())["weight_map"]
    edit(directory / INDEX, weight_map={k: entry if v == SHARD_1 else v for k, v in index.items()})
    refused(directory, INDEX)


# Nothing of a directory is ever run

UNPICKLED = []
sys.addaudithook(lambda event, args: UNPICKLED.append(args) if event == "pickle.find_class" else None)


@contextmanager
def no_pickle():
    del UNPICKLED[:]
    yield
    assert UNPICKLED == []


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "state.pkl", "last.ckpt"])
def test_pickled_weights_are_refused_by_name_and_never_read(name, single, tmp_path):
    shutil.copy(single / "config.json", tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Evil(tmp_path / "marker")))
    with no_pickle():
        refused(tmp_path, str(tmp_path), name)
    assert not (tmp_path / "marker").exists()


def test_code_in_a_model_directory_is_never_run(toy_directory, tmp_path):
    """auto_map in every JSON file points to Python files that would leave a marker."""
    from nanoqwenlong.pretrained.tokenizer import Tokenizer
    directory, marker = tmp_path / "m", tmp_path / "marker"
    shutil.copytree(toy_directory, directory)
    for name in ["evil", "configuration_qwen3", "modeling_qwen3", "tokenization_qwen3", "__init__"]:
        (directory / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nModel = Tok = Config\n")
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model",
                "AutoTokenizer": ["evil.Tok", "evil.Tok"]}
    for name in ["config.json", "tokenizer_config.json", "generation_config.json"]:
        edit(directory / name, auto_map=auto_map)
    with no_pickle():
        model = Qwen.from_pretrained(directory)
        assert Tokenizer(directory).encode("Tom") == Tokenizer(toy_directory).encode("Tom")
    assert torch.equal(model.logits(IDS), Qwen.from_pretrained(toy_directory).logits(IDS))
    assert not marker.exists()


def spoil(directory: Path, how: str) -> None:
    """A model directory that is out for harm."""
    tensors = load_file(directory / "model.safetensors")
    name = next(iter(tensors))
    if how == "pickle":
        (directory / "model.safetensors").unlink()
        (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(directory.parent / "marker")))
    elif how == "path":
        (directory / "model.safetensors").rename(directory.parent / "outside.safetensors")
        (directory / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "../outside.safetensors")}))
    elif how == "header":
        (directory / "model.safetensors").write_bytes(safetensors(b"{}", length=2**62))
    elif how == "shape":
        save_file(tensors | {name: tensors[name][:, :-1].contiguous()}, directory / "model.safetensors")
    elif how in ("nan", "inf"):
        tensors[name][-1, -1] = float(how)
        save_file(tensors, directory / "model.safetensors")
    elif how == "code":
        (directory / "evil.py").write_text(f"open({str(directory.parent / 'marker')!r}, 'w')\nclass Model: pass\n")
        for file in ("config.json", "tokenizer_config.json"):
            edit(directory / file, auto_map={"AutoConfig": "evil.Model", "AutoTokenizer": ["evil.Model", "evil.Model"]},
                 model_type="evil", tokenizer_class="Evil")


@pytest.mark.parametrize("script", ["train_sft", "train_rl"])
@pytest.mark.parametrize("how, words", [
    ("pickle", "pytorch_model.bin"), ("path", "../outside.safetensors"), ("header", "model.safetensors"),
    ("shape", "config.json asks for"), ("nan", "holds NaN or infinity"), ("inf", "holds NaN or infinity"),
    ("code", "")])
def test_training_refuses_a_hostile_directory_in_one_sentence(script, how, words, toy_directory, tmp_path, capsys):
    from importlib import import_module

    from nanoqwenlong.ops import exits
    module, directory = import_module(script), tmp_path / "m"
    shutil.copytree(toy_directory, directory)
    spoil(directory, how)
    with no_pickle():
        code = exits.start(module.main, module.Config, module.PRESETS, [
            "--model", str(directory), "--runs-dir", str(tmp_path / "runs"), "--toy-examples", "8", "--check-finite"])
    error = capsys.readouterr().err
    assert code == errors.BAD_DATA and error.count("\n") == 1 and words in error and str(directory) in error, error
    assert not (tmp_path / "runs").exists() and not (tmp_path / "marker").exists()


def test_transformers_does_not_log_while_a_directory_is_read(toy_directory, tmp_path):
    """Its handler holds the stderr of its first import. If that was a captured one, logging fails once it is closed."""
    import logging

    from transformers.utils import logging as hf_logging

    from nanoqwenlong.pretrained.tokenizer import Tokenizer
    records, handler, logger = [], logging.Handler(), hf_logging.get_logger("transformers")
    handler.emit = records.append
    directory, verbosity = tmp_path / "m", hf_logging.get_verbosity()
    shutil.copytree(toy_directory, directory)
    spoil(directory, "code")
    logger.addHandler(handler)
    try:
        with pytest.raises(ModelError):
            Qwen.from_pretrained(directory)
        Tokenizer(directory)                                   # it needs none of the code: tokenizer.json has all ids
        (directory / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"a": 1}}')
        with pytest.raises(ModelError):
            Tokenizer(directory)
    finally:
        logger.removeHandler(handler)
    assert records == [] and hf_logging.get_verbosity() == verbosity
