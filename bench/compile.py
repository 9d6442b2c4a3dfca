"""Every Triton kernel, compiled for GPUs that need not be here. The columns:

    registers    per thread, at most 255
    stack        bytes that did not fit into the registers: 0 in a good kernel
    shared       bytes of shared memory per program, at most what the architecture has
    products     tensor-core instructions

The kernels are launched as always, through their functions in kernels/, on small CPU tensors with the types and shapes
of a model. But Triton's driver is a stand-in, and a launch ends when the kernel is compiled. So Triton derives types,
alignments and constants from the arguments as in a real run, and compiles exactly what would run.

    python -m bench.compile
    python -m bench.compile --archs 90
"""

import multiprocessing
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import triton
from bench import common
from kernels import Segments, logprob
from kernels.grpo_loss import grpo_loss_triton
from kernels.paged_attention import paged_attention_triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from nanoqwenlong.errors import ConfigError
from nanoqwenlong.ops import exits

KIB = 1024
SHARED = {80: 163 * KIB, 90: 227 * KIB, 100: 227 * KIB}        # the most per program: A100; H100, H200; B200
PRODUCTS = r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b" # in PTX, on each of them
VOCAB = 151_936
HEADS = {64: (14, 2), 128: (28, 4)}     # head width: query and key-value heads, of Qwen2.5-0.5B and 7B


@dataclass(frozen=True)
class Config:
    archs: tuple[int, ...] = (80, 90, 100)      # compute capabilities without the point


class StandIn:
    """What Triton asks a driver before a launch."""

    def __init__(self, arch: int):
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def launches() -> Iterator[tuple[str, Callable]]:
    """(dtype of the products, a call that launches kernels as the library does) for each kind of launch."""
    logits, targets, rows, g = torch.empty(2, VOCAB), torch.zeros(2, dtype=torch.long), torch.empty(4, 2), torch.ones(2)
    yield "float32", partial(logprob.statistics_triton, logits, targets, rows)
    for dtype in ("float32", "bfloat16"):
        for entropy in (None, g):
            yield dtype, partial(logprob.gradient_triton, logits, targets, rows, g, entropy,
                                 logits.to(getattr(torch, dtype)))
    tokens = torch.empty(4096)
    for ref in (None, tokens):
        yield "float32", partial(grpo_loss_triton, tokens, tokens, tokens, tokens, ref, tokens, 0.2, 0.28,
                                 3.0, 0.1)
    for width, (heads, kv_heads) in HEADS.items():
        for dtype in ("float32", "bfloat16"):
            q, cache = (torch.empty(16, *shape, dtype=getattr(torch, dtype)) for shape in ((heads, width), (16, width)))
            yield dtype, partial(paged_attention_triton, q, *[cache[:kv_heads]] * 2, 16,
                                 segments(2, 8), segments(16, 1))


def segments(M: int, answers: int) -> Segments:
    return Segments(torch.zeros(M, 3, dtype=torch.int32), torch.zeros(M, 64, dtype=torch.int32), answers, 1024, 1)


def compiled(arch: int, half: int) -> dict[str, dict]:
    """{hash: figures} of the kernels of every other launch, compiled for one architecture. Needs its own process,
    because Triton keeps what it compiled, whatever the architecture."""
    warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION")
    triton.runtime.driver.set_active(StandIn(arch))
    run_kernel, kernels = JITFunction.run, {}

    def compile_only(self, *args, **options):
        kernel = run_kernel(self, *args, **{**options, "warmup": True})
        constants = {self.arg_names[place]: value for (place,), value in kernel.src.constants.items()}
        kernels[kernel.hash] = {"kernel": self.__name__.strip("_"), "arch": arch, "dtype": dtype,
                                "constants": constants, **resources(kernel)}

    JITFunction.run = compile_only
    for dtype, launch in list(launches())[half::2]:
        launch()
    return kernels


def resources(kernel) -> dict[str, int]:
    """Figures from the machine code, by the tool that comes with Triton, and from the PTX."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True,
                               check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    return {"registers": found["REG"], "stack": found["STACK"], "shared": kernel.metadata.shared,
            "products": len(re.findall(PRODUCTS, kernel.asm["ptx"]))}


def faults(kernel: dict) -> list[str]:
    """Why a kernel would not run, or not run well."""
    dots = kernel["kernel"] == "part" and kernel["dtype"] == "bfloat16"
    return [text for text, wrong in {
        f"{kernel['shared']} bytes of shared memory, {SHARED[kernel['arch']]} is all": kernel["shared"] > SHARED[
            kernel["arch"]],
        "more than 255 registers": kernel["registers"] > 255,
        f"{kernel['stack']} bytes of registers spilled": kernel["stack"] > 0,
        "no tensor-core product": dots and not kernel["products"]}.items() if wrong]


def main(cfg: Config) -> None:
    if unknown := set(cfg.archs) - SHARED.keys():
        raise ConfigError(f"archs: {sorted(unknown)} is not known here, only {', '.join(map(str, SHARED))}")
    tasks = [(arch, half) for arch in cfg.archs for half in range(2)]
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        found = pool.starmap(compiled, tasks, chunksize=1)
    kernels = list({(k["arch"], key): k for some in found for key, k in some.items()}.values())
    rows = [["kernel", "sm", "type", "block", "registers", "stack", "shared", "products"]]
    for k in kernels:
        block = " x ".join(str(k["constants"][name]) for name in ("BLOCK", "ROWS", "KEYS", "WIDTH", "PARTS")
                           if name in k["constants"])
        rows.append([k["kernel"], *(str(k[key]) for key in ("arch", "dtype")), block,
                     *(str(k[key]) for key in ("registers", "stack", "shared", "products"))])
    print(common.table(rows))
    wrong = [f"{k['kernel']} for sm_{k['arch']}, {k['dtype']}: {fault}" for k in kernels for fault in faults(k)]
    common.json_line("compile", cfg, ("triton",), kernels=kernels, faults=wrong)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    sys.exit(exits.start(main, Config, {}, sys.argv[1:]))
