"""What the sections of bench/gpu.py share: processes, rows that are sent at once, clocks, random models."""

import gc
import multiprocessing
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from nanoqwenlong.engine.cuda_step import Capacity, KernelPaged
from nanoqwenlong.engine.kvcache import blocks_for
from nanoqwenlong.engine.paged import KVCache
from nanoqwenlong.engine.schedule import Answer, Stem
from nanoqwenlong.model import Qwen
from nanoqwenlong.pretrained import weights
from nanoqwenlong.pretrained.config import ModelConfig

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32
BLOCK_SIZE = 16


class Section:
    """What a section knows, and how it reports its results."""

    def __init__(self, tiny: bool, limits: dict[str, float], send: Callable):
        self.tiny, self.limits, self.send = tiny, limits, send

    def pick(self, full, tiny):
        return tiny if self.tiny else full

    def row(self, what: str, value: float, unit: str, beside: str = "", limit: float | None = None,
            most: float | None = None, least: float | None = None, must: bool = False) -> None:
        """A line of the table: a value, what it is compared with, and the goal for their ratio, `most` or `least`."""
        reached = None
        if limit is not None and (most or least):
            reached = value <= most * limit if most else value >= least * limit
        self.send(("row", {"what": what, "value": value, "unit": unit, "beside": beside, "limit": limit,
                           "ratio": value / limit if limit else None, "most": most, "least": least,
                           "reached": reached}))
        if must and not reached:
            self.send(("failed", f"{what}: wrong"))

    def note(self, text: str) -> None:
        self.send(("note", text))

    @contextmanager
    def attempt(self, what: str, peer: bool = False):
        """Reports an error in this block: as a failure, or as a note if it is a peer's. Frees the memory afterwards."""
        try:
            yield
        except Exception as error:
            at = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}"
                            for frame in reversed(traceback.extract_tb(error.__traceback__)))
            told = f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self.send(("note", f"did not run: {told[:120]}") if peer else ("failed", f"{told} [{at[:200]}]"))
        if GPU:
            gc.collect()
            torch.cuda.empty_cache()


# Measuring

def finish() -> None:
    if GPU:
        torch.cuda.synchronize()


def wall(call: Callable) -> float:
    finish()
    start = time.perf_counter()
    call()
    finish()
    return time.perf_counter() - start


def seconds(call: Callable) -> float:
    """Seconds of one call after a warm-up, or the median of several if it is short. These are queued after a pause of
    about ten milliseconds, so that the time to launch them is not measured."""
    wall(call)
    took = wall(call)
    if took > 1 or not GPU:
        return took
    count = max(3, min(30, int(0.5 / took)))
    torch.cuda._sleep(20_000_000)                              # clock cycles
    marks = [(mark(), call(), mark())[::2] for _ in range(count)]
    finish()
    return median(between(*pair) for pair in marks)


def measured(call: Callable) -> tuple[float, float]:
    """Seconds of a call, and the most bytes that it held beside those held before (0 on a CPU)."""
    if not GPU:
        return seconds(call), 0.0
    finish()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    took = seconds(call)
    return took, float(torch.cuda.max_memory_allocated() - before)


def mark():
    """This moment. On a GPU: the moment when the GPU gets here."""
    if not GPU:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start, end) -> float:
    """Seconds between two marks, which the GPU must have reached."""
    return start.elapsed_time(end) / 1e3 if GPU else end - start


def normal(*size: int, dtype: torch.dtype = DTYPE, std: float = 1.0) -> Tensor:
    return torch.empty(size, dtype=dtype, device=DEVICE).normal_(std=std)


def random_model(c: ModelConfig, dtype: torch.dtype, std: float = 0.02) -> Qwen:
    """A model with norms of 1 and all other weights from N(0, std^2)."""
    model = weights.allocate(Qwen(c), dtype, DEVICE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(std=std)
    return model


def shape(L: int, C: int, H: int, K: int, intermediate: int, vocab: int, tied: bool, D: int = 128, E: int = 0,
          k: int = 8) -> ModelConfig:
    """The configuration of a Qwen2 with these sizes, or of a Qwen3-MoE if there are E experts."""
    return ModelConfig(
        vocab_size=vocab, hidden_size=C, intermediate_size=intermediate, num_hidden_layers=L, num_attention_heads=H,
        num_key_value_heads=K, head_dim=D, rms_norm_eps=1e-6, rope_theta=1e6, scaling=None,
        max_position_embeddings=2**17,
        tie_word_embeddings=tied, initializer_range=0.02, qkv_bias=not E, o_bias=False, qk_norm=E > 0, num_experts=E,
        num_experts_per_tok=k, moe_intermediate_size=intermediate, norm_topk_prob=True, dense_layers=(), source={})


SMALL = shape(28, 1536, 12, 2, 8960, 151_936, tied=True)       # Qwen2.5-1.5B
LARGE = shape(28, 3584, 28, 4, 18_944, 152_064, tied=False)    # Qwen2.5-7B
MIXTURE = shape(48, 2048, 32, 4, 768, 151_936, tied=False, E=128)              # Qwen3-30B-A3B
TINY = shape(2, 32, 4, 2, 48, 64, tied=True, D=8)
TINY_MIXTURE = shape(2, 32, 4, 2, 48, 64, tied=True, D=8, E=4, k=2)


class DecodingStep:
    """Attention of a step with `answers` answers to each prompt, in shuffled blocks. Prompts are whole blocks. Tails
    have `tail` tokens or a few less. There are queries for every row of the capacity, first those of the answers."""

    def __init__(self, heads: tuple[int, int, int], prompts: Sequence[int], answers: int, tail: int,
                 dtype: torch.dtype = DTYPE):
        H, K, D = heads
        tails = [max(1, tail - row % 16) for row in range(len(prompts) * answers)]
        needed = sum(blocks_for(tokens, BLOCK_SIZE) for tokens in [*prompts, *tails])
        self.cache = KVCache(1, needed, BLOCK_SIZE, K, D, dtype, DEVICE)
        self.cache.keys.normal_()
        self.cache.values.normal_()
        blocks = iter(torch.randperm(needed).tolist())
        self.tables, self.lengths, groups = [], [], []
        for place, tokens in enumerate(prompts):
            stem = Stem(place, range(tokens), [next(blocks) for _ in range(tokens // BLOCK_SIZE)])
            groups.append([])
            for own in tails[len(self.tables):len(self.tables) + answers]:
                self.tables.append(stem.table + [next(blocks) for _ in range(blocks_for(own, BLOCK_SIZE))])
                self.lengths.append(tokens + own)
                groups[-1].append(Answer(place, 0, range(tokens + own), table=self.tables[-1], stem=stem))
        self.attend = KernelPaged(self.cache, Capacity.of(groups, BLOCK_SIZE))
        self.attend.load(groups)
        self.queries = normal(self.attend.capacity.answers, H, D, dtype=dtype)
        self.touched = 2 * K * D * self.queries.element_size() * (sum(prompts) + sum(tails))   # bytes of keys, values

    def run(self, function: Callable, dtype: torch.dtype) -> Tensor:
        """`function` is kernels.paged_attention or its reference."""
        q, keys, values = (x.to(dtype) for x in (self.queries, self.cache.keys[0], self.cache.values[0]))
        return function(q, keys, values, BLOCK_SIZE, self.attend.stems, self.attend.tails)[:len(self.tables)]


# The sections' processes and their reports

def live(pipe, section: Callable, tiny: bool, limits: dict[str, float]) -> None:
    """The life of a section's process."""
    warnings.simplefilter("ignore")
    if not GPU:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    telling = Section(tiny, limits, pipe.send)
    with telling.attempt(section.__name__):
        section(telling)
    pipe.send(("end", None))


def watch(section: Callable, tiny: bool, limits: dict[str, float], bound: float) -> dict:
    """Runs a section until it ends or its time is up. Returns its rows, notes and failures. Adds the limits that it
    reports to `limits`."""
    context = multiprocessing.get_context("forkserver")        # children of a process that never used a GPU:
    context.set_forkserver_preload(["torch"] if GPU else ["torch", "nanoqwenlong.generate"])   # torch._dynamo might
    found, start, ended = {"rows": [], "notes": [], "failures": []}, time.monotonic(), False
    pipe, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=live, args=(theirs, section, tiny, limits), daemon=True)
    worker.start()
    theirs.close()
    try:
        while not ended and pipe.poll(max(0.0, start + bound - time.monotonic())):
            kind, told = pipe.recv()
            ended = kind == "end"
            if kind == "limit":
                limits[told[0]] = told[1]
            elif not ended:
                found[{"row": "rows", "note": "notes", "failed": "failures"}[kind]].append(told)
        if not ended:
            found["failures"].append(f"stopped after {bound:.0f} seconds")
            worker.kill()
    except EOFError:
        worker.join(10)
        found["failures"].append(f"the process ended with exit code {worker.exitcode}")
    worker.join(20)
    return {**found, "seconds": time.monotonic() - start}


def markdown(name: str, found: dict) -> str:
    lines = [f"## {name}", ""]
    if found["rows"]:
        lines += ["| | measured | beside | | ratio | goal | reached |", "|---|---:|---|---:|---:|---:|---|"]
    for row in found["rows"]:
        goal = "" if not row["most"] and not row["least"] else "0" if row["limit"] == 0 else (
            f"<= {row['most']:g}" if row["most"] else f">= {row['least']:g}")
        number = {key: "" if row[key] is None else f"{row[key]:.4g}" for key in ("value", "limit", "ratio")}
        cells = (row["what"], f"{number['value']} {row['unit']}".strip(), row["beside"], number["limit"],
                 number["ratio"], goal, {None: "", True: "yes", False: "NO"}[row["reached"]])
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {note}" for note in found["notes"]), *(f"- FAILED: {text}" for text in found["failures"]),
              *([""] if found["notes"] or found["failures"] else []), f"{found['seconds']:.1f} s", ""]
    return "\n".join(lines)
