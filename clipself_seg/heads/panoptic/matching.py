"""Which query answers for which target: the cheapest assignment, one to one (Mask2Former, section 3.3).

Shapes: Q queries, T targets of an image, P points, K + 1 classes with void last, N maps of h x w pixels.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from clipself_seg.clip.precision import full_precision


@dataclasses.dataclass(frozen=True)
class TermWeights:
    """How much class, cross-entropy of a mask and dice count, in the matching and in the loss alike."""

    classes: float = 2.0
    mask: float = 5.0
    dice: float = 5.0


def sample_points(maps_Nhw: Tensor, points_NP2: Tensor) -> Tensor:
    """Bilinear samples (N, P), float32.

    Args:
        maps_Nhw: any numbers, or boolean.
        points_NP2: (x, y) in [0, 1] relative to the map, or (1, P, 2) for all maps alike.
    """
    shape = len(maps_Nhw), points_NP2.shape[1]
    if not len(maps_Nhw):
        return maps_Nhw.new_zeros(shape, dtype=torch.float32)
    maps, points = maps_Nhw.float(), 2 * points_NP2.float() - 1
    # One set of points for all maps: the maps are the channels of one picture.
    maps, points = (
        (maps[None], points[:, None]) if len(points) == 1 else (maps[:, None], points[:, None])
    )
    return F.grid_sample(maps, points, mode="bilinear", align_corners=False).reshape(shape)


def pair_costs(
    class_logits_QK: Tensor,
    mask_logits_QP: Tensor,
    labels_T: Tensor,
    targets_TP: Tensor,
    weights: TermWeights,
) -> Tensor:
    """The cost of every query for every target, (Q, T).

    Args:
        class_logits_QK: with void.
        mask_logits_QP: at points that are the same for all.
        labels_T: indices of classes.
        targets_TP: in [0, 1].
        weights: of the terms.
    """
    classes_QT = -class_logits_QK.float().softmax(dim=-1)[:, labels_T]
    logits, targets = mask_logits_QP.float(), targets_TP.float()
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
    """Queries and the targets that they answer for, two index tensors (min(Q, T),).

    Masks are compared at random points, the same for all pairs, from torch's current seed.

    Args:
        class_logits_QK: with void.
        mask_logits_Qhw: of any size.
        labels_T: indices of classes.
        masks_THW: boolean, of any size; they cover what the queries' masks cover.
        points: how many.
        weights: of the terms of the cost.
    """
    device = mask_logits_Qhw.device
    with full_precision(device):
        where_1P2 = torch.rand(1, points, 2, device=device)
        logits_QP, targets_TP = (sample_points(m, where_1P2) for m in (mask_logits_Qhw, masks_THW))
        costs = pair_costs(class_logits_QK, logits_QP, labels_T, targets_TP, weights)
    # Whatever is matched then, the loss is not finite either, and the trainer says so with the pictures.
    costs = costs.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    queries, targets = linear_sum_assignment(costs.cpu().numpy())
    return torch.from_numpy(queries).to(device), torch.from_numpy(targets).to(device)
