"""Triton, where there is one. On a machine without it the kernels are never called, their torch twins are."""

from types import SimpleNamespace

import torch

try:
    import triton
    import triton.language as tl
except ImportError:                     # macOS, Windows: names enough to read the files that define kernels
    triton = SimpleNamespace(jit=lambda function: function)
    tl = SimpleNamespace(constexpr=None)

AVAILABLE = hasattr(triton, "compile")


def wide(dtype: torch.dtype) -> torch.dtype:
    """What is computed in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def on_gpu(x: torch.Tensor) -> bool:
    """Whether the Triton kernels can take this tensor."""
    return AVAILABLE and x.is_cuda
