"""Sampling: against transformers, against whole forward passes, and against itself in other company."""

import copy
import importlib
import os
import random
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import hypothesis.strategies as st
import kernels
import plain_paged
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from kernels.flash import attention, part, part_plain
from plain_paged import Paged, PlainGenerator
from tiny_qwen import VOCAB, random_ids, tiny_qwen

from nanoqwenlong import generate, group_pass
from nanoqwenlong.attention import Packed
from nanoqwenlong.engine import paged
from nanoqwenlong.engine.cuda_step import Capacity, CudaDecoder, KernelPaged
from nanoqwenlong.engine.kvcache import BlockPool, blocks_for
from nanoqwenlong.engine.paged import KVCache, PastKeysValues, SharedPaged, TorchDecoder, by_prompt
from nanoqwenlong.engine.sampling import draw, uniforms
from nanoqwenlong.engine.schedule import Answer, Schedule, Stem
from nanoqwenlong.errors import OutOfBlocks, SamplingError
from nanoqwenlong.generate import Generator

PROMPTS = [random_ids(length, seed=length) for length in (1, 2, 5, 9, 9, 17)]
KEYS = ["a", "b", "c", "d", "e", "f"]
SETTINGS = dict(n=3, temperature=0.8, top_p=0.95, max_new_tokens=12, seed=7, eos_ids=range(0, VOCAB, 12))
BARS = {torch.float64: 1e-12, torch.float32: 1e-5}


def smallest_pool(block_size: int) -> int:
    return blocks_for(max(map(len, PROMPTS)) - 1 + SETTINGS["max_new_tokens"], block_size)


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


class Form:
    """One of the generator's forms and its promise. The plain one, with row-wise matrix products: the same bits. The
    shared forms (on a GPU with kernels, elsewhere without), as they are: the same tokens, log-probs up to rounding."""

    def __init__(self, model, shared: bool, kernels: bool = False):
        self.model, self.shared, self.kernels = model, shared, kernels

    def generator(self, *args, **options) -> Generator:
        kind = Generator if self.shared else PlainGenerator
        return kind(self.model, *args, kernels=self.kernels, **options)

    def check(self, groups, expected: dict, bar: float = 1e-12) -> None:
        for name, (ids, logprobs, reason) in answers(groups).items():
            assert (ids, reason) == expected[name][::2]
            if self.shared:
                assert max(abs(a - b) for a, b in zip(logprobs, expected[name][1], strict=True)) <= bar
            else:
                assert logprobs == expected[name][1]


@pytest.fixture(autouse=True)
def share_all_stems(monkeypatch):
    """The stems of these tests are too short to be worth it."""
    monkeypatch.setattr(paged, "WORTH_SHARING", 0)


@pytest.fixture(params=[True, False], ids=["shared", "plain"])
def form(request, model):
    with nullcontext() if request.param else rowwise_matmul():
        yield Form(model, shared=request.param)


@pytest.fixture(scope="module")
def expected(model):
    """What everything else must repeat: each group, bigger than SETTINGS has it, all alone, by the slow reference."""
    found = {}
    with rowwise_matmul():
        for prompt, key in zip(PROMPTS, KEYS):
            generator = PlainGenerator(model, 64, 16)
            found |= answers(generator.sample([prompt], keys=[key], **{**SETTINGS, "n": 8}))
    assert {reason for *_, reason in found.values()} == {"stop", "length"}
    assert len({len(ids) for ids, *_ in found.values()}) > 3
    long = [ids for ids, *_ in found.values() if len(ids) > 3]
    assert len(set(long)) == len(long) > 20
    return found


@contextmanager
def watched(model):
    """Counts what happens meanwhile: preempted answers, prompts whose stem is admitted, tokens in each model call."""
    seen = SimpleNamespace(preemptions=0, stems=[], prefills=[], decodes=[])
    preempt, admit = Schedule._preempt, Schedule.admit

    def watched_preempt(schedule):
        seen.preemptions += 1
        preempt(schedule)

    def watched_admit(schedule):
        new = admit(schedule)
        seen.stems += [stem.prompt for stem in new]
        return new

    def watched_forward(module, args, options):
        (seen.decodes if "head" in options else seen.prefills).append(len(args[0]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schedule, "_preempt", watched_preempt)
        patch.setattr(Schedule, "admit", watched_admit)
        with model.register_forward_pre_hook(watched_forward, with_kwargs=True):
            yield seen


# Against transformers

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind, changes", [
    ("qwen2", {}), ("qwen3", {}), ("llama", {"attention_bias": True}),
    ("llama", {"tie_word_embeddings": True, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256}})])
def test_greedy_equals_transformers_token_by_token(kind, changes, dtype, tmp_path):
    """4 x 540 tokens; then some again: by the slow reference, and in groups, in a narrow pool, up to an end token."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM
    model = tiny_qwen(kind, dtype, seed=3, **changes)
    model.save_pretrained(tmp_path)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)

    def theirs(prompts, max_new_tokens, eos=None):
        ids = torch.tensor(prompts)                                            # of equal length: nothing is padded
        out = hf.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                          max_new_tokens=max_new_tokens, eos_token_id=eos)[:, ids.shape[1]:].tolist()
        return [tuple(ids[:ids.index(eos) + 1] if eos in ids else ids) for ids in out]

    batches = [[random_ids(length, seed=10 * length + i) for i in range(4)] for length in (1, 8, 33)]
    prompts = [prompt for batch in batches for prompt in batch]
    full = [ids for batch in batches for ids in theirs(batch, 45)]
    groups = Generator(model, 300, 4).sample(prompts, temperature=0, max_new_tokens=45)
    assert [group.completions[0].ids for group in groups] == full
    assert sum(map(len, full)) == 540 and len({token for ids in full for token in ids}) > 10
    plain = PlainGenerator(model, 300, 4).sample(prompts[::3], temperature=0, max_new_tokens=20)
    assert [group.completions[0].ids for group in plain] == [ids[:20] for ids in full[::3]]

    eos = full[1][8]
    stopped = [ids for batch in batches for ids in theirs(batch, 12, eos)]
    with watched(model) as seen:
        groups = Generator(model, 25, 4).sample(prompts, n=3, temperature=0, max_new_tokens=12, eos_ids=(eos,))
    assert seen.preemptions > 0
    for group, ids in zip(groups, stopped, strict=True):
        assert {answer.ids for answer in group.completions} == {ids}
        assert {answer.finish_reason for answer in group.completions} == {"stop" if ids[-1] == eos else "length"}
    assert {group.completions[0].finish_reason for group in groups} == {"stop", "length"}


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


# Shared against plain

# A stem's length and its answers' tails: stems empty, on and off a block boundary, far into a large block
GROUPS = [(0, (1,)), (0, (3, 1, 20)), (16, (1,)), (16, (2, 2, 9, 1)), (19, (5, 1, 3)), (3, (4, 4)), (550, (7, 1))]


@pytest.mark.parametrize("blocks, copied", [([2, 3, 4], []), ([4, 0, 3], [1, 2])])
def test_a_scattered_past_is_copied_a_layer_at_a_time(blocks, copied, monkeypatch):
    cache, read, reads = KVCache(3, 5, 4, 2, 8, torch.float32, torch.device("cpu")), KVCache.read, []
    cache.keys.normal_(), cache.values.normal_()
    monkeypatch.setattr(KVCache, "read", lambda self, layer, slots: (reads.append(layer), read(self, layer, slots))[1])
    past = PastKeysValues(cache, [*blocks, 1], 10)
    assert reads == [] and len(past) == 3
    slots = [4 * blocks[place // 4] + place % 4 for place in range(10)]
    for layer in (1, 2):
        for found, held in zip(past[layer], (cache.keys, cache.values), strict=True):
            assert torch.equal(found, held[layer, :, slots].transpose(0, 1))
    assert reads == copied


@torch.no_grad()
@pytest.mark.parametrize("block_size", [1, 4, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_shared_decoding_equals_the_slow_reference_and_whole_sequences(kind, dtype, block_size, monkeypatch):
    """Three steps, each form in a cache of its own, where all that was not written is NaN. Blocks of 4 follow one
    another, so that stems are read where they lie; the others are scattered."""
    model = tiny_qwen(kind, dtype, seed=2)
    c, num_blocks = model.config, 1200 if block_size == 1 else 300
    pool = BlockPool(num_blocks, block_size)
    if block_size != 4:
        random.Random(block_size).shuffle(pool.free_blocks)
    cache = KVCache(c.num_hidden_layers, num_blocks, block_size, c.num_key_value_heads, c.head_dim, dtype, model.device)
    cache.keys.fill_(torch.nan), cache.values.fill_(torch.nan)
    monkeypatch.setattr(paged, "WORTH_SHARING", 0)
    running, tables, sequences = [], [], []

    def place(table, position):
        pair = pool.append(table, position)
        cache.copy_blocks([pair] if pair else [])

    def write(table, ids, start):
        _, past = model(torch.tensor(ids), torch.arange(len(ids)), Packed([0, len(ids)]))
        for layer, (k, v) in enumerate(past):
            cache.write(layer, cache.slots([table], len(ids))[0, start:], k[start:], v[start:])

    for prompt, (stem_length, tails) in enumerate(GROUPS):
        stem, stem_table = random_ids(stem_length, seed=len(tables)), pool.allocate(stem_length)
        if stem:
            write(stem_table, stem, 0)
        cached_stem = Stem(prompt, stem, stem_table)
        for sample, tail_length in enumerate(tails):
            tables.append(pool.fork(stem_table))
            sequences.append(stem + random_ids(tail_length, seed=100 + len(tables)))
            for position in range(stem_length, len(sequences[-1])):
                place(tables[-1], position)
            if len(sequences[-1]) > 1:
                write(tables[-1], sequences[-1][:-1], stem_length)
            running.append(Answer(prompt, sample, sequences[-1], table=tables[-1], stem=cached_stem))
    plain_cache, kernel_cache = copy.deepcopy(cache), copy.deepcopy(cache)
    kernel_paged = KernelPaged(kernel_cache, Capacity.of(by_prompt(running), block_size))
    for step in range(3):
        lengths = [len(sequence) for sequence in sequences]
        ids, positions = torch.tensor([sequence[-1] for sequence in sequences]), torch.tensor(lengths) - 1
        shared = SharedPaged(cache, running)
        assert shared.ids.equal(ids) and shared.positions.equal(positions)
        ours, _ = model(ids, positions, shared, head=F.linear)
        theirs, _ = model(ids, positions, Paged(plain_cache, tables, lengths), head=F.linear)
        kernel_paged.load(by_prompt(running))
        padded, _ = model(kernel_paged.ids, kernel_paged.positions, kernel_paged, head=F.linear)
        assert (padded[:len(ids)] - theirs).abs().max() <= BARS[dtype]
        whole = torch.stack([model.logits(torch.tensor(sequence))[-1] for sequence in sequences])
        assert (ours - theirs).abs().max() <= BARS[dtype] and (ours - whole).abs().max() <= BARS[dtype]
        for table, sequence in zip(tables, sequences):
            sequence += random_ids(1, seed=step + len(sequence))
            assert pool.append(table, len(sequence) - 1) is None


def test_a_capacity_holds_its_groups_in_powers_of_two():
    groups = [[Answer(prompt, sample, range(stem_length + 90), stem=Stem(prompt, range(stem_length), []))
               for sample in range(size)] for prompt, (stem_length, size) in enumerate([(5000, 4), (16, 5), (0, 4)])]
    assert Capacity.of(groups, 16) == Capacity(answers=16, groups=4, group_size=8, stem_tokens=8192, tail_tokens=256)
    assert Capacity.of(groups[2:], 16) == Capacity(answers=8, groups=1, group_size=4, stem_tokens=256, tail_tokens=256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_part_may_start_far_into_a_long_row(dtype):
    """Torch's kernel goes through the keys in pieces; here the mask leaves nothing of the first one, or of the last."""
    generator = torch.Generator().manual_seed(0)
    for start, end in ((600, 650), (999, 1000), (512, 513), (3, 10), (0, 1)):
        q, k, v = (torch.randn(2, n, heads, 8, generator=generator, dtype=dtype)
                   for n, heads in ((1, 4), (1000, 2), (1000, 2)))
        mask = torch.full((2, 1, 1, 1000), -torch.inf, dtype=dtype)
        mask[..., start:end] = 0
        for parts in zip(part(q, k, v, mask=mask), part_plain(q, k, v, mask=mask),
                         part_plain(q, k[:, start:end], v[:, start:end]), strict=True):
            assert all((parts[0] - other).abs().max() <= BARS[dtype] for other in parts[1:])


@torch.no_grad()
def test_the_kernel_itself_decodes_the_same_tokens(monkeypatch):
    """Triton instead of the torch reference that a CPU takes: interpreted without a GPU."""
    paged_attention = pytest.importorskip("triton") and importlib.import_module("kernels.paged_attention")
    model, prompts = tiny_qwen(dtype=torch.float32), [random_ids(9), random_ids(1)]
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    settings = dict(n=3, max_new_tokens=2, seed=1)
    plain = answers(PlainGenerator(model, 40, 4).sample(prompts, **settings))
    calls, launch = [], paged_attention.paged_attention_triton
    for name in ("paged_attention_plain", "paged_attention_triton"):
        monkeypatch.setattr(paged_attention, name, lambda *args: calls.append(1) or launch(*args))
    Form(model, shared=True).check(Generator(model, 40, 4, kernels=True).sample(prompts, **settings), plain, 1e-5)
    assert len(calls) == 2 * model.config.num_hidden_layers


def test_each_rollout_chooses_whether_to_decode_with_kernels(model, monkeypatch):
    """As if a GPU were there. PLAIN may change between two rollouts of one Generator; float64 has no kernels."""
    decoders = []
    for kind in (CudaDecoder, TorchDecoder):
        monkeypatch.setattr(kind, "logits", lambda self, running, logits=kind.logits: (
            decoders.append(type(self)), logits(self, running))[1])
    monkeypatch.setattr(generate, "use_triton", lambda device: not kernels.PLAIN)
    generator = Generator(tiny_qwen(dtype=torch.float32), 40, 4)
    for plain in (False, True, False):
        monkeypatch.setattr(kernels, "PLAIN", plain)
        generator.sample(PROMPTS[:1], max_new_tokens=1)
    Generator(model, 40, 4).sample(PROMPTS[:1], max_new_tokens=1)
    assert decoders == [CudaDecoder, TorchDecoder, CudaDecoder, TorchDecoder]


# Slots that were never written

@pytest.fixture
def nan_filled():
    """Deterministic mode fills torch.empty with NaN, so any read of an unwritten slot poisons a log-prob."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_no_schedule_reads_a_slot_before_it_was_written(model, form, expected, nan_filled):
    check_random_schedules(model, form, expected)


def test_nor_does_one_with_kernels(model, expected, nan_filled):
    check_random_schedules(model, Form(model, shared=True, kernels=True), expected)


def check_random_schedules(model, form, expected):
    preemptions = 0
    for seed in range(10):
        rng = random.Random(seed)
        block_size, chosen = rng.choice((1, 2, 3, 4, 16)), rng.sample(range(len(PROMPTS)), rng.randint(2, 6))
        generator = form.generator(smallest_pool(block_size) + rng.choice((0, 1, 3, 10, 100)), block_size,
                                   prefill_tokens=rng.choice((1, 4, 10, 30)))
        assert KVCache(1, 1, 4, 1, 4, torch.float64, torch.device("cpu")).keys.isnan().all()
        rng.shuffle(generator.pool.free_blocks)
        with watched(model) as seen:
            groups = generator.sample([PROMPTS[i] for i in chosen], keys=[KEYS[i] for i in chosen],
                                      **{**SETTINGS, "n": rng.choice((2, 8))})
        form.check(groups, expected)
        preemptions += seen.preemptions
    assert preemptions > 10


def one_slot_further(attend):
    if isinstance(attend, SharedPaged):
        attend.tails = [(rows, slots + 1, mask) for rows, slots, mask in attend.tails]
    else:
        attend.slots = [slots + 1 for slots in attend.slots]


def behind_the_mask(attend):
    last = attend.cache.keys.shape[2] - 1
    attend.tails = [(rows, slots.masked_fill(mask[:, 0, 0] < 0, last), mask) for rows, slots, mask in attend.tails]


@pytest.mark.parametrize("module, name, overread", [(paged, "SharedPaged", one_slot_further),
                                                    (paged, "SharedPaged", behind_the_mask),
                                                    (plain_paged, "Paged", one_slot_further)])
def test_such_a_read_would_show(model, monkeypatch, nan_filled, module, name, overread):
    class Overreading(getattr(module, name)):
        def __init__(self, *args):
            super().__init__(*args)
            overread(self)

    generator = (Generator if module is paged else PlainGenerator)(model, 100, 4)
    generator.sample(PROMPTS, **SETTINGS)
    monkeypatch.setattr(module, name, Overreading)
    with pytest.raises(SamplingError, match="NaN"):
        generator.sample(PROMPTS, **SETTINGS)
    assert generator.pool.num_free == 100


# What an answer depends on (float64; see Form)

@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 16, 64])
def test_answers_do_not_depend_on_the_block_size(form, expected, block_size):
    form.check(form.generator(600, block_size).sample(PROMPTS, keys=KEYS, **SETTINGS), expected)


def test_answers_do_not_depend_on_the_other_prompts_or_their_order(form, expected):
    generator, rng = form.generator(60, 4), random.Random(1)
    for size in (2, 3, 5, 6, 6):
        chosen = rng.sample(range(len(PROMPTS)), size)
        groups = generator.sample([PROMPTS[i] for i in chosen], keys=[KEYS[i] for i in chosen], **SETTINGS)
        assert [group.key for group in groups] == [KEYS[i] for i in chosen]
        form.check(groups, expected)


def test_with_the_real_matrix_product_plain_tokens_are_equal_and_logprobs_up_to_rounding(model, expected):
    for num_blocks in (9, 25, 400):
        groups = PlainGenerator(model, num_blocks, 4).sample(PROMPTS, keys=KEYS, **SETTINGS)
        Form(model, shared=True).check(groups, expected)


def test_answers_do_not_depend_on_the_pool_size(model, form, expected):
    """Every size from the smallest that holds one answer to one that holds all of them however long they get. With
    room for all, each stem goes through the model once, and each step decodes all that have not ended."""
    prompts, keys = zip(*[(PROMPTS[i], KEYS[i]) for i in (1, 3, 4)])
    block_size, n, steps, preemptions = 3, 5, [], []
    longest = [blocks_for(len(prompt) - 1 + SETTINGS["max_new_tokens"], block_size) for prompt in prompts]
    shared = [(len(prompt) - 1) // block_size for prompt in prompts]
    ample = sum(s + n * (l - s) for s, l in zip(shared, longest)) + len(prompts)
    for num_blocks in range(max(longest), ample + 1):
        generator = form.generator(num_blocks, block_size)
        with watched(model) as seen:
            form.check(generator.sample(prompts, keys=keys, **{**SETTINGS, "n": n}), expected)
        assert generator.pool.num_free == num_blocks and set(seen.stems) == set(range(len(prompts)))
        steps.append(len(seen.decodes))
        preemptions.append(seen.preemptions)
    assert sum(map(bool, preemptions)) >= 8 and steps[0] > 3 * steps[-1]
    assert seen.preemptions == 0 and seen.stems == list(range(len(prompts)))
    assert seen.prefills == [sum(len(prompt) - 1 for prompt in prompts)]
    lengths = [len(expected[key, i][0]) for key in keys for i in range(n)]
    assert seen.decodes == [sum(length > step for length in lengths) for step in range(max(lengths))]
    with pytest.raises(OutOfBlocks):
        form.generator(max(longest) - 1, block_size).sample(prompts, **SETTINGS)


def test_answers_do_not_depend_on_how_the_prefill_is_packed(model, form, expected):
    """Chunks of one token, chunks of a few, several prompts at once; also what a preempted answer computes again."""
    for prefill_tokens in (1, 7, 30):
        for order, num_blocks in ((-1, 200), (1, smallest_pool(2))):
            generator = form.generator(num_blocks, 2, prefill_tokens=prefill_tokens)
            with watched(model) as seen:
                form.check(generator.sample(PROMPTS[::order], keys=KEYS[::order], **SETTINGS), expected)
            assert max(seen.prefills) <= prefill_tokens and (seen.preemptions > 0) == (num_blocks < 200)


@pytest.mark.parametrize("worth_sharing", [20, 10**9])
def test_a_stem_that_is_not_worth_it_is_read_with_the_tails(model, expected, monkeypatch, worth_sharing):
    """All of them, or those of the shorter prompts beside others that are shared."""
    calls, shared_paged = [], SharedPaged.__init__
    monkeypatch.setattr(SharedPaged, "__init__", lambda self, *args: (
        shared_paged(self, *args), calls.append({bool(stem) for stem, _ in self.stems}))[0])
    monkeypatch.setattr(paged, "WORTH_SHARING", worth_sharing)
    Form(model, shared=True).check(Generator(model, 200, 4).sample(PROMPTS, keys=KEYS, **SETTINGS), expected)
    assert calls[0] == ({False} if worth_sharing > 20 else {False, True})


def test_the_first_answers_of_a_bigger_group_are_those_of_a_smaller_one(form, expected):
    bigger = answers(form.generator(400, 4).sample(PROMPTS, keys=KEYS, **{**SETTINGS, "n": 7}))
    assert len(bigger) == 7 * len(PROMPTS)
    form.check(form.generator(400, 4).sample(PROMPTS, keys=KEYS, **SETTINGS), bigger)
    form.check(form.generator(400, 4).sample(PROMPTS, keys=KEYS, **{**SETTINGS, "n": 1}), expected)


def test_answers_depend_on_seed_and_key(model):
    generator = Generator(model, 200, 4)
    base = generator.sample(PROMPTS[2:3], keys=["a"], **SETTINGS)
    assert generator.sample(PROMPTS[2:3], keys=["a"], **SETTINGS) == base
    assert generator.sample(PROMPTS[2:3], keys=["b"], **SETTINGS)[0].completions != base[0].completions
    assert generator.sample(PROMPTS[2:3], keys=["a"], **{**SETTINGS, "seed": 6}) != base
    assert generator.sample(PROMPTS[2:3], keys=["a"], **{**SETTINGS, "seed": (5, 1)}) != base
    same = generator.sample([PROMPTS[2]] * 2, **SETTINGS)                      # keys not given: the position
    assert same[0].completions != same[1].completions and [g.key for g in same] == [0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
def test_answers_are_those_of_the_weights_as_they_are_now(dtype, tied):
    """Nothing that a rollout computes from the weights outlives it: an update in place counts in the next one."""
    model = tiny_qwen(dtype=dtype, tie_word_embeddings=tied)
    generator = Generator(model, 200, 4)
    before = generator.sample(PROMPTS, **SETTINGS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    after = generator.sample(PROMPTS, **SETTINGS)
    assert after != before and after == Generator(copy.deepcopy(model), 200, 4).sample(PROMPTS, **SETTINGS)


# Blocks

@pytest.mark.parametrize("num_blocks", [14, 200])
def test_all_blocks_are_free_after_sampling_and_after_an_exception(form, expected, num_blocks):
    """Interrupted at the first token, at the last one of a step (18 run in the larger pool), and at others."""
    generator = form.generator(num_blocks, 2)
    for tokens in (1, 2, 18, 40, 80):
        seen = []

        def interrupt(prompt, sample, token):
            seen.append(token)
            if len(seen) == tokens:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            generator.sample(PROMPTS, keys=KEYS, on_token=interrupt, **SETTINGS)
        assert generator.pool.num_free == num_blocks and generator.pool.owners == [0] * num_blocks
    form.check(generator.sample(PROMPTS, keys=KEYS, **SETTINGS), expected)
    assert sorted(generator.pool.free_blocks) == list(range(num_blocks))


def test_a_pool_that_is_too_small_is_refused_with_both_numbers_before_any_work(model, monkeypatch):
    def work(*_, **__):
        raise AssertionError("the model was called")
    monkeypatch.setattr(type(model), "forward", work)
    generator = Generator(model, 5, 4)
    with pytest.raises(OutOfBlocks, match="9 prompt tokens and 13 new tokens need 6 blocks of 4.* has 5"):
        generator.sample([[1], random_ids(9)], max_new_tokens=13)
    assert generator.pool.num_free == 5


@pytest.mark.parametrize("wrong", [dict(n=0), dict(max_new_tokens=-1), dict(temperature=-0.1), dict(top_p=0.0),
                                   dict(top_p=1.1), dict(prompts=[[1], []])])
def test_unusable_arguments_are_refused(model, wrong):
    with pytest.raises(ValueError):
        Generator(model, 8, 4).sample(**{"prompts": [[1, 2]], **wrong})


# Small cases

def test_no_new_tokens_and_one(model, form):
    generator = form.generator(20, 4)
    with watched(model) as seen:
        for group in generator.sample(PROMPTS, n=2, max_new_tokens=0):
            assert [(c.ids, c.logprobs, c.finish_reason) for c in group.completions] == [((), (), "length")] * 2
    assert not seen.prefills and not seen.decodes
    longer = generator.sample(PROMPTS, n=2, max_new_tokens=3)
    for one, three in zip(generator.sample(PROMPTS, n=2, max_new_tokens=1), longer, strict=True):
        assert [c.ids for c in one.completions] == [c.ids[:1] for c in three.completions]
        assert [c.finish_reason for c in one.completions] == ["length"] * 2
    assert generator.sample([]) == []


def test_an_end_token_right_away_ends_the_answer(form):
    """In the narrow pool too, where each answer makes room for the next."""
    for num_blocks in (5, 64):
        for group in form.generator(num_blocks, 4).sample(PROMPTS[2:5], n=4, max_new_tokens=9, eos_ids=range(VOCAB)):
            assert all(len(c.ids) == len(c.logprobs) == 1 and c.finish_reason == "stop" for c in group.completions)


def test_an_end_token_as_the_last_allowed_one_counts_as_stop(model):
    (base,) = Generator(model, 64, 4).sample([PROMPTS[3]], max_new_tokens=6)
    ids = base.completions[0].ids
    assert ids[5] not in ids[:5]
    (group,) = Generator(model, 64, 4).sample([PROMPTS[3]], max_new_tokens=6, eos_ids=(ids[5],))
    assert group.completions[0].ids == ids and group.completions[0].finish_reason == "stop"


def test_on_token_sees_every_token_once_and_in_order(model):
    """Preempted answers as well: what is computed again is not sampled again."""
    seen = {}
    with watched(model) as events:
        groups = Generator(model, 14, 2).sample(
            PROMPTS, **SETTINGS, on_token=lambda p, i, token: seen.setdefault((p, i), []).append(token))
    assert events.preemptions > 0
    assert seen == {(p, i): list(c.ids) for p, group in enumerate(groups) for i, c in enumerate(group.completions)}


# Log-probs

@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.9), (1.3, 0.3), (0, 1.0)])
@pytest.mark.parametrize("dtype, bar", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_logprobs_are_the_whole_vocabularys_and_the_trainers(kind, dtype, bar, temperature, top_p):
    """Against model.logits on the whole sequence, and against group_pass (the rollout gap), top_p or not."""
    model = tiny_qwen(kind, dtype, seed=1)
    groups = Generator(model, 200, 4).sample(PROMPTS, n=3, temperature=temperature, top_p=top_p, max_new_tokens=10)
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
