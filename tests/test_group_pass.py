"""The two-phase pass over stem and branches against autograd on each whole sequence, and against its twin that repeats
the stem (float64)."""

import itertools
import random

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tiny_qwen import VOCAB, random_ids, tiny_qwen

from nanoqwenlong import group_pass
from nanoqwenlong.attention import pack
from nanoqwenlong.model import Qwen
from nanoqwenlong.records import Branch

EVERYTHING = 10**6


@pytest.fixture(scope="module")
def model():
    return tiny_qwen()


def branch(num_inputs: int, seed: int, weights=None) -> Branch:
    ids = tuple(random_ids(num_inputs + 1, seed))
    return Branch(ids[:-1], ids[1:], weights or (1.0,) * num_inputs)


STEM = random_ids(11, seed=40)
BRANCHES = [branch(5, 1), branch(1, 2), branch(9, 3), branch(4, 4, (0.0, 1.0, 0.0, 1.0)), branch(9, 5)]


def repeat_stem(stem, branches) -> list[Branch]:
    """The same family without a stem: every branch begins with a copy of it, as context."""
    return [Branch((*stem, *b.input_ids), (*stem, *b.target_ids), (*[0.0] * len(stem), *b.weights)) for b in branches]


def plain(model, stem, branches, temperature):
    """For each branch (logprobs, entropy) of its weighted targets, one whole sequence at a time."""
    found = []
    for b in branches:
        logits = model.logits(torch.tensor([*stem, *b.input_ids]))[len(stem):] / temperature
        rows = torch.tensor([i for i, weight in enumerate(b.weights) if weight], dtype=torch.long)
        logprobs = logits.log_softmax(-1)[rows]
        found.append((logprobs.gather(-1, torch.tensor(b.target_ids)[rows, None])[:, 0],
                      -(logprobs.exp() * logprobs).sum(-1)))
    return found


def branch_loss(row: int, logprobs, entropy):
    """Neither linear nor alike for two branches."""
    return ((row + 1) * logprobs.exp() + logprobs * 0.1 * row - 0.3 * entropy.square()).sum()


def oracle(model, stem, branches, temperature=1.0):
    model.zero_grad()
    values = plain(model, stem, branches, temperature)
    sum(branch_loss(row, *pair) for row, pair in enumerate(values)).backward()
    return [v.detach() for v, _ in values], gradient(model)


def gradient(model) -> dict:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def ours(model, stem, branches, names=None, **options):
    """The same loss through group_pass; names: which loss each branch gets (its row if not given)."""
    model.zero_grad()
    seen = []

    def loss(rows, logprobs, entropy):
        parts = [branches[row].num_targets for row in rows]
        assert logprobs.shape == entropy.shape == (sum(parts),)
        seen.append(list(rows))
        return sum(branch_loss(row if names is None else names[row], lp, e)
                   for row, lp, e in zip(rows, logprobs.split(parts), entropy.split(parts)))

    group_pass.backward(model, stem, branches, loss, **options)
    assert [row for rows in seen for row in rows] == list(range(len(branches)))
    return gradient(model)


def assert_equal_gradients(a: dict, b: dict, bar: float = 1e-12, floor: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).abs().max() <= bar * (b[name].abs().max() + floor), name


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind, tied", [("qwen2", True), ("qwen3", False), ("qwen3_moe", False), ("llama", True),
                                        ("llama3", False)])
def test_values_and_gradients_equal_plain_autograd(kind, tied, temperature):
    model = tiny_qwen(kind, seed=2, tie_word_embeddings=tied)
    values, expected = oracle(model, STEM, BRANCHES, temperature)
    assert all(g.any() for g in expected.values())
    assert_equal_gradients(ours(model, STEM, BRANCHES, temperature=temperature), expected)
    found = group_pass.logprobs(model, STEM, BRANCHES, temperature=temperature)
    for a, b in zip(found, values, strict=True):
        assert not a.requires_grad and (a - b).abs().max() <= 1e-12


def test_the_size_of_a_microbatch_does_not_change_the_gradient(model):
    expected = ours(model, STEM, BRANCHES, max_tokens=EVERYTHING)
    for max_tokens in (1, 16, 28, 29, 47, 48, 64):
        assert_equal_gradients(ours(model, STEM, BRANCHES, max_tokens=max_tokens), expected)
        found = group_pass.logprobs(model, STEM, BRANCHES, max_tokens=max_tokens)
        assert [len(values) for values in found] == [b.num_targets for b in BRANCHES] == [5, 1, 9, 2, 9]


def test_microbatches_keep_to_the_limit_and_lose_nothing():
    rng = random.Random(0)
    for _ in range(300):
        branches = [branch(rng.randint(1, 9), 0) for _ in range(rng.randint(0, 7))]
        max_tokens = rng.randint(1, 40)
        found = list(group_pass.microbatches(branches, max_tokens))
        assert [row for rows in found for row in rows] == list(range(len(branches)))
        size = [sum(len(branches[row].input_ids) for row in rows) for rows in found]
        assert all(tokens <= max_tokens or len(rows) == 1 for rows, tokens in zip(found, size))
        for tokens, after in zip(size, found[1:]):                             # and none is cut short
            assert tokens + len(branches[after[0]].input_ids) > max_tokens


def test_the_order_of_the_branches_does_not_change_the_gradient(model):
    expected = ours(model, STEM, BRANCHES)
    order = [3, 0, 4, 2, 1]
    again = ours(model, STEM, [BRANCHES[i] for i in order], names=order, max_tokens=40)
    assert_equal_gradients(again, expected)


def test_gradients_are_added_to_what_is_there(model):
    once = ours(model, STEM, BRANCHES)
    group_pass.backward(model, STEM, BRANCHES, lambda rows, lp, e: sum(
        branch_loss(row, *pair) for row, pair in zip(rows, zip(*(
            x.split([BRANCHES[r].num_targets for r in rows]) for x in (lp, e))))))
    assert_equal_gradients(gradient(model), {name: 2 * g for name, g in once.items()})


def test_a_family_of_any_size_equals_its_twin_that_repeats_the_stem():
    """1 to 8 answers, lengths from one token on; all families, tied or not, with and without checkpointing."""
    rng = random.Random(3)
    for kind, tied in [*itertools.product(("qwen2", "qwen3"), (True, False)), ("qwen3_moe", False), ("llama3", True)]:
        model = tiny_qwen(kind, seed=4, tie_word_embeddings=tied)
        for G in range(1, 9):
            branches = [branch(rng.choice((1, 1, 2, 5, 12)), rng.randrange(10**6)) for _ in range(G)]
            stem = random_ids(rng.randint(1, 20), seed=G)
            model.checkpointing = False
            twin = ours(model, [], repeat_stem(stem, branches), max_tokens=EVERYTHING)
            for model.checkpointing, max_tokens in ((False, 7), (True, EVERYTHING)):
                assert_equal_gradients(ours(model, stem, branches, max_tokens=max_tokens), twin)


def test_the_stem_runs_once_and_the_branches_without_it(model, monkeypatch):
    """Forward passes by their number of tokens, for gradients and for log-probs."""
    sizes, forward = [], Qwen.forward
    monkeypatch.setattr(Qwen, "forward",
                        lambda self, ids, *args: (sizes.append(len(ids)), forward(self, ids, *args))[1])
    ours(model, STEM, BRANCHES, max_tokens=10)
    assert sizes == [11, 6, 9, 4, 9]
    group_pass.logprobs(model, STEM, BRANCHES, max_tokens=15)
    assert sizes[5:] == [11, 15, 13]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("trained", ["model.norm", "layers.1", "embed_tokens"])
def test_frozen_parameters(trained, checkpointing):
    model = tiny_qwen(seed=6, num_hidden_layers=3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    found = []
    for stem, branches in ((STEM, BRANCHES), ([], repeat_stem(STEM, BRANCHES))):
        model.zero_grad()
        model.checkpointing = checkpointing
        group_pass.backward(model, stem, branches, lambda rows, logprobs, entropy: logprobs.sum(), max_tokens=10)
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert all(trained in name for name in found[0])
    assert_equal_gradients(*found)


def test_checkpointing_keeps_less(model):
    """Tensors that autograd saves while the loss is computed; layers computed again belong to the backward pass."""
    def saved(checkpointing):
        model.checkpointing, sizes = checkpointing, []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            model(*pack([random_ids(200)], model.device), lambda hidden, weight: hidden.sum())
        model.checkpointing = False
        return sum(sizes)

    assert saved(True) < saved(False) / 4


def test_where_the_stem_ends_does_not_matter(model):
    """An empty stem, and the same sequences with the stem's tokens as context in each branch."""
    longer = [Branch((*STEM, *b.input_ids), (*[0] * len(STEM), *b.target_ids), (*[0.0] * len(STEM), *b.weights))
              for b in BRANCHES]
    values, expected = oracle(model, [], longer)
    assert_equal_gradients(ours(model, [], longer, max_tokens=30), expected)
    assert_equal_gradients(ours(model, STEM, BRANCHES), expected)
    for a, b in zip(group_pass.logprobs(model, [], longer), values, strict=True):
        assert (a - b).abs().max() <= 1e-12


def test_a_target_of_weight_zero_is_context_only(model):
    """Its id is never looked at (one beyond the vocabulary would raise), its input still matters."""
    b = Branch((3, 4, 5, 6), (VOCAB + 99, 5, VOCAB + 99, 7), (0.0, 1.0, 0.0, 1.0))
    (first,) = group_pass.logprobs(model, STEM, [b])
    assert first.shape == (2,)
    (other,) = group_pass.logprobs(model, STEM, [b._replace(input_ids=(30, 4, 5, 6))])
    assert (first - other).abs().min() > 1e-6


def test_branches_that_are_context_only_give_no_values_and_no_gradient(model):
    """Also when one is all that a micro-batch holds."""
    context = branch(3, 9, (0.0, 0.0, 0.0))
    assert [len(v) for v in group_pass.logprobs(model, STEM, [context, BRANCHES[0]], max_tokens=1)] == [0, 5]
    model.zero_grad()
    group_pass.backward(model, STEM, [context], lambda rows, logprobs, entropy: logprobs.sum())
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_no_branches_at_all(model):
    assert group_pass.logprobs(model, STEM, []) == []
    group_pass.backward(model, STEM, [], None)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_supervised_loss_equals_transformers_cross_entropy(kind, tmp_path):
    """Stem empty, many branches, prompt tokens of weight 0: labels of -100 and right padding over there (fp32)."""
    from transformers import AutoModelForCausalLM
    model = tiny_qwen(kind, torch.float32)
    model.save_pretrained(tmp_path)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    texts, prompt_lengths = [random_ids(n, seed=n) for n in (9, 14, 6, 20)], (4, 1, 3, 12)
    ids, labels = torch.zeros(4, 20, dtype=torch.long), torch.full((4, 20), -100)
    for row, (text, start) in enumerate(zip(texts, prompt_lengths)):
        ids[row, :len(text)] = torch.tensor(text)
        labels[row, start:len(text)] = torch.tensor(text[start:])
    mask = torch.arange(20)[None] < torch.tensor([[len(text)] for text in texts])
    theirs = hf(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
    theirs.backward()

    branches = [Branch(tuple(t[:-1]), tuple(t[1:]), (0.0,) * (start - 1) + (1.0,) * (len(t) - start))
                for t, start in zip(texts, prompt_lengths)]
    num_tokens, losses = sum(b.num_targets for b in branches), []

    def loss(rows, logprobs, entropy):
        losses.append(-logprobs.sum() / num_tokens)
        return losses[-1]

    group_pass.backward(model, (), branches, loss, max_tokens=25)
    assert len(losses) == 2 and abs(sum(losses) - theirs) <= 1e-6
    expected = dict(hf.named_parameters())
    for name, parameter in model.named_parameters():
        grad = expected[name].grad
        assert (parameter.grad - grad).abs().max() <= 1e-6 * max(1, grad.abs().max()), name


def test_split_stem_is_the_longest_context_that_all_share(model):
    questions = [branch(3, 1, (0.0, 1.0, 1.0)), branch(4, 2, (0.0, 0.0, 1.0, 1.0)), branch(2, 3, (0.0, 1.0))]
    whole = repeat_stem(STEM, questions)
    stem, rest = group_pass.split_stem(whole)
    assert list(stem) == STEM and list(rest) == questions
    assert_equal_gradients(ours(model, stem, rest), ours(model, [], whole))
    assert group_pass.split_stem(BRANCHES) == ((), tuple(BRANCHES))                    # targets from the first token on
    (one,) = whole[:1]
    stem, (rest,) = group_pass.split_stem([one])                               # a lone one keeps what it is scored on
    assert len(stem) == len(STEM) + 1 and rest.weights == (1.0, 1.0)
    same = Branch((1, 2, 3), (2, 3, 4), (0.0, 0.0, 0.0))                       # and an input
    assert group_pass.split_stem([same, same])[1][0].input_ids == (3,)


token = st.integers(0, VOCAB - 1)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(("qwen2", "qwen3", "qwen3_moe")), tied=st.booleans(), checkpointing=st.booleans(),
       stem=st.lists(token, max_size=9), max_tokens=st.integers(1, 40), branches=st.lists(
       st.lists(st.tuples(token, token, st.sampled_from((0.0, 1.0))), max_size=8), min_size=1, max_size=8))
def test_any_family_equals_plain_autograd(kind, tied, checkpointing, stem, max_tokens, branches):
    branches = [Branch(*zip(*[(0, 1, 1.0), *b])) for b in branches]            # each has a target
    model = tiny_qwen(kind, tie_word_embeddings=tied)
    _, expected = oracle(model, stem, branches)
    model.checkpointing = checkpointing
    assert_equal_gradients(ours(model, stem, branches, max_tokens=max_tokens), expected, floor=1.0)
