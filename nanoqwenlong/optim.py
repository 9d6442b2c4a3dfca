"""AdamW, its schedule, and gradient clipping: torch's own, with the choices of this project in one place."""

import torch


class NonFinite(ArithmeticError):
    """A gradient that is NaN or infinite."""


def adamw(model, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)):
    """AdamW that decays matrices only: norms and biases are left alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, foreach=True)


def learning_rate_at(step: int, peak: float, warmup_steps: int, num_steps: int, final_fraction: float = 1.0) -> float:
    """1. linear warm-up, 2. linear decay to `final_fraction` of the peak (1: constant, as in the papers)."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return peak * (1 - min(1.0, progress) * (1 - final_fraction))


def step(optimizer, parameters, learning_rate: float, max_grad_norm: float) -> float:
    """Clip, update, clear. Returns the gradient norm before clipping; NonFinite, and no update, if it has none."""
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if not grad_norm.isfinite():
        raise NonFinite(f"the gradient is not finite (norm {float(grad_norm)}); nothing was updated: look at the "
                        "data of this step, or lower --learning-rate")
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(grad_norm)
