"""AdamW, its parameter groups and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

Group = dict[str, Any]
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[Group]:
    """What trains, in two groups: matrices with weight decay, vectors (biases, norms) without."""
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def cat_seg_groups(cfg: CfgNode, model: Any) -> list[Group]:
    """What trains of a `CATSeg`, by learning rate and weight decay.

    CLIP and backbone learn at their multiples of ``SOLVER.BASE_LR``; norms and embeddings have decays
    of their own, biases and padding tokens that of everything else.
    """
    solver = cfg.SOLVER
    rates = (
        (model.clip, solver.CLIP_MULTIPLIER),
        (model.backbone, solver.BACKBONE_MULTIPLIER),
    )
    slow = {id(p): rate for part, rate in rates if part is not None for p in part.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module in model.modules():
        decay = solver.WEIGHT_DECAY
        if isinstance(module, NORMS):
            decay = solver.WEIGHT_DECAY_NORM
        elif isinstance(module, nn.Embedding):
            decay = solver.WEIGHT_DECAY_EMBED
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                key = (slow.get(id(parameter), 1.0), decay)
                groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr_multiplier": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def panoptic_groups(cfg: CfgNode, model: nn.Module) -> list[Group]:
    """What trains of an `OpenPanoptic`: norms and biases without weight decay, everything else with."""
    plain, decayed = list[nn.Parameter](), list[nn.Parameter]()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                vector = isinstance(module, NORMS) or name.endswith("bias")
                (plain if vector else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": cfg.SOLVER.WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]


def build_adamw(
    groups: list[Group], *, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """AdamW; the learning rate is set before each step (`set_learning_rate`)."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its multiple of the rate, "lr_multiplier", by default 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_multiplier", 1.0)


def learning_rate(
    step: int, *, base: float, warmup: int, total: int, factor: float | None = None
) -> float:
    """The rate of a step: a linear warm-up, then a cosine that would reach 0 at step `total`.

    Args:
        step: counted from 0.
        base: rate of the last step of the warm-up; the first one has base / warmup.
        warmup: steps, may be 0.
        total: steps of the run.
        factor: share of the rate that the warm-up starts from, and the cosine begins with it, as in
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

    Args:
        step: counted from 0.
        base: rate after the warm-up, before the first drop.
        warmup: steps, may be 0.
        factor: share of the rate that the warm-up starts from.
        drops: steps from which on the rate is multiplied by `gamma`, each once more.
        gamma: of a drop.
    """
    rate = base * gamma ** sum(step >= drop for drop in drops)
    if step >= warmup:
        return rate
    done = step / warmup
    return rate * (factor * (1 - done) + done)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, a scalar."""
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms))
