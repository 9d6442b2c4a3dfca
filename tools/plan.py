"""What a step of train_rl.py will take on GPUs that are not there yet: memory, what to change, operations, seconds.

    python -m tools.plan --preset r1-distill-qwen-14b --gpus 8 --gpu-memory 80
    python -m tools.plan --preset qwen2.5-7b --max-prompt-tokens 20000
    python -m tools.plan --model DIR --gpus 2 --measure         with this machine's own rates
    python -m tools.plan --table --gpus 8 --gpu-memory 141      every preset, prompts of 20,000 and 60,000 tokens

A column is a moment of the step, its sum the bytes of tensors that live then on each GPU; nanoqwenlong/analysis/plan.py has the
formulas, docs/planning.md says what was measured against them. The rates are assumptions unless they are measured:
those of an H200, products and copies as measured on one, attention as assumed.

Exit code: 0 where the step fits, or after a table, 1 where it does not, 65 or 66 for a model that cannot be used or is
missing, 78 for a bad setting.
"""

import sys
import time
from dataclasses import dataclass, fields, replace
from typing import Literal

from nanoqwenlong.analysis import plan
from nanoqwenlong.errors import ConfigError, ModelError
from nanoqwenlong.ops import presets
from nanoqwenlong.ops.flags import at_least, parse
from nanoqwenlong.pretrained.config import ModelConfig


@dataclass(frozen=True)
class Config:
    table: bool = False                 # a line for each preset, as Markdown, instead of one plan
    preset: str = ""                    # a model of the papers, with their settings; or, with --model, the settings
    model: str = ""                     # a Hugging Face directory: its config.json is read; none: the preset's
    # the machine
    gpus: int = 8                       # of a node, over which a model is split
    nodes: int = 1                      # each holds a whole model
    gpu_memory: float = 80.0            # GiB (2^30 bytes) of a GPU, as they are sold
    reserve: float = 6.0                # GB (10^9) of it that are no tensors: an assumption. CUDA, NCCL, what the
                                        # allocator cannot use
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # to compute in
    device: Literal["cuda", "cpu"] = "cuda"
    # the step: flags of train_rl.py
    max_prompt_tokens: int = 60000      # of every prompt
    max_new_tokens: int = 10000         # of every answer
    prompts_per_step: int = 16
    group_size: int = 8
    updates_per_step: int = 1
    max_tokens: int = 16384
    kv_blocks: int = 8192
    block_size: int = 16
    checkpointing: bool = False
    offload: bool = False
    recompute: bool = False             # --old-logprobs recompute
    reference: bool = False             # a starting model is kept: --kl-coef or --measure-kl
    cut: bool = False                   # --top-p below 1
    # the rates of a GPU
    product_tflops: float = 790.0       # of matrix products, 10^12 operations a second
    attention_tflops: float = 400.0
    bandwidth: float = 4.3              # TB/s that its memory is read at
    measure: bool = False               # time them here, on --device


LENGTHS = (20000, 60000)                # of prompts in the table
PRESETS = {name: {key: value for key, value in presets.RL[name].items()
                  if key != "model" and key in Config.__dataclass_fields__} for name in presets.RL}


def job_of(cfg: Config) -> plan.Job:
    """Raises ConfigError, ModelError or FileNotFoundError."""
    at_least(cfg, gpus=1, nodes=1, gpu_memory=0, reserve=0, max_prompt_tokens=1, max_new_tokens=1, prompts_per_step=1,
             group_size=1, updates_per_step=1, max_tokens=1, kv_blocks=1, block_size=1, product_tflops=1e-9,
             attention_tflops=1e-9, bandwidth=1e-9)
    if not cfg.model and cfg.preset not in presets.MODELS:
        raise ConfigError(f"--model DIR, or a preset that names a model, says what is planned: "
                          f"{', '.join(presets.MODELS)}")
    if cfg.model:
        from nanoqwenlong.pretrained.weights import read_config  # imported here: it takes seconds
        model = read_config(cfg.model)
    else:
        model = ModelConfig.from_json(presets.MODELS[cfg.preset], cfg.preset)
    same = {field.name: getattr(cfg, field.name) for field in fields(plan.Job) if hasattr(cfg, field.name)}
    return plan.Job(**(same | dict(model=model, prompt=cfg.max_prompt_tokens, answer=cfg.max_new_tokens,
                                   ranks=cfg.gpus * cfg.nodes, replicas=cfg.nodes, gpu=cfg.device == "cuda",
                                   bytes=2 if cfg.dtype == "bfloat16" else 4)))


def memory_table(job: plan.Job) -> str:
    """Items and their sum, a column for each moment."""
    moments = plan.moments(job)
    unit, name = (1e9, "GB") if max(plan.peaks(job).values()) >= 1e9 else (1e6, "MB")
    rows = [[f"{name} of a {'GPU' if job.gpu else 'process'}", *moments]]
    for item in plan.ITEMS:
        row = [items.get(item, 0) for items in moments.values()]
        if any(row):
            rows.append([item, *(f"{value / unit:.1f}" if value else "" for value in row)])
    rows.append(["sum", *(f"{sum(items.values()) / unit:.1f}" for items in moments.values())])
    return aligned(rows)


def time_table(job: plan.Job, rates: plan.Rates) -> str:
    work, seconds = plan.work(job), plan.seconds(job, rates)
    rows = [["of a GPU", "PFLOP of products", "of attention", "TB read", "seconds"]]
    rows += [[phase, f"{w.products / 1e15:.1f}", f"{w.attention / 1e15:.1f}",
              f"{w.bytes / 1e12:.1f}" if w.bytes else "", f"{seconds[phase]:.4g}"] for phase, w in work.items()]
    rows.append(["step", f"{sum(w.products for w in work.values()) / 1e15:.1f}",
                 f"{sum(w.attention for w in work.values()) / 1e15:.1f}", "", f"{sum(seconds.values()):.4g}"])
    return aligned(rows)


def aligned(rows: list[list[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths)))
                     for row in rows)


def overview(cfg: Config, rates: plan.Rates) -> str:
    """A line for each preset and length of prompts."""
    lines = ["| preset | prompt, answer | at rest | rollout | update | optimizer | seconds: rollout, update | fits, or "
             "what would |", "|---|---|---|---|---|---|---|---|"]
    for name in presets.MODELS:
        for prompt in LENGTHS:
            job = job_of(replace(cfg, **{**PRESETS[name], "preset": name, "max_prompt_tokens": prompt, "model": ""}))
            seconds = plan.seconds(job, rates)
            good, told = verdict(job, cfg, rates)
            cells = [name, f"{prompt}, {job.answer}", *(f"{value / 1e9:.0f} GB" for value in plan.peaks(job).values()),
                     f"{seconds['prefill'] + seconds['decode']:.0f}, {seconds['update']:.0f}",
                     "fits" if good else "; ".join(line.removeprefix("would fit: ") for line in told
                                                   if line.startswith(("would", "nothing")))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(job: plan.Job, cfg: Config, rates: plan.Rates) -> tuple[bool, list[str]]:
    """Whether it fits, and what is left or what to change, at which price in time."""
    room = cfg.gpu_memory * 2**30 - cfg.reserve * 1e9
    peak = plan.peaks(job)
    lines = [f"{phase}: {value / 1e9:.1f} GB, {(value - room) / 1e9:.1f} too many" for phase, value in peak.items()
             if value > room]
    if job.kv_blocks < job.needed_blocks:
        lines.append(f"rollout: --kv-blocks {job.kv_blocks} hold no answer to such a prompt, which needs "
                     f"{job.needed_blocks}")
    if not lines:
        left, whole = (room - max(peak.values())) / 1e9, cfg.gpu_memory * 2**30 / 1e9
        return True, [f"fits: {left:.1f} of {whole:.1f} GB are left beside {cfg.reserve:g} in reserve"]
    found = plan.advice(job, room)
    lines = ["does not fit", *lines]
    lines += [f"would fit: {plan.changed(job, other)} ({max(plan.peaks(other).values()) / 1e9:.1f} GB, "
              f"{sum(plan.seconds(other, rates).values()):.0f} s)" for other in found]
    return False, lines + ["nothing that can be turned makes it fit"] * (not found)


def measured(device: str, dtype: str) -> plan.Rates:
    """What a product, causal attention and a copy reach here, the best of five each."""
    import torch

    from nanoqwenlong import parallel
    from kernels.flash import attention
    parallel.require_device(device)
    n, tokens = (8192, 16384) if device == "cuda" else (1024, 1024)
    options = dict(dtype=getattr(torch, dtype), device=device)
    a, q, x = torch.randn(n, n, **options), torch.randn(1, tokens, 16, 128, **options), torch.randn(n * n, **options)
    y = torch.empty_like(x)

    def best(call) -> float:
        times = []
        for _ in range(6):                                     # the first one is warm-up
            start = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return plan.Rates(2 * n ** 3 / best(lambda: a @ a), 2 * 16 * 128 * tokens ** 2 / best(
        lambda: attention(q, q, q, causal=True)), 2 * x.nbytes / best(lambda: y.copy_(x)))


def main(argv: list[str]) -> int:
    try:
        cfg = parse(Config, argv, PRESETS)
        if cfg.table and (cfg.preset or cfg.model):
            raise ConfigError("--table is of all presets; leave out --preset and --model")
        job = None if cfg.table else job_of(cfg)
        rates = measured(cfg.device, cfg.dtype) if cfg.measure else plan.Rates(
            cfg.product_tflops * 1e12, cfg.attention_tflops * 1e12, cfg.bandwidth * 1e12)
        if job is None:
            print(overview(cfg, rates))
            return 0
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 66
    except ModelError as error:
        print(error, file=sys.stderr)
        return 65
    except ValueError as error:                                # ConfigError, and a device that is not there
        print(error, file=sys.stderr)
        return 78
    good, lines = verdict(job, cfg, rates)
    print(plan.words(job))
    try:
        job.model.require_window(job.prompt - 1 + job.answer)
    except ModelError as error:
        print(f"note: {error}")
    print(f"\n{memory_table(job)}")
    if job.offload:
        print(f"in CPU memory, for each GPU: at least {5 * 4 * job.size.total / job.shards / 1e9:.1f} GB of weights, "
              "gradients and optimizer")
    print("\n" + "\n".join(lines))
    print(f"\n{time_table(job, rates)}\nat {rates.products / 1e12:.4g} TFLOP/s of products, "
          f"{rates.attention / 1e12:.4g} of attention and {rates.bytes / 1e12:.3g} TB/s, "
          f"{'measured here' if cfg.measure else 'which are assumptions'}; a floor (docs/planning.md)")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
