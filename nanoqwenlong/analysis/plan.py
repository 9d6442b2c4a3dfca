"""What a step will take, before it is made: bytes of each GPU, moment by moment, operations, seconds.

Arithmetic only; nothing is run, and no weight is read. A `Job` says what is planned, `moments` adds up the tensors that
live at once, `work` counts the operations, `advice` turns the knobs of what does not fit and plans again.
docs/planning.md has the formulas in words, and what was measured against them.

Legend: L layers, C hidden size, I intermediate size of an MLP, H query heads, K key-value heads, D head width, V
vocabulary, E experts of which k answer, P tokens of a stem, T tokens of a micro-batch of branches, R of one answer, G
answers of a group, b bytes of a number that is computed with. A byte count is of tensors: what the allocator, the
libraries and the CUDA context take comes on top.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from itertools import accumulate, combinations
from typing import NamedTuple

from kernels.logprob import CHUNK_LOGITS, IN_CACHE

from ..engine.kvcache import blocks_for
from ..pretrained.config import ModelConfig

ITEMS = ("weights", "gradients", "optimizer", "reference", "gathered weights", "KV pool", "stem activations",
         "stem keys, values", "their gradients", "branch activations", "layer at work", "head")
GATHERED = 2                    # layers whose whole weights FSDP2 holds at once: the one that runs, and the next


@dataclass(frozen=True)
class Job:
    """One step of train_rl.py, as planned; the names are its flags."""

    model: ModelConfig
    prompts_per_step: int = 16
    group_size: int = 8
    prompt: int = 60000                 # tokens of every prompt
    answer: int = 10000                 # tokens of every answer
    updates_per_step: int = 1
    max_tokens: int = 16384
    kv_blocks: int = 8192
    block_size: int = 16
    checkpointing: bool = False
    offload: bool = False
    recompute: bool = False             # --old-logprobs recompute
    reference: bool = False             # a starting model is kept: --kl-coef or --measure-kl
    cut: bool = False                   # --top-p below 1: the sampler sorts
    ranks: int = 1
    replicas: int = 1                   # nodes, each of which holds a whole model
    bytes: int = 4                      # of a number that is computed with: 2 in bfloat16
    weight_bytes: int = 4               # of a weight, a gradient, each of the optimizer's two numbers
    gpu: bool = False                   # fused norms, flash-attention, Triton; else torch's kernels for a CPU

    @property
    def sharded(self) -> bool:
        """Whether parallel.shard splits the model: everywhere but in a lone process that computes in its weights'
        dtype."""
        return self.ranks > 1 or self.bytes != self.weight_bytes or self.offload

    @property
    def norms(self) -> int:
        """How many rows a norm keeps beside the one it gives: what it is given, and on a CPU that in between."""
        return 1 if self.gpu else 2

    @property
    def shards(self) -> int:
        return self.ranks // self.replicas

    @property
    def stem(self) -> int:
        return self.prompt - 1

    @property
    def groups(self) -> int:
        """Of a step, on the rank that has most."""
        return -(-self.prompts_per_step // self.ranks)

    @property
    def microbatch(self) -> tuple[int, int, int]:
        """Answers and tokens of one, and how many they are: group_pass.microbatches."""
        answers = min(self.group_size, max(1, self.max_tokens // self.answer))
        return answers, answers * self.answer, -(-self.group_size // answers)

    @property
    def chunk(self) -> tuple[int, int]:
        """Rows of logits that the head holds, and how often it fills them for a micro-batch: kernels/logprob.py."""
        tokens = self.microbatch[1]
        pieces = -(-tokens // max(1, CHUNK_LOGITS // self.model.vocab_size))
        return -(-tokens // pieces), pieces

    @property
    def kv_tokens(self) -> int:
        return self.kv_blocks * self.block_size

    @property
    def needed_blocks(self) -> int:
        """Of the cache, for one answer alone: Generator.require."""
        return blocks_for(self.prompt - 1 + self.answer, self.block_size)

    @property
    def decoding(self) -> int:
        """Answers that decode at once: all of the rank's, if the pool has room for their prompts and half of their
        length, else as many as it has room for."""
        answers, room = self.groups * self.group_size, self.kv_tokens
        group = self.prompt + self.group_size * self.answer // 2
        whole, rest = divmod(room, group)
        part = max(0, (rest - self.prompt) * 2 // self.answer)
        return max(1, min(answers, whole * self.group_size + min(part, self.group_size)))

    @cached_property
    def size(self) -> "Size":
        return Size(self.model)


class Size:
    """Numbers of a model that all formulas use.

    layers       parameters of each layer           C (Q + 2 K D) + Q C + biases + norms + its MLP, Q = H D
    root         of what is outside of the layers   V C, twice if the head is not tied to it, and a norm
    products     of each layer: parameters that a token is multiplied by; of E experts it meets k
    """

    def __init__(self, c: ModelConfig):
        self.C, self.L, self.V, self.D = c.hidden_size, c.num_hidden_layers, c.vocab_size, c.head_dim
        self.H, self.K = c.num_attention_heads, c.num_key_value_heads
        self.Q, self.KV, self.qk_norm = self.H * self.D, self.K * self.D, c.qk_norm
        attention = self.C * (self.Q + 2 * self.KV) + self.Q * self.C
        vectors = c.qkv_bias * (self.Q + 2 * self.KV) + c.o_bias * self.C + c.qk_norm * 2 * self.D + 2 * self.C
        self.mixtures = [c.is_mixture(layer) for layer in range(self.L)]
        self.E, self.k = c.num_experts, c.num_experts_per_tok
        self.I, self.expert = c.intermediate_size, c.moe_intermediate_size
        mlp, expert = 3 * self.C * self.I, 3 * self.C * self.expert
        self.layers = [attention + vectors + (self.E * (self.C + expert) if mixture else mlp)
                       for mixture in self.mixtures]
        self.products = [attention + (self.E * self.C + self.k * expert if mixture else mlp)
                         for mixture in self.mixtures]
        self.keys_values = 2 * self.C * self.KV                                # all that a stem's last layer multiplies
        self.root = self.V * self.C * (1 if c.tie_word_embeddings else 2) + self.C
        self.total = sum(self.layers) + self.root


# Memory: what one layer keeps, and what it takes while it runs

def kept(job: Job, mixture: bool, stem: bool) -> float:
    """Bytes per token that autograd keeps of a layer for its backward pass, keys and values apart.

    A norm keeps its input and its output, on a CPU what it normalised as well; queries and keys that are normed are
    kept from before. Then the queries, the output of attention and its log-sum-exp; that of a stem twice, since it is
    put together from sequences. Of the MLP: gate, silu(gate), up, and their product."""
    s, norms, wide = job.size, job.norms, max(4, job.bytes)
    numbers = 2 * (1 + norms) * s.C + s.qk_norm * norms * (s.Q + s.KV) + s.Q * (3 if stem else 2)
    statistics = s.H + 2 + s.qk_norm * (s.H + s.K)
    return numbers * job.bytes + statistics * wide + mlp_kept(job, mixture)


def mlp_kept(job: Job, mixture: bool) -> float:
    """The MLP's part of it. Dense: gate, silu(gate), up, their product: 4 I. Mixture, of each of the k experts: the row
    that it is given, C; gate and up, silu(gate), their product, that times its share, 5 I; the share; 3 indices. Of
    the router: the probabilities, E, and the k highest before and after they are made to add up to 1."""
    s, b, wide = job.size, job.bytes, max(4, job.bytes)
    if not mixture:
        return 4 * s.I * b
    return s.k * (s.C + 5 * s.expert + 1) * b + (s.E + 2 * s.k + 1) * wide + 3 * 8 * s.k


def at_work(job: Job, mixture: bool, tokens: int, stem: int) -> float:
    """Bytes beside what is kept, at most, while the backward pass is in a layer: `tokens` tokens, behind a stem of
    `stem` (0: of the stem itself). First in the MLP, beside the gradient of its output, C per token; W stands for the
    gradient of a matrix, which is soon added to what there is, but under FSDP stays until the layer is done.

    dense      I + W; or, of the product of two, three times I, with one of the kept ones gone
    mixture    per expert of a token: the output's gradient in two orders, 2 C; C + I + W; three times I, with one of
               the kept ones gone; C - 3 I + 2 W, when only the rows are left of what was kept

    Then in attention, when what the MLP kept is gone: `attention_at_work`."""
    s, b, T, stays = job.size, job.bytes, tokens, job.sharded
    if mixture:
        C, I, W = T * s.k * s.C, T * s.k * s.expert, s.E * s.C * s.expert
        mlp = max(2 * C, C + I + W, 2 * I + stays * W, C - 3 * I + (2 + stays) * W)
    else:
        W = s.C * s.I
        mlp = max(T * s.I + W, 2 * T * s.I + stays * W)
    attention = attention_at_work(job, tokens, stem) + stays * 3 * W
    return T * s.C * b + max(mlp * b, attention * b - T * mlp_kept(job, mixture))


def attention_at_work(job: Job, tokens: int, stem: int) -> float:
    """Numbers (of b bytes) in the backward pass of attention: the gradient of its output, Q; then

    GPU, flash-attention: the queries' gradient, once more in float32; the keys' and values', for every query head first
    if heads share them.
    CPU, the stem: gradients of queries, keys, values.
    CPU, branches: first the part that is the stem's: the queries' gradient in two layouts and the stem's keys' and
    values', per layer, twice; or the part that is their own: keys and values repeated for all query heads, and five
    gradients as wide as the queries."""
    s = job.size
    if job.gpu:
        keys = max(tokens, stem)
        return tokens * s.Q * (2 + 4 / job.bytes) + 2 * keys * (s.KV + (s.Q if s.H > s.K else 0))
    if not stem:
        return 2 * tokens * s.Q + 2 * tokens * s.KV
    return tokens * s.Q + max(2 * tokens * s.Q + 4 * stem * s.KV,
                              6 * tokens * s.Q + 2 * tokens * s.KV + 2 * stem * s.KV)


def norm_at_work(job: Job) -> float:
    """Bytes per token of a norm's backward pass beside its input and its gradient's sum: three on a CPU."""
    return (1 if job.gpu else 3) * job.size.C * job.bytes


# Memory: moment by moment

def moments(job: Job) -> dict[str, dict[str, float]]:
    """{moment: {item: bytes}} of one GPU: at rest; in a rollout while a prompt is prefilled and while answers decode;
    in an update while the backward pass is in the head, in the branches, in the stem, and (FSDP) while the gradients
    of what is outside of the layers are summed over the ranks; in the optimizer's step.

    Gradients are counted as if others had come before: of the first group of an update fewer are there."""
    s, b, w = job.size, job.bytes, job.weight_bytes
    share = s.total / job.shards * (not job.offload)
    rest = {"weights": share * w, "optimizer": 2 * share * w,
            "reference": job.reference * s.total / job.shards * b * (not job.offload)}
    found = {"at rest": rest}
    rollout = rest | {"gathered weights": s.total * b * job.sharded,
                      "KV pool": 2 * s.L * s.KV * (job.kv_tokens + job.block_size) * b}
    found["prefill"] = rollout | prefill(job)
    found["decode"] = rollout | decode(job)
    for name, items in update(job):
        if name == "reduce" and not job.sharded:
            continue
        items = rest | {"gradients": share * w} | items
        if sum(items.values()) > sum(found.get(name, {}).values()):
            found[name] = items
    found["optimizer"] = rest | {"gradients": share * w, "layer at work": share * w}          # the roots of variances
    return found


def prefill(job: Job) -> dict[str, float]:
    """T prompt tokens in one pass, without gradient. Keys and values of all layers but the last, which go into the pool
    at the end. Of the layer that runs, the largest of:

    dense MLP    four rows of C; silu(gate), up and their product
    mixture      four rows of C; of each of the k experts C + 4 I, or 2 C + 3 I
    attention    two rows of C; what rotates the queries, 4 Q (5 if they are normed); or, of a prompt in several pieces,
                 its two parts and their merging: 4 Q, and 3 Q in float32 at least
    last layer   two rows of C; what rotates the keys, and values, 5 K D (6 if keys are normed)"""
    s, b = job.size, job.bytes
    pieces = job.stem >= 2 * job.max_tokens                                    # else the second one is small
    tokens = min(job.stem, job.max_tokens)
    tokens *= max(1, min(job.groups, job.max_tokens // max(1, tokens)))        # short prompts go together
    mlp = s.k * max(s.C + 4 * s.expert, 2 * s.C + 3 * s.expert) if any(s.mixtures) else 3 * s.I
    attention = max(4 + s.qk_norm, (4 + 3 * max(4, b) / b) * pieces) * s.Q
    keys = (5 + s.qk_norm) * s.KV
    return {"stem keys, values": tokens * 2 * s.KV * (s.L - 1) * b,
            "layer at work": tokens * (max(4 * s.C + mlp, 2 * s.C + max(attention, keys)) * b + 2 * s.D * b + 16)}


def decode(job: Job) -> dict[str, float]:
    """S answers' next tokens: logits and log-probs in float32, and probabilities in float64 twice; four times if they
    are sorted. On a CPU, before that, the answers' own keys and values of one layer, copied out of their blocks."""
    s = job.size
    head = job.decoding * s.V * (4 + 4 + (32 if job.cut else 16))
    tails = 0 if job.gpu else job.decoding * (job.answer + job.stem % job.block_size) * (2 * s.KV * job.bytes + 8)
    return {"head": head} if head > tails else {"layer at work": tails}


def update(job: Job) -> Iterator[tuple[str, dict[str, float]]]:
    """The moments of an update, each possibly several times; the largest of a name counts.

    Of a checkpointed layer its input is kept, C per token, and while the backward pass is in it all that it keeps
    otherwise. The stem's keys and values lie beside that until its own backward pass; attention keeps the same ones if
    nothing is checkpointed. A stem's last layer computes keys and values only."""
    s, b, P = job.size, job.bytes, job.stem
    _, T, count = job.microbatch
    tables = 2 * s.D * b + 8                                                   # of a token: cos, sin, its id
    whole = {"gathered weights": (s.root + GATHERED * max(s.layers)) * b * job.sharded}
    norms = job.norms

    @cache
    def run(mixture: bool, stem: bool) -> tuple[float, float]:
        """What a layer keeps per token until its backward pass, and what that begins with making again."""
        full = kept(job, mixture, stem) + (0 if stem else 2 * s.KV * b)
        again = full + (2 * s.KV * b if stem else 0) - s.C * b
        return (s.C * b, again) if job.checkpointing else (full, 0)

    last = (1 + norms) * s.C * b + 4 + s.qk_norm * (norms * s.KV * b + 4 * s.K)
    stems = [run(mixture, True) for mixture in s.mixtures[:-1]]
    stem = {"stem activations": P * (sum(kept for kept, _ in stems) + last + tables)}
    pairs = 2 * P * s.KV * b                                                   # a layer's keys and values
    family = whole | stem | {"stem keys, values": pairs * s.L, "their gradients": pairs * s.L * (count > 1)}

    # the head
    branches = [run(mixture, False) for mixture in s.mixtures]
    final = T * (1 + norms) * s.C * b                                          # its norm, and the rows it is given
    rows, pieces = job.chunk
    wide, logits = max(4, b), rows * s.V
    piece = 0 if job.gpu else min(logits, max(1, IN_CACHE // s.V) * s.V)       # that the twin of the kernels works on,
    following = min(piece, logits - piece)                                     # while it still has the one before
    forward = (logits + 2 * piece + following) * wide + T * s.C * b
    backward = (logits + s.V * s.C + T * s.C + piece + following) * wide + (
        0 if b == wide else (logits + s.V * s.C) * b)
    activations = T * (sum(kept for kept, _ in branches) + tables)
    yield "head", family | {"branch activations": activations + final, "head": max(forward, backward)}

    # the branches, from their last layer down: activations go, gradients of keys and values come
    parts = list(accumulate((T * kept for kept, _ in branches), initial=T * tables))
    work = {mixture: at_work(job, mixture, T, P) for mixture in set(s.mixtures)}
    for layer in reversed(range(s.L)):
        items = family | {"their gradients": pairs * (s.L if count > 1 else s.L - 1 - layer),
                          "head": s.V * s.C * b * job.sharded}
        before = summed(job, s.layers[layer + 1]) if layer + 1 < s.L else 0
        yield "branches", items | {"branch activations": parts[layer + 1], "layer at work": (
            T * branches[layer][1] + work[s.mixtures[layer]] + before)}
        yield "branches", items | {"branch activations": parts[layer], "layer at work": (
            T * s.C * b + summed(job, s.layers[layer], b))}
    yield "reduce", family | {"their gradients": pairs * s.L, "gathered weights": 0,
                              "layer at work": summed(job, s.root, b)}

    # the stem, from its last layer down
    gone = whole | {"their gradients": pairs * s.L}
    kv = 0 if job.checkpointing else pairs
    yield "stem", gone | stem | {"stem keys, values": kv * (s.L - 1), "layer at work": P * norm_at_work(job)}
    parts = list(accumulate((P * kept for kept, _ in stems), initial=P * tables))
    work = {mixture: at_work(job, mixture, P, 0) for mixture in set(s.mixtures)}
    for layer in reversed(range(s.L - 1)):
        before = summed(job, s.layers[layer + 1] if layer + 2 < s.L else s.keys_values)
        yield "stem", gone | {
            "stem activations": parts[layer + 1], "stem keys, values": kv * (layer + 1),
            "layer at work": P * stems[layer][1] + work[s.mixtures[layer]] + before}
        yield "stem", gone | {
            "stem activations": parts[layer], "stem keys, values": kv * layer,
            "layer at work": P * s.C * b + summed(job, s.layers[layer], b)}


def summed(job: Job, parameters: int, own: int = 0) -> float:
    """FSDP: gradients on their way to be summed over the ranks, in the weights' dtype, until those of the layer below
    are; beside these themselves, of `own` bytes each, at first."""
    return parameters * (job.weight_bytes + own) * job.sharded


PHASES = {"at rest": ("at rest",), "rollout": ("prefill", "decode"), "update": ("head", "branches", "reduce", "stem"),
          "optimizer": ("optimizer",)}


def peaks(job: Job) -> dict[str, float]:
    """{phase: bytes} of one GPU: the largest of its moments."""
    totals = {name: sum(items.values()) for name, items in moments(job).items()}
    return {phase: max(totals.get(name, 0) for name in names) for phase, names in PHASES.items()}


# Operations and seconds

class Work(NamedTuple):
    """What one GPU does: operations of matrix products and of attention, bytes that it must read."""

    products: float
    attention: float
    bytes: float = 0


class Rates(NamedTuple):
    """Of one GPU, per second. An H200's: bfloat16 products and copies as measured, attention assumed."""

    products: float = 790e12
    attention: float = 400e12
    bytes: float = 4.3e12


def work(job: Job) -> dict[str, Work]:
    """{phase: Work} of a step, on the GPU that has most groups. A are the parameters that a token is multiplied by, N =
    G R the tokens of a group's answers; a pair is a token and one that it attends to, and costs 4 H D operations in a
    layer. Of a group, that goes through the model once:

    prefill          2 A P, its last layer keys and values only; P^2 / 2 pairs
    decode           2 (A + V C) N; G P R + G R^2 / 2 pairs. Each step reads the weights (of a mixture those that
                     somebody chose) and, of every group, keys and values of P + G t tokens, t being made already
    old log-probs    2 A (P + N) + 2 V C N, and both kinds of pairs; of all minibatches but the first
    update           three times that, and the logits a second time but for their last chunk; with checkpointing the
                     layers (not the stem's last) a fourth time. Pairs: 3.5 times forward, with checkpointing 4.5
    """
    s, P, G, R, c = job.size, job.stem, job.group_size, job.answer, job.checkpointing
    N, head, pieces = G * R, s.V * s.C, job.chunk[1]
    body, whole = sum(s.products[:-1]), sum(s.products)
    stem_pairs, pairs = 4 * s.Q * (s.L - 1) * P * P / 2, 4 * s.Q * s.L * (G * P * R + G * R * R / 2)
    stem, branches = 2 * (body + s.keys_values) * P, 2 * whole * N
    steps, of_pool = R * -(-job.groups * G // job.decoding), 2 * s.KV * s.L * job.bytes
    read = steps * (weights_read(job) * job.bytes) + job.groups * (P * R + G * R * R / 2) * of_pool
    updates = job.updates_per_step * -(-job.prompts_per_step // (job.updates_per_step * job.ranks))       # groups
    first = updates // job.updates_per_step
    found = {"prefill": Work(job.groups * stem, job.groups * stem_pairs),
             "decode": Work(job.groups * (branches + 2 * head * N), job.groups * pairs, read)}
    if job.recompute and job.updates_per_step > 1:
        found["old log-probs"] = Work((updates - first) * (stem + branches + 2 * head * N),
                                      (updates - first) * (stem_pairs + pairs))
    layers = 3 * (stem + branches) + c * (2 * body * P + branches)
    found["update"] = Work(updates * (layers + (6 + 2 * (pieces - 1) / pieces) * head * N),
                           updates * (3.5 + c) * (stem_pairs + pairs))
    return found


def weights_read(job: Job) -> float:
    """Parameters that a decoding step of S answers reads. Of E experts, k of them drawn by each answer alike, 1 - (1 -
    k / E)^S are chosen by somebody."""
    s = job.size
    chosen = s.E * (1 - (1 - s.k / s.E) ** job.decoding) if s.E else 0
    unchosen = sum(s.mixtures) * (s.E - chosen) * 3 * s.C * s.expert
    return sum(s.layers) + s.V * s.C - unchosen


def seconds(job: Job, rates: Rates = Rates()) -> dict[str, float]:
    """{phase: seconds} of a step at these rates, products and attention one after the other; decoding takes the longer
    of that and its reading. A floor: what ranks send each other, launches, Python, the judge and the optimizer are not
    in it."""
    return {phase: max(w.products / rates.products + w.attention / rates.attention, w.bytes / rates.bytes)
            for phase, w in work(job).items()}


# What to change

def fits(job: Job, memory: float) -> bool:
    """Whether each phase stays within `memory` bytes, and the KV cache holds one answer."""
    return job.kv_blocks >= job.needed_blocks and max(peaks(job).values()) <= memory


def knobs(job: Job) -> dict[str, list[dict]]:
    """What can be turned, each from the mildest change to the strongest. More GPUs help within a node, over which a
    model is split; several nodes hold one each. Prompts are shortened to a quarter at most."""
    blocks = [round(job.kv_blocks * 0.9 ** n) for n in range(1, 60)]
    return {"prompt": [{"prompt": n} for n in range((job.prompt - 1) // 1000 * 1000, job.prompt // 4,
                                                   -1000 * max(1, job.prompt // 10**6))],
            "ranks": [{"ranks": n * job.replicas} for n in (2, 4, 8) if n > job.shards],
            "offload": [{"offload": True}] * (job.gpu and not job.offload),
            "checkpointing": [{"checkpointing": True}] * (not job.checkpointing),
            "max_tokens": [{"max_tokens": job.max_tokens >> n} for n in range(1, 20) if job.max_tokens >> n >= 512],
            "kv_blocks": [{"kv_blocks": n} for n in blocks if n > job.needed_blocks] + [
                {"kv_blocks": job.needed_blocks}] * (job.kv_blocks != job.needed_blocks)}


def advice(job: Job, memory: float) -> list[Job]:
    """Jobs that fit, with as few knobs turned as it takes; none if the job fits, or nothing helps."""
    names = list(knobs(job))
    for count in range(1, len(names) + 1) if not fits(job, memory) else ():
        found = [turned for some in combinations(names, count) if (turned := turn(job, memory, *some))]
        if found:
            return found[::-1]                                 # those that change what is learned come last
    return []


def turn(job: Job, memory: float, *names: str) -> Job | None:
    """The job with these knobs turned until it fits, the first no further than it must with the others' help, and so
    on; None if it does not. What is returned has been planned."""
    if not names:
        return job if fits(job, memory) else None
    changes, others = knobs(job)[names[0]], names[1:]
    turned = [turn(replace(job, **changes[-1]), memory, *others)] if changes else [None]
    low, high = 0, len(changes) - 1                            # bisection: the last one fits, if any does
    while turned[-1] and low < high:
        middle = (low + high) // 2
        tried = turn(replace(job, **changes[middle]), memory, *others)
        if tried:
            turned.append(tried)
        low, high = (low, middle) if tried else (middle + 1, high)
    return turned[-1]


def changed(job: Job, other: Job) -> str:
    """The flags that lead from one to the other: train_rl.py's, and --gpus of tools/plan.py."""
    words = []
    for field in fields(job):
        value = getattr(other, field.name)
        if value != getattr(job, field.name):
            words.append({"ranks": f"--gpus {value // other.replicas}", "prompt": f"--max-prompt-tokens {value}"}.get(
                field.name, f"--{field.name.replace('_', '-')}" + ("" if value is True else f" {value}")))
    return ", ".join(words)


# What train_rl.py says before its first step

def of_run(cfg, model: ModelConfig, prompts: int, prompt: int, bytes: int, ranks: int, replicas: int) -> Job:
    """The job of a run: its settings (train_rl.Config), its model, how many prompts a step has at most and how long the
    longest is, how wide it computes, and where. Every answer is taken to be as long as it may be."""
    same = {field.name: getattr(cfg, field.name) for field in fields(Job) if hasattr(cfg, field.name)}
    return Job(**(same | dict(
        model=model, prompts_per_step=prompts, prompt=prompt, answer=cfg.max_new_tokens,
        recompute=cfg.old_logprobs == "recompute",
        reference=bool(cfg.kl_coef or cfg.measure_kl), cut=cfg.top_p < 1, ranks=ranks, replicas=replicas, bytes=bytes,
        weight_bytes=max(4, bytes), gpu=cfg.device.startswith("cuda"))))


def words(job: Job) -> str:
    """Derived numbers, as lines."""
    answers, tokens, count = job.microbatch
    at = {phase: gigabytes(value) for phase, value in peaks(job).items()}
    prompts, G = job.prompts_per_step, job.group_size
    size = f"{job.size.total / 1e9:.2f} billion" if job.size.total > 1e8 else f"{job.size.total / 1e6:.2f} million"
    return "\n".join([
        f"plan: {size} parameters; a step has {prompts:,} prompts of at most {job.prompt:,} tokens and "
        f"{prompts * G:,} answers of at most {job.answer:,}: {prompts * job.prompt:,} and "
        f"{prompts * G * job.answer:,} tokens",
        f"plan: an update has {-(-prompts // job.updates_per_step)} prompts on {counted(job.ranks, 'process')}; of "
        f"each the stem, then {counted(count, 'micro-batch')} of {counted(answers, 'answer')}, {tokens:,} tokens",
        f"plan: the KV cache has {job.kv_blocks:,} blocks, {job.kv_tokens:,} tokens, "
        f"{gigabytes(moments(job)['decode']['KV pool'])}: room for {counted(job.decoding, 'answer')} at once",
        f"plan: tensors of a {'GPU' if job.gpu else 'process'}: {at['at rest']} at rest; at most {at['rollout']} in a "
        f"rollout, {at['update']} in an update, {at['optimizer']} in the optimizer's step"])


def counted(number: int, thing: str) -> str:
    """
    >>> counted(1, "process"), counted(2000, "micro-batch"), counted(8, "answer")
    ('1 process', '2,000 micro-batches', '8 answers')
    """
    return f"{number:,} {thing}" + ("" if number == 1 else "es" if thing[-1] in "sh" else "s")


def gigabytes(value: float) -> str:
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
