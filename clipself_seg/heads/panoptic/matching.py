"""One-to-one assignment of queries to targets with the lowest cost (Mask2Former, section 3.3).

Shapes: Q queries, T targets of an image, P points, K + 1 classes with void last, N maps of h x w pixels.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.precision import full_precision


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
def match_queries(
    class_logits_QK: Tensor,
    mask_logits_Qhw: Tensor,
    labels_T: Tensor,
    masks_THW: Tensor,
    *,
    points: int,
    weights: TermWeights,
) -> tuple[Tensor, Tensor]:
    """Indices of the matched queries and of their targets, two tensors (min(Q, T),).

    Masks are compared at random points, the same for all pairs, drawn with torch's current seed.

    Args:
        class_logits_QK: class logits of the queries, void included.
        mask_logits_Qhw: mask logits of the queries, of any size.
        labels_T: class indices of the targets.
        masks_THW: boolean masks of the targets, of any size, over the canvas of the queries' masks.
        points: number of points.
        weights: weights of the three terms of the cost.
    """
    device = mask_logits_Qhw.device
    with full_precision(device):
        where_1P2 = torch.rand(1, points, 2, device=device)
        logits_QP, targets_TP = (sample_points(m, where_1P2) for m in (mask_logits_Qhw, masks_THW))
        costs = pair_costs(class_logits_QK, logits_QP, labels_T, targets_TP, weights)
    # With such costs the loss is not finite for any match: the trainer reports it with the images.
    costs = costs.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    from scipy.optimize import linear_sum_assignment  # half a second, which only training needs

    queries, targets = linear_sum_assignment(costs.cpu().numpy())
    return torch.from_numpy(queries).to(device), torch.from_numpy(targets).to(device)
