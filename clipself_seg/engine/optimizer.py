"""AdamW, its parameter groups and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict]:
    """What trains, in two groups: matrices with weight decay, vectors (biases, norms) without."""
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_adamw(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """AdamW over what trains in `model`; the learning rate is set before each step
    (`learning_rate`)."""
    groups = parameter_groups(model.parameters(), weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)


def learning_rate(step: int, *, base: float, warmup: int, total: int) -> float:
    """The rate of a step: a linear warm-up, then a cosine that would reach 0 at step `total`.

    Args:
        step: counted from 0.
        base: rate of the last step of the warm-up; the first one has base / warmup.
        warmup: steps, may be 0.
        total: steps of the run.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    return 0.5 * base * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, a scalar."""
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms))
