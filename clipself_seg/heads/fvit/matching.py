"""Assigns anchors and proposals to objects, and samples those that a loss sees (MMDetection's rules).

Shapes: k objects, n boxes. An assignment is (n,) int64: -1 ignored, 0 negative, j object j, counted from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipself_seg.heads.fvit.boxes import overlaps

IGNORED = -1
NEGATIVE = 0


class MatchRule(NamedTuple):
    """Overlaps that decide an assignment.

    Attributes:
        positive: overlap from which on a box belongs to the object that it overlaps most.
        negative: overlap below which a box is negative; between the two it is ignored.
        lowest: each object gets the boxes that overlap it most, if they do so by at least this;
            None: no such rule.
    """

    positive: float
    negative: float
    lowest: float | None = None


RPN_RULE = MatchRule(0.7, 0.3, 0.3)


def match_boxes(objects_k4: Tensor, boxes_n4: Tensor, rule: MatchRule) -> Tensor:
    """The assignment (n,) of boxes to objects.

    Objects get their best boxes in their order, so that the last one of several keeps a box; Detectron2's
    matcher has no lowest overlap for that, and leaves the box with the object that it overlaps most.
    """
    if not len(objects_k4):
        return boxes_n4.new_zeros(len(boxes_n4), dtype=torch.int64)
    ious_kn = overlaps(objects_k4, boxes_n4)
    best_n, object_n = ious_kn.max(dim=0)
    assigned = torch.full_like(object_n, IGNORED)
    assigned[best_n < rule.negative] = NEGATIVE
    assigned = torch.where(best_n >= rule.positive, object_n + 1, assigned)
    if rule.lowest is None or not len(boxes_n4):
        return assigned
    best_k = ious_kn.amax(dim=1)
    claims_kn = (ious_kn == best_k[:, None]) & (best_k >= rule.lowest)[:, None]
    numbers_k = torch.arange(1, len(objects_k4) + 1, device=boxes_n4.device)
    last_n = (claims_kn * numbers_k[:, None]).amax(dim=0)
    return torch.where(last_n > 0, last_n, assigned)


class Sampled(NamedTuple):
    """Indices of boxes that a loss sees, each ascending.

    Attributes:
        positive: indices of positive boxes.
        negative: indices of negative boxes.
    """

    positive: Tensor
    negative: Tensor


class SamplingRule(NamedTuple):
    """How many boxes of an image are sampled for a loss.

    Attributes:
        number: number of boxes.
        positive_fraction: largest fraction of them that is positive.
    """

    number: int
    positive_fraction: float


RPN_SAMPLING = SamplingRule(256, 0.5)
ROI_SAMPLING = SamplingRule(512, 0.25)


def sample_boxes(
    assigned: Sequence[Tensor], rule: SamplingRule, generators: Sequence[torch.Generator]
) -> list[Sampled]:
    """Random positive and negative boxes of each image; fewer where there are fewer.

    They are chosen on the CPU, to which what is known of all images goes in one copy.

    Args:
        assigned: assignment (n,) of each image; one at least.
        rule: numbers.
        generators: source of the choice for each image, on the CPU, so that it is the same on every device.
    """
    together = torch.cat([assigned_n.sign().to(torch.int8) for assigned_n in assigned]).cpu()
    signs = together.split([len(assigned_n) for assigned_n in assigned])
    chosen: list[Tensor] = []
    for sign_n, generator in zip(signs, generators, strict=True):
        positive = _choose(sign_n > 0, int(rule.number * rule.positive_fraction), generator)
        negative = _choose(sign_n == NEGATIVE, rule.number - len(positive), generator)
        chosen += [positive, negative]
    on_device = torch.cat(chosen).to(assigned[0].device, non_blocking=True)
    parts = on_device.split([len(indices) for indices in chosen])
    return [Sampled(*pair) for pair in zip(parts[::2], parts[1::2])]


def _choose(candidates_n: Tensor, count: int, generator: torch.Generator) -> Tensor:
    indices = candidates_n.nonzero()[:, 0]
    if len(indices) <= count:
        return indices
    chosen = torch.randperm(len(indices), generator=generator)[:count].sort().values
    return indices[chosen]
