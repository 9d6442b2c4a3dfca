"""Figures of an evaluation, what a run writes down, and the optimizer: small things against plain formulas."""

import json
from itertools import combinations
from math import sqrt

import pytest
import torch
from nanoqwenlong import evaluate, optim
from nanoqwenlong.log import Log, format_value
from nanoqwenlong.records import Completion, Example, Group
from nanoqwenlong.rewards import Score
from tiny_qwen import random_ids, tiny_qwen

# pass@k, interval, buckets


def test_pass_at_k_equals_trying_every_choice_of_k():
    for n in range(1, 8):
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


def score(reward):
    return Score(reward, reward, None, "")


def test_accuracy_is_the_mean_over_questions_of_their_means():
    scores = [[score(1.0), score(0.0)], [score(1.0), score(1.0)], [score(0.0), score(0.0)]]
    assert evaluate.mean_rewards(scores) == [0.5, 1.0, 0.0] and evaluate.accuracy(scores) == 0.5


def test_buckets_are_the_phases_shortest_first_and_lose_no_question():
    examples = [Example(str(n), "", "", "x", length=n) for n in (250, 100, 101, 5, 301, 300)]
    scores = [[score(float(n))] for n in range(6)]
    found = evaluate.by_bucket(examples, scores, (100, 200, 300))
    assert list(found) == ["0-100", "100-200", "200-300", "300+"]
    assert {name: sorted(q[0].reward for q in qs) for name, qs in found.items()} == {
        "0-100": [1, 3], "100-200": [2], "200-300": [0, 5], "300+": [4]}
    assert list(evaluate.by_bucket(examples[:1], scores[:1], (100, 300))) == ["100-300"]


def test_answer_examples_decodes_and_scores_in_order():
    class Tokenizer:
        eos_ids = (0,)

        def decode(self, ids):
            return f"</think> the answer is {ids[0]}"

    class Generator:
        def sample(self, prompts, n, eos_ids, keys, **sampling):
            assert (eos_ids, keys, sampling) == ((0,), ["a", "b"], {"seed": 3})
            return [Group(key, prompt, tuple(Completion((prompt[0] + i, 0), (0.0, 0.0), "stop") for i in range(n)))
                    for key, prompt in zip(keys, prompts)]

    examples = [Example("a", "", "", "5", prompt_ids=(5,)), Example("b", "", "", "8", prompt_ids=(7,))]
    groups, texts, scores = evaluate.answer_examples(Generator(), Tokenizer(), examples, n=2, seed=3)
    assert [g.key for g in groups] == ["a", "b"] and texts[1][1] == "</think> the answer is 8"
    assert evaluate.mean_rewards(scores) == [0.5, 0.5] and [s.answer for s in scores[0]] == ["5", "6"]


# Log

def test_one_line_per_step_in_the_file_and_on_the_console(tmp_path, capsys):
    log = Log(tmp_path)
    for step in (1, 2):
        values = {"reward": 0.25 * step, "loss": 1e-7, "phase": 1}
        log.metrics(step, values)
        log.line(step, values, ("phase", "absent", "reward"))
        log.rollout(step=step, text="Tōkyō\n\u2028</think>")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert rows == [{"step": s, "reward": 0.25 * s, "loss": 1e-7, "phase": 1} for s in (1, 2)]
    lines = (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["text"] for line in lines] == ["Tōkyō\n\u2028</think>"] * 2
    assert capsys.readouterr().out == "step    1  phase 1  reward 0.250\nstep    2  phase 1  reward 0.500\n"


def test_a_dry_run_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Log(None).metrics(1, {"a": 1})
    Log(None).rollout(text="x")
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
    assert rate(4, final_fraction=0.0) == 2.0 and abs(rate(9, final_fraction=0.0) - 1.0) <= 1e-15
    assert rate(14, final_fraction=0.0) == rate(99, final_fraction=0.0) == 0.0
    assert abs(rate(14, final_fraction=0.1) - 0.2) <= 1e-15 and abs(rate(9, final_fraction=0.5) - 1.5) <= 1e-15
    assert rate(0, warmup_steps=0) == 2.0 and rate(3, warmup_steps=4, num_steps=4) == 2.0
