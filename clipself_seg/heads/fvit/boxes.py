"""Boxes in pixels, XYXY and continuous: overlaps, and deltas between boxes as MMDetection codes them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipself_seg.clip.runtime import constant

LARGEST_SCALE = math.log(1000 / 16)
"""Limit of |dw| and |dh|: no box becomes more than 62.5 times larger or smaller."""


def overlaps(objects_k4: Tensor, boxes_n4: Tensor) -> Tensor:
    """Intersection over union (k, n) in the boxes' type; the union counts as at least 1e-6."""
    low = torch.maximum(objects_k4[:, None, :2], boxes_n4[None, :, :2])
    high = torch.minimum(objects_k4[:, None, 2:], boxes_n4[None, :, 2:])
    sides = (high - low).clamp(min=0)
    both = sides[..., 0] * sides[..., 1]
    union = _areas(objects_k4)[:, None] + _areas(boxes_n4)[None] - both
    return both / union.clamp(min=1e-6)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


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
        deltas_n4: deltas, see `encode_boxes`; unlike Detectron2's, dw and dh are limited on both sides.
        image_size: rows and columns of the image in pixels.
        weights: what the deltas were multiplied by.
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
