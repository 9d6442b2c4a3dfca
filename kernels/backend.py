"""Triton, if it is installed, and the choice between it and the torch references."""

from types import SimpleNamespace

import kernels
import torch

try:
    import triton
    import triton.language as tl
except ImportError:                     # macOS, Windows: just enough names to read the files that define kernels
    triton = SimpleNamespace(jit=lambda function: function)
    tl = SimpleNamespace(constexpr=None)

AVAILABLE = hasattr(triton, "compile")


def use_triton(device: torch.device) -> bool:
    """Whether the Triton kernels compute what lies on this device, and not their torch references."""
    return AVAILABLE and device.type == "cuda" and not kernels.PLAIN


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are computed in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)
