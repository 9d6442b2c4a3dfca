"""Advantages against hand-computed values, and a step's loss against one formula written out over everything."""

import math
import random
import statistics
from collections import Counter

import pytest
import torch
from tiny_qwen import random_ids, tiny_qwen

from nanoqwenlong import group_pass
from nanoqwenlong.advantages import (
    ADVANTAGES,
    MIN_STD,
    group_advantages,
    task_std_advantages,
    tmn_advantages,
    with_advantages,
)
from nanoqwenlong.correction import CORRECTIONS, off_policy_factors
from nanoqwenlong.errors import ConfigError
from nanoqwenlong.generate import Generator
from nanoqwenlong.grpo import group_loss, num_refills, overlong_penalty, token_weights
from nanoqwenlong.records import Completion, Example, Group, Rollout, Score

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


# Advantages by task

# What the function released with GoLongRL returns for these rewards, to four decimals.
THREE, THREE_TASKS = [[1, 0, 0, 0], [1, 1, 1, 0], [.2, .4, .6, .8]], ["em", "em", "rouge_l"]
TWO, TWO_TASKS = [[1] + [0] * 7, [.5, .5, .5, .6, .5, .5, .5, .5]], ["em", "em"]
GOLDEN = {
    "tmn 3": [[1.5, -.5, -.5, -.5], [.5, .5, .5, -1.5], [-1.1619, -.3873, .3873, 1.1619]],
    "reweighted 3": [[1.926, -.3894, -.3894, -.3894], [.3894, .3894, .3894, -1.926], [-1.1619, -.3873, .3873, 1.1619]],
    "grpo 2": [[2.4749] + [-.3536] * 7, [-.3535] * 3 + [2.4748] + [-.3535] * 4],
    "tmn 2": [[3.4826] + [-.4975] * 7, [-.0498] * 3 + [.3483] + [-.0498] * 4],
    "reweighted 2": [[5.0672] + [-.3419] * 7, [-.082] * 3 + [.2112] + [-.082] * 4]}


def test_hole_35_tmn_equals_the_released_function_on_its_golden_vectors():
    found = {"tmn 3": tmn_advantages(THREE, THREE_TASKS, reweight=False),
             "reweighted 3": tmn_advantages(THREE, THREE_TASKS), "grpo 2": group_advantages(TWO),
             "tmn 2": tmn_advantages(TWO, TWO_TASKS, reweight=False), "reweighted 2": tmn_advantages(TWO, TWO_TASKS)}
    for name, expected in GOLDEN.items():
        assert (found[name] - torch.tensor(expected)).abs().max() <= 5.1e-5, name
    for alpha in (0.0, 0.5, 1.0):                     # no bar lies between these rewards for any alpha
        assert torch.equal(tmn_advantages(THREE, THREE_TASKS, alpha=alpha), found["reweighted 3"])


def tmn_by_hand(rewards, tasks, reweight, alpha=0.8):
    """In plain numbers, prompt by prompt and answer by answer."""
    kept = {u: [r for r in row if not math.isnan(r)] for u, row in enumerate(rewards)}
    kept = {u: row for u, row in kept.items() if len(set(row)) > 1}
    mean = {u: sum(row) / len(row) for u, row in kept.items()}
    variance = {u: sum((r - mean[u]) ** 2 for r in row) / (len(row) - 1) for u, row in kept.items()}
    found = [[0.0] * len(row) for row in rewards]
    for u, row in kept.items():
        peers = [v for v in kept if tasks[v] == tasks[u]]
        s = math.sqrt(sum(variance[v] for v in peers) / len(peers))
        bar = alpha * mean[u] + (1 - alpha) * sum(mean[v] for v in peers) / len(peers)
        p = sum(r > bar for r in row) / len(row)
        for j, r in enumerate(rewards[u]):
            if not math.isnan(r):
                w = math.exp(0.5 - p) if r > mean[u] else math.exp(p - 0.5)
                found[u][j] = (r - mean[u]) / (s + 1e-6) * (w if reweight else 1)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("reweight", [False, True])
def test_tmn_equals_a_computation_by_hand(reweight):
    """Unscorable answers, groups that agree, tasks with one prompt and with many; no reward meets a bar."""
    rng = random.Random(3)
    for _ in range(200):
        tasks = [rng.choice("abc") for _ in range(rng.randint(1, 9))]
        rewards = [[rng.choice([NAN, rng.random(), rng.random(), 0.0, 1.0]) for _ in range(5)] for _ in tasks]
        rewards[0] = [rng.random()] * 5 if rng.random() < 0.2 else rewards[0]
        found = tmn_advantages(rewards, tasks, reweight)
        assert (found - tmn_by_hand(rewards, tasks, reweight)).abs().max() <= 1e-9


def test_tmn_of_one_prompt_per_task_is_grpo():
    rewards = torch.rand(5, 8, generator=torch.Generator().manual_seed(1))
    assert (tmn_advantages(rewards, "abcde", reweight=False) - group_advantages(rewards)).abs().max() <= 1e-12


@pytest.mark.parametrize("reweight", [False, True])
def test_the_scale_of_one_tasks_rewards_does_not_matter(reweight):
    rewards = torch.rand(6, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scaled = rewards * torch.tensor([1, 1, 1, 0.01, 0.01, 0.01])[:, None]
    before, after = (tmn_advantages(r, "aaabbb", reweight) for r in (rewards, scaled))
    assert (before - after).abs().max() <= 5e-3 and torch.equal(before[:3], after[:3])   # 5e-3: eps beside 0.01 * std
    assert (group_advantages(rewards, scale=False) - group_advantages(scaled, scale=False)).abs().max() > 0.2


def test_hole_36_sums_are_zero_before_the_reweighting_and_pushed_up_on_hard_prompts_after_it():
    rewards, tasks = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]], "aaa"
    assert tmn_advantages(rewards, tasks, reweight=False).sum(-1).abs().max() <= 1e-12
    hard, easy, even = tmn_advantages(rewards, tasks).sum(-1).tolist()
    assert hard > 0.5 and easy < -0.5 and abs(even) <= 1e-12


def test_hole_34_prompts_that_say_nothing_take_no_part_in_a_tasks_scale():
    rewards, tasks = [[1, 0, 0, 1], [1, 0, 0, 0]], ["a", "a"]
    for silent in ([0.3] * 4, [NAN] * 4, [NAN, NAN, 1, NAN]):
        for reweight in (False, True):
            found = tmn_advantages([*rewards, silent], [*tasks, "a"], reweight)
            assert torch.equal(found[:2], tmn_advantages(rewards, tasks, reweight)) and not found[2].any()


def test_a_reward_that_equals_its_groups_mean_is_not_above_it():
    """Whatever rounding makes of the mean: of 0, 1/10, 2/10, ... half are above, w = 1."""
    for n in range(3, 40, 2):
        rewards = [[i / 10 for i in range(n)]]
        for alpha in (0.0, 0.5, 0.8):
            assert (tmn_advantages(rewards, "a", alpha=alpha)[0].sum() < 0) == (
                (tmn_by_hand([[float(i) for i in range(n)]], "a", True, 1.0)[0].sum() < 0)), (n, alpha)


def test_the_tasks_std_is_that_of_all_its_rewards_and_the_mean_the_groups():
    """QwenLong-L1.5 Eq. 7."""
    rewards, tasks = [[1.0, 0, NAN], [0.5, 0.5, 0.5], [0, 0, 0.3]], ["a", "a", "b"]
    a, b = statistics.stdev([1, 0, .5, .5, .5]), statistics.stdev([0, 0, .3])
    expected = torch.tensor([[.5 / a, -.5 / a, 0], [0, 0, 0], [-.1 / b, -.1 / b, .2 / b]])
    assert (task_std_advantages(rewards, tasks) - expected).abs().max() <= 1e-5


def test_hole_38_a_spread_below_the_least_one_is_no_spread():
    rewards = [[0.5, 0.501, 0.5, 0.5], [0.5, 0.6, 0.5, 0.5]]
    for advantages in (group_advantages(rewards, min_std=0.01), tmn_advantages(rewards, "ab", min_std=0.01),
                       task_std_advantages(rewards, "ab", min_std=0.01)):
        assert not advantages[0].any() and advantages[1].abs().min() > 0.1


# The penalty for length, and how many more prompts are wanted

def test_the_penalty_for_length_is_that_of_the_paper():
    """Eq. 7 with 10,000 tokens and a buffer of 1,000."""
    expected = {1: 0, 9000: 0, 9001: 0.001, 9250: 0.25, 9500: 0.5, 9999: 0.999, 10000: 1, 12000: 1}
    for length, penalty in expected.items():
        assert abs(overlong_penalty(length, 10000, 1000) - penalty) <= 1e-15
        assert overlong_penalty(length, 10000, 0) == 0


def test_hole_12_what_selects_a_group_is_what_its_advantages_are_made_of():
    """All right but of different lengths: kept. Right at full length and wrong: the shaped rewards agree: not kept."""
    penalties = [[overlong_penalty(length, 10000, 1000) for length in row] for row in ((9000, 10000), (10000, 500))]
    shaped = torch.tensor([[1.0, 1], [1, 0]]) - torch.tensor(penalties)
    assert group_advantages(shaped).any(-1).tolist() == [True, False]


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.3, 1.0])
def test_more_prompts_are_wanted_as_long_as_groups_are_missing_and_never_more_than_at_first(rate):
    rng = random.Random(4)
    for _ in range(200):
        informative = sampled = 0
        wanted = first = rng.randint(1, 64)
        for _ in range(50):
            sampled, informative = sampled + wanted, informative + sum(rng.random() < rate for _ in range(wanted))
            wanted = num_refills(first, informative, sampled)
            assert 0 <= wanted <= first and (wanted == 0) == (informative >= first)
        assert rate == 0 or wanted == 0 or rate == 0.01


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


def by_hand(model, groups, advantages, on_policy, ref=None, kl_coef=0.0, kind="dapo", entropy_coef=0.0):
    """The losses' sums by the papers' denominators, each answer as a whole sequence through model.logits."""
    total, num_tokens, gap, entropy, kl = 0.0, 0, 0.0, 0.0, 0.0
    all_tokens, num_answers = sum(g.num_tokens for g in groups), sum(len(g.completions) for g in groups)
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
            losses = losses + entropy_coef * (table.exp() * table).sum(-1)
            divisor = {"dapo": all_tokens, "grpo": num_answers * len(answer.ids), "dr_grpo": num_answers * 8}[kind]
            total, num_tokens = total + losses.sum() / divisor, num_tokens + len(answer.ids)
            gap = max(gap, float((logprobs.detach() - sampled).abs().max())) if on_policy else 0.0
            entropy -= float((table.exp() * table).detach().sum())
    model.zero_grad()
    total.backward()
    return gradient(model), {"loss": float(total.detach()), "num_tokens": num_tokens, "gap": gap,
                             "entropy": entropy, "kl": kl}


def rollout(group: Group, rewards, advantages=(), penalties=None, task="qa") -> Rollout:
    scores = tuple(Score(reward, reward, None, "") for reward in rewards)
    return Rollout(Example(str(group.key), "", "", "", task), group, ("",) * len(scores), scores,
                   tuple(penalties or [0.0] * len(scores)), tuple(advantages))


def step(model, groups, advantages, on_policy, max_tokens, ref=None, kind="dapo", scored=None, **objective):
    model.zero_grad()
    sums, scored = Counter(), torch.ones_like(advantages, dtype=bool) if scored is None else scored
    rollouts = {g: rollout(group, [0.0 if known else NAN for known in scored[g]], advantages[g].tolist())
                for g, group in enumerate(groups)}
    weights = token_weights(rollouts, kind, max_new_tokens=8)
    for g, group in enumerate(groups):
        old = None if on_policy else [answer.logprobs for answer in group.completions]
        loss = group_loss(rollouts[g], weights[g], sums, old, ref and ref[g], **objective)
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


@pytest.mark.parametrize("kind, entropy_coef", [("grpo", 0.0), ("dr_grpo", 0.0), ("dapo", 0.02), ("grpo", 0.02)])
def test_each_papers_denominator_and_the_entropy_bonus(model, groups, kind, entropy_coef):
    """GRPO: each answer's mean, then the mean of answers; Dr. GRPO: by the longest answer there may be; the bonus is
    weighed as the losses are. In any micro-batches."""
    groups, advantages = [off_policy(group) for group in groups], group_advantages(REWARDS)
    expected, values = by_hand(model, groups, advantages, False, kind=kind, entropy_coef=entropy_coef)
    for max_tokens in (1, 40, 10**6):
        found, sums = step(model, groups, advantages, False, max_tokens, kind=kind, entropy_coef=entropy_coef)
        for name in expected:
            assert (found[name] - expected[name]).abs().max() <= 1e-12 * expected[name].abs().max(), name
        assert abs(sums["loss"] - values["loss"]) <= 1e-12


# For what sampler and trainer differ in

@pytest.mark.parametrize("correction, sampler, trainer, now, advantage, factor", [
    ("none", 0.1, 0.9, 0.9, 1, 1),
    ("tis", 0.2, 0.3, 0.3, 1, 1.5), ("tis", 0.1, 0.3, 0.3, 1, 2), ("tis", 0.1, 0.3, 0.3, -1, 2),
    ("tis", 0.8, 0.2, 0.2, 1, 0.25),
    ("mis", 0.1, 0.3, 0.3, 1, 3), ("mis", 0.1, 0.6, 0.6, 1, 0), ("mis", 0.5, 0.2, 0.2, -1, 0),
    ("mis", 0.4, 0.3, 0.3, -1, 0.75),
    ("dppo", 0.1, 0.1, 0.29, 1, 1), ("dppo", 0.1, 0.1, 0.31, 1, 0), ("dppo", 0.1, 0.1, 0.9, -1, 1),
    ("dppo", 0.5, 0.4, 0.31, -1, 0.8), ("dppo", 0.5, 0.4, 0.29, -1, 0), ("dppo", 0.5, 0.4, 0.1, 1, 0.8),
    ("dppo", 0.01, 0.09, 0.09, 1, 9), ("dppo", 0.01, 0.3, 0.3, 1, 0)])
def test_known_factors(correction, sampler, trainer, now, advantage, factor):
    """The probabilities of one token: the sampler's, the trainer's before any update, and the one now."""
    logs = torch.tensor([[sampler], [trainer], [now]], dtype=torch.float64).log()
    found = off_policy_factors(*logs, torch.tensor([advantage]), [1], correction)
    assert abs(found.item() - factor) <= 1e-12


def test_bad_answers_that_drifted_are_left_out_as_a_whole():
    old = torch.zeros(7, dtype=torch.float64)
    new = -torch.tensor([0.9, 0.3, 0.6, 0.2, 0.2, 2.0, 2.0]).double()         # the means: 0.6, 0.2, 2
    advantages = torch.tensor([-1.0, -1, -1, -1, -1, 1, 1]).double()
    factors = off_policy_factors(old, old, new, advantages, [3, 2, 2], max_drift=0.5)
    assert factors.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert off_policy_factors(old, old, new, advantages, [3, 2, 2]).tolist() == [1] * 7


def test_the_factors_are_finite_for_any_log_probs():
    sampled, old = torch.tensor([[-800.0, 0.0, -math.inf, -1.0], [0.0, -800.0, -1.0, -math.inf]])
    for correction in CORRECTIONS:
        assert off_policy_factors(sampled, old, old, torch.ones(4), [4], correction).isfinite().all()


@pytest.mark.parametrize("correction", list(CORRECTIONS))
def test_a_corrected_step_is_the_sum_of_its_tokens(model, groups, correction):
    """The first update: -A factor grad log p of each token, over all tokens of the step. In any micro-batches."""
    groups, advantages = [off_policy(group) for group in groups], group_advantages(REWARDS)
    total, factors = 0.0, []
    for group, row in zip(groups, advantages.tolist()):
        for answer, advantage in zip(group.completions, row):
            logits = model.logits(torch.tensor(group.prompt_ids + answer.ids))[len(group.prompt_ids) - 1:-1]
            table = (logits / TEMPERATURE).log_softmax(-1)
            for position, (token, sampled) in enumerate(zip(answer.ids, answer.logprobs)):
                p, q = math.exp(table[position, token].item()), math.exp(sampled)
                bad = p - q > 0.2 if advantage > 0 else p - q < -0.2
                factors.append({"none": 1, "tis": min(p / q, 2), "mis": p / q if 0.5 <= p / q <= 5 else 0,
                                "dppo": 0 if bad else p / q}[correction])
                total = total - advantage * factors[-1] * table[position, token] / sum(g.num_tokens for g in groups)
    model.zero_grad()
    total.backward()
    expected = gradient(model)
    for max_tokens in (1, 40, 10**6):
        found, sums = step(model, groups, advantages, True, max_tokens, correction=correction)
        for name in expected:
            assert (found[name] - expected[name]).abs().max() <= 1e-11 * expected[name].abs().max(), name
        assert abs(sums["factors"] - sum(factors)) <= 1e-10 and sums["masked"] == factors.count(0)
        assert sums["num_tokens"] + sums["masked"] == len(factors)


@pytest.mark.parametrize("kind", ["dapo", "grpo", "dr_grpo"])
def test_an_unscorable_answer_changes_nothing(model, groups, kind):
    """The gradient is that of the group without it, a KL term included."""
    rewards = torch.cat([REWARDS, torch.full((3, 1), NAN)], dim=1)
    ref = [group_pass.logprobs(tiny_qwen(seed=5), g.stem, g.branches, TEMPERATURE) for g in groups]
    more = [Group(g.key, g.prompt_ids, (*g.completions, g.completions[0])) for g in groups]
    with_it, _ = step(model, more, group_advantages(rewards), True, 10**6, [r + r[:1] for r in ref], kind,
                      ~rewards.isnan(), kl_coef=0.1)
    without, _ = step(model, groups, group_advantages(REWARDS), True, 10**6, ref, kind, kl_coef=0.1)
    for name in without:
        assert (with_it[name] - without[name]).abs().max() <= 1e-12 * without[name].abs().max(), name


def test_groups_that_agree_give_no_gradient_at_all(model, groups):
    found, sums = step(model, groups, group_advantages(torch.ones(3, 4)), True, 10**6)
    assert sums["loss"] == 0 and not any(g.any() for g in found.values())


# The tables

def test_every_row_of_the_table_of_advantages_is_the_function_it_names(groups):
    rewards, penalties = REWARDS[:, :4].tolist(), [0.0, 0.25, 0.0, 0.0]
    tasks = ["qa", "qa", "f1"]
    rollouts = [rollout(group, row, penalties=penalties, task=task) for group, row, task in zip(groups, rewards, tasks)]
    shaped = torch.tensor(rewards, dtype=torch.float64) - torch.tensor(penalties)
    expected = {"grpo": group_advantages(shaped, min_std=MIN_STD),
                "dr_grpo": group_advantages(shaped, scale=False, min_std=MIN_STD),
                "tmn": tmn_advantages(shaped, tasks, reweight=False, min_std=MIN_STD),
                "tmn_reweight": tmn_advantages(shaped, tasks, min_std=MIN_STD),
                "task_std": task_std_advantages(shaped, tasks, min_std=MIN_STD)}
    assert expected.keys() == ADVANTAGES.keys()
    for name, values in expected.items():
        got = with_advantages(rollouts, name)
        assert [list(each.advantages) for each in got] == values.tolist(), name
        assert [each.is_informative for each in got] == values.any(-1).tolist()


def test_an_unknown_name_is_an_error_that_lists_the_valid_ones(groups):
    rollouts = [rollout(group, [0.0, 1.0, 0.0, 1.0]) for group in groups]
    with pytest.raises(ConfigError, match="--advantages 'no_such' is unknown: choose one of grpo, dr_grpo, tmn"):
        with_advantages(rollouts, "no_such")
    with pytest.raises(ConfigError, match="--loss 'no_such' is unknown: choose one of dapo, grpo, dr_grpo"):
        token_weights(dict(enumerate(rollouts)), "no_such", 8)
