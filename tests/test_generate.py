"""Sampling: against transformers, against whole forward passes, and against itself in other company."""

import os
import random
from contextlib import contextmanager

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from nanoqwenlong import group_pass
from nanoqwenlong.attention import KVCache, Packed, Paged, attention
from nanoqwenlong.generate import Generator, draw, uniforms
from nanoqwenlong.kvcache import BlockPool, OutOfBlocks
from tiny_qwen import VOCAB, random_ids, tiny_qwen

PROMPTS = [random_ids(length, seed=length) for length in (1, 2, 5, 9, 9, 17)]
KEYS = ["a", "b", "c", "d", "e", "f"]
SETTINGS = dict(n=3, temperature=0.8, top_p=0.95, max_new_tokens=12, seed=7, eos_ids=range(0, VOCAB, 12))


@pytest.fixture(scope="module")
def model():
    return tiny_qwen()


def answers(groups) -> dict:
    return {(group.key, i): (c.ids, c.logprobs, c.finish_reason)
            for group in groups for i, c in enumerate(group.completions)}


@contextmanager
def rowwise_matmul():
    """A matrix product whose rows do not depend on how many there are. BLAS makes no such promise (MKL's float64 rows
    differ in the last bit between 1-3 rows and more), and bitwise claims here are about our code, not about BLAS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", lambda x, weight, bias=None: (x[:, None] * weight).sum(-1) + (
            0 if bias is None else bias))
        yield


@pytest.fixture
def rowwise():
    with rowwise_matmul():
        yield


@pytest.fixture(scope="module")
def expected(model):
    """What everything else must repeat bit by bit: each group sampled all alone."""
    found = {}
    with rowwise_matmul():
        for prompt, key in zip(PROMPTS, KEYS):
            found |= answers(Generator(model, 64, 16).sample([prompt], keys=[key], **SETTINGS))
    assert {reason for *_, reason in found.values()} == {"stop", "length"}
    assert len({ids for ids, *_ in found.values()}) > 0.9 * len(found)
    return found


# Against transformers

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_greedy_equals_transformers_token_by_token(kind, dtype, tmp_path):
    """4 x 290 tokens; a second pass of both with an end token that falls halfway."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM
    model = tiny_qwen(kind, dtype, seed=3)
    model.save_pretrained(tmp_path)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)

    def theirs(prompt, **options):
        ids = torch.tensor([prompt])
        out = hf.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **options)
        return tuple(out[0, len(prompt):].tolist())

    prompts = [random_ids(length, seed=length) for length in (1, 3, 8, 16, 33)]
    groups = Generator(model, 64, 4).sample(prompts, temperature=0, max_new_tokens=50)
    full = [theirs(prompt, max_new_tokens=50, eos_token_id=None) for prompt in prompts]
    assert [group.completions[0].ids for group in groups] == full
    assert sum(map(len, full)) == 250 and len({token for ids in full for token in ids}) > 10

    eos = full[1][8]
    stopped = Generator(model, 64, 4).sample(prompts, temperature=0, max_new_tokens=20, eos_ids=(eos,))
    for group, prompt in zip(stopped, prompts):
        answer = group.completions[0]
        assert answer.ids == theirs(prompt, max_new_tokens=20, eos_token_id=eos)
        assert answer.finish_reason == ("stop" if answer.ids[-1] == eos else "length")
    assert "stop" in {group.completions[0].finish_reason for group in stopped}


# Paged against contiguous

class Contiguous:
    """An `attend` that keeps each sequence's keys and values whole and asks for one sequence at a time."""

    def __init__(self):
        self.past = {}                                                         # (layer, row) -> k, v (length, K, D)

    def extend(self, layer, row, k, v):
        if (layer, row) in self.past:
            k, v = (torch.cat(pair) for pair in zip(self.past[layer, row], (k, v)))
        self.past[layer, row] = k, v
        return k, v

    def __call__(self, layer, q, k, v):
        out = []
        for row in range(len(q)):
            keys, values = self.extend(layer, row, k[row, None], v[row, None])
            out.append(attention(q[row, None, None], keys[None], values[None], causal=False)[0, 0])
        return torch.stack(out)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_paged_decoding_equals_contiguous_bit_by_bit(block_size, dtype):
    model, rng = tiny_qwen(dtype=dtype), random.Random(block_size)
    c, prompts = model.config, [random_ids(length, seed=length) for length in (1, 4, 4, 15, 16, 17)]
    pool = BlockPool(200, block_size)
    rng.shuffle(pool.free_blocks)
    cache = KVCache(c.num_hidden_layers, 200, block_size, c.num_key_value_heads, c.head_dim, dtype, model.device)
    contiguous, tables = Contiguous(), []
    for row, prompt in enumerate(prompts):
        tables.append(pool.allocate(len(prompt)))
        _, past = model(torch.tensor(prompt), torch.arange(len(prompt)), Packed([0, len(prompt)]))
        for layer, (k, v) in enumerate(past):
            cache.write(layer, cache.slots([tables[row]], len(prompt))[0], k, v)
            contiguous.extend(layer, row, k, v)
    lengths = [len(prompt) for prompt in prompts]
    for step in range(20):
        ids, positions = torch.tensor(random_ids(len(prompts), seed=100 + step)), torch.tensor(lengths)
        for table, length in zip(tables, lengths):
            assert pool.append(table, length) is None
        lengths = [length + 1 for length in lengths]
        ours, _ = model(ids, positions, Paged(cache, tables, lengths), head=F.linear)
        theirs, _ = model(ids, positions, contiguous, head=F.linear)
        assert torch.equal(ours, theirs)
        if step % 5 == 4:                                                      # give a table up and move: fragments
            row = rng.randrange(len(tables))
            moved = pool.allocate(lengths[row])
            cache.copy_blocks(list(zip(tables[row], moved)))
            pool.free(tables[row])
            tables[row] = moved


def test_a_block_read_before_it_was_written_would_show_as_nan(model, rowwise, expected):
    """Deterministic mode fills torch.empty with NaN, so any read of an unwritten slot poisons a log-prob."""
    torch.use_deterministic_algorithms(True)
    try:
        for seed in range(12):
            generator = Generator(model, 40 + 5 * seed, block_size=(1, 2, 3, 4, 7, 16)[seed % 6], prefill_tokens=10)
            assert generator.cache.keys.isnan().all() and generator.cache.values.isnan().all()
            random.Random(seed).shuffle(generator.pool.free_blocks)
            assert answers(generator.sample(PROMPTS, keys=KEYS, **SETTINGS)) == expected
    finally:
        torch.use_deterministic_algorithms(False)


# What an answer depends on (float64: tokens, log-probs and finish reason bit by bit)

@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 16, 64])
def test_answers_do_not_depend_on_the_block_size(model, rowwise, expected, block_size):
    assert answers(Generator(model, 600, block_size).sample(PROMPTS, keys=KEYS, **SETTINGS)) == expected


def test_answers_do_not_depend_on_the_other_prompts_or_their_order(model, rowwise, expected):
    generator, rng = Generator(model, 400, 4), random.Random(1)
    for size in (2, 3, 5, 6, 6):
        chosen = rng.sample(range(len(PROMPTS)), size)
        groups = generator.sample([PROMPTS[i] for i in chosen], keys=[KEYS[i] for i in chosen], **SETTINGS)
        assert [group.key for group in groups] == [KEYS[i] for i in chosen]
        assert answers(groups).items() <= expected.items()


def test_with_the_real_matrix_product_tokens_are_equal_and_logprobs_up_to_rounding(model, expected):
    for num_blocks in (9, 25, 400):
        found = answers(Generator(model, num_blocks, 4).sample(PROMPTS, keys=KEYS, **SETTINGS))
        for name, (ids, logprobs, reason) in expected.items():
            assert found[name][::2] == (ids, reason)
            assert max(abs(a - b) for a, b in zip(found[name][1], logprobs, strict=True)) <= 1e-12


def test_answers_do_not_depend_on_the_pool_size(model, rowwise, expected):
    """Every size from the smallest that holds one answer to one that holds all of them at once."""
    smallest = -(-(max(map(len, PROMPTS)) - 1 + SETTINGS["max_new_tokens"]) // 4)
    calls = []
    for num_blocks in (*range(smallest, 13), *range(15, 75, 7)):
        generator = Generator(model, num_blocks, 4)
        with pytest.MonkeyPatch.context() as patch:
            run = generator._run
            patch.setattr(generator, "_run", lambda *args: (calls.append(num_blocks), run(*args)))
            assert answers(generator.sample(PROMPTS, keys=KEYS, **SETTINGS)) == expected
        assert generator.pool.num_free == num_blocks
    assert calls.count(smallest) > 4 and calls.count(calls[-1]) == 1           # from many waves to one
    with pytest.raises(OutOfBlocks):
        Generator(model, smallest - 1, 4).sample(PROMPTS, keys=KEYS, **SETTINGS)


def test_answers_do_not_depend_on_how_the_prefill_is_packed(model, rowwise, expected):
    """A prompt longer than `prefill_tokens` goes alone, wherever it stands."""
    for prefill_tokens in (1, 10, 30):
        for order in (1, -1):
            generator = Generator(model, 200, 4, prefill_tokens=prefill_tokens)
            assert answers(generator.sample(PROMPTS[::order], keys=KEYS[::order], **SETTINGS)) == expected


def test_the_first_answers_of_a_bigger_group_are_those_of_a_smaller_one(model, rowwise, expected):
    bigger = answers(Generator(model, 400, 4).sample(PROMPTS, keys=KEYS, **{**SETTINGS, "n": 7}))
    assert expected.items() <= bigger.items()


def test_answers_depend_on_seed_and_key(model):
    generator = Generator(model, 200, 4)
    base = generator.sample(PROMPTS[2:3], keys=["a"], **SETTINGS)
    assert generator.sample(PROMPTS[2:3], keys=["a"], **SETTINGS) == base
    assert generator.sample(PROMPTS[2:3], keys=["b"], **SETTINGS)[0].completions != base[0].completions
    assert generator.sample(PROMPTS[2:3], keys=["a"], **{**SETTINGS, "seed": 6}) != base
    assert generator.sample(PROMPTS[2:3], keys=["a"], **{**SETTINGS, "seed": (5, 1)}) != base
    same = generator.sample([PROMPTS[2]] * 2, **SETTINGS)                      # keys not given: the position
    assert same[0].completions != same[1].completions and [g.key for g in same] == [0, 1]


# Blocks

def test_all_blocks_are_free_after_sampling_and_after_an_exception(model, rowwise, expected):
    generator, seen = Generator(model, 30, 4), []

    def interrupt(prompt, sample, token):
        seen.append(token)
        if len(seen) == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.sample(PROMPTS, keys=KEYS, on_token=interrupt, **SETTINGS)
    assert generator.pool.num_free == 30 and generator.pool.owners == [0] * 30
    assert answers(generator.sample(PROMPTS, keys=KEYS, **SETTINGS)) == expected
    assert generator.pool.num_free == 30 and sorted(generator.pool.free_blocks) == list(range(30))


def test_a_pool_that_is_too_small_is_refused_with_both_numbers_before_any_work(model, monkeypatch):
    def work(*_, **__):
        raise AssertionError("the model was called")
    monkeypatch.setattr(type(model), "forward", work)
    generator = Generator(model, 5, 4)
    with pytest.raises(OutOfBlocks, match=r"prompt of 9 tokens with 13 new tokens needs 6 blocks of 4.* has 5"):
        generator.sample([[1], random_ids(9)], max_new_tokens=13)
    assert generator.pool.num_free == 5


@pytest.mark.parametrize("wrong", [dict(n=0), dict(max_new_tokens=-1), dict(temperature=-0.1), dict(top_p=0.0),
                                   dict(top_p=1.1), dict(prompts=[[1], []])])
def test_unusable_arguments_are_refused(model, wrong):
    with pytest.raises(ValueError):
        Generator(model, 8, 4).sample(**{"prompts": [[1, 2]], **wrong})


# Small cases

def test_no_new_tokens_and_one(model):
    generator = Generator(model, 64, 4)
    for group in generator.sample(PROMPTS, n=2, max_new_tokens=0):
        assert [(c.ids, c.logprobs, c.finish_reason) for c in group.completions] == [((), (), "length")] * 2
    longer = generator.sample(PROMPTS, n=2, max_new_tokens=3)
    for one, three in zip(generator.sample(PROMPTS, n=2, max_new_tokens=1), longer):
        assert [c.ids for c in one.completions] == [c.ids[:1] for c in three.completions]
    assert generator.sample([]) == []


def test_an_end_token_right_away_ends_the_answer(model):
    (group,) = Generator(model, 64, 4).sample([PROMPTS[3]], n=4, max_new_tokens=9, eos_ids=range(VOCAB))
    assert all(len(c.ids) == len(c.logprobs) == 1 and c.finish_reason == "stop" for c in group.completions)


def test_an_end_token_as_the_last_allowed_one_counts_as_stop(model):
    (base,) = Generator(model, 64, 4).sample([PROMPTS[3]], max_new_tokens=6)
    ids = base.completions[0].ids
    assert ids[5] not in ids[:5]
    (group,) = Generator(model, 64, 4).sample([PROMPTS[3]], max_new_tokens=6, eos_ids=(ids[5],))
    assert group.completions[0].ids == ids and group.completions[0].finish_reason == "stop"


def test_on_token_sees_every_token_in_order(model):
    seen = {}
    groups = Generator(model, 40, 4).sample(PROMPTS, keys=KEYS, **SETTINGS,
                                            on_token=lambda p, i, token: seen.setdefault((p, i), []).append(token))
    assert seen == {(p, i): list(c.ids) for p, group in enumerate(groups) for i, c in enumerate(group.completions)}


# Log-probs

@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.9), (1.3, 0.3), (0, 1.0)])
@pytest.mark.parametrize("dtype, bar", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_logprobs_are_the_whole_vocabularys_and_the_trainers(kind, dtype, bar, temperature, top_p):
    """Against model.logits on the whole sequence, and against group_pass (the rollout gap), top_p or not."""
    model = tiny_qwen(kind, dtype, seed=1)
    groups = Generator(model, 200, 4).sample(PROMPTS, n=3, temperature=temperature, top_p=top_p, max_new_tokens=15)
    t = temperature or 1.0
    for group in groups:
        again = group_pass.logprobs(model, group.stem, group.branches, temperature=t)
        for answer, trainer in zip(group.completions, again):
            sampled = torch.tensor(answer.logprobs, dtype=torch.float64)
            with torch.no_grad():
                logits = model.logits(torch.tensor(group.prompt_ids + answer.ids))[len(group.prompt_ids) - 1:-1]
            oracle = (logits.double() / t).log_softmax(-1).gather(-1, torch.tensor(answer.ids)[:, None])[:, 0]
            assert (sampled - oracle).abs().max() <= bar
            assert (sampled - trainer.double()).abs().max() <= bar


# draw

def reference(logits, temperature, top_p):
    """Plain float64: sort, keep the smallest set of mass >= top_p, renormalise."""
    p = [float(x) for x in (logits.double() / temperature).softmax(-1)]
    kept, mass = [], 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if mass >= top_p:
            break
        kept.append(i)
        mass += p[i]
    return torch.tensor([p[i] / mass if i in kept else 0.0 for i in range(len(p))], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_draw_follows_the_distribution(temperature, top_p):
    """100,000 evenly spaced u: an inverse CDF hits every token within one of N p (chi-square could ask no more)."""
    N, logits = 100_000, torch.randn(20, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2
    logits[3] = -torch.inf
    ids, logprobs = draw(logits.expand(N, -1), (torch.arange(N, dtype=torch.float64) + 0.5) / N, temperature, top_p)
    p = reference(logits, temperature, top_p)
    counts = torch.bincount(ids, minlength=20)
    assert (counts - N * p).abs().max() <= 1.0
    assert counts[p == 0].sum() == 0
    assert (logprobs - (logits / temperature).log_softmax(-1)[ids]).abs().max() <= 1e-12


@torch.no_grad()
def test_the_sampler_as_a_whole_follows_the_distribution(model):
    """Chi-square of 20,000 first tokens, with the sampler's own random numbers."""
    N, prompt = 20_000, random_ids(4)
    (group,) = Generator(model, 2 * N, 1).sample([prompt], n=N, temperature=1.5, max_new_tokens=1)
    p = (model.logits(torch.tensor(prompt))[-1] / 1.5).softmax(-1)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in group.completions]), minlength=VOCAB)
    frequent = N * p >= 5
    seen = torch.cat([counts[frequent], counts[~frequent].sum()[None]]).double()
    want = torch.cat([N * p[frequent], N * p[~frequent].sum()[None]])
    statistic = ((seen - want).square() / want.clamp_min(1e-9)).sum()
    assert 1e-3 < torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2), statistic / 2) < 1 - 1e-3


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from((0.1, 1.0, 30.0, 300.0)), top_p=st.floats(1e-6, 1.0),
       temperature=st.floats(0.05, 3.0), masked=st.floats(0, 0.9))
def test_draw_never_returns_a_token_of_mass_zero(seed, spread, top_p, temperature, masked):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, 30, generator=generator, dtype=torch.float64) * spread
    hidden = torch.rand(8, 30, generator=generator) < masked
    hidden[:, 13] = False                                                      # something is left
    logits = torch.where(hidden, -torch.inf, logits)
    edges = torch.tensor([0.0, 1e-300, 0.5, 1 - 2**-53, 1 - 2**-52, 2**-53, 0.999, 0.1], dtype=torch.float64)
    ids, logprobs = draw(logits, edges, temperature, top_p)
    mass = (logits / temperature).softmax(-1)
    assert (mass.gather(-1, ids[:, None]) > 0).all() and logprobs.isfinite().all()
    higher = torch.where(mass > mass.gather(-1, ids[:, None]), mass, 0.0).sum(-1)
    assert (higher < top_p + 1e-12).all()                                      # inside the nucleus


def test_draw_at_the_edges():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).double()
    for top_p in (1.0, 0.99):
        at = [int(draw(logits, torch.tensor([u], dtype=torch.float64), 1.0, top_p)[0]) for u in (0.0, 1 - 2**-53)]
        assert at == [1, 3]
    assert int(draw(logits, torch.tensor([0.9]).double(), 1.0, 0.5)[0]) == 1    # ties: the first in the vocabulary
    ids, logprobs = draw(torch.tensor([[0.0, 3.0, 3.0]]), torch.tensor([0.99]).double(), 0, 1.0)
    assert ids.tolist() == [1] and logprobs.dtype == torch.float32             # greedy: no dice, the first of equals


def test_uniforms_are_a_function_of_the_three_names():
    one, again = uniforms(3, "a", 1), uniforms(3, "a", 1)
    first = [next(one) for _ in range(100)]
    assert first == [next(again) for _ in range(100)] and all(0 <= u < 1 for u in first)
    others = [uniforms(4, "a", 1), uniforms(3, "b", 1), uniforms(3, "a", 2), uniforms(3, 1, "a")]
    assert len({next(u) for u in others} | {first[0]}) == 5
