"""YaRN and llama3 rope against transformers and their formulas, at the sizes of the released models; and the window
that YaRN opens."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import random_hf
from test_model import LLAMA3, YARN, save
from tiny_qwen import random_ids, tiny_qwen

import eval as eval_script
import train_rl
import train_sft
from nanoqwenlong import errors
from nanoqwenlong.errors import ModelError
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits
from nanoqwenlong.pretrained.config import ModelConfig, Scaling
from nanoqwenlong.pretrained.rope import rope_tables, scaled_frequencies

POSITIONS = torch.tensor([0, 1, 2, 4095, 32767, 32768, 65535, 65536, 131071])
PERIODS = [1e6 ** (2 * i / 128) for i in range(64)]
OPTIONS = {
    "qwen": {},
    "factor 2": {"factor": 2.0},
    "factor 1": {"factor": 1.0},
    "a whole factor": {"factor": 4},
    "no whole factor": {"factor": 2.5},
    "theta 5e6": {"rope_theta": 5e6},
    "theta 1e7, factor 2": {"rope_theta": 1e7, "factor": 2.0},
    "theta 1000: the ramp ends behind the frequencies": {"rope_theta": 1000.0},
    "theta 10: behind twice as many": {"rope_theta": 10.0},
    "an original window of 40: it begins with them": {"original_max_position_embeddings": 40},
    "attention factor": {"attention_factor": 0.75},
    "attention factor 0": {"attention_factor": 0.0},
    "attention factor and mscale": {"attention_factor": 0.75, "mscale": 2.0, "mscale_all_dim": 1.0},
    "betas": {"beta_fast": 20, "beta_slow": 3.5},
    "equal betas": {"beta_fast": 3, "beta_slow": 3},
    "equal betas at a whole frequency": {"beta_fast": 32768 / (2 * math.pi) / PERIODS[16],
                                         "beta_slow": 32768 / (2 * math.pi) / PERIODS[16], "truncate": False},
    "mscale": {"mscale": 2.0, "mscale_all_dim": 0.5},
    "mscale alone": {"mscale": 2.0},
    "mscale_all_dim alone": {"mscale_all_dim": 2.0},
    "mscale 0": {"mscale": 0.0, "mscale_all_dim": 2.0},
    "not truncated": {"truncate": False},
    "truncated": {"truncate": True},
    "nulls": {"attention_factor": None, "beta_fast": None, "beta_slow": None, "mscale": None, "mscale_all_dim": None},
    "no original window: the config's": {"original_max_position_embeddings": ...},
}


def rope_of(**changes) -> dict:
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768, **changes}
    return {name: value for name, value in rope.items() if value is not ...}


def big_config(rope: dict, **changes) -> ModelConfig:
    """A Qwen3 with heads of 128, made of nothing."""
    return ModelConfig.from_json({"model_type": "qwen3", "head_dim": 128, "max_position_embeddings": 40960,
                                  "rope_parameters": dict(rope), **changes}, "big/config.json")


@pytest.mark.parametrize("case", OPTIONS)
def test_frequencies_and_tables_at_real_size_equal_transformers(case):
    """To the last bit of the frequencies, in float32; so cosines of angles up to 131,071 agree too."""
    from transformers import Qwen3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding
    rope = rope_of(**OPTIONS[case])
    hf = Qwen3Config(head_dim=128, max_position_embeddings=40960, rope_parameters=dict(rope))
    expected, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](hf, torch.device("cpu"))
    c = big_config(rope)
    periods = c.rope_theta ** (torch.arange(0, 128, 2) / 128)
    found = scaled_frequencies(periods, c.rope_theta, c.scaling)
    assert torch.equal(found, expected)
    assert c.scaling.attention_factor == attention_factor
    theirs = Qwen3RotaryEmbedding(hf)(torch.zeros(1), POSITIONS[None])
    for table, wanted in zip(rope_tables(POSITIONS, 128, c.rope_theta, torch.float32, c.scaling), theirs):
        assert table.dtype == torch.float32 and (table[:, 0] - wanted[0]).abs().max() <= 1e-6


def by_hand(positions, D: int, theta: float, factor: float, original: int, fast=32.0, slow=1.0, truncate=True,
            scale=None) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (T, D), a number at a time: the paper's ramp over the index of the frequency."""
    d = [D * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow)]
    low, high = (math.floor(d[0]), math.ceil(d[1])) if truncate else d
    low, high = max(low, 0), min(high, D - 1)
    rows = []
    for p in positions:
        angles = []
        for i in range(D // 2):
            divided = 0.0 if i <= low else 1.0 if i >= high else (i - low) / (high - low)
            angles.append(p * theta ** (-2 * i / D) * (divided / factor + 1 - divided))
        rows.append(angles + angles)
    angles = torch.tensor(rows, dtype=torch.float64)
    scale = 0.1 * math.log(factor) + 1 if scale is None else scale
    return angles.cos() * scale, angles.sin() * scale


@pytest.mark.parametrize("D, theta, settings", [
    (128, 1e6, {"factor": 4.0, "original_max_position_embeddings": 32768}),
    (128, 1e6, {"factor": 2.0, "original_max_position_embeddings": 32768}),
    (16, 3e4, {"factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 8}),
    (128, 5e6, {"factor": 8.0, "original_max_position_embeddings": 4096, "truncate": False, "attention_factor": 1.5})])
def test_tables_in_float64_are_the_formula_and_rounded_once(D, theta, settings):
    positions = [0, 1, 5, 32767, 32768, 131071]
    expected = by_hand(positions, D, theta, settings["factor"], settings["original_max_position_embeddings"],
                       settings.get("beta_fast", 32.0), truncate=settings.get("truncate", True),
                       scale=settings.get("attention_factor"))
    yarn, ids = Scaling.from_json({"rope_type": "yarn", **settings}, "here"), torch.tensor(positions)
    for table, wanted in zip(rope_tables(ids, D, theta, torch.float64, yarn), expected):
        assert table.dtype == torch.float64 and (table[:, 0] - wanted).abs().max() <= 1e-9
    for low, wide in zip(rope_tables(ids, D, theta, torch.bfloat16, yarn), rope_tables(ids, D, theta, torch.float32,
                                                                                       yarn)):
        assert low.dtype == torch.bfloat16 and torch.equal(low, wide.bfloat16())


def test_the_ramp_of_the_released_models():
    """Frequencies 0 to 23 stay, from 40 on they are a quarter: theta 1e6, heads of 128, a window of 32,768."""
    periods = torch.tensor(PERIODS, dtype=torch.float64)
    share = scaled_frequencies(periods, 1e6, big_config(rope_of()).scaling) * periods
    assert (share[:24] - 1).abs().max() <= 1e-15 and (share[40:] - 0.25).abs().max() <= 1e-15
    assert (share[23:41].diff() < -0.01).all()


def test_what_is_filled_in():
    """0.1 ln 4 + 1, 32, 1, whole frequencies; and the window of the config where YaRN names none."""
    yarn = big_config(rope_of(original_max_position_embeddings=...)).scaling
    assert yarn == Scaling("yarn", 4.0, 40960, 1, 32, 0.1 * math.log(4) + 1, True)
    assert big_config(rope_of(factor=1)).scaling.attention_factor == 1
    assert big_config(rope_of(mscale=3, mscale_all_dim=1)).scaling.attention_factor == (
        (0.3 * math.log(4) + 1) / (0.1 * math.log(4) + 1))


@pytest.mark.parametrize("changes, words", [
    ({"factor": ...}, "factor"), ({"factor": None}, "factor is None"), ({"factor": 0.5}, "factor is 0.5"),
    ({"factor": "4"}, "factor is '4'"), ({"factor": math.nan}, "factor is nan"), ({"factor": True}, "factor is True"),
    ({"factor": math.inf}, "factor is inf"),
    ({"original_max_position_embeddings": -1}, "original_max_position_embeddings is -1"),
    ({"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
    ({"original_max_position_embeddings": None}, "original_max_position_embeddings is None"),
    ({"beta_slow": [1]}, "beta_slow is [1]"),
    ({"attention_factor": -1.0}, "attention_factor is -1.0"), ({"attention_factor": "1"}, "attention_factor is '1'"),
    ({"beta_fast": 2, "beta_slow": 3}, "beta_fast (2) is less than beta_slow (3)"),
    ({"beta_slow": 33}, "beta_fast (32) is less than beta_slow (33)"),
    ({"beta_fast": -1}, "beta_fast is -1"), ({"beta_slow": True}, "beta_slow is True"),
    ({"mscale": "x"}, "mscale is 'x'"), ({"mscale_all_dim": False}, "mscale_all_dim is False"),
    ({"truncate": "yes"}, "truncate is 'yes'"), ({"truncate": None}, "truncate is None"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [1.0] * 64}, "'longrope'"),
    ({"rope_type": "dynamic"}, "'dynamic'")])
def test_settings_that_yarn_cannot_have_are_refused_in_both_spellings(changes, words):
    rope = rope_of(**changes)
    old = {name: value for name, value in rope.items() if name != "rope_theta"}
    for spelled in ({"rope_parameters": rope}, {"rope_parameters": ..., "rope_scaling": old, "rope_theta": 1e6}):
        source = {"model_type": "qwen3", "head_dim": 128, "max_position_embeddings": 40960, **spelled}
        with pytest.raises(ModelError) as error:
            ModelConfig.from_json({k: v for k, v in source.items() if v is not ...}, "m/config.json")
        told = str(error.value)
        assert told.startswith("m/config.json: ") and words in told and "\n" not in told, told


# llama3

RELEASED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3_OPTIONS = {                                              # Llama 3.1 and R1-Distill, 3.2, others
    "llama 3.1": {},
    "llama 3.2": {"factor": 32.0},
    "a factor of 1": {"factor": 1},
    "whole numbers": {"low_freq_factor": 1, "high_freq_factor": 4},
    "theta 1e4": {"rope_theta": 1e4},
    "a narrow ramp": {"low_freq_factor": 2.5, "high_freq_factor": 2.75},
    "no ramp": {"high_freq_factor": 1.0},
    "an attention factor, which is YaRN's": {"attention_factor": 2.0},
    "no original window: the config's": {"original_max_position_embeddings": ...},
}


def llama3_of(**changes) -> dict:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, **RELEASED, **changes}
    return {name: value for name, value in rope.items() if value is not ...}


def llama(rope: dict, **changes) -> ModelConfig:
    return ModelConfig.from_json({"model_type": "llama", "head_dim": 128, "max_position_embeddings": 131072,
                                  "rope_parameters": dict(rope), **changes}, "m/config.json")


@pytest.mark.parametrize("case", LLAMA3_OPTIONS)
def test_llama3_frequencies_and_tables_equal_transformers(case):
    """To the last bit of the frequencies, in float32; so cosines of angles up to 131,071 agree too."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    rope = llama3_of(**LLAMA3_OPTIONS[case])
    theirs = LlamaRotaryEmbedding(LlamaConfig(head_dim=128, max_position_embeddings=131072, rope_parameters=dict(rope)))
    c = llama(rope)
    periods = c.rope_theta ** (torch.arange(0, 128, 2) / 128)
    assert torch.equal(scaled_frequencies(periods, c.rope_theta, c.scaling), theirs.inv_freq)
    tables = rope_tables(POSITIONS, 128, c.rope_theta, torch.float32, c.scaling)
    for table, wanted in zip(tables, theirs(torch.zeros(1), POSITIONS[None])):
        assert table.dtype == torch.float32 and (table[:, 0] - wanted[0]).abs().max() <= 1e-6


@pytest.mark.parametrize("D, theta, changes", [(128, 5e5, {}), (64, 5e5, {"factor": 32.0}), (16, 3e4, {
    "factor": 3.0, "low_freq_factor": 0.5, "high_freq_factor": 6.0, "original_max_position_embeddings": 512})])
def test_llama3_tables_in_float64_are_the_formula_and_rounded_once(D, theta, changes):
    """A frequency at a time, as in the code that Meta released: `apply_scaling` in llama-models' model.py."""
    settings, positions = {**RELEASED, **changes}, [0, 1, 5, 8191, 8192, 131071]
    factor, low, high, original = (settings[name] for name in RELEASED)
    frequencies = []
    for i in range(D // 2):
        frequency = theta ** (-2 * i / D)
        wavelength = 2 * math.pi / frequency
        if wavelength > original / low:
            frequency /= factor
        elif wavelength >= original / high:
            smooth = (original / wavelength - low) / (high - low)
            frequency = (1 - smooth) * frequency / factor + smooth * frequency
        frequencies.append(frequency)
    angles = torch.tensor([[p * f for f in frequencies * 2] for p in positions], dtype=torch.float64)
    llama3, ids = Scaling.from_json({"rope_type": "llama3", **settings}, "here"), torch.tensor(positions)
    for table, wanted in zip(rope_tables(ids, D, theta, torch.float64, llama3), (angles.cos(), angles.sin())):
        assert table.dtype == torch.float64 and (table[:, 0] - wanted).abs().max() <= 1e-9
    for low, wide in zip(*(rope_tables(ids, D, theta, dtype, llama3) for dtype in (torch.bfloat16, torch.float32))):
        assert low.dtype == torch.bfloat16 and torch.equal(low, wide.bfloat16())


@pytest.mark.parametrize("changes, words", [
    ({"factor": ...}, "factor is None"), ({"factor": 0.5}, "factor is 0.5"), ({"factor": "8"}, "factor is '8'"),
    ({"factor": 10**400}, "factor is 1000"), ({"low_freq_factor": ...}, "low_freq_factor is None"),
    ({"low_freq_factor": None}, "low_freq_factor is None"), ({"low_freq_factor": -1}, "low_freq_factor is -1"),
    ({"high_freq_factor": ...}, "high_freq_factor is None"), ({"high_freq_factor": True}, "high_freq_factor is True"),
    ({"high_freq_factor": math.nan}, "high_freq_factor is nan"),
    ({"high_freq_factor": 0.5}, "high_freq_factor (0.5) is less than low_freq_factor (1.0)"),
    ({"low_freq_factor": 5}, "high_freq_factor (4.0) is less than low_freq_factor (5)"),
    ({"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"rope_type": "linear"}, "rope type 'linear' is not supported; default, yarn and llama3 are"),
    ({"rope_type": "dynamic"}, "'dynamic'")])
def test_settings_that_llama3_rope_cannot_have_are_refused_in_both_spellings(changes, words):
    rope = llama3_of(**changes)
    old = {name: value for name, value in rope.items() if name != "rope_theta"}
    for spelled in ({}, {"rope_parameters": None, "rope_scaling": old, "rope_theta": 5e5}):
        with pytest.raises(ModelError) as error:
            llama(rope, **spelled)
        told = str(error.value)
        assert told.startswith("m/config.json: ") and words in told and "\n" not in told, told


def test_llama3_without_a_ramp_has_frequencies_also_at_its_step():
    turns = 8192 / (2 * math.pi)                                # of the first frequency, 1
    scaling = llama(llama3_of(low_freq_factor=turns, high_freq_factor=turns)).scaling
    found = scaled_frequencies(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), 5e5, scaling)
    assert torch.equal(found[1:], torch.tensor([1 / 16, 1 / 32], dtype=torch.float64)) and 1 / 8 <= found[0] <= 1


def test_the_window_of_llama3_is_the_configs_and_yarn_is_not_advised():
    """Llama 3.2's factor of 32 would give twice the 131,072 tokens that it was trained for."""
    c = llama(llama3_of(factor=32.0))
    c.require_window(131072)
    with pytest.raises(ModelError, match="window of 131072: give shorter ones") as error:
        c.require_window(131073)
    assert "YaRN" not in str(error.value)


# Both

def test_a_partial_rotary_factor_beside_the_rope_is_refused_too():
    with pytest.raises(ModelError, match="partial_rotary_factor is 0.5"):
        big_config(rope_of(), partial_rotary_factor=0.5)


@pytest.mark.parametrize("old", [False, "type", "rope_type"])
@pytest.mark.parametrize("kind, rope", [
    ("qwen2", YARN["rope_parameters"] | {"attention_factor": 1.25, "truncate": False}),
    ("qwen3_moe", YARN["rope_parameters"]), ("llama", LLAMA3["rope_parameters"])])
def test_a_config_with_a_scaled_rope_goes_through_unchanged(kind, rope, old, tmp_path):
    """Every key of it, in the spelling it came in; and transformers computes from our copy what it computed before."""
    from test_weights import hf_logits
    save(random_hf(kind, rope_parameters=rope), tmp_path / "a", old=old)
    Qwen.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert json.loads((tmp_path / "a/config.json").read_text()) == json.loads((tmp_path / "b/config.json").read_text())
    assert torch.equal(hf_logits(tmp_path / "a"), hf_logits(tmp_path / "b"))


# The window

WINDOWS = {                                                     # config, window, the line that is told for a token more
    "new": ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "max_position_embeddings": 32768}, 32768,
            {"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 2.0,
                                 "original_max_position_embeddings": 32768}}),
    "old": ({"rope_theta": 1e6, "rope_scaling": None, "max_position_embeddings": 32768}, 32768,
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32768}}),
    "room for answers": ({"rope_theta": 1e6, "max_position_embeddings": 40960}, 40960,
                         {"rope_scaling": {"rope_type": "yarn", "factor": 2.0,
                                           "original_max_position_embeddings": 32768}}),
    "yarn, old": ({"rope_theta": 1e6, "max_position_embeddings": 40960, "rope_scaling": {
        "type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32768}}, 65536,
        {"rope_scaling": {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 32768}}),
    "yarn, new": ({"rope_parameters": rope_of(original_max_position_embeddings=4096), "max_position_embeddings": 4096},
                  16384, {"rope_parameters": rope_of(original_max_position_embeddings=4096, factor=5.0)}),
    "yarn below the config's own window": (
        {"rope_parameters": rope_of(), "max_position_embeddings": 200_000}, 200_000,
        {"rope_parameters": rope_of(factor=7.0)}),
    "a factor with a fraction": ({"rope_parameters": rope_of(factor=1.3), "max_position_embeddings": 32768}, 42598,
                                 {"rope_parameters": rope_of(factor=2.0)}),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_beyond_the_window_the_line_to_add_is_told_and_works(case):
    source, window, line = WINDOWS[case]
    c = ModelConfig.from_json({"model_type": "qwen3", **source}, "config.json")
    assert c.window == window
    c.require_window(window)
    for tokens in (window + 1, 5 * window):
        with pytest.raises(ModelError, match=f"inputs of {tokens} tokens .* window of {window}:") as error:
            c.require_window(tokens)
        told = json.loads("{" + re.search(r'"rope_(scaling|parameters)".*', str(error.value))[0] + "}")
        if tokens == window + 1:
            assert told == line
        again = ModelConfig.from_json({"model_type": "qwen3", **source, **told}, "config.json")
        again.require_window(tokens)
        assert again.rope_theta == c.rope_theta and again.scaling.attention_factor > 1


def refused(work, tokens: int, window: int) -> None:
    with pytest.raises(ModelError, match=f"inputs of {tokens} tokens are longer than the model's window of {window}"):
        work()


@pytest.mark.parametrize("changes, window", [
    ({"max_position_embeddings": 12}, 12),
    ({"max_position_embeddings": 8, "rope_scaling": {"type": "yarn", "factor": 1.5,
                                                     "original_max_position_embeddings": 8}}, 12)])
def test_a_token_beyond_the_window_is_not_computed(changes, window):
    """The last answer token is sampled, and no input."""
    model = tiny_qwen(**changes)
    assert model.logits(torch.tensor(random_ids(window))).shape == (window, 53)
    assert model.logits(torch.tensor([random_ids(window)] * 2)).shape == (2, window, 53)
    refused(lambda: model.logits(torch.tensor(random_ids(window + 1))), window + 1, window)
    generator = Generator(model, 64, 4)
    (group,) = generator.sample([random_ids(9)], max_new_tokens=window - 8)
    assert len(group.completions[0].ids) == window - 8
    generator.require(9, window - 8)
    refused(lambda: generator.require(9, window - 7), window + 1, window)
    refused(lambda: generator.sample([[1], random_ids(9)], max_new_tokens=window - 7), window + 1, window)


@pytest.fixture(scope="module")
def narrow(toy_directory, tmp_path_factory) -> Path:
    """The toy with a window of 64 tokens: its shortest prompts are longer."""
    directory = tmp_path_factory.mktemp("narrow") / "m"
    shutil.copytree(toy_directory, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    return directory


@pytest.mark.parametrize("script, flags", [
    (train_sft, "--toy-examples 8 --steps 1 --eval-questions 1 --max-new-tokens 2"),
    (train_rl, "--toy-examples 8 --steps 1 --max-new-tokens 4"), (eval_script, "--toy-examples 2 --max-new-tokens 4")])
def test_the_scripts_refuse_inputs_beyond_the_window_and_take_the_line(script, flags, narrow, tmp_path, monkeypatch,
                                                                       capsys):
    monkeypatch.chdir(tmp_path)

    def start(directory):
        code = exits.start(script.main, script.Config, getattr(script, "PRESETS", {}), ["--model", str(directory),
                                                                                      *flags.split()])
        return code, capsys.readouterr().err
    code, told = start(narrow)
    assert code == errors.BAD_DATA and "longer than the model's window of 64" in told and told.count("\n") == 1, told
    shutil.copytree(narrow, tmp_path / "wide")
    config = json.loads((narrow / "config.json").read_text())
    line = json.loads("{" + re.search(r'"rope_scaling".*', told)[0] + "}")
    (tmp_path / "wide/config.json").write_text(json.dumps(config | line))
    assert start(tmp_path / "wide") == (0, "")
