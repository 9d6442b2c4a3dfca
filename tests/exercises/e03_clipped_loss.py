"""The clipped loss"""

import math

import torch
from hypothesis import strategies as st

FILE = "kernels/grpo_loss.py"
WRITE = ("grpo_loss_plain",)
TESTS = ["tests/test_kernels.py", "-k", "dual_clip or clipped or on_policy or kl_is_never or huge"]
TRAIN = "--kl-coef 0.1"

change = st.sampled_from([-0.5, -0.2, -0.1, 0.0, 0.1, 0.22, 0.3, 1.5])     # ratios of 0.61 to 4.5
token = st.fixed_dictionaries({"new": change, "old": change, "ref": change, "weight": st.sampled_from([0.0, 0.25, 1.0]),
                               "advantage": st.sampled_from([-1.5, -0.5, 0.0, 0.5, 1.0])})
CASES = st.fixed_dictionaries({"tokens": st.lists(token, min_size=1, max_size=3),
                               "kl_coef": st.sampled_from([0.0, 0.5]), "dual_clip": st.sampled_from([math.inf, 3.0])})


def answer(m, tokens, kl_coef=0.0, dual_clip=math.inf):
    """The loss, its gradient for the log-probs, and the sums. Clipped to 0.8 and 1.28."""
    new, old, ref, advantages, weights = (torch.tensor([each[key] for each in tokens], dtype=torch.float64)
                                          for key in ("new", "old", "ref", "advantage", "weight"))
    new.requires_grad_()
    loss, sums = m.grpo_loss_plain(new, old, advantages, weights, ref if kl_coef else None, None, 0.2, 0.28, dual_clip,
                                   kl_coef)
    (gradient,) = torch.autograd.grad(loss, new)
    return loss, gradient, sums


def on_policy(m, tokens):
    """If the policy has not changed, the gradient is -weight x advantage: plain policy gradient"""
    tokens = [each | {"old": each["new"]} for each in tokens]
    expected = [-each["weight"] * each["advantage"] for each in tokens]
    assert torch.allclose(answer(m, tokens)[1], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def clipped_on_one_side(m, tokens):
    """A good token gets no gradient above 1.28 but keeps it below 0.8. A bad one gets none below 0.8 but above 1.28"""
    tokens = [each | {"new": each["old"] + move} for each in tokens for move in (-0.3, -0.1, 0.1, 0.22, 0.3)]
    for each, slope in zip(tokens, answer(m, tokens)[1].tolist()):
        ratio = math.exp(each["new"] - each["old"])
        clipped = ratio > 1.28 if each["advantage"] > 0 else ratio < 0.8
        expected = 0.0 if clipped else -each["weight"] * each["advantage"] * ratio
        assert abs(slope - expected) < 1e-12


def dual(m, tokens):
    """With dual_clip 3, a bad token costs at most 3 x |advantage|, however likely it has become. A good one may gain"""
    good = [each | {"old": each["new"] - 2.0, "advantage": 1.0} for each in tokens]
    assert answer(m, good, dual_clip=3.0)[0] == answer(m, good)[0]
    for each in tokens:
        bad = each | {"old": each["new"] - 2.0, "advantage": -1.0, "weight": 1.0}
        loss, gradient, _ = answer(m, [bad], dual_clip=3.0)
        assert abs(loss.item() - 3.0) < 1e-12 and gradient.item() == 0


def kl_pulls_back(m, tokens):
    """The KL term is never negative, is 0 where both models agree, and its gradient is weight x (1 - exp(ref - new))"""
    tokens = [each | {"advantage": 0.0} for each in tokens]
    loss, gradient, _ = answer(m, tokens, kl_coef=0.5)
    assert loss >= 0
    for each, slope in zip(tokens, gradient.tolist()):
        assert abs(slope - 0.5 * each["weight"] * (1 - math.exp(each["ref"] - each["new"]))) < 1e-12


LAWS = (on_policy, clipped_on_one_side, dual, kl_pulls_back)
WRONG = (
    ("the larger of the two products is taken instead of the smaller one", "torch.minimum(", "torch.maximum("),
    ("the ratio is clipped on both sides, whatever the sign of the advantage",
     "torch.minimum(ratio * advantages, clipped * advantages)", "(clipped * advantages)"),
    ("the upper bound is 1 + clip_low",
     "ratio.clamp(1 - clip_low, 1 + clip_high)", "ratio.clamp(1 - clip_low, 1 + clip_low)"),
    ("the KL's difference has the other sign", "ref_logprobs - logprobs, 0.0)", "logprobs - ref_logprobs, 0.0)"),
    ("the ratio is a constant: its gradient is cut off", ".clamp(-20, 20).exp()", ".clamp(-20, 20).exp().detach()"),
    ("the dual clip also binds good tokens", "(ratio > dual_clip) & (advantages < 0)", "(ratio > dual_clip)"))
