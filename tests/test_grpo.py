"""Advantages against hand-computed values, and a step's loss against one formula written out over everything."""

import math
import random
from collections import Counter

import pytest
import torch
from nanoqwenlong import group_pass
from nanoqwenlong.generate import Generator
from nanoqwenlong.grpo import group_advantages, group_loss
from nanoqwenlong.records import Completion, Group
from tiny_qwen import random_ids, tiny_qwen

NAN = float("nan")


# Advantages

@pytest.mark.parametrize("rewards, expected", [
    ([1, 0], [1, -1]),
    ([1, 0, 0, 0], [3, -1, -1, -1]),
    ([0, 2, 4], [-2, 0, 2]),
    ([1, 1, 0, 0, 0, 0, 0, 0], [3, 3, -1, -1, -1, -1, -1, -1])])
def test_advantages_equal_hand_computed_ones(rewards, expected):
    """expected: in proportion; A = (r - mean) / (std + 1e-6), std with G - 1."""
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    advantages = group_advantages(rewards)
    assert advantages.dtype == torch.float64
    for a, r, e in zip(advantages.tolist(), rewards, expected):
        assert abs(a - (r - mean) / (std + 1e-6)) <= 1e-14
        assert abs(a * expected[0] - e * advantages[0]) <= 1e-14


def test_known_answer():
    """TRAPS 3.5: rewards 1 and 0."""
    a, b = group_advantages([1, 0]).tolist()
    assert abs(a - 0.7071057811879616) <= 1e-15 and abs(b + 0.7071057811879616) <= 1e-15


def test_without_scaling_only_the_mean_is_taken_off():
    assert group_advantages([1, 0, 0, 3], scale=False).tolist() == [0, -1, -1, 2]
    assert group_advantages([1, 0, NAN], scale=False).tolist() == [0.5, -0.5, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, None])
def test_ten_thousand_groups_of_equal_rewards_give_exact_zeros(dtype):
    rng = random.Random(0)
    for _ in range(3_334):
        rewards = [rng.randint(-100, 110) / 100] * rng.randint(1, 64)
        advantages = group_advantages(rewards if dtype is None else torch.tensor(rewards, dtype=dtype))
        assert not advantages.any() and advantages.isfinite().all()


def test_unscorable_answers_are_left_out():
    """What the others get is what they would get without them; they get 0."""
    rng = random.Random(1)
    for _ in range(300):
        known = [rng.random() for _ in range(rng.randint(0, 6))]
        rewards = known + [NAN] * rng.randint(0, 3)
        rng.shuffle(rewards)
        for scale in (True, False):
            advantages = group_advantages(rewards, scale) if rewards else torch.zeros(0)
            there = [not math.isnan(r) for r in rewards]
            assert all(a == 0 for a, t in zip(advantages, there) if not t)
            alone = group_advantages([r for r in rewards if not math.isnan(r)], scale) if any(there) else torch.zeros(0)
            assert torch.allclose(advantages[there], alone.to(advantages), rtol=1e-12, atol=1e-12)


def test_nothing_scored_or_one_alone_gives_zeros():
    for rewards in ([NAN], [NAN] * 5, [0.7], [NAN, 0.7, NAN]):
        assert group_advantages(rewards).tolist() == [0.0] * len(rewards)
    assert group_advantages([1, 1, NAN, 1]).tolist() == [0.0] * 4


def test_sum_is_zero_and_constants_do_not_matter():
    rng = random.Random(2)
    for _ in range(500):
        rewards = torch.tensor([rng.random() for _ in range(rng.randint(2, 16))], dtype=torch.float64)
        advantages = group_advantages(rewards)
        assert abs(advantages.sum()) <= 1e-12
        for constant in (-3.0, 0.1, 40.0):
            assert (group_advantages(rewards + constant) - advantages).abs().max() <= 1e-10
        assert (group_advantages(rewards * 7) - advantages).abs().max() <= 1e-3      # the eps is all that scale changes


@pytest.mark.parametrize("scale", [True, False])
def test_a_batch_of_groups_equals_group_by_group(scale):
    rewards = torch.rand(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rewards[rewards < 0.15] = NAN
    rewards[3], rewards[4] = 0.3, NAN
    rows = torch.stack([group_advantages(row, scale) for row in rewards])
    assert torch.equal(group_advantages(rewards, scale), rows)
    assert torch.equal(group_advantages(rewards.view(4, 10, 6), scale), rows.view(4, 10, 6))


# A group's loss

TEMPERATURE = 0.9


@pytest.fixture(scope="module")
def model():
    return tiny_qwen(seed=4)


@pytest.fixture(scope="module")
def groups(model):
    prompts = [random_ids(length, seed=length) for length in (1, 6, 13)]
    found = Generator(model, 200, 4).sample(prompts, n=4, temperature=TEMPERATURE, max_new_tokens=8,
                                            eos_ids=range(0, 53, 9))
    assert len({len(c.ids) for group in found for c in group.completions}) > 2
    return found


REWARDS = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 1, 1]], dtype=torch.float64)


def off_policy(group: Group) -> Group:
    """The same answers, sampled with other log-probs: ratios on both sides of the clip."""
    rng = random.Random(len(group.prompt_ids))
    return Group(group.key, group.prompt_ids, tuple(
        Completion(c.ids, tuple(lp + rng.uniform(-0.5, 0.5) for lp in c.logprobs), c.finish_reason)
        for c in group.completions))


def by_hand(model, groups, advantages, on_policy, ref=None, kl_coef=0.0):
    """sum over all tokens / number of all tokens, each answer as a whole sequence through model.logits."""
    total, num_tokens, gap, entropy, kl = 0.0, 0, 0.0, 0.0, 0.0
    for g, group in enumerate(groups):
        for i, answer in enumerate(group.completions):
            logits = model.logits(torch.tensor(group.prompt_ids + answer.ids))[len(group.prompt_ids) - 1:-1]
            table = (logits / TEMPERATURE).log_softmax(-1)
            logprobs = table.gather(-1, torch.tensor(answer.ids)[:, None])[:, 0]
            sampled = torch.tensor(answer.logprobs, dtype=torch.float64)
            ratio = (logprobs - (logprobs.detach() if on_policy else sampled)).exp()
            A = advantages[g][i]
            losses = -torch.minimum(ratio * A, ratio.clamp(0.8, 1.28) * A)
            if ref is not None:
                k3 = (ref[g][i] - logprobs).exp() - (ref[g][i] - logprobs) - 1
                losses, kl = losses + kl_coef * k3, kl + float(k3.detach().sum())
            total, num_tokens = total + losses.sum(), num_tokens + len(answer.ids)
            gap = max(gap, float((logprobs.detach() - sampled).abs().max())) if on_policy else 0.0
            entropy -= float((table.exp() * table).detach().sum())
    model.zero_grad()
    (total / num_tokens).backward()
    return gradient(model), {"loss": float(total.detach() / num_tokens), "num_tokens": num_tokens, "gap": gap,
                             "entropy": entropy, "kl": kl}


def step(model, groups, advantages, on_policy, max_tokens, ref=None, **objective):
    model.zero_grad()
    sums, num_tokens = Counter(), sum(group.num_tokens for group in groups)
    for g, group in enumerate(groups):
        old = None if on_policy else [answer.logprobs for answer in group.completions]
        loss = group_loss(group, advantages[g], num_tokens, sums, old, ref and ref[g], **objective)
        group_pass.backward(model, group.stem, group.branches, loss, TEMPERATURE, max_tokens)
    return gradient(model), sums


def gradient(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("kl_coef", [0.0, 0.05])
def test_groups_and_microbatches_add_up_to_one_token_mean_loss(model, groups, on_policy, kl_coef):
    groups = groups if on_policy else [off_policy(group) for group in groups]
    ref = [group_pass.logprobs(tiny_qwen(seed=5), g.stem, g.branches, TEMPERATURE) for g in groups] if kl_coef else None
    advantages = group_advantages(REWARDS)
    expected, values = by_hand(model, groups, advantages, on_policy, ref, kl_coef)
    for max_tokens in (1, 40, 10**6):
        found, sums = step(model, groups, advantages, on_policy, max_tokens, ref, kl_coef=kl_coef)
        for name in expected:
            assert (found[name] - expected[name]).abs().max() <= 1e-12 * expected[name].abs().max(), name
        for name, value in values.items():
            assert abs(sums[name] - value) <= 1e-11 * max(1, abs(value)), name
    assert sums["gap"] <= 1e-12                       # how far learning moved the policy is not part of it
    assert (sums["clipped_low"] + sums["clipped_high"] > 0) == (not on_policy)


def test_the_old_logprobs_matter_only_off_policy(model, groups):
    advantages, moved = group_advantages(REWARDS), [off_policy(group) for group in groups]
    def same(on_policy):
        a, b = (step(model, gs, advantages, on_policy, 10**6)[0] for gs in (groups, moved))
        return all(torch.equal(a[name], b[name]) for name in a)
    assert same(on_policy=True) and not same(on_policy=False)


def test_groups_that_agree_give_no_gradient_at_all(model, groups):
    found, sums = step(model, groups, group_advantages(torch.ones(3, 4)), True, 10**6)
    assert sums["loss"] == 0 and not any(g.any() for g in found.values())
