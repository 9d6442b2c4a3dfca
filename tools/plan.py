"""What a step of train_rl.py will take on GPUs that are not there yet: memory, what to change, operations, seconds.

    python -m tools.plan --preset r1-distill-qwen-14b --gpus 8 --gpu-memory 80

Exit code: 0 if the step fits, 1 if not, 65: invalid model, 66: no model, 78: bad setting. See docs/planning.md."""

import json
import sys
import timeit
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path

from tools.terminal import aligned

from nanoqwenlong.analysis import plan
from nanoqwenlong.errors import ConfigError, ModelError
from nanoqwenlong.ops import presets
from nanoqwenlong.ops.console import say, with_exit_code
from nanoqwenlong.ops.flags import flag_words, parse
from nanoqwenlong.ops.settings import fixed
from nanoqwenlong.pretrained.config import ModelConfig

MODELS = json.loads(Path(__file__).with_name("models.json").read_text("utf-8"))  # of each preset: from its config.json


@dataclass(frozen=True)
class Config(plan.Settings):
    table: bool = False                 # a line for each preset, as Markdown, instead of one plan
    preset: str = ""                    # a model of the papers with their settings. With --model: the settings only
    model: str = ""                     # a Hugging Face directory, of which config.json is read
    gpu_memory: float = 80.0            # GiB (2^30 bytes) of a GPU
    reserve: float = 6.0                # GB (10^9) of it for CUDA, NCCL and gaps in the allocator: an assumption
    product_tflops: float = fixed(790.0, least=1e-9)  # the rate of matrix products, in 10^12 operations a second
    attention_tflops: float = fixed(400.0, least=1e-9)
    bandwidth: float = fixed(4.3, least=1e-9)  # TB/s at which a GPU reads its memory
    measure: bool = False               # measure these three rates here, on --device

    @property
    def room(self) -> float:
        return self.gpu_memory * 2**30 - self.reserve * 1e9


PRESETS = {name: {key: value for key, value in settings.items() if key != "model" and hasattr(Config, key)}
           for name, settings in presets.RL.items()}


def job_of(cfg: Config) -> plan.Job:
    """Raises ConfigError, ModelError or FileNotFoundError."""
    if not cfg.model and cfg.preset not in MODELS:
        raise ConfigError(f"no model to plan for: give --model DIR or one of these presets: {', '.join(MODELS)}")
    from nanoqwenlong.pretrained.weights import read_config    # imported here: it imports torch
    model = read_config(cfg.model) if cfg.model else ModelConfig.from_json(MODELS[cfg.preset], cfg.preset)
    return plan.Job(model=model, **{field.name: getattr(cfg, field.name) for field in fields(plan.Settings)})


def table(heading: list[str], rows: dict[str, list[float]], total: str) -> str:
    """The rows that are not all zero, and their sums, as text. Zeros are left out."""
    rows = {**rows, total: [sum(column) for column in zip(*rows.values())]}
    return aligned([heading, *([name, *(f"{x:9.4g}" if x else "" for x in row)]
                               for name, row in rows.items() if any(row))])


def overview(cfg: Config, rates: plan.Work) -> str:
    """A line for each preset, and prompts of 20,000 and of 60,000 tokens."""
    lines = ["| preset | prompt, answer | at rest | rollout | update | optimizer | seconds: rollout, update | "
             "fits, or what would |", "|---" * 8 + "|"]
    for name, prompt in product(MODELS, (20000, 60000)):
        job = job_of(replace(cfg, **{**PRESETS[name], "preset": name, "max_prompt_tokens": prompt}))
        seconds, sizes = plan.seconds(job, rates), [f"{size / 1e9:.0f} GB" for size in plan.peaks(job).values()]
        advice = "fits" if plan.fits(job, cfg.room) else "; ".join(remedies(job, cfg, rates))
        lines.append(f"| {name} | {prompt}, {job.max_new_tokens} | {' | '.join(sizes)} | "
                     f"{seconds['prefill'] + seconds['decode']:.0f}, {seconds['update']:.0f} | {advice} |")
    return "\n".join(lines)


def flags(job: plan.Job, other: plan.Job) -> str:
    """The flags that lead from one job to the other."""
    return ", ".join(" ".join(flag_words(field.name, getattr(other, field.name))) for field in fields(job)
                     if getattr(other, field.name) != getattr(job, field.name))


def remedies(job: plan.Job, cfg: Config, rates: plan.Work) -> list[str]:
    """Flags that make a step fit, with the memory and the time that it takes then."""
    return [f"{flags(job, other)} ({max(plan.peaks(other).values()) / 1e9:.1f} GB, "
            f"{sum(plan.seconds(other, rates).values()):.0f} s)"
            for other in plan.advice(job, cfg.room)] or ["no change of these settings"]


def rates_of(cfg: Config) -> plan.Work:
    """The given rates, or those of a matrix product, causal attention and a copy here, the best of five each."""
    if not cfg.measure:
        return plan.Work(cfg.product_tflops * 1e12, cfg.attention_tflops * 1e12, cfg.bandwidth * 1e12)
    import torch

    from kernels.flash import attention
    from nanoqwenlong import parallel
    parallel.require_device(cfg.device)
    n, tokens = (8192, 16384) if cfg.device == "cuda" else (1024, 1024)
    options = dict(dtype=getattr(torch, cfg.dtype), device=cfg.device)
    (a, b), q = torch.randn(2, n, n, **options), torch.randn(1, tokens, 16, 128, **options)
    finish = torch.cuda.synchronize if cfg.device == "cuda" else int
    calls = (lambda: a @ a, lambda: attention(q, q, q, causal=True), lambda: b.copy_(a))
    best = [min(timeit.repeat(lambda: (call(), finish()), number=1, repeat=6)[1:]) for call in calls]  # 1 for warm-up
    return plan.Work(2 * n**3 / best[0], 2 * 16 * 128 * tokens**2 / best[1], 2 * a.nbytes / best[2])


def report(cfg: Config) -> int:
    """Print the plan of a step, or the table. Returns the exit code."""
    if cfg.table:
        if cfg.preset or cfg.model:
            raise ConfigError("--table is of all presets; leave out --preset and --model")
        say(overview(cfg, rates_of(cfg)))
        return 0
    job = job_of(cfg)
    rates, n, peaks, fits = rates_of(cfg), job.numbers, plan.peaks(job), plan.fits(job, cfg.room)
    say(plan.words(job))
    say(f"{n.total:,} parameters; processes: {n.ranks}; micro-batches per prompt: {n.microbatches}, of {n.answers} "
        f"answers, {n.T:,} tokens; KV cache: {job.kv_blocks * 16:,} tokens, {n.decoding} answers at once")
    try:
        job.model.require_window(n.P + n.R)
    except ModelError as error:
        say(f"note: {error}")
    moments, largest = plan.moments(job), max(peaks, key=peaks.get)
    unit, name = (1e9, "GB") if peaks[largest] >= 1e9 else (1e6, "MB")
    memory = {item: [items.get(item, 0) / unit for items in moments.values()] for item in plan.ITEMS}
    say("\n" + table([f"{name} on each {'GPU' if n.on_gpu else 'process'}", *moments], memory, "sum"))
    prompts = plan.PROMPT_BYTES * job.num_examples * job.max_prompt_tokens / 1e9
    say(f"CPU memory: up to {prompts:.1f} GB of prompts in each process, {prompts * job.gpus:.1f} GB on a node")
    if job.offload:
        say(f"CPU memory per GPU: at least {16 * n.total / job.gpus / 1e9:.1f} GB of weights, gradients, optimizer")
    say(f"\n{'fits' if fits else 'does not fit'}: the {largest} takes up to {peaks[largest] / 1e9:.1f} GB, there are "
        f"{cfg.room / 1e9:.1f} GB beside {cfg.reserve:g} GB in reserve")
    if job.kv_blocks < n.needed_blocks:
        say(f"rollout: one answer needs --kv-blocks {n.needed_blocks}, there are {job.kv_blocks}")
    if not fits:
        say("\n".join(f"would fit: {line}" for line in remedies(job, cfg, rates)))
    work, seconds = plan.work(job), plan.seconds(job, rates)
    time = {phase: [w.products / 1e15, w.attention / 1e15, w.bytes / 1e12, seconds[phase]] for phase, w in work.items()}
    say("\n" + table(["on each GPU", "PFLOP of products", "of attention", "TB read", "seconds"], time, "step"))
    say("a lower bound, at {:.4g} TFLOP/s of products, {:.4g} of attention, {:.3g} TB/s, ".format(
        *(rate / 1e12 for rate in rates)) + ("measured here" if cfg.measure else "which are assumptions"))
    return 0 if fits else 1


@with_exit_code
def main(argv: list[str]) -> int:
    return report(parse(Config, argv, PRESETS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
