"""How much memory and time a step of train_rl.py will take, computed before it runs (docs/planning.md).

L layers, C hidden size, I intermediate size of an MLP or expert, H query and K key heads of width D, Q = H D, KV = K D,
V vocabulary, E experts of which a token meets k, P tokens of a stem, G answers of R tokens, T tokens of a micro-batch,
b bytes of a number in the dtype of the computation, w bytes of a weight."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import combinations
from typing import Literal, NamedTuple

from ..engine.kvcache import blocks_for
from ..ops.settings import fixed
from ..pretrained.config import ModelConfig

BLOCK_SIZE = 16                         # tokens of a block of the KV cache
GATHERED = 2                            # layers whose whole weights FSDP2 holds: the one that runs and the next one
GAPS = 0.1                              # of the tensors' bytes on a CPU: free memory between them, and the tokenizer
PROMPT_BYTES = 8                        # of CPU memory for a token of a prompt: its id, and about 4 letters of text
BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}
ITEMS = ("weights", "gradients", "optimizer", "reference", "other weights", "KV pool", "stem activations",
         "stem keys, values", "their gradients", "branch activations", "layer at work", "head")
PHASES = {"at rest": ("at rest",), "rollout": ("prefill", "decode"), "update": ("head", "branches", "stem"),
          "optimizer": ("optimizer",)}


@dataclass(frozen=True)
class Settings:
    max_prompt_tokens: int = fixed(60000, least=2)  # tokens of every prompt
    max_new_tokens: int = fixed(10000, least=1)  # tokens of every answer
    num_examples: int = fixed(2000, least=1)  # in the data. Every process keeps all of them in CPU memory
    prompts_per_step: int = fixed(16, least=1)
    group_size: int = fixed(8, least=1)
    updates_per_step: int = fixed(1, least=1)
    max_tokens: int = fixed(16384, least=1)
    kv_blocks: int = fixed(8192, least=1)
    checkpointing: bool = False
    offload: bool = False
    old_logprobs: Literal["rollout", "recompute"] = "rollout"
    kl_coef: float = 0.0                # with this or --measure-kl the starting model is kept
    measure_kl: bool = False
    top_p: float = 1.0                  # below 1 the sampler sorts
    gpus: int = fixed(8, least=1)       # GPUs of a node, over which a model is split
    nodes: int = fixed(1, least=1)      # each holds a whole model
    device: Literal["cuda", "cpu"] = "cuda"
    dtype: Literal["bfloat16", "float32", "float64"] = "bfloat16"  # what the model computes in


@dataclass(frozen=True, kw_only=True)
class Job(Settings):
    model: ModelConfig

    @cached_property
    def numbers(self) -> "Numbers":
        return Numbers(self)


class Numbers:
    """What the formulas use: the letters above, and more."""

    def __init__(self, job: Job):
        # 1) The model. layers: their parameters. products: those that a token is multiplied by. root: the others
        c = job.model
        self.C, self.L, self.V, self.D = c.hidden_size, c.num_hidden_layers, c.vocab_size, c.head_dim
        self.H, self.K, self.E = c.num_attention_heads, c.num_key_value_heads, c.num_experts
        self.Q, self.KV, self.k, self.qk_norm = self.H * self.D, self.K * self.D, c.num_experts_per_tok, c.qk_norm
        self.mixtures = [c.is_mixture(layer) for layer in range(self.L)]
        self.mixture = any(self.mixtures)
        self.I = c.moe_intermediate_size if self.mixture else c.intermediate_size
        attention = 2 * self.C * (self.Q + self.KV)
        vectors = c.qkv_bias * (self.Q + 2 * self.KV) + c.o_bias * self.C + c.qk_norm * 2 * self.D + 2 * self.C
        mlp, router, self.expert = 3 * self.C * c.intermediate_size, self.E * self.C, 3 * self.C * self.I
        self.products = [attention + (router + self.k * self.expert if mixture else mlp) for mixture in self.mixtures]
        self.layers = [met + vectors + (self.E - self.k) * self.expert * mixture
                       for met, mixture in zip(self.products, self.mixtures)]
        self.root = self.V * self.C * (1 if c.tie_word_embeddings else 2) + self.C
        self.total = sum(self.layers) + self.root
        # 2) The machine. w is also the size of a gradient, and of each of the optimizer's two numbers
        self.b, self.w = BYTES[job.dtype], max(4, BYTES[job.dtype])
        self.on_gpu, self.ranks = job.device == "cuda", job.gpus * job.nodes
        self.sharded = self.ranks > 1 or job.offload           # as parallel.shard decides
        self.copied = self.b != self.w and not self.sharded    # as parallel.compute_in decides
        self.norm = 1 if self.on_gpu else 2 * self.w / self.b  # kept of its input: on a CPU wide, and normalised too
        # 3) The step, on the rank with most groups
        self.P, self.R, self.G = job.max_prompt_tokens - 1, job.max_new_tokens, job.group_size
        self.groups = -(-job.prompts_per_step // self.ranks)
        self.answers = min(self.G, max(1, job.max_tokens // self.R))           # of a micro-batch
        self.T, self.microbatches = self.answers * self.R, -(-self.G // self.answers)
        self.needed_blocks = blocks_for(self.P + self.R, BLOCK_SIZE)           # for one answer
        tails = self.G * (blocks_for(self.R, BLOCK_SIZE) + 1)
        used = self.groups * (blocks_for(self.P, BLOCK_SIZE) + tails)          # by all answers at once
        self.blocks = job.kv_blocks + 1 if self.on_gpu else min(job.kv_blocks, used) + 1           # that take memory
        whole, rest = divmod(job.kv_blocks * BLOCK_SIZE, self.P + self.G * self.R // 2)
        part = min(self.G, max(0, (rest - self.P) * 2 // self.R))
        self.decoding = max(1, min(self.groups * self.G, whole * self.G + part))       # at once, at half their length


def kept(job: Job, mixture: bool, stem: bool) -> float:
    """Bytes per token that autograd keeps of a layer for its backward pass, if it is not checkpointed."""
    n = job.numbers
    norms = 2 * (1 + n.norm) * n.C + n.qk_norm * n.norm * (n.Q + n.KV)
    attention = 3 * n.Q if stem else 2 * n.Q + 2 * n.KV        # a stem is put together: its output twice
    experts = n.k * (n.C + 5 * n.I) * n.b + (n.E + 3 * n.k) * n.w + 3 * 8 * n.k
    mlp = experts if mixture else 4 * job.model.intermediate_size * n.b
    return (norms + attention) * n.b + (n.H + 2) * n.w + mlp


def at_work(job: Job, tokens: int, stem: int) -> float:
    """Bytes while the backward pass is in a layer, beside what was kept: `tokens` tokens after a stem of `stem`."""
    n = job.numbers
    again = tokens * (kept(job, n.mixture, not stem) - n.C * n.b) if job.checkpointing else 0
    I, matrix = (n.k * n.I, n.E * n.C * n.I) if n.mixture else (n.I, n.C * n.I)
    mlp = tokens * (n.C + 2 * I + n.k * n.C * n.mixture) + matrix
    keys = max(tokens, stem)
    attention = tokens * (n.C + 3 * n.Q) + 4 * keys * n.KV
    if n.on_gpu:               # flash-attention: gradients of queries also in float32, of keys for each query head
        attention = tokens * n.Q * (2 + 4 / n.b) + 2 * keys * (n.KV + n.Q * (n.H > n.K))
    attention -= tokens * 4 * I                                # the MLP's part is gone by then
    return again + max(mlp, attention) * n.b + n.sharded * max(n.layers) * n.w         # gradients between ranks


def moments(job: Job) -> dict[str, dict[str, float]]:
    """{moment: {item: bytes}} on one GPU. The backward pass of an update is in the head, the branches, or the stem."""
    n, share = job.numbers, job.numbers.total / job.gpus * (not job.offload)
    rest = {"weights": share * n.w, "optimizer": 2 * share * n.w,
            "reference": share * n.b * bool(job.kl_coef or job.measure_kl),
            "other weights": n.total * n.b * n.copied}
    rollout = rest | {"other weights": n.total * n.b * (n.sharded or n.copied),
                      "KV pool": 2 * n.L * n.KV * n.blocks * BLOCK_SIZE * n.b}
    update = rest | {"gradients": share * n.w}
    # prefill: keys and values, which go into the pool at the end of a pass, and a layer's MLP or attention
    tokens = max(1, min(n.P, job.max_tokens))
    tokens *= max(1, min(n.groups, job.max_tokens // tokens))  # short prompts go together
    mlp = 4 * n.C + (n.k * (2 * n.C + 3 * n.I) if n.mixture else 3 * n.I)
    merging = 4 + 3 * n.w / n.b if n.P >= 2 * job.max_tokens else 0            # a long prompt goes in pieces
    attention = 2 * n.C + max((4 + n.qk_norm) * n.Q, merging * n.Q, (5 + n.qk_norm) * n.KV)
    prefill = {"stem keys, values": tokens * 2 * n.KV * (n.L - 1) * n.b,
               "layer at work": tokens * max(mlp, attention) * n.b}
    # decode: logits and log-probs in float32, probabilities and sums in float64, twice as many if they are sorted
    decode = {"head": n.decoding * n.V * (40 if job.top_p < 1 else 24)}
    # update: the stem's last layer makes keys and values only, so nothing else is kept
    branches, stems = ([n.C * n.b if job.checkpointing else kept(job, mixture, stem) for mixture in n.mixtures]
                       for stem in (False, True))
    stem, tables = sum(stems[:-1]), 2 * n.D * n.b + 8          # of a token: its layers; cos, sin, id
    pairs = 2 * n.KV * n.b * n.P * n.L                         # keys and values of the stem
    layers = update | ({"other weights": (n.root + GATHERED * max(n.layers)) * n.b} if n.sharded else {})
    family = layers | {"stem keys, values": pairs, "stem activations": n.P * (stem + (1 + n.norm) * n.C * n.b + tables),
                       "their gradients": pairs * (n.microbatches > 1)}
    # 1) In the head: a block of logits, and the gradients of the head's weights and of its input.
    from kernels.logprob import IN_CACHE, block_sizes          # imported here: it imports torch
    positions, words = block_sizes(n.T, n.V, n.on_gpu)
    logits = positions * words
    piece = 0 if n.on_gpu else min(logits, IN_CACHE)           # the reference holds two or three of them
    chunk = (logits + min(logits, 2 * piece) + max(n.V * n.C, piece) + n.T * n.C) * n.w
    chunk += (logits + n.V * n.C) * n.b * (n.b != n.w) * n.on_gpu
    head = family | {"head": chunk, "branch activations": n.T * (sum(branches) + (1 + n.norm) * n.C * n.b + tables)}
    # 2) In the branches: the last layer has all activations, the first one all gradients of keys and values.
    last = family | {"layer at work": at_work(job, n.T, n.P), "head": n.V * n.C * n.b * (n.sharded or n.copied),
                     "branch activations": n.T * (sum(branches) + tables)}
    first = last | {"branch activations": n.T * (branches[0] + tables),
                    "their gradients": max(family["their gradients"], pairs * (1 - 1 / n.L))}
    # 3) In the last whole layer of the stem. Attention's keys and values are the stem's.
    again = pairs / n.L if job.checkpointing else pairs * (1 - 1 / n.L)
    whole = layers | {"stem activations": n.P * (stem + tables), "their gradients": pairs,
                      "stem keys, values": again, "layer at work": at_work(job, n.P, 0)}
    return {"at rest": rest, "prefill": rollout | prefill, "decode": rollout | decode, "head": head,
            "branches": max(first, last, key=lambda items: sum(items.values())), "stem": whole,
            "optimizer": update}


def peaks(job: Job) -> dict[str, float]:
    """{phase: bytes} on one GPU: the largest of its moments."""
    totals = {name: sum(items.values()) for name, items in moments(job).items()}
    return {phase: max(totals[name] for name in names) for phase, names in PHASES.items()}


class Work(NamedTuple):
    products: float                     # operations of matrix products on one GPU
    attention: float                    # operations of attention
    bytes: float = 0                    # read from memory


H200 = Work(products=790e12, attention=400e12, bytes=4.3e12)   # per second. Attention: assumed


def work(job: Job) -> dict[str, Work]:
    """{phase: Work} of a step, on the GPU with most groups."""
    n, N = job.numbers, job.group_size * job.max_new_tokens
    body = 2 * sum(n.products[:-1]) * n.P                      # a stem's last layer makes keys and values only
    stem, branches, head = body + 4 * n.C * n.KV * n.P, 2 * sum(n.products) * N, 2 * n.V * n.C * N
    stem_pairs, pairs = 4 * n.Q * (n.L - 1) * n.P**2 / 2, 4 * n.Q * n.L * (n.P * N + N * n.R / 2)
    numbers_read = n.R * -(-n.groups * n.G // n.decoding) * weights_read(job)
    numbers_read += n.groups * (n.P * n.R + N * n.R / 2) * 2 * n.KV * n.L
    groups = job.updates_per_step * -(-job.prompts_per_step // (job.updates_per_step * n.ranks))
    later = groups - groups // job.updates_per_step            # groups after the first update
    phases = {"prefill": Work(n.groups * stem, n.groups * stem_pairs),
              "decode": Work(n.groups * (branches + head), n.groups * pairs, numbers_read * n.b)}
    if job.old_logprobs == "recompute" and later:
        phases["old log-probs"] = Work(later * (stem + branches + head), later * (stem_pairs + pairs))
    # Backward costs 2 times a forward pass in products, 2.5 times in attention. The head computes its logits again.
    # Checkpointing runs the layers forward once more.
    products = 3 * (stem + branches) + job.checkpointing * (body + branches) + 4 * head
    return phases | {"update": Work(groups * products, groups * (3.5 + job.checkpointing) * (stem_pairs + pairs))}


def weights_read(job: Job) -> float:
    """Parameters that a decoding step reads. (1 - k / E)^answers of the experts are chosen by no answer."""
    n = job.numbers
    unchosen = n.E * (1 - n.k / n.E) ** n.decoding if n.E else 0
    return sum(n.layers) + n.V * n.C - sum(n.mixtures) * unchosen * n.expert


def seconds(job: Job, rates: Work = H200) -> dict[str, float]:
    """{phase: seconds} at these rates. A lower bound: communication, Python, judge and optimizer are left out."""
    return {phase: max(w.products / rates.products + w.attention / rates.attention, w.bytes / rates.bytes)
            for phase, w in work(job).items()}


def fits(job: Job, room: float) -> bool:
    """Whether every phase stays within `room` bytes, and the KV cache holds one answer."""
    return job.kv_blocks >= job.numbers.needed_blocks and max(peaks(job).values()) <= room


def options(job: Job) -> dict[str, list]:
    """{setting: other values}, from the mildest change to the strongest. Prompts keep at least a quarter."""
    P, needed = job.max_prompt_tokens, job.numbers.needed_blocks
    blocks = [round(job.kv_blocks * 0.9 ** n) for n in range(1, 60)]
    return {"max_prompt_tokens": [*range((P - 1) // 1000 * 1000, P // 4, -1000 * max(1, P // 10**6))],
            "gpus": [gpus for gpus in (2, 4, 8) if gpus > job.gpus],
            "offload": [True] * (job.device == "cuda" and not job.offload),
            "checkpointing": [True] * (not job.checkpointing),
            "max_tokens": [job.max_tokens >> n for n in range(1, 20) if job.max_tokens >> n >= 512],
            "kv_blocks": [n for n in blocks if n > needed] + [needed] * (job.kv_blocks != needed)}


def advice(job: Job, room: float) -> list[Job]:
    """Jobs that fit, with as few settings changed as possible. Shorter prompts, another task, come last."""
    names = [] if fits(job, room) else [name for name, values in options(job).items() if values]
    for count in range(1, len(names) + 1):
        changed = [change(job, room, some) for some in combinations(names, count)]
        if any(changed):
            return [other for other in reversed(changed) if other]
    return []


def change(job: Job, room: float, names: tuple[str, ...]) -> Job | None:
    """The job with these settings changed as far as it must be to fit, the first ones least. None if it cannot fit."""
    for place, name in enumerate(names, start=1):
        for value in options(job)[name]:
            other = replace(job, **{name: value})
            last = {later: value for later in names[place:] for value in options(other)[later][-1:]}
            if fits(replace(other, **last), room):
                break
        else:
            return None
        job = other
    return job


def of_run(cfg, model: ModelConfig, prompts: int, prompt: int, bytes: int, ranks: int, replicas: int) -> Job:
    """The job of a run with settings `cfg` (train_rl.Config): at most `prompts` prompts a step of at most `prompt`
    tokens, computed in numbers of `bytes` bytes by `ranks` processes on `replicas` nodes. All answers are longest."""
    settings = {field.name: getattr(cfg, field.name) for field in fields(Settings) if hasattr(cfg, field.name)}
    settings |= dict(max_prompt_tokens=prompt, prompts_per_step=prompts, gpus=ranks // replicas, nodes=replicas,
                     device=cfg.device.partition(":")[0], dtype={2: "bfloat16", 4: "float32", 8: "float64"}[bytes])
    return Job(model=model, **settings)


def words(job: Job) -> str:
    """The plan in one line. On a CPU with what a process takes beside its tensors."""
    n, prompts, sizes = job.numbers, job.prompts_per_step, peaks(job)
    largest = max(sizes, key=sizes.get)
    size = sizes[largest] * (1 if n.on_gpu else 1 + GAPS)
    return (f"plan: a step has {prompts:,} prompts of up to {n.P + 1:,} tokens, {prompts * job.group_size:,} answers "
            f"of up to {n.R:,}; up to {size / 1e9:.3g} GB on each {'GPU' if n.on_gpu else 'process'} "
            f"({largest})")
