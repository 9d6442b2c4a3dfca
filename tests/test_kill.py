"""A run that is killed at any moment resumes to the end it would have had: the same weights to the last bit, the same
lines, no step twice. And the comparison that shows it notices every item of the state that is lost."""

import gc
import json
import random
import shutil
import sys
from functools import cache

import pytest
import torch
from forked import Case, Reference

import train_rl
import train_sft
from nanoqwenlong import errors
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import checkpoint
from nanoqwenlong.ops.log import Log
from nanoqwenlong.pretrained.config import ModelConfig

pytestmark = pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(),
                                reason="autograd works in a forked child only where there is no GPU")
RL = dict(toy_examples=8, prompts_per_step=3, group_size=3, max_new_tokens=3, kv_blocks=256, retro_fraction=0.5,
          updates_per_step=2)
SFT = dict(toy_examples=8, batch_size=4, eval_every=1, eval_questions=4, max_new_tokens=3, kv_blocks=256,
           learning_rate=1e-2, warmup_steps=3)
IN_RL, IN_SFT, AFTER_SFT, IN_BAD = (("rl", "step 4: over"), ("sft", "step 5: over"),
                                    ("sft", "end: open .exit.json.0.partial"), ("bad", "step 4: before the update"))


@pytest.fixture(scope="module")
def model(toy_pair, tmp_path_factory) -> str:
    """A model smaller than tiny. It also imports what scripts import late, so that the children need not."""
    directory = tmp_path_factory.mktemp("model")
    toy_model, tokenizer = toy_pair
    small = toy_model.config.source | dict(num_hidden_layers=1, hidden_size=16, intermediate_size=16)
    Qwen.random(ModelConfig.from_json(small, "small"), 0).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for script, settings in ((train_sft, SFT), (train_rl, RL)):
        script.main(script.Config(model=str(directory), dry_run=True, **settings))
    gc.collect()
    gc.freeze()
    yield str(directory)
    gc.unfreeze()


@pytest.fixture(scope="module")
def mixture(model, tmp_path_factory) -> str:
    """The same with four experts."""
    directory = tmp_path_factory.mktemp("mixture")
    shutil.copytree(model, directory, dirs_exist_ok=True)
    source = json.loads((directory / "config.json").read_text()) | {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 8, "norm_topk_prob": True}
    Qwen.random(ModelConfig.from_json(source, "mixture"), 0).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def reference(model, mixture, tmp_path_factory):
    """reference(name): a run that was not disturbed."""
    cases = {
        "sft": Case(train_sft, train_sft.Config(model=model, seed=4, steps=8, save_every=2, **SFT)),
        "rl": Case(train_rl, train_rl.Config(model=model, phase_steps=(2, 2), save_every=3, **RL)),
        "mixed": Case(train_rl, train_rl.Config(model=mixture, phase_steps=(1, 2), save_every=1, dtype="bfloat16",
                                                kl_coef=0.1, learning_rate=1e-3, **RL)),
        "bad": Case(train_sft, train_sft.Config(model=model, steps=5, save_every=1, **SFT | dict(eval_every=0)),
                    bad_steps=frozenset({2, 3, 4}), code=errors.INTERNAL)}
    return cache(lambda name: Reference(cases[name], tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def killed(reference, tmp_path_factory):
    """killed(name, point): the directory of a run that was killed there. Copy it."""
    return cache(lambda name, point: reference(name).kill(tmp_path_factory.mktemp("killed"),
                                                          reference(name).points.index(point) + 1))


@pytest.fixture
def begun(killed, tmp_path):
    """begun(name, point): a copy of it."""
    return lambda name, point: shutil.copytree(killed(name, point), tmp_path / "begun")


def metrics(reference: Reference) -> list[dict]:
    content, = (text for path, text in reference.left.items() if path.endswith("/metrics.jsonl"))
    return [json.loads(line.replace(b", }", b"}")) for line in content.splitlines()]


def test_the_runs_have_something_to_lose(reference):
    """Updates in every step, a pool of hard examples in phase II, an end because of what earlier evaluations found."""
    rl, sft, bad = (metrics(reference(name)) for name in ("rl", "sft", "bad"))
    assert [(row["step"], row["phase"], row["updates"]) for row in rl] == [(1, 1, 2), (2, 1, 2), (3, 2, 2), (4, 2, 2)]
    assert [row["retro/frac"] > 0 for row in rl] == [False, False, True, True]
    assert [row["step"] for row in sft] == [1, 2, 3, 4, 5] and sft[0]["eval/acc"] < max(row["eval/acc"] for row in sft)
    assert [row["loss"] is None for row in bad] == [False, True, True]


def test_sft_killed_in_any_step_goes_on_to_the_same_end(reference, tmp_path):
    whole = reference("sft")
    places = whole.places("step")[::2]
    assert len(places) >= 20
    assert whole.all_missed(tmp_path, places) == {}


def test_rl_killed_in_any_step_and_around_the_phase_border_goes_on_to_the_same_end(reference, tmp_path):
    whole = reference("rl")
    border = whole.places("step 2")[-3:] + whole.places("step 3")[:3]
    places = sorted({*whole.places("step")[2::3], *border})
    assert len(places) >= 20
    assert whole.all_missed(tmp_path, places) == {}


def test_a_mixture_in_bfloat16_with_a_reference_goes_on_to_the_same_end(reference, tmp_path):
    """Killed before and after both updates of a step, and in the save after it. KL is to the model it began with."""
    whole = reference("mixed")
    first, *others = metrics(whole)                            # at first there is nothing but rounding
    assert 0 <= first["kl"] <= first["rollout_gap"]**2 and all(row["kl"] > 10 * first["kl"] for row in others)
    assert all("experts/max_load" in row for row in metrics(whole))
    places = [*whole.places("step 2: before the update", "step 2: after the update"), whole.places("save 2")[-1]]
    assert len(places) == 5 and whole.all_missed(tmp_path, places) == {}


def test_a_run_killed_at_any_file_operation_of_a_checkpoint_goes_on_to_the_same_end(reference, tmp_path):
    """Also with any file half written, and while an older checkpoint is removed. (Of operations of one kind in a row
    the first and the last; a file that is open and empty is as one that is half written.)"""
    whole, last = reference("sft"), "runs/sft/checkpoints/step_000005/"
    every = whole.places("save 5")
    kind = {place: whole.points[place - 1].split()[2] for place in every}
    places = [place for place in every if kind[place] != "open" and not (
        kind[place] != "half" and kind[place] == kind.get(place - 1) == kind.get(place + 1))]
    halves = {whole.points[place - 1].split()[-1] for place in places if kind[place] == "half"}
    assert halves == {path[len(last):] for path in whole.left if path.startswith(last)}
    assert len(every) >= 50 and len(places) >= 28 and {*kind.values()} - {kind[place] for place in places} == {"open"}
    assert whole.all_missed(tmp_path, places) == {}


def test_a_start_killed_before_its_first_step_spoils_nothing_for_the_next(reference, begun, tmp_path):
    """The second start of a run, at every point of it up to its step."""
    whole, found = reference("sft"), {}
    places = Reference(whole.case, shutil.copytree(begun("sft", "step 5: over"), tmp_path / "rest")).places("start")
    assert len(places) >= 8
    for place in places[::2]:
        directory = shutil.copytree(tmp_path / "begun", tmp_path / str(place))
        if missed := whole.missed(whole.kill(directory, place)):
            found[place] = missed
    assert found == {}


def lose(change):
    """A reader of state.json that changes what it read."""
    def tamper():
        read = checkpoint.read_state
        checkpoint.read_state = lambda directory: (state := read(directory), change(state))[0]
    return tamper


def lose_from_optimizer(key):
    """A reader of the optimizer's state that finds zeros under `key`."""
    def tamper():
        load = checkpoint.load_optimizer

        def changed(directory, model, optimizer):
            load(directory, model, optimizer)
            for state in optimizer.state.values():
                state[key].zero_()
        checkpoint.load_optimizer = changed
    return tamper


def lose_weights():
    load = Qwen.from_pretrained

    def changed(*args):
        model = load(*args)
        for parameter in model.parameters():
            parameter.detach().mul_(0.5)
        return model
    Qwen.from_pretrained = changed


def lose_the_cut():
    Log.cut = lambda log, sizes: None


LOST = {
    "weights": (IN_RL, lose_weights),
    "exp_avg": (IN_RL, lose_from_optimizer("exp_avg")),
    "exp_avg_sq": (IN_RL, lose_from_optimizer("exp_avg_sq")),
    "the optimizer's step": (IN_RL, lose_from_optimizer("step")),
    "step": (IN_RL, lose(lambda state: state.update(step=0))),
    "mean_rewards": (IN_RL, lose(lambda state: state["states"]["sampler"]["mean_rewards"].clear())),
    "num_drawn": (IN_RL, lose(lambda state: state["states"]["sampler"]["num_drawn"].clear())),
    "num_draws": (IN_RL, lose(lambda state: state["states"]["sampler"]["num_draws"].clear())),
    "logs": (IN_RL, lose(lambda state: state["logs"].clear())),
    "the cut of the logs": (IN_RL, lose_the_cut),
    "best": (IN_SFT, lose(lambda state: state["states"]["patience"].update(best=0.0))),
    "since_best": (IN_SFT, lose(lambda state: state["states"]["patience"].update(since_best=0))),
    "seconds": (IN_SFT, lose(lambda state: state.update(seconds=0.0))),
    "ended": (AFTER_SFT, lose(lambda state: state.update(ended=False))),
    "streaks": (IN_BAD, lose(lambda state: state.update(streaks={}))),
}


@pytest.mark.parametrize("name, point", [IN_RL, IN_SFT, AFTER_SFT, IN_BAD])
def test_a_run_from_which_nothing_is_lost_passes_the_comparison(reference, begun, name, point):
    assert reference(name).missed(begun(name, point)) == []


@pytest.mark.parametrize("item", LOST)
def test_the_comparison_notices_every_item_of_the_state_that_is_lost(reference, begun, item):
    where, tamper = LOST[item]
    assert reference(where[0]).missed(begun(*where), tamper) != []


@pytest.fixture(scope="module")
def long_reference(model, tmp_path_factory):
    """long_reference(name) of twenty steps: 5 of SFT, and from its last checkpoint 10 of phase I and 5 of phase II."""
    directory = tmp_path_factory.mktemp("long")
    sft = Reference(Case(train_sft, train_sft.Config(model=model, seed=4, steps=8, save_every=2, **SFT)),
                    directory / "sft")
    warm = str(directory / "sft/runs/sft/checkpoints/step_000005")
    rl = Reference(Case(train_rl, train_rl.Config(model=warm, phase_steps=(10, 5), save_every=4, **RL)),
                   directory / "rl")
    assert [len(metrics(run)) for run in (sft, rl)] == [5, 15]
    return {"sft": sft, "rl": rl}.__getitem__


@pytest.mark.full
@pytest.mark.parametrize("name", ["sft", "rl"])
def test_every_point_of_twenty_steps_and_of_every_checkpoint(long_reference, tmp_path, name):
    whole = long_reference(name)
    assert whole.all_missed(tmp_path, range(1, len(whole.points) + 1)) == {}


@pytest.mark.full
@pytest.mark.parametrize("name", ["sft", "rl"])
def test_killed_twice(long_reference, tmp_path, name):
    """The second time anywhere: before it has found its checkpoint, in a step, while it saves."""
    whole, rng = long_reference(name), random.Random(name)
    first = rng.sample(range(1, len(whole.points)), 8)
    second = {place: rng.randint(1, len(whole.points) - place) for place in first}
    assert whole.all_missed(tmp_path, first, second) == {}
