"""One-to-one assignment of queries to targets with the lowest cost (Mask2Former, section 3.3).

Shapes: Q queries, T targets of an image, P points, K + 1 classes with void last, N maps of h x w pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.runtime import full_precision

# Indices of queries and of the targets that they are matched with.
Match = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class TermWeights:
    """Weights of classification, mask cross-entropy and dice, in the matching and in the loss."""

    classes: float = 2.0
    mask: float = 5.0
    dice: float = 5.0


def sample_points(maps_Nhw: Tensor, points_NP2: Tensor) -> Tensor:
    """Bilinear samples (N, P) of maps at points, float32.

    Args:
        maps_Nhw: maps of any type, boolean ones included.
        points_NP2: points (x, y) in [0, 1] relative to the map; (1, P, 2) means the same for all maps.
    """
    shape = (len(maps_Nhw), points_NP2.shape[1])
    if not len(maps_Nhw):
        return maps_Nhw.new_zeros(shape, dtype=torch.float32)
    points = 2 * points_NP2.float() - 1
    # With one set of points, the maps are the channels of one image.
    maps = maps_Nhw.float()[None] if len(points) == 1 else maps_Nhw.float()[:, None]
    return F.grid_sample(maps, points[:, None], mode="bilinear", align_corners=False).reshape(shape)


def pair_costs(
    class_logits_QK: Tensor,
    mask_logits_QP: Tensor,
    labels_T: Tensor,
    targets_TP: Tensor,
    weights: TermWeights,
) -> Tensor:
    """Matching cost (Q, T) of every query with every target.

    Args:
        class_logits_QK: class logits of the queries, void included.
        mask_logits_QP: mask logits of the queries at points that are the same for all pairs.
        labels_T: class indices of the targets.
        targets_TP: target masks at the same points, in [0, 1].
        weights: weights of the three terms of the cost.
    """
    classes_QT = -class_logits_QK.float().softmax(dim=-1)[:, labels_T]
    logits = mask_logits_QP.float()
    targets = targets_TP.float()
    # softplus(x) - x t is the cross-entropy of sigmoid(x) with t.
    entropy_QT = (F.softplus(logits).sum(dim=1)[:, None] - logits @ targets.T) / logits.shape[1]
    inside = logits.sigmoid()
    sums_QT = inside.sum(dim=1)[:, None] + targets.sum(dim=1)
    dice_QT = 1 - (2 * inside @ targets.T + 1) / (sums_QT + 1)
    return weights.classes * classes_QT + weights.mask * entropy_QT + weights.dice * dice_QT


@torch.no_grad()
def matching_costs(
    class_logits_QK: Tensor,
    mask_logits_Qhw: Tensor,
    labels_T: Tensor,
    masks_THW: Tensor,
    points_1P2: Tensor,
    weights: TermWeights,
) -> Tensor:
    """Costs (Q, T) of every query with every target of an image, finite.

    Args:
        class_logits_QK: class logits of the queries, void included.
        mask_logits_Qhw: mask logits of the queries, of any size.
        labels_T: class indices of the targets.
        masks_THW: boolean masks of the targets, of any size, over the canvas of the queries' masks.
        points_1P2: points (x, y) in [0, 1] at which masks are compared, the same for all pairs.
        weights: weights of the three terms of the cost.
    """
    with full_precision(mask_logits_Qhw.device):
        logits_QP, targets_TP = (sample_points(m, points_1P2) for m in (mask_logits_Qhw, masks_THW))
        costs = pair_costs(class_logits_QK, logits_QP, labels_T, targets_TP, weights)
    # With such costs the loss is not finite for any match: the trainer reports it with the images.
    return costs.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def match_queries(costs: Sequence[Tensor]) -> list[Match]:
    """For each problem indices of the matched queries and of their targets, two tensors (min(Q, T),).

    Problems are solved on the CPU. All go there in one copy, and their solutions come back in one.

    Args:
        costs: (Q, T) of each problem, such as of an image and a layer; one at least.
    """
    from scipy.optimize import linear_sum_assignment  # half a second, which only training needs

    together = torch.cat([costs_QT.flatten() for costs_QT in costs]).cpu()
    parts = together.split([costs_QT.numel() for costs_QT in costs])
    solved = [
        np.stack(linear_sum_assignment(part.view(costs_QT.shape).numpy()))
        for part, costs_QT in zip(parts, costs)
    ]
    pairs_2n = torch.from_numpy(np.concatenate(solved, axis=1))
    on_device = pairs_2n.to(costs[0].device, non_blocking=True)
    return [(one[0], one[1]) for one in on_device.split([pairs.shape[1] for pairs in solved], 1)]
