"""Figures of an evaluation and the answers it saves, what a run writes down, and the optimizer: small things against
plain formulas."""

import itertools
import json
from itertools import combinations
from math import exp, lgamma, log, sqrt

import numpy
import pytest
import torch
from tiny_qwen import random_ids, tiny_qwen

import train_rl
import train_sft
from nanoqwenlong import optim
from nanoqwenlong.analysis import evaluate
from nanoqwenlong.errors import DataError
from nanoqwenlong.ops.log import Log, format_value
from nanoqwenlong.records import Completion, Example, Group
from nanoqwenlong.rewards import Score

# pass@k, intervals


def test_pass_at_k_equals_trying_every_choice_of_k():
    for n in range(1, 9):
        for correct in range(n + 1):
            for k in range(1, n + 1):
                tries = list(combinations([1] * correct + [0] * (n - correct), k))
                assert abs(evaluate.pass_at_k(n, correct, k) - sum(map(any, tries)) / len(tries)) <= 1e-15
    assert evaluate.pass_at_k(1000, 500, 1) == 0.5


@pytest.mark.parametrize("right, n", [(0, 1), (1, 1), (0, 20), (20, 20), (1, 20), (10, 20), (37, 50), (999, 1000)])
def test_interval_holds_the_rates_that_the_score_test_does_not_reject(right, n):
    """Wilson: |observed - p| <= 1.96 sqrt(p (1 - p) / n), its ends found by bisection."""
    rate = right / n

    def end(inside, outside):
        for _ in range(200):
            p = (inside + outside) / 2
            inside, outside = (p, outside) if abs(rate - p) <= 1.96 * sqrt(p * (1 - p) / n) else (inside, p)
        return inside

    low, high = evaluate.interval(rate, n)
    assert abs(low - (end(rate, 0.0) if right else 0.0)) <= 1e-12
    assert abs(high - (end(rate, 1.0) if right < n else 1.0)) <= 1e-12
    assert 0 <= low <= rate + 1e-12 and rate - 1e-12 <= high <= 1 and low < high


@pytest.mark.parametrize("n", [50, 200, 824])
@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_interval_holds_the_truth_as_often_as_it_says(n, p):
    """Every outcome with its probability, not a sample of them: 95 % or nearly, as Wilson's interval has it."""
    logs = [lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log(1 - p) for k in range(n + 1)]
    ends = [evaluate.interval(k / n, n) for k in range(n + 1)]
    held = sum(exp(value) for value, (low, high) in zip(logs, ends) if low <= p <= high)
    assert 0.93 <= held <= 0.98


def simulated(sets: int, questions: int, samples: int, rates, spread: float, seed: int) -> numpy.ndarray:
    """Measured accuracies of an evaluation that is made 1,000 times: (1000, sets). A question of set s has a chance of
    its own, of mean rates[s] and (the smaller `spread`) nearly 0 or 1, so that its samples are alike."""
    rng = numpy.random.default_rng(seed)
    chances = rng.beta(rates * spread, (1 - rates) * spread, (1000, questions, sets))
    return (rng.binomial(samples, chances) / samples).mean(1)


@pytest.mark.parametrize("samples, spread, least", [(1, 1.0, 0.93), (4, 0.1, 0.95), (8, 1.0, 0.95), (8, 20.0, 0.95)])
def test_intervals_of_correlated_samples_and_of_an_average_are_wide_enough(samples, spread, least):
    """Samples of one question are no independent questions; seven sets of different accuracy average as one."""
    rates = numpy.array([0.1, 0.3, 0.45, 0.5, 0.7, 0.85, 0.95])
    held, held_average = [], []
    for row in simulated(7, 100, samples, rates, spread, seed=samples):
        ends = [(rate, *evaluate.interval(rate, 100)) for rate in row.tolist()]
        held += [low <= truth <= high for (_, low, high), truth in zip(ends, rates)]
        _, low, high = evaluate.average(ends)
        held_average.append(low <= rates.mean() <= high)
    assert sum(held) / len(held) >= least and sum(held_average) / len(held_average) >= least
    assert samples > 1 or sum(held_average) / len(held_average) <= 0.98          # and no wider than it has to be


def score(reward):
    return Score(reward, reward, None, "")


def test_accuracy_is_the_mean_over_questions_of_their_means():
    scores = [[score(1.0), score(0.0)], [score(1.0), score(1.0)], [score(0.0), score(0.0)]]
    assert evaluate.mean_rewards(scores) == [0.5, 1.0, 0.0] and evaluate.accuracy(scores) == 0.5


# Answers, and the file that saves them

class Tokenizer:
    eos_ids = (0,)

    def response(self, ids):
        return f"</think> the answer is {ids[0]}"


class Sampler:
    """Answers a prompt (p,) with p, p + 1, ..., and remembers which keys it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, n, eos_ids, keys, **sampling):
        assert (eos_ids, sampling) == ((0,), {"seed": 3})
        self.asked.append(list(keys))
        return [Group(key, prompt, tuple(Completion((prompt[0] + i, 0)[:2 - i % 2], (0.0,) * 2,
                                                    "length" if i % 2 else "stop") for i in range(n)))
                for key, prompt in zip(keys, prompts)]


EXAMPLES = [Example(name, "", "", gold, prompt_ids=(prompt,))
            for name, gold, prompt in (("a", "5", 5), ("b", "8", 7), ("c\n", "é", 1), ("d", "4", 3), ("e", "9", 9))]


def test_answers_come_in_order_and_are_scored_by_their_texts():
    answers = evaluate.answer_examples(Sampler(), Tokenizer(), EXAMPLES[:2], n=2, seed=3)
    assert answers[1] == [("</think> the answer is 7", 2, "stop"), ("</think> the answer is 8", 1, "length")]
    scores = evaluate.score_answers(EXAMPLES[:2], answers)
    assert evaluate.mean_rewards(scores) == [0.5, 0.5] and [s.answer for s in scores[0]] == ["5", "6"]


def test_saved_answers_are_resumed_wherever_the_file_ends(tmp_path, monkeypatch):
    """Cut after every byte: whole batches stay, the others are sampled again, in the same batches and to the same
    bytes. Two models follow one another in the file."""
    monkeypatch.setattr(evaluate, "AT_ONCE", 2)
    path = tmp_path / "answers.jsonl"

    def answer():
        saved, found, asked = evaluate.SavedAnswers(path), [], []
        for model in ("m/1", "m/2"):
            sample = Sampler()
            found += evaluate.answer_examples(sample, Tokenizer(), EXAMPLES, 2, saved, model, seed=3)
            asked += sample.asked
        return found, asked

    monkeypatch.setattr(evaluate.os, "fsync", lambda handle: None)             # a thousand of them take their time
    whole, batches = answer()
    content, names = path.read_bytes(), [["a", "b"], ["c\n", "d"], ["e"]] * 2
    assert batches == names and content.count(b"\n") == 10 and "\u00e9".encode() not in content
    ends = [content.index(b'"id": "%s"' % last) for last in (b"b", b"d", b"e")]
    ends += [content.rindex(b'"id": "%s"' % last) for last in (b"b", b"d", b"e")]
    ends = [content.index(b"\n", end) + 1 for end in ends]
    assert ends[-1] == len(content)
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        assert answer() == (whole, names[sum(end <= length for end in ends):]), length
        assert path.read_bytes() == content


@pytest.mark.parametrize("old, new", [
    (b'"id": "b"', b'"id": "x"'), (b'"m/1"', b'"m/2"'), (b'{"model"', b'["model"'), (b'"text"', b'"words"'),
    (b'"answers": [{', b'"answers": [{}, {'), (b"{", b"\xff"), (b'"text": "', b'"text": "\\ud800'),
    (b'"text": "', b'"text": 5, "was": "'), (b'"length": ', b'"length": 1e999, "was": '),
    (b'"length": ', b'"length": -1, "was": '), (b'"finish_reason": "', b'"finish_reason": "un')])
def test_a_file_of_answers_that_was_changed_is_refused(tmp_path, monkeypatch, old, new):
    monkeypatch.setattr(evaluate, "AT_ONCE", 2)
    path = tmp_path / "answers.jsonl"
    again = lambda: evaluate.answer_examples(Sampler(), Tokenizer(), EXAMPLES, n=2, seed=3,
                                             saved=evaluate.SavedAnswers(path), model="m/1")
    again()
    changed = path.read_bytes().replace(old, new, 1)
    path.write_bytes(changed)
    with pytest.raises(DataError, match="answers.jsonl does not have m/1's 2 answers to '[ab]'.*Use another --out"):
        again()
    assert path.read_bytes() == changed


def test_two_processes_do_not_write_into_one_file(tmp_path):
    one, two = (evaluate.SavedAnswers(tmp_path / "answers.jsonl") for _ in range(2))
    one.append("m", ["a"], [[evaluate.Answer("x", 1, "stop")]])
    with pytest.raises(OSError, match="another process"):
        two.append("m", ["a"], [[evaluate.Answer("x", 1, "stop")]])


# Log

def test_one_line_per_step_in_the_file_and_on_the_console(tmp_path, capsys):
    log = Log(tmp_path)
    for step in (1, 2):
        values = {"reward": 0.25 * step, "loss": 1e-7, "phase": 1}
        log.append("metrics.jsonl", step, values)
        log.line(f"step {step} of 2", values, {"phase": "phase", "absent": "absent", "reward": "mean"}, 3.4)
        log.append("rollouts.jsonl", step, {"text": "Tōkyō\n\u2028</think>"})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert rows == [{"step": s, "reward": 0.25 * s, "loss": 1e-7, "phase": 1} for s in (1, 2)]
    lines = (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["text"] for line in lines] == ["Tōkyō\n\u2028</think>"] * 2
    assert capsys.readouterr().out == (
        "step 1 of 2  phase 1  mean 0.250  left 00:03\nstep 2 of 2  phase 1  mean 0.500  left 00:03\n")


def test_the_line_of_a_step_is_at_most_120_columns(capsys):
    """The last values are left out with their names if they do not fit."""
    headline = {name: name for name in ("phase", "reward", "a_long_name_of_a_metric" * 3, "x" * 20)}
    Log(None).line("step 12345 of 12345", dict.fromkeys(headline, 1e-7), headline, 47 * 3600)
    line = capsys.readouterr().out[:-1]
    assert len(line) <= 120 and line.endswith("  left 47:00:00") and "reward 1.0e-07" in line and "xxx" not in line
    for script in (train_rl, train_sft):
        values = {**dict.fromkeys(script.HEADLINE, 0.1234), "phase": 2, "tokens_per_s": 12345.6}
        Log(None).line("step 1234 of 1234", values, script.HEADLINE, 7140)
        line = capsys.readouterr().out[:-1]
        assert len(line) <= 120 and all(name in line for name in script.HEADLINE.values())


def test_a_dry_run_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Log(None).append("metrics.jsonl", 1, {"a": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value, text", [(0.0, "0.000"), (0.5, "0.500"), (1e-6, "1.0e-06"), (-2.25, "-2.250"),
                                         (12345.0, "1.2e+04"), (7, "7"), ("I", "I"), (float("nan"), "nan")])
def test_values_on_the_console_are_short(value, text):
    assert format_value(value) == text


# Optimizer

def test_adamw_with_clipping_equals_the_textbook():
    """Five steps against AdamW written out by hand; matrices decay, norms and biases do not."""
    model, lr, decay, (b1, b2), eps = tiny_qwen("qwen2"), 1e-2, 0.1, (0.9, 0.95), 1e-8
    optimizer = optim.adamw(model, 1.0, decay)                                 # the rate is given with each step
    ours = dict(model.named_parameters())
    theirs = {name: p.detach().clone() for name, p in ours.items()}
    m, v = ({name: torch.zeros_like(p) for name, p in ours.items()} for _ in range(2))
    assert len(ours) == sum(len(group["params"]) for group in optimizer.param_groups)
    for t in range(1, 6):
        ids = torch.tensor(random_ids(12, seed=t))
        loss = -model.logits(ids[:-1]).log_softmax(-1).gather(-1, ids[1:, None]).mean()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in ours.items()}
        norm = sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        limit = norm / 3 if t % 2 else norm * 3                                # clipped, and not
        assert abs(optim.step(optimizer, list(model.parameters()), lr / t, limit) - norm) <= 1e-9
        for name, g in gradients.items():
            g = g * min(1.0, limit / (norm + 1e-6))
            m[name], v[name] = b1 * m[name] + (1 - b1) * g, b2 * v[name] + (1 - b2) * g * g
            p = theirs[name] * (1 - lr / t * (decay if g.ndim == 2 else 0))
            theirs[name] = p - lr / t * m[name] / (1 - b1**t) / ((v[name] / (1 - b2**t)).sqrt() + eps)
            assert (ours[name] - theirs[name]).abs().max() <= 1e-12, name
        assert all(p.grad is None for p in model.parameters())


def test_learning_rate_warms_up_and_decays_linearly():
    def rate(step, **options):
        return optim.learning_rate_at(step, 2.0, **{"warmup_steps": 4, "num_steps": 14, **options})
    assert [rate(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0] and rate(13) == rate(99) == 2.0
    assert rate(3, final_fraction=0.0) == 2.0 and abs(rate(8, final_fraction=0.0) - 1.0) <= 1e-15
    assert abs(rate(4, final_fraction=0.0) - 1.8) <= 1e-15 and abs(rate(8, final_fraction=0.5) - 1.5) <= 1e-15
    assert rate(0, warmup_steps=0) == 2.0 and rate(3, warmup_steps=4, num_steps=4) == 2.0


def test_final_fraction_is_reached_at_the_last_step():
    """Exactly, and not before. The warm-up reaches the peak. 1 is constant to the bit."""
    rate = optim.learning_rate_at
    lengths, warmups = (1, 2, 3, 4, 10, 125, 800), (0, 1, 2, 3, 9, 124)
    for steps, warmup, final in itertools.product(lengths, warmups, (0.0, 0.1, 0.2, 0.5)):
        if warmup < steps:
            rates = [rate(step, 3e-4, warmup, steps, final) for step in range(steps)]
            assert rates[-1] == 3e-4 * final and rate(steps + 5, 3e-4, warmup, steps, final) == rates[-1]
            assert steps == 1 or max(rates) == rates[max(0, warmup - 1)] == 3e-4
            falls = [a - b for a, b in zip(rates[max(0, warmup - 1):], rates[max(1, warmup):])]
            assert all(abs(fall - falls[0]) <= 1e-12 and fall > 0 for fall in falls)       # linear, last step included
            assert {rate(step, 3e-4, warmup, steps, 1.0) for step in range(warmup, steps)} == {3e-4}
    assert [rate(step, 1.0, 4, 4, 0.1) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]     # nothing but warm-up
    assert [rate(step, 1.0, 8, 4, 0.1) for step in range(4)] == [0.125, 0.25, 0.375, 0.5]
