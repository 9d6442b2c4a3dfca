"""Drawing tokens"""

import torch
from hypothesis import strategies as st

FILE = "nanoqwenlong/engine/sampling.py"
WRITE = ("draw",)
TESTS = ["tests/test_generate.py", "-k", "draw_never or draw_at_the_edges"]
TRAIN = "--temperature 0.8"

CASES = st.fixed_dictionaries({
    "logits": st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0]), min_size=3, max_size=6), "u": st.floats(0, 0.999),
    "temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]), "top_p": st.sampled_from([1.0, 0.3, 0.5, 0.9])})


def answer(m, logits, u, temperature, top_p):
    """Tokens and log-probs of two rows: the logits with u, and in reverse order with 1 - u."""
    rows = torch.tensor([logits, logits[::-1]], dtype=torch.float64)
    return m.draw(rows, torch.tensor([u, 1 - u], dtype=torch.float64).clamp(max=0.999), temperature, top_p)


def frequencies(m, logits, temperature, top_p, N=4000):
    """How often each token is drawn, for N equally spaced u."""
    u = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    ids, _ = m.draw(torch.tensor([logits] * N, dtype=torch.float64), u, temperature, top_p)
    return ids.bincount(minlength=len(logits)) / N


def follows_the_policy(m, logits, temperature):
    """Tokens are drawn as often as softmax(logits / temperature) says"""
    if temperature:
        expected = (torch.tensor(logits, dtype=torch.float64) / temperature).softmax(-1)
        assert (frequencies(m, logits, temperature, 1.0) - expected).abs().max() < 1e-3


def top_p_keeps_the_crossing_token(m, logits, top_p):
    """top_p keeps the most likely tokens until their mass reaches top_p: at least that much, and none too many"""
    p = torch.tensor(logits, dtype=torch.float64).softmax(-1)
    drawn = frequencies(m, logits, 1.0, top_p) > 0
    assert p[drawn].sum() >= top_p - 1e-9
    assert p[drawn].sum() - p[drawn].min() < top_p + 1e-9


def logprobs_are_the_trainers(m, logits, u, temperature, top_p):
    """The log-prob is that of log_softmax(logits / temperature) over all words, also with top_p and greedy"""
    ids, logprobs = answer(m, logits, u, temperature, top_p)
    expected = (torch.tensor(logits, dtype=torch.float64) / (temperature or 1.0)).log_softmax(-1)
    assert abs(logprobs[0] - expected[ids[0]]) < 1e-12


def greedy(m, logits, u, top_p):
    """Temperature 0 takes the most likely token, the first one if there are several"""
    assert answer(m, logits, u, 0.0, top_p)[0][0] == logits.index(max(logits))


def company_is_irrelevant(m, logits, u, temperature, top_p):
    """A row's token depends on its own logits and its own u, not on the other rows"""
    together = answer(m, logits, u, temperature, top_p)[0]
    turned = answer(m, logits[::-1], min(1 - u, 0.999), temperature, top_p)[0]
    assert together[0] == turned[1] and together[1] == turned[0]


LAWS = (follows_the_policy, top_p_keeps_the_crossing_token, logprobs_are_the_trainers, greedy, company_is_irrelevant)
WRONG = (
    ("the log-prob is that of temperature 1, not of the temperature that was sampled with",
     "return ids[:, 0], logprobs.gather", "return ids[:, 0], logits.to(wide).log_softmax(-1).gather"),
    ("top_p drops the token that crosses it", "mass.cumsum(-1) - mass < top_p", "mass.cumsum(-1) < top_p"),
    ("the log-prob is that of the tokens that top_p keeps", "return ids[:, 0], logprobs.gather(-1, ids)[:, 0]",
     "return ids[:, 0], (logprobs.gather(-1, ids)[:, 0] - (cdf[:, -1].log() if temperature and top_p < 1 else 0))"),
    ("the place in the sorted order is returned instead of the token", "ids = order.gather(-1, ids)", "pass"),
    ("one random number is used for the whole batch", "u[:, None] * cdf", "u[:1, None] * cdf"))
