"""Whether a training run on a CPU should compute in bfloat16. For a GPU see settings.computing_dtype."""

import timeit
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .. import parallel
from ..errors import ModelError
from ..pretrained.weights import read_config

WIDE = 512                              # hidden size from which a layer's products take longer than what is around them
CLEARLY = 1.5                           # times as fast: much of a step is no product of matrices


def bfloat16_pays(model: str, say: Callable) -> bool:
    """Whether the model of this directory is wide enough, and the processor of the first rank multiplies bfloat16
    clearly faster than float32. Tells `say` what was measured. All ranks call it."""
    try:
        width = read_config(model).hidden_size
    except (ModelError, FileNotFoundError):                    # "new", or the error comes when the model is loaded
        return False
    if width < WIDE:
        return False
    speed = parallel.gather(parallel.rank() == 0 and bfloat16_speed())[0]
    chosen = "bfloat16" if speed > CLEARLY else "float32"
    say(f"computing in {chosen}: this processor multiplies bfloat16 {speed:.1f} times as fast as float32 "
        "(--dtype decides otherwise)")
    return speed > CLEARLY


def bfloat16_speed() -> float:
    """How many times as fast as float32 this processor multiplies bfloat16: 64 tokens with a matrix of 1,024 x 1,024,
    the best of four products each. It takes a few milliseconds."""
    best = []
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(64, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        seconds = timeit.repeat(lambda: F.linear(x, weight), number=1, repeat=5)
        best.append(min(seconds[1:]))                          # the first is for warm-up
    return best[0] / best[1]
