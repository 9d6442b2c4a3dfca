"""Rotary position embedding. YaRN and Llama 3.1 stretch it to longer inputs. T is tokens, D the head width."""

import math

import torch

from .config import Scaling

Tensor = torch.Tensor


def rope_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype,
                scaling: Scaling | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin (T, 1, D) of each position times each frequency theta^(-2i / D), the same for both halves of a head.
    A scaling lowers some frequencies. YaRN also multiplies both tables by a factor. Angles are float32 at least."""
    steps = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.int64)
    wide = torch.promote_types(dtype, torch.float32)
    periods = theta ** (steps.to(wide) / head_dim)                             # (D / 2,), in tokens, over 2 pi
    frequencies = scaled_frequencies(periods, theta, scaling) if scaling else 1.0 / periods
    angles = torch.outer(positions.to(wide), frequencies)                      # (T, D / 2)
    angles = torch.cat([angles, angles], dim=-1)[:, None]                      # (T, 1, D)
    scale = scaling.attention_factor if scaling else 1.0
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, heads, D), turned by the angles of its positions. Halves of a head form the pairs, as in Hugging Face."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


def scaled_frequencies(periods: Tensor, theta: float, scaling: Scaling) -> Tensor:
    """Frequencies (D / 2,) from plain rope's periods (D / 2,). A frequency stays if it turns more than `fast` times
    within the original window. Below `slow` times it is divided by the factor. Between the two a ramp mixes both. It is
    linear in the turns in Llama 3.1 (its released code), and in the index in YaRN (arXiv 2309.00071, section 3.2)."""
    def index_of(turns: float) -> float:
        period = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return len(periods) * math.log(period) / math.log(theta)

    if scaling.rope_type == "llama3":
        turns = scaling.original_max_position_embeddings / (2 * math.pi / (1.0 / periods))     # in transformers' order
        unchanged = ((turns - scaling.slow) / (scaling.fast - scaling.slow or 0.001)).clamp(0, 1)
    else:
        low, high = index_of(scaling.fast), index_of(scaling.slow)
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * len(periods) - 1)
        width = high - low or 0.001
        indices = torch.arange(len(periods), device=periods.device, dtype=periods.dtype)
        unchanged = 1 - ((indices - low) / width).clamp(0, 1)
    # unchanged is 1 for a frequency that stays, 0 for one that is divided by the factor
    return 1.0 / (scaling.factor * periods) * (1 - unchanged) + 1.0 / periods * unchanged
