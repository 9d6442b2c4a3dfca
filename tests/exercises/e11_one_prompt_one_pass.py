"""One prompt, one pass"""

from functools import cache

import torch
from hypothesis import strategies as st

FILE = "nanoqwenlong/group_pass.py"
WRITE = ("backward",)
TESTS = ["tests/test_group_pass.py", "-k", "order_of or microbatch or stem_runs_once or no_branches or where_the_stem"]
TRAIN = ""

lengths = st.lists(st.integers(1, 4), min_size=1, max_size=3)
CASES = st.fixed_dictionaries({"stem": st.integers(0, 4), "lengths": lengths, "seed": st.integers(0, 99),
                               "max_tokens": st.sampled_from([4, 9, 99])})


@cache
def model(m):
    """A tiny random model in float64."""
    from nanoqwenlong import toy
    from nanoqwenlong.model import Qwen
    from nanoqwenlong.pretrained.config import ModelConfig
    tiny = {**toy.CONFIG, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 50, "eos_token_id": 0}
    return Qwen.random(ModelConfig.from_json(tiny, "tiny"), 1).double()


def family(m, stem, lengths, seed):
    """A stem of random ids, and branches of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 40, (stem + sum(lengths) + len(lengths),), generator=generator).tolist()
    prompt, ids = ids[:stem], ids[stem:]
    branches = []
    for length in lengths:
        piece, ids = ids[:length + 1], ids[length + 1:]
        branches.append(m.Branch(tuple(piece[:-1]), tuple(piece[1:]), (1.0,) * length))
    return tuple(prompt), branches


def loss(rows, logprobs, entropy):
    return (logprobs.exp() - 0.1 * entropy).sum()


def gradients(m, stem, branches, max_tokens, count=None):
    net = model(m)
    net.zero_grad()
    hook = net.register_forward_pre_hook(lambda *_: count.append(1)) if count is not None else None
    m.backward(net, stem, branches, loss, 1.0, max_tokens)
    if hook:
        hook.remove()
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()).double()
                      for p in net.parameters()])


def answer(m, stem, lengths, max_tokens, seed):
    """The gradient of all parameters, in 40 numbers."""
    return torch.stack([piece.sum() for piece in gradients(m, *family(m, stem, lengths, seed), max_tokens).chunk(40)])


def equals_repeated_prompts(m, stem, lengths, max_tokens, seed):
    """The gradient is that of whole sequences, each with its own copy of the prompt, to 1e-12"""
    prompt, branches = family(m, stem, lengths, seed)
    net = model(m)
    ours = gradients(m, prompt, branches, max_tokens)
    net.zero_grad()
    for branch in branches:
        log_p = net.logits(torch.tensor([*prompt, *branch.input_ids]))[stem:].log_softmax(-1)
        logprobs = log_p.gather(-1, torch.tensor(branch.target_ids)[:, None])[:, 0]
        loss((), logprobs, -(log_p.exp() * log_p).sum(-1)).backward()
    theirs = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert (ours - theirs).abs().max() < 1e-12 * max(1.0, theirs.abs().max().item())


def the_stem_runs_once(m, lengths, seed):
    """The stem runs forward once, however many branches and micro-batches there are"""
    count = []
    gradients(m, *family(m, 3, lengths, seed), max_tokens=4, count=count)
    alone = []
    gradients(m, *family(m, 0, lengths, seed), max_tokens=4, count=alone)
    assert len(count) == len(alone) + 1


def gradients_are_added(m, lengths, seed):
    """Gradients are added to what the parameters hold already"""
    prompt, branches = family(m, 3, lengths, seed)
    once = gradients(m, prompt, branches, 99)
    m.backward(model(m), prompt, branches, loss, 1.0, 99)
    twice = torch.cat([p.grad.flatten() for p in model(m).parameters()])
    assert (twice - 2 * once).abs().max() < 1e-12 * max(1.0, once.abs().max().item())


LAWS = (equals_repeated_prompts, the_stem_runs_once, gradients_are_added)
WRONG = (
    ("the stem is detached and never runs backward", "if edges:\n        torch", "if False:\n        torch"),
    ("only the last micro-batch reaches the stem: the leaves' gradients are overwritten",
     "        scalar.backward()\n",
     "        for leaf in leaves:\n            leaf.grad = None\n        scalar.backward()\n"),
    ("each micro-batch is divided by the number of its branches", "scalar.backward()",
     "(scalar / max(1, len(rows))).backward()"),
    ("the keys and values of the stem are no leaves of their own", "[x.detach() for x in pair]", "[x for x in pair]"))
