"""Detections of an image: fused scores of boxes and classes, non-maximum suppression of each class.

Shapes: n boxes, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torchvision.ops import nms

FIRST = 4096
"""Number of best candidates that are looked at first; more only if too few survive."""


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
        rows: (m,) which of the boxes each is.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    rows: Tensor


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
    candidates = (flat > rule.threshold).nonzero()[:, 0]
    order = flat[candidates].sort(descending=True, stable=True).indices
    candidates = candidates[order]
    limit = FIRST
    while True:
        best = candidates[:limit]
        rows, labels = best // scores_nK.shape[1], best % scores_nK.shape[1]
        kept = suppress(boxes_n4[rows], flat[best], labels, rule.iou)[: rule.most]
        if len(kept) == rule.most or limit >= len(candidates):
            return Detected(boxes_n4[rows[kept]], flat[best][kept], labels[kept], rows[kept])
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
    shift = labels.double() * (boxes.max().double() - boxes.min().double() + 1)
    return nms(boxes.double() + shift[:, None], scores.double(), iou)
