"""The presets: the scripts accept them, they hold the papers' figures, and the papers' models have their real size. The
models are on the meta device, without weights and memory."""

import json
from dataclasses import fields, replace

import pytest
import torch
from ranks import ranks
from tools.plan import MODELS as RELEASED

import eval as eval_script
import train_rl
import train_sft
from nanoqwenlong import errors, parallel
from nanoqwenlong.errors import ModelError
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits, flags, presets
from nanoqwenlong.pretrained import weights
from nanoqwenlong.pretrained.config import ModelConfig

SCRIPTS = {"train_rl": train_rl, "train_sft": train_sft, "eval": eval_script}
EVERY = [(script, preset) for script, module in SCRIPTS.items() for preset in module.PRESETS]
MODELS = sorted(RELEASED)
# For inputs of 32,769 to 4 x 32,768 = 131,072 tokens, the READMEs of QwenLong-L1 ("Processing Long Documents") and of
# Qwen2.5 add this to config.json as "rope_scaling".
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
PARAMETERS = {"r1-distill-qwen-14b": 14_770_033_664, "r1-distill-qwen-32b": 32_763_876_352, "qwen2.5-7b": 7_615_616_512,
              "r1-distill-llama-8b": 8_030_261_248, "qwen2.5-1.5b": 1_543_714_304,
              "qwen3-4b": 4_022_468_096, "qwen3-30b-a3b": 30_532_122_624}
STRETCHED = {"qwen2.5-1.5b", "qwen2.5-7b"}                      # windows of 32,768 that need YaRN


def read(script: str, *words: str):
    return flags.parse(SCRIPTS[script].Config, list(words), SCRIPTS[script].PRESETS)


# Settings

@pytest.mark.parametrize("script, preset", EVERY)
def test_a_preset_is_what_its_flags_would_be(script, preset):
    """Every key is a setting, and every value has its type."""
    found = read(script, "--preset", preset)
    spelled = read(script, *flags.flags(found))
    for field in fields(found):
        one, other = getattr(found, field.name), getattr(spelled, field.name)
        assert field.name == "preset" or (one, type(one)) == (other, type(other)), field.name


@pytest.mark.parametrize("script, preset", [case for case in EVERY if case[1] != "nano-base"])
def test_the_script_agrees_with_a_preset_and_says_how_to_fetch_its_model(script, preset, tmp_path, monkeypatch, capsys):
    """All checks of settings come before the first look at the model, which is missing."""
    monkeypatch.chdir(tmp_path)
    module = SCRIPTS[script]
    words = ["--preset", preset, "--device", "cpu", "--toy-examples", "8"]
    assert exits.start(module.main, module.Config, module.PRESETS, words) == errors.MISSING_INPUT
    said, source = capsys.readouterr().err, presets.SOURCES.get(preset)
    assert said.count("\n") == 1 and ("hf download" in said) == bool(source)
    if source:
        folder = "models/" + source.rpartition("/")[2]
        assert said.endswith(f"; to download it: hf download {source} --local-dir {folder}\n")
        assert read(script, "--preset", preset).model in (folder, (folder,))


@pytest.mark.parametrize("told, fetch", [
    ("models/Qwen2.5-7B-Instruct: the model's directory is not there", True),
    ("model directory models/Qwen2.5-7B-Instruct-mine is not there", False),
    ("model directory mine/models/Qwen2.5-7B-Instruct is not there", False)])
def test_only_what_a_preset_names_is_said_to_be_fetched(told, fetch):
    assert ("hf download Qwen/Qwen2.5-7B-Instruct" in exits.sentence(FileNotFoundError(told))) == fetch
    assert "hf download" not in exits.sentence(PermissionError(told))


@pytest.mark.parametrize("preset", ["paper", *(name for name in MODELS if not name.startswith("qwen3"))])
def test_the_figures_of_qwenlong_l1(preset):
    rl, small = read("train_rl", "--preset", preset), preset.startswith("qwen2.5")
    assert (rl.prompts_per_step, rl.updates_per_step) == ((32, 1) if small else (128, 4))
    assert rl.max_new_tokens == (4096 if small else 10000)
    assert rl.prompts_per_step // rl.updates_per_step == 32
    assert (rl.group_size, rl.learning_rate, rl.warmup_steps, rl.weight_decay) == (8, 2e-6, 0, 0.01)
    assert (rl.phase_lengths, rl.max_prompt_tokens, rl.retro_hard_below) == ((20000, 60000), 60000, 0.0)
    assert (rl.temperature, rl.top_p, rl.clip_low, rl.clip_high, rl.dual_clip) == (0.7, 1.0, 0.2, 0.2, 0.0)
    assert (rl.loss, rl.advantages, rl.overlong_buffer, rl.max_refills) == ("dapo", "grpo", 1000, 9)
    assert (rl.kl_coef, rl.entropy_coef, rl.max_grad_norm, rl.checkpointing) == (0.0, 0.0, 1.0, True)
    asked = read("eval", "--preset", preset)
    assert (asked.temperature, asked.top_p, asked.max_prompt_tokens, asked.max_new_tokens) == (0.7, 0.95, 120000, 10000)
    if preset != "paper":
        sft = read("train_sft", "--preset", preset)
        assert (sft.batch_size, sft.learning_rate, sft.max_prompt_tokens) == (128, 5e-6, 20000)
        assert sft.steps == -(-3 * 5305 // 128) == 125
        assert (sft.warmup_steps, sft.final_fraction, sft.eval_every, sft.device) == (0, 1.0, 0, "cuda")


@pytest.mark.parametrize("preset", ["golongrl", "qwen3-4b", "qwen3-30b-a3b"])
def test_the_figures_of_golongrl(preset):
    rl = read("train_rl", "--preset", preset)
    assert (rl.prompts_per_step, rl.updates_per_step, rl.group_size) == (128, 1, 16)
    assert (rl.learning_rate, rl.warmup_steps, rl.weight_decay, rl.max_grad_norm) == (2e-6, 5, 0.1, 1.0)
    assert (rl.phase_lengths, rl.max_prompt_tokens, rl.max_new_tokens) == ((163840,), 163840, 16384)
    assert (rl.temperature, rl.top_p, rl.clip_low, rl.clip_high, rl.dual_clip) == (1.0, 1.0, 0.2, 0.28, 3.0)
    assert (rl.loss, rl.overlong_buffer, rl.kl_coef, rl.entropy_coef) == ("grpo", 0, 0.0, 0.0)
    assert rl.advantages == ("grpo" if preset == "qwen3-30b-a3b" else "tmn_reweight")
    assert preset not in presets.SFT
    if preset != "golongrl":
        asked = read("eval", "--preset", preset)
        assert (asked.temperature, asked.top_p, asked.max_new_tokens) == (0.7, 0.95, 51200)
        assert asked.max_prompt_tokens + asked.max_new_tokens == 182272


@pytest.mark.parametrize("name, gpus, limit, gigabytes", [
    ("r1-distill-qwen-14b", 8, 141, (63, 30, 22)), ("r1-distill-qwen-32b", 8, 141, (59, 66, 0)),
    ("r1-distill-llama-8b", 8, 80, (42, 16, 12)), ("qwen2.5-1.5b", 1, 80, (18, 3, 19)),
    ("qwen2.5-7b", 8, 80, (37, 15, 11)), ("qwen3-4b", 8, 141, (94, 8, 6)), ("qwen3-30b-a3b", 8, 141, (50, 61, 0))])
def test_a_rollout_fits_on_the_machine_that_a_preset_is_for(name, gpus, limit, gigabytes):
    """The cache holds the longest prompt with an answer. It fits beside the whole weights in bfloat16 and, without
    offloading, the GPU's share of float32 weights and the optimizer's two moments."""
    c, rl, asked = RELEASED[name], read("train_rl", "--preset", name), read("eval", "--preset", name)
    head_dim = c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    per_token = 2 * 2 * c["num_hidden_layers"] * c["num_key_value_heads"] * head_dim
    share = 0 if rl.offload else 12 * PARAMETERS[name] / gpus
    found = rl.kv_blocks * 16 * per_token, 2 * PARAMETERS[name], share
    assert tuple(round(size / 1e9) for size in found) == gigabytes and sum(found) < 0.97 * limit * 1e9
    for cfg in (rl, asked):
        assert cfg.max_prompt_tokens + cfg.max_new_tokens <= cfg.kv_blocks * 16
    assert asked.kv_blocks == rl.kv_blocks


def test_every_model_has_its_presets():
    assert set(RELEASED) == set(presets.SOURCES) == set(presets.RL) - {"paper", "golongrl"} == set(
        presets.EVAL) - {"paper", "golongrl"}
    assert set(presets.SFT) == {"nano-base", *(name for name in MODELS if not name.startswith("qwen3"))}


# Models in their real size

def released(name: str, yarn: bool = False, spelling: int = 4) -> dict:
    """config.json of a released model, as transformers 4 or 5 writes it."""
    from transformers import AutoConfig
    source = {"rope_scaling": None, **RELEASED[name]} | ({"rope_scaling": dict(YARN)} if yarn else {})
    return source if spelling == 4 else json.loads(AutoConfig.for_model(**source).to_json_string())


def on_meta(source: dict) -> Qwen:
    with torch.device("meta"):
        return Qwen(ModelConfig.from_json(source, "config.json")).bfloat16()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_names_and_shapes_that_transformers_gives_it(name):
    from transformers import AutoConfig, AutoModelForCausalLM
    source = released(name)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**source))
    ours = on_meta(source)
    assert type(theirs).__name__ == source["architectures"][0]
    assert {name: tuple(x.shape) for name, x in ours.state_dict().items()} == {
        name: tuple(x.shape) for name, x in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == PARAMETERS[name]      # a tied head counts once


def test_what_the_shapes_of_a_model_do_not_tell():
    """Base of rope, epsilon of norms, window, tied head, query heads, experts per token, shares that add up to 1."""
    found = {name: ModelConfig.from_json(released(name), name) for name in MODELS}
    assert {name: (c.rope_theta, c.rms_norm_eps, c.window, c.tie_word_embeddings, c.num_attention_heads)
            for name, c in found.items()} == {
        "r1-distill-qwen-14b": (1e6, 1e-5, 131072, False, 40), "r1-distill-qwen-32b": (1e6, 1e-5, 131072, False, 40),
        "r1-distill-llama-8b": (5e5, 1e-5, 131072, False, 32),
        "qwen2.5-1.5b": (1e6, 1e-6, 32768, True, 12), "qwen2.5-7b": (1e6, 1e-6, 32768, False, 28),
        "qwen3-4b": (5e6, 1e-6, 262144, True, 32), "qwen3-30b-a3b": (1e7, 1e-6, 262144, False, 32)}
    mixture = found.pop("qwen3-30b-a3b")
    assert (mixture.num_experts, mixture.num_experts_per_tok, mixture.norm_topk_prob) == (128, 8, True)
    assert mixture.dense_layers == () and all(c.num_experts == 0 for c in found.values())


@pytest.mark.parametrize("yarn", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_config_comes_back_as_it_was_in_either_spelling(name, yarn, tmp_path):
    from transformers import AutoConfig
    configs, theirs = [], []
    for spelling in (4, 5):
        configs.append(ModelConfig.from_json(released(name, yarn, spelling), "config.json"))
        weights.write(tmp_path, {"x": torch.zeros(1, dtype=torch.bfloat16)}, configs[-1])
        configs.append(weights.read_config(tmp_path))
        assert configs[-1].source == configs[-2].source
        theirs += [AutoConfig.from_pretrained(tmp_path).to_dict()]
    assert all(replace(c, source={}) == replace(configs[0], source={}) for c in configs)
    theirs += [AutoConfig.for_model(**released(name, yarn)).to_dict()]
    for found in theirs:
        found.pop("_name_or_path", None)
    assert theirs[0] == theirs[1] == theirs[2]
    own = RELEASED[name].get("rope_scaling") or {}
    rope = {"rope_type": "default", **(YARN if yarn else own), "rope_theta": RELEASED[name]["rope_theta"]}
    assert theirs[0]["rope_parameters"] == rope and configs[0].rope_theta == rope["rope_theta"]


@pytest.mark.parametrize("name", MODELS)
def test_the_presets_lengths_fit_into_the_window(name):
    """As released, or with the line that docs/models.md and the refusal give."""
    plain, stretched = (ModelConfig.from_json(released(name, yarn), "config.json") for yarn in (False, True))
    for script in ("train_rl", "eval"):
        cfg = read(script, "--preset", name)
        tokens = cfg.max_prompt_tokens + cfg.max_new_tokens
        assert (tokens > plain.window) == (name in STRETCHED)
        if name in STRETCHED:
            assert tokens <= stretched.window == 131072
            with pytest.raises(ModelError, match='"rope_scaling": {"rope_type": "yarn", "factor": '):
                plain.require_window(tokens)
    assert name in STRETCHED or plain.window == RELEASED[name]["max_position_embeddings"]


def sharded(name: str, num_layers: int, rank: int, size: int) -> dict[str, list]:
    """{parameter: shape of this rank's rows} of a released model of `num_layers` layers. Only this one of `size` ranks
    exists."""
    from torch.testing._internal.distributed.fake_pg import FakeStore
    model = on_meta({**released(name), "num_hidden_layers": num_layers})
    torch.distributed.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        parallel.shard(model, model.model.layers, torch.bfloat16, replicas=1)
        assert all(map(parallel.is_sharded, model.parameters()))
        assert sum(hasattr(module, "unshard") for module in model.modules()) == num_layers + 1   # layer by layer
        return {name: list(parallel.local(p).shape) for name, p in model.named_parameters()}
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    """A separate process, so that its process groups do not stay here."""
    with ranks(1, tmp_path_factory.mktemp("child") / "ranks") as found:
        yield found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_layers", [1, pytest.param(0, marks=pytest.mark.full)])          # 0: all of them
def test_a_model_is_sharded_by_rows_over_eight_ranks(name, num_layers, child):
    """For every tensor the ranks' rows are all rows, none twice, as torch.chunk cuts them. Fused experts stay whole."""
    num_layers = num_layers or RELEASED[name]["num_hidden_layers"]
    whole = {key: p.shape for key, p in on_meta({**released(name), "num_hidden_layers": num_layers}).named_parameters()}
    shares = [child.call(sharded, name=name, num_layers=num_layers, rank=rank, size=8)[0] for rank in range(8)]
    for key, shape in whole.items():
        rows = [chunk.shape[0] for chunk in torch.empty(shape[0], device="meta").chunk(8)]
        rows += [0] * (8 - len(rows))
        assert [share[key] for share in shares] == [[num, *shape[1:]] for num in rows], key
        if ".experts." in key:
            assert rows == [16] * 8 and shape[0] == 128
    assert set().union(*shares) == set(whole) and not torch.distributed.is_initialized()


@pytest.mark.parametrize("name", MODELS)
def test_a_rank_holds_an_eighth_of_the_whole_model(name, child):
    share, = child.call(sharded, name=name, num_layers=RELEASED[name]["num_hidden_layers"], rank=5, size=8)
    held = sum(torch.Size(shape).numel() for shape in share.values())
    assert held == pytest.approx(PARAMETERS[name] / 8, rel=1e-4)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_manual_tells_every_preset_in_lines_that_fit(script):
    module = SCRIPTS[script]
    lines = flags.manual(module.Config, module.PRESETS).splitlines()
    assert max(map(len, lines)) <= 120
    assert [line.split(":")[0] for line in lines if line.startswith("--preset ")] == [
        f"--preset {name}" for name in module.PRESETS]


def test_presets_are_data():
    """JSON can hold them, except that tuples become lists."""
    for table in (RELEASED, presets.RL, presets.SFT, presets.EVAL, presets.SOURCES, YARN):
        json.dumps(table)
