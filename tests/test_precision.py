"""What a model computes in: a lone process that computes in bfloat16 and keeps its weights in float32."""

import json
from pathlib import Path

import pytest
import torch
from kernels import grpo_loss
from ranks import ranks
from test_checkpoint import in_tmp, outcome, small
from test_run import at_step, exit_json, resume, send, sft
from test_scripts import start, write_rows
from tiny_qwen import random_ids, tiny_qwen

import eval as eval_script
import train_sft
from nanoqwenlong import data, errors, group_pass, optim, parallel, toy
from nanoqwenlong.analysis import evaluate
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import checkpoint, precision
from nanoqwenlong.pretrained.config import ModelConfig
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.pretrained.weights import read_json, write_json
from nanoqwenlong.records import Branch

__all__ = ["in_tmp", "small"]                                 # fixtures
BF16 = torch.bfloat16
TIED = pytest.mark.parametrize("kind, tied", [("qwen2", True), ("qwen3", False), ("qwen3_moe", False)])
IDS = random_ids(9, seed=1)
BRANCHES = [Branch(tuple(IDS), tuple(IDS[1:]) + (n,), (1.0,) * 9) for n in range(3)]


def models(kind: str, tied: bool):
    """A float32 model that computes in bfloat16, and a bfloat16 model with its rounded weights."""
    mixed = tiny_qwen(kind, torch.float32, tie_word_embeddings=tied)
    rounded = tiny_qwen(kind, torch.float32, tie_word_embeddings=tied).to(BF16)
    return parallel.compute_in(mixed, BF16), rounded


def backward(model, stem=tuple(random_ids(20))) -> None:
    """One pass of the stem, and two of micro-batches of branches."""
    group_pass.backward(model, stem, BRANCHES, lambda rows, logprobs, entropy: -logprobs.sum() / 27, max_tokens=18)


@TIED
@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_computes_as_a_bfloat16_model_and_adds_gradients_in_float32(kind, tied, checkpointing):
    mixed, rounded = models(kind, tied)
    mixed.checkpointing = checkpointing
    assert mixed.dtype == BF16 and {p.dtype for p in mixed.parameters()} == {torch.float32}
    ids, passes = torch.tensor(random_ids(20)), {name: [] for name, _ in rounded.named_parameters()}
    assert torch.equal(mixed.logits(ids), rounded.logits(ids))
    for name, parameter in rounded.named_parameters():         # of each of its passes the gradient, in bfloat16
        def note(p, of=passes[name]):
            of.append(p.grad.float())
            p.grad = None
        parameter.register_post_accumulate_grad_hook(note)
    backward(mixed)
    backward(rounded)
    assert max(map(len, passes.values())) == 3                 # two micro-batches, the stem
    for name, parameter in mixed.named_parameters():
        assert parameter.grad.dtype == torch.float32 and torch.equal(parameter.grad, sum(passes[name])), name


@TIED
def test_steps_too_small_for_bfloat16_add_up(kind, tied):
    """The optimizer changes the float32 weights, and the copies are theirs, rounded."""
    mixed, plain = models(kind, tied)[0], tiny_qwen(kind, torch.float32, tie_word_embeddings=tied)
    adamw = [optim.adamw(model, 1e-5, 0.0) for model in (mixed, plain)]
    for _ in range(3):
        backward(mixed)
        for parameter, twin in zip(plain.parameters(), mixed.parameters(), strict=True):
            parameter.grad = twin.grad.clone()
        norms = [optim.step(each, list(m.parameters()), 1e-5, 1.0) for each, m in zip(adamw, (mixed, plain))]
        assert norms[0] == norms[1] > 0
    for (name, weight), expected in zip(mixed.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(weight, expected) and weight.grad is None, name
        assert torch.equal(mixed.get_submodule(name.rpartition(".")[0]).__dict__[name.rpartition(".")[2]],
                           expected.bfloat16()), name
    ids = torch.tensor(random_ids(20))
    assert torch.equal(mixed.logits(ids), plain.to(BF16).logits(ids))


def written_out(model, stem, advantages, old, ref) -> list[torch.Tensor]:
    """The gradients of GRPO's loss with a KL, of whole sequences, as its formula says."""
    loss = 0
    for branch, a, o, r in zip(BRANCHES, advantages, old, ref):
        logits = model.logits(torch.tensor(stem + branch.input_ids))[len(stem):]
        logprob = logits.log_softmax(-1).gather(-1, torch.tensor(branch.target_ids)[:, None])[:, 0]
        ratio, d = (logprob - o).exp(), r - logprob
        policy = torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
        loss += (0.5 * (d.exp() - d - 1) - policy).sum() / 27
    loss.backward()
    return [parameter.grad.double() for parameter in model.parameters()]


def distance(one, other) -> float:
    return sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True)) ** 0.5


@pytest.mark.parametrize("kind, changes", [("qwen2", {"tie_word_embeddings": True}), ("qwen3", {}), ("llama3", {}),
                                           ("qwen3_moe", {"num_experts_per_tok": 5})])
def test_an_update_is_as_near_to_float64_as_bfloat16_allows(kind, changes):
    """The error of the gradient is at most twice that of a plain bfloat16 model and autograd, which rounds as often.
    Ratios are within the clipping range, or outside, by much more than rounding. All experts take part, because
    rounding may choose others. AdamW's first step is the rate times the sign of each gradient."""
    mixed, plain, exact = (tiny_qwen(kind, torch.float32, initializer_range=0.1, **changes) for _ in range(3))
    parallel.compute_in(mixed, BF16)
    stem, advantages = tuple(random_ids(20)), torch.tensor([1.0, -0.5, -0.5])
    now = torch.stack(group_pass.logprobs(exact.double(), stem, BRANCHES))
    old, ref = now + 0.6 * (torch.randint(3, (2, 3, 9), generator=torch.Generator().manual_seed(0)) - 1)
    gradients = written_out(exact, stem, advantages.double(), old, ref)
    bar = 2 * distance(written_out(plain.to(BF16), stem, advantages, old.float(), ref.float()), gradients)

    def loss(rows, logprobs, entropy):
        per_token = [values[list(rows)].flatten().float() for values in (old, advantages[:, None].expand(3, 9), ref)]
        weights = torch.full_like(logprobs, 1 / 27)
        return grpo_loss(logprobs, *per_token[:2], weights, ref_logprobs=per_token[2], kl_coef=0.5)[0]
    group_pass.backward(mixed, stem, BRANCHES, loss, max_tokens=18)
    rounded = [parameter.grad.double() for parameter in mixed.parameters()]
    assert distance(rounded, gradients) <= bar <= 0.2 * distance(gradients, [0 * each for each in gradients])
    before, num_clear = [parameter.detach().clone() for parameter in mixed.parameters()], 0
    optim.step(optim.adamw(mixed, 1e-3, 0.0), list(mixed.parameters()), 1e-3, 1e9)
    for weight, start, gradient, other in zip(mixed.parameters(), before, gradients, rounded, strict=True):
        clear = gradient.abs() > 1e-4 + (gradient - other).abs()               # rounding has not changed these signs
        assert (weight - start + 1e-3 * gradient.sign())[clear].abs().le(1e-6).all()
        num_clear += int(clear.sum())
    assert num_clear > 0.8 * sum(map(torch.count_nonzero, gradients))


def test_what_is_not_float32_or_is_computed_in_float32_has_no_copies():
    for dtype in (torch.float32, torch.float64):
        model = parallel.compute_in(tiny_qwen("qwen3", dtype), dtype)
        assert all(not torch.is_tensor(value) for module in model.modules() for value in module.__dict__.values())


def test_a_bfloat16_run_resumes_to_the_same_bits(in_tmp, small, monkeypatch):
    flags = "--steps", 4, "--dtype", "bfloat16", "--save-every", 100
    assert sft(small, *flags, "--name", "undisturbed") == 0
    with monkeypatch.context() as patch:
        at_step(patch, 2, send("SIGTERM"))
        assert sft(small, *flags) == errors.STOPPED
    assert resume(exit_json()) == 0
    assert outcome(in_tmp / "runs/sft") == outcome(in_tmp / "runs/undisturbed")


def test_eval_in_bfloat16_asks_the_model_as_its_training_run_computes(in_tmp, toy_directory):
    """Weights in float32, some of which bfloat16 would not hold. In float32 some answers are others."""
    examples, tokenizer = toy.examples(12, toy.SHORT, 0, "heldout"), Tokenizer(toy_directory)
    assert start(train_sft, "--model", toy_directory, "--data", write_rows(Path("rows.jsonl"), examples), "--steps", 2,
                 "--batch-size", 6, "--dtype", "bfloat16", "--learning-rate", 1e-3, "--eval-every", 0) == 0
    trained = checkpoint.all_of(Path("runs/sft/checkpoints"))[-1]
    for dtype in ("bfloat16", "float32"):
        assert start(eval_script, "--model", trained, "--data", "rows.jsonl", "--dtype", dtype, "--max-new-tokens", 8,
                     "--temperature", 1, "--samples", 2, "--out", dtype) == 0
    model = parallel.compute_in(Qwen.from_pretrained(trained), BF16)
    asked, _ = data.tokenize(data.read(["rows.jsonl"]), tokenizer, 1000)
    answers = evaluate.answer_examples(Generator(model).sample, tokenizer, asked, 2, temperature=1.0, max_new_tokens=8)
    texts = {dtype: [[answer["text"] for answer in json.loads(line)["answers"]]
                     for line in Path(dtype, "answers.jsonl").read_text().splitlines()]
             for dtype in ("bfloat16", "float32")}
    assert texts["bfloat16"] == [[answer.text for answer in each] for each in answers] != texts["float32"]
    assert read_json(Path("bfloat16/settings.json"))["dtype"] == "bfloat16"
    assert any((p != p.bfloat16()).any() for p in Qwen.from_pretrained(trained).parameters())


# Which dtype a run computes in, if nobody has decided

@pytest.fixture
def measure(monkeypatch):
    """measure(3.0): from now on the processor multiplies bfloat16 so many times as fast. None: it must not be asked."""
    def measured(speed: float | None) -> None:
        monkeypatch.setattr(precision, "bfloat16_speed", lambda: speed or pytest.fail("measured again"))
    return measured


def dtype_of(run) -> str:
    return read_json(run / "config.json")["dtype"]


def test_a_narrow_model_computes_in_float32_without_a_measurement(in_tmp, small, measure, capsys):
    measure(None)
    assert sft(small, "--steps", 1) == 0
    assert dtype_of(in_tmp / "runs/sft") == "float32" and "computing in" not in capsys.readouterr().out


@pytest.mark.parametrize("speed, chosen", [(3.0, "bfloat16"), (1.4, "float32"), (0.5, "float32")])
def test_auto_is_what_the_processor_is_faster_at_and_a_run_keeps_it(in_tmp, small, measure, monkeypatch, capsys, speed,
                                                                    chosen):
    monkeypatch.setattr(precision, "WIDE", 1)                  # the small model is wide
    measure(speed)
    assert sft(small, "--steps", 1) == 0
    said = capsys.readouterr().out
    assert said.count(f"computing in {chosen}: this processor multiplies bfloat16 {speed} times as fast") == 1
    assert dtype_of(in_tmp / "runs/sft") == chosen
    measure(None)                                              # another processor: it is not asked
    assert sft(small, "--steps", 2) == 0 and dtype_of(in_tmp / "runs/sft") == chosen
    capsys.readouterr()
    other = {"bfloat16": "float32", "float32": "bfloat16"}[chosen]
    assert sft(small, "--steps", 3, "--dtype", other) == errors.BAD_CONFIG
    assert f"was begun with --dtype '{chosen}', now it is '{other}'" in capsys.readouterr().err
    measure({"bfloat16": 0.5, "float32": 3.0}[chosen])         # a new run chooses anew
    assert sft(small, "--steps", 1, "--resume", "restart") == 0 and dtype_of(in_tmp / "runs/sft") == other


def test_a_dtype_that_was_given_is_not_questioned(in_tmp, small, measure, monkeypatch):
    monkeypatch.setattr(precision, "WIDE", 1)
    measure(None)
    for dtype in ("float32", "bfloat16", "float64"):
        assert sft(small, "--steps", 1, "--dtype", dtype, "--name", dtype) == 0
        assert dtype_of(in_tmp / "runs" / dtype) == dtype


def test_width_decides_at_512(tmp_path, measure):
    measure(9.0)
    for width, pays in ((508, False), (512, True)):
        config = tiny_qwen("qwen3").config.source | {"hidden_size": width}
        assert ModelConfig.from_json(config, "here").hidden_size == width
        write_json(tmp_path / "config.json", config)
        assert precision.bfloat16_pays(str(tmp_path), lambda text: None) is pays
    for model in ("new", str(tmp_path.parent)):                # the toy model, no model
        assert not precision.bfloat16_pays(model, pytest.fail)


def decide(path: str) -> bool:
    """Each rank would measure something else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "WIDE", 1)
        patch.setattr(precision, "bfloat16_speed", lambda: (3.0, 0.5)[parallel.rank()])
        return precision.bfloat16_pays(path, lambda text: None)


def test_the_first_rank_decides(tmp_path):
    write_json(tmp_path / "config.json", tiny_qwen("qwen3").config.source)
    with ranks(2, tmp_path / "ranks") as world:
        assert world.call(decide, path=str(tmp_path)) == [True, True]


def test_the_measurement_draws_no_random_number():
    before = torch.random.get_rng_state()
    assert 0.001 < precision.bfloat16_speed() < 1000
    assert torch.equal(before, torch.random.get_rng_state())
