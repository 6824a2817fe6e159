"""Rules on boxes: deltas between them, which belongs to which object, which a loss sees, which of them survive.

The rules are MMDetection's. Detectron2's box coder limits deltas on one side alone, and its matcher has no lowest
overlap for an object's best box and leaves that box with the object that it overlaps most.

Boxes (n, 4) are XYXY in pixels and continuous. Shapes: k objects, n boxes, K classes. An assignment is (n,) int64: -1
ignored, 0 negative, j object j, counted from 1.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor
from torchvision.ops import nms

from clipself_seg.clip.runtime import QUEUES, constant, widest

LARGEST_SCALE = math.log(1000 / 16)
"""Limit of |dw| and |dh|: no box becomes more than 62.5 times larger or smaller."""
IGNORED = -1
NEGATIVE = 0
FIRST = 4096
"""Number of best candidates that are looked at first; more only if too few survive."""


class Objects(NamedTuple):
    """The objects of an image that a detector trains on.

    Attributes:
        boxes: (k, 4).
        labels: (k,) int64, positions in the classes.
        masks: (k, h, w), or None where masks are not trained.
        draw: number that random choices for the image follow from.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    draw: int


def encode_boxes(
    origin_n4: Tensor, target_n4: Tensor, weights: tuple[float, ...] = (1, 1, 1, 1)
) -> Tensor:
    """Deltas (n, 4), (dx, dy, dw, dh), that turn boxes into their targets, times `weights`."""
    (centre, size), (wanted, wanted_size) = _centres(origin_n4), _centres(target_n4)
    deltas = torch.cat([(wanted - centre) / size, (wanted_size / size).log()], dim=1)
    return deltas * constant(weights, deltas)


def decode_boxes(
    origin_n4: Tensor,
    deltas_n4: Tensor,
    image_size: tuple[float, float],
    weights: tuple[float, ...] = (1, 1, 1, 1),
) -> Tensor:
    """Boxes (n, 4) that deltas make of boxes, clipped to the image.

    Args:
        origin_n4: boxes.
        deltas_n4: deltas, see `encode_boxes`.
        image_size: rows and columns of the image in pixels.
        weights: factors by which the deltas were multiplied.
    """
    deltas = deltas_n4 / constant(weights, deltas_n4)
    centre, size = _centres(origin_n4)
    centre = centre + size * deltas[:, :2]
    half = size * deltas[:, 2:].clamp(-LARGEST_SCALE, LARGEST_SCALE).exp() * 0.5
    height, width = image_size
    corners = torch.cat([centre - half, centre + half], dim=1)
    return torch.minimum(corners.clamp(min=0), constant([width, height] * 2, corners))


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (n, 2) and sizes (n, 2)."""
    return (boxes[:, :2] + boxes[:, 2:]) * 0.5, boxes[:, 2:] - boxes[:, :2]


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
# MODEL.FVIT.LOW_QUALITY -> the rule by which proposals belong to objects.
ROI_RULES = {False: MatchRule(0.5, 0.5), True: MatchRule(0.5, 0.5, 0.5)}


def match_boxes(objects_k4: Tensor, boxes_n4: Tensor, rule: MatchRule) -> Tensor:
    """The assignment (n,) of boxes to objects.

    Objects get their best boxes in their order, so that the last one of several keeps a box.
    """
    if not len(objects_k4):
        return boxes_n4.new_zeros(len(boxes_n4), dtype=torch.int64)
    ious_kn = pairwise_iou(Boxes(objects_k4), Boxes(boxes_n4))
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
    """Numbers of boxes of an image that are sampled for a loss.

    Attributes:
        number: number of boxes.
        positive_fraction: largest fraction of them that is positive.
    """

    number: int
    positive_fraction: float


RPN_SAMPLING = SamplingRule(256, 0.5)
ROI_SAMPLING = SamplingRule(512, 0.25)


def generator_of(seed: int, draw: int, use: str) -> torch.Generator:
    """Generator of the random choices for an image, which depends on seed, draw of the image and use alone."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {draw} {use}".encode()))


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
    on_device = torch.cat(chosen).to(assigned[0].device, non_blocking=QUEUES)
    indices = on_device.split([len(indices) for indices in chosen])
    return [Sampled(*pair) for pair in zip(indices[::2], indices[1::2])]


def _choose(candidates_n: Tensor, count: int, generator: torch.Generator) -> Tensor:
    indices = candidates_n.nonzero()[:, 0]
    if len(indices) <= count:
        return indices
    chosen = torch.randperm(len(indices), generator=generator)[:count].sort().values
    return indices[chosen]


class DetectionRule(NamedTuple):
    """The thresholds and limits by which detections are selected.

    Attributes:
        threshold: a score has to be above it.
        iou: overlap above which the worse of two boxes of a class goes.
        most: largest number of detections of an image.
    """

    threshold: float = 0.01
    iou: float = 0.4
    most: int = 100


class Detected(NamedTuple):
    """Detections, the best first.

    Attributes:
        boxes: (m, 4).
        scores: (m,).
        labels: (m,) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def select_detections(boxes_n4: Tensor, scores_nK: Tensor, rule: DetectionRule) -> Detected:
    """The best detections after non-maximum suppression within each class.

    All classes share one box a proposal. Suppression goes through the candidates by score, so only the best
    ones are needed until `rule.most` survive: the result is that of all candidates.

    Args:
        boxes_n4: boxes, one for all classes.
        scores_nK: scores of the classes, without background.
        rule: threshold, overlap, number.
    """
    flat = scores_nK.flatten()
    # Scores that are no numbers are among them, so that they are seen.
    candidates = (~(flat <= rule.threshold)).nonzero()[:, 0]
    order = flat[candidates].sort(descending=True, stable=True).indices
    candidates = candidates[order]
    limit = FIRST
    while True:
        best = candidates[:limit]
        rows, labels = best // scores_nK.shape[1], best % scores_nK.shape[1]
        kept = suppress(boxes_n4[rows], flat[best], labels, rule.iou)[: rule.most]
        if len(kept) == rule.most or limit >= len(candidates):
            return Detected(boxes_n4[rows[kept]], flat[best][kept], labels[kept])
        limit *= 4


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Indices that survive non-maximum suppression within each class, the best first.

    Classes are shifted apart, in float64 so that nothing is lost.

    Args:
        boxes: (n, 4).
        scores: (n,).
        labels: (n,) integers, the classes.
        iou: overlap above which the worse of two boxes of a class goes.
    """
    if not len(boxes):
        return labels
    exact = widest(boxes.device)
    shift = labels.to(exact) * (boxes.max().to(exact) - boxes.min().to(exact) + 1)
    return nms(boxes.to(exact) + shift[:, None], scores.to(exact), iou)
