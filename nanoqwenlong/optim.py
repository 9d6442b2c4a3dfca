"""AdamW, its schedule, and gradient clipping: torch's own, with the choices of this project in one place."""

import math
from collections.abc import Sequence

import torch

from . import parallel


def adamw(model, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only. Norms and biases are left alone. Each step renews the copies that the model
    computes with (parallel.compute_in)."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
    optimizer.register_step_post_hook(lambda *_: parallel.renew_copies(model))
    return optimizer


def learning_rate_at(step: int, peak: float, warmup_steps: int, num_steps: int, final_fraction: float = 1.0) -> float:
    """The rate of step 0, 1, ...: linear warm-up to the peak, then linear decay to `final_fraction` of it at the last
    step (1: constant, as in the papers). If the warm-up takes all steps, there is no decay."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    top, last = max(0, warmup_steps - 1), num_steps - 1        # the step with the peak, and the last one
    left = (last - step) / (last - top) if step < last else 0.0
    return peak * (final_fraction + left * (1 - final_fraction))


def step(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], learning_rate: float,
         max_grad_norm: float, loss: float = 0.0) -> float:
    """Clip, update, clear. Returns the gradient norm before clipping, over all ranks.

    If the norm or the loss is not finite, no rank updates anything, and NaN is returned."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = parallel.norm(grads)
    finite = math.isfinite(norm) and math.isfinite(loss)
    if finite:
        torch._foreach_mul_([parallel.local(grad) for grad in grads], min(1.0, max_grad_norm / (norm + 1e-6)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm if finite else math.nan
