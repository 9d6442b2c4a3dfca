"""Log-probs in slices"""

import torch
from hypothesis import strategies as st

FILE = "kernels/logprob.py"
WRITE = ("statistics_plain", "gradient_plain", "merge")
TESTS = ["tests/test_kernels.py", "-k", "blocks_of or known_answers or linear_logprob_passes"]
TRAIN = "--temperature 0.9"

cuts = st.lists(st.integers(2, 8), max_size=2, unique=True)
CASES = st.fixed_dictionaries({"seed": st.integers(0, 999), "cuts": cuts, "size": st.sampled_from([1.0, 800.0]),
                               "impossible": st.booleans()})


def inputs(seed, size, impossible=False):
    """Logits of 3 positions and 10 words, targets, and gradients of log-prob and entropy."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 10, generator=generator, dtype=torch.float64) * size
    targets = torch.randint(0, 9, (3,), generator=generator)
    if impossible:
        logits[:, 9] = -torch.inf
    return logits, targets, *torch.randn(2, 3, generator=generator, dtype=torch.float64)


def slices(m, logits, targets, cuts):
    """The rows (4, 3) of all words, computed slice by slice, and the slices."""
    edges = [0, *sorted(cuts), 10]
    pieces = [slice(*pair) for pair in zip(edges, edges[1:])]
    parts, holds = torch.empty(len(pieces), 4, 3, dtype=torch.float64), []
    for part, words in zip(parts, pieces):
        m.statistics_plain(logits[:, words], targets - words.start, part)
        holds.append((words.start <= targets) & (targets < words.stop))
    return m.merge(parts, torch.stack(holds)), pieces


def answer(m, seed, cuts, size, impossible):
    logits, targets, d_logprob, d_entropy = inputs(seed, size, impossible)
    rows, pieces = slices(m, logits, targets, cuts)
    out = torch.empty_like(logits)
    for words in pieces:
        m.gradient_plain(logits[:, words], targets - words.start, rows, d_logprob, d_entropy, out[:, words])
    return rows, out


def log_softmax_is_the_truth(m, seed, cuts, size, impossible):
    """Log-prob and entropy are those of log_softmax over all words, also with huge logits and impossible words"""
    logits, targets, *_ = inputs(seed, size, impossible)
    log_p = logits.log_softmax(-1)
    expected = log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p.clamp(min=-1e4)).sum(-1)
    rows, _ = slices(m, logits, targets, cuts)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(rows, expected))


def cuts_change_nothing(m, seed, cuts, size):
    """It does not matter where the vocabulary is cut into slices"""
    whole, parts = answer(m, seed, [], size, False), answer(m, seed, cuts, size, False)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(whole, parts))


def gradients_are_autograds(m, seed, cuts):
    """The gradient of the logits is autograd's, for log-prob and entropy together"""
    logits, targets, d_logprob, d_entropy = inputs(seed, 1.0)
    z = logits.clone().requires_grad_()
    log_p = z.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    (d_logprob * log_p.gather(-1, targets[:, None])[:, 0] + d_entropy * entropy).sum().backward()
    assert torch.allclose(answer(m, seed, cuts, 1.0, False)[1], z.grad, rtol=0, atol=1e-9)


def without_entropy(m, seed):
    """If the entropy is not used, the gradient is that of the log-prob: it sums to zero over the words"""
    logits, targets, d_logprob, _ = inputs(seed, 1.0)
    rows, out = slices(m, logits, targets, [])[0], torch.empty_like(logits)
    m.gradient_plain(logits, targets, rows, d_logprob, None, out)
    assert out.sum(-1).abs().max() < 1e-12
    at = out.gather(-1, targets[:, None])[:, 0]
    assert torch.allclose(at, d_logprob * (1 - rows[0].exp()), rtol=0, atol=1e-12)


LAWS = (log_softmax_is_the_truth, cuts_change_nothing, gradients_are_autograds, without_entropy)
WRONG = (
    ("the slices are merged with the sum of their log-sums instead of log-sum-exp", "log_sum = logs.logsumexp(0)",
     "log_sum = logs.sum(0)"),
    ("the tops of the slices are forgotten when they are merged", "logs = falls + log_sums", "logs = log_sums"),
    ("the entropy has the wrong sign in the gradient", "log_p.exp_().mul_(slope).neg_()", "log_p.exp_().mul_(slope)"),
    ("the target's own part of the gradient is missing",
     "dz.scatter_add_(-1, words[piece, None], d_target[piece, None])",
     "dz"),
    ("every slice adds the target's gradient, also one that does not hold the target",
     "torch.where(targets == words, d_logprob, 0.0)", "d_logprob"))
