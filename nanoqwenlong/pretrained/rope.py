"""Rotary position embedding. YaRN and Llama 3.1 stretch it to longer inputs. T is tokens, D the head width."""

import math

import torch

from .config import Llama3, Yarn

Tensor = torch.Tensor


def rope_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype,
                scaling: Yarn | Llama3 | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin (T, 1, D) of each position times each frequency theta^(-2i / D), the same for both halves of a head.
    A scaling lowers some frequencies. YaRN also multiplies both tables by a factor. Angles are float32 at least."""
    steps = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.int64)
    wide = torch.promote_types(dtype, torch.float32)
    periods = theta ** (steps.to(wide) / head_dim)                             # (D / 2,), in tokens, over 2 pi
    if isinstance(scaling, Yarn):
        frequencies = yarn_frequencies(periods, theta, scaling)
    elif isinstance(scaling, Llama3):
        frequencies = llama3_frequencies(periods, scaling)
    else:
        frequencies = 1.0 / periods
    angles = torch.outer(positions.to(wide), frequencies)                      # (T, D / 2)
    angles = torch.cat([angles, angles], dim=-1)[:, None]                      # (T, 1, D)
    scale = scaling.attention_factor if scaling else 1.0
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, heads, D), turned by the angles of its positions. Halves of a head form the pairs, as in Hugging Face."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


def yarn_frequencies(periods: Tensor, theta: float, yarn: Yarn) -> Tensor:
    """Frequencies (D / 2,) from plain rope's periods (D / 2,) (arXiv 2309.00071, section 3.2). A frequency stays if it
    turns more than beta_fast times within the original window. Below beta_slow times it is divided by the factor.
    Between the two a linear ramp mixes both."""
    def index_of(turns: float) -> float:
        period = yarn.original_max_position_embeddings / (turns * 2 * math.pi)
        return len(periods) * math.log(period) / math.log(theta)

    low, high = index_of(yarn.beta_fast), index_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * len(periods) - 1)
    width = high - low or 0.001
    indices = torch.arange(len(periods), device=periods.device, dtype=periods.dtype)
    unchanged = 1 - ((indices - low) / width).clamp(0, 1)                      # 1: stays, 0: divided by the factor
    return 1.0 / (yarn.factor * periods) * (1 - unchanged) + 1.0 / periods * unchanged


def llama3_frequencies(periods: Tensor, llama3: Llama3) -> Tensor:
    """Frequencies (D / 2,) from plain rope's periods (D / 2,), as in the code that Meta released with Llama 3.1. A
    frequency stays from high_freq_factor turns within the original window. Up to low_freq_factor turns it is divided by
    the factor. Between the two both are mixed, in proportion to the turns."""
    frequencies = 1.0 / periods
    turns = llama3.original_max_position_embeddings / (2 * math.pi / frequencies)
    low, high = llama3.low_freq_factor, llama3.high_freq_factor
    unchanged = ((turns - low) / (high - low)).clamp(0, 1)                     # 1: stays, 0: divided by the factor
    return (1 - unchanged) * frequencies / llama3.factor + unchanged * frequencies
