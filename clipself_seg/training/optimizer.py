"""AdamW and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from detectron2.config import CfgNode
from torch import Tensor

from clipself_seg.models.model_protocols import Group


def build_adamw(
    groups: list[Group], *, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """AdamW for parameter groups; `set_learning_rate` gives it its rate before each step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group its multiple of the rate, "lr_multiplier", by default 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_multiplier", 1.0)


@cache
def may_skip(device: torch.device) -> bool:
    """True if this torch's optimiser heeds `leave_out_step`, which it does not promise; tried on one number."""
    weight = torch.ones(1, device=device, requires_grad=True)
    weight.grad = torch.ones(1, device=device)
    optimizer = build_adamw([{"params": [weight]}], betas=(0.9, 0.98), eps=1e-6)
    set_learning_rate(optimizer, 0.1)
    leave_out_step(optimizer, torch.ones((), device=device))
    optimizer.step()
    return weight.item() == 1


def leave_out_step(optimizer: torch.optim.Optimizer, left_out: Tensor) -> None:
    """Says on the device whether the next step is taken; nobody has to wait for the answer.

    Args:
        optimizer: a fused one (`build_adamw`), whose kernels read what loss scaling tells them.
        left_out: scalar, 1 for a step that changes neither weights nor moments, 0 for one that is taken.
    """
    vars(optimizer)["found_inf"] = left_out


def learning_rates(cfg: CfgNode) -> Callable[[int], float]:
    """The learning rate of each step, counted from 0, as ``SOLVER`` has it."""
    solver = cfg.SOLVER
    shared = {"base": solver.BASE_LR, "warmup": solver.WARMUP_ITERS}
    if solver.SCHEDULE == "steps":
        drops = tuple(solver.STEPS)
        falls = {"factor": solver.WARMUP_FACTOR, "drops": drops, "gamma": solver.GAMMA}
        return partial(stepped_rate, **shared, **falls)
    factor = solver.WARMUP_FACTOR if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" else None
    return partial(learning_rate, **shared, total=solver.MAX_ITER, factor=factor)


def learning_rate(
    step: int, *, base: float, warmup: int, total: int, factor: float | None = None
) -> float:
    """The rate of a step: a linear warm-up, then a cosine that would reach 0 at step `total`.

    A warm-up of more than `total` steps is cut off at the end of the run; Detectron2 squeezes it into the run, where it
    leads to 0.

    Args:
        step: counted from 0.
        base: rate of the last step of the warm-up; the first one has base / warmup.
        warmup: steps, may be 0.
        total: steps of the run.
        factor: fraction of the rate that the warm-up starts from, and the cosine begins with it, as in
            Detectron2's WarmupCosineLR; None begins the cosine after the warm-up.
    """
    if factor is None:
        if step < warmup:
            return base * (step + 1) / warmup
        return _cosine((step - warmup) / (total - warmup), base)
    if step < warmup:
        done = step / warmup
        return (1 - done) * factor * base + done * _cosine(warmup / total, base)
    return _cosine(step / total, base)


def _cosine(done: float, base: float) -> float:
    return 0.5 * base * (1 + math.cos(math.pi * done))


def stepped_rate(
    step: int, *, base: float, warmup: int, factor: float, drops: Sequence[int], gamma: float
) -> float:
    """The rate of a step: a linear warm-up, then a constant that drops (Detectron2's WarmupMultiStepLR).

    A drop inside the warm-up, or at its end, counts from its own step on, and in Detectron2 from the first step on. A
    warm-up that is longer than the run is cut off at its end, and in Detectron2 squeezed into the run.

    Args:
        step: counted from 0.
        base: rate after the warm-up, before the first drop.
        warmup: steps, may be 0.
        factor: fraction of the rate that the warm-up starts from.
        drops: steps from which on the rate is multiplied by `gamma`, each once more.
        gamma: factor of a drop.
    """
    rate = base * gamma ** sum(step >= drop for drop in drops)
    if step >= warmup:
        return rate
    done = step / warmup
    return rate * (factor * (1 - done) + done)
