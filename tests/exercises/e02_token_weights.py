"""Token weights"""

from types import SimpleNamespace

import torch
from hypothesis import strategies as st

FILE = "nanoqwenlong/grpo.py"
WRITE = ("token_weights",)
TESTS = ["tests/test_grpo.py", "-k", "denominator or unscorable_answer or add_up"]
TRAIN = ""

answers = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.0, 1.0, None])), min_size=2, max_size=4)
CASES = st.fixed_dictionaries({"groups": st.lists(answers, min_size=1, max_size=4),
                               "loss": st.sampled_from(["dapo", "grpo", "dr_grpo"])})


def answer(m, groups, loss, longest=10):
    """groups: for each prompt (length, reward) of its answers. A reward of None is unscorable."""
    rollouts = {}
    for row, group in enumerate(groups):
        rewards = [float("nan") if reward is None else reward for _, reward in group]
        lengths = [length for length, _ in group]
        rollouts[row] = SimpleNamespace(group=SimpleNamespace(lengths=lengths), rewards=rewards)
    return m.token_weights(rollouts, loss, longest)


def scored(groups):
    """(row, column, length) of every answer that was scored."""
    return [(row, column, length) for row, group in enumerate(groups) for column, (length, reward) in enumerate(group)
            if reward is not None]


def dapo_sums_to_one(m, groups):
    """In DAPO the weights of all tokens of the step sum to one, and all of them are equal"""
    weights = [answer(m, groups, "dapo")[row][column].item() for row, column, _ in scored(groups)]
    lengths = [length for *_, length in scored(groups)]
    if weights:
        assert abs(sum(w * n for w, n in zip(weights, lengths)) - 1) < 1e-12 and max(weights) - min(weights) < 1e-12


def grpo_answers_count_alike(m, groups):
    """In GRPO every scored answer of the step has the same total weight, long or short, and together they have one"""
    totals = [answer(m, groups, "grpo")[row][column].item() * length for row, column, length in scored(groups)]
    assert all(abs(total - 1 / len(totals)) < 1e-12 for total in totals)


def dr_grpo_ignores_lengths(m, groups):
    """In Dr. GRPO the weight of a token does not depend on any length: answers of other lengths get the same weights"""
    others = [[(length % 9 + 1, reward) for length, reward in group] for group in groups]
    a, b = answer(m, groups, "dr_grpo"), answer(m, others, "dr_grpo")
    assert all(torch.equal(a[row], b[row]) for row in a)
    assert all(abs(a[row][column] - 1 / (10 * len(scored(groups)))) < 1e-12 for row, column, _ in scored(groups))


def unscorable_weighs_nothing(m, groups, loss):
    """An answer that could not be scored weighs 0, and the others are weighed as if it did not exist"""
    known = [[pair for pair in group if pair[1] is not None] for group in groups]
    for row, group in enumerate(groups):
        mask = torch.tensor([reward is not None for _, reward in group])
        weights = answer(m, groups, loss)[row]
        assert not weights[~mask].any()
        assert torch.allclose(weights[mask], answer(m, known, loss)[row], rtol=0, atol=1e-12)


LAWS = (dapo_sums_to_one, grpo_answers_count_alike, dr_grpo_ignores_lengths, unscorable_weighs_nothing)
WRONG = (
    ("each group is normalised by itself, as if it were the whole step",
     "num_tokens = num_tokens + lengths[row][mask].sum()", "num_tokens = lengths[row][mask].sum()"),
    ("only the answers of the last group are counted", "num_answers = num_answers + mask.sum()",
     "num_answers = mask.sum()"),
    ("the tokens of unscorable answers are counted as well", "lengths[row][mask].sum()", "lengths[row].sum()"),
    ("unscorable answers are weighed like the others", "weights[row] = scored[row] / divisors",
     "weights[row] = 1 / divisors.expand(len(lengths[row]))"))
