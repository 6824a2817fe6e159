"""The losses of a mask generator (Mask2Former; ODISE's settings).

Shapes: B images, Q queries, K + 1 classes with void last, T targets of an image, n matched masks of
    a batch, P points, h x w pixels of the predictions, H x W pixels of the targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.precision import full_precision
from clipself_seg.heads.panoptic.matching import TermWeights, match_queries, sample_points

Matches = list[tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class MaskTargets:
    """Segments of an image: labels (T,) int64 in [0, K), masks (T, H, W) bool over the canvas."""

    labels: Tensor
    masks: Tensor


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Weights of the loss terms and numbers of points; the defaults are ODISE's.

    Attributes:
        weights: weights of the loss terms, which the matching uses too.
        void_weight: weight of a query without a target in the classification loss.
        points: P, number of points at which a mask is compared with its target.
        oversample: number of random candidates for each point.
        important: fraction of the points that are the candidates with the least certain prediction;
            the others are random.
    """

    weights: TermWeights = TermWeights()
    void_weight: float = 0.1
    points: int = 12544
    oversample: float = 3.0
    important: float = 0.75


class MaskCriterion:
    """Matches queries with targets and computes classification, mask and dice loss of every layer."""

    def __init__(self, *, class_agnostic: bool, settings: LossSettings | None = None) -> None:
        """
        Args:
            class_agnostic: whether the classification is between object and void only (the caption
                model).
            settings: weights and numbers of points; None for ODISE's.
        """
        self.class_agnostic = class_agnostic
        self.settings = settings or LossSettings()

    def losses(
        self,
        predictions: Sequence[tuple[Tensor, Tensor]],
        targets: Sequence[MaskTargets],
    ) -> dict[str, Tensor]:
        """Weighted losses: ``loss_{class,mask,dice}`` of the last layer, ``..._{i}`` of earlier layer i.

        Args:
            predictions: class logits with void, (B, Q, K + 1) or (B, Q, 2) if class-agnostic, and
                mask logits (B, Q, h, w) of each layer.
            targets: segments of each image; images without any are fine.
        """
        if self.class_agnostic:
            targets = [MaskTargets(torch.zeros_like(t.labels), t.masks) for t in targets]
        count = count_masks(targets, predictions[0][1].device)
        losses: dict[str, Tensor] = {}
        *earlier, last = predictions
        named = {"": last} | {f"_{index}": layer for index, layer in enumerate(earlier)}
        for suffix, (class_logits, mask_logits) in named.items():
            terms = self._layer(class_logits, mask_logits, targets, count)
            losses |= {f"loss_{name}{suffix}": term for name, term in terms.items()}
        return losses

    def _layer(
        self,
        classes: Tensor,
        masks: Tensor,
        targets: Sequence[MaskTargets],
        count: Tensor,
    ) -> dict[str, Tensor]:
        """Weighted "class", "mask" and "dice" loss of one layer; `count` divides the mask losses."""
        settings = self.settings
        weights = settings.weights
        matches = [
            match_queries(c, m, t.labels, t.masks, points=settings.points, weights=weights)
            for c, m, t in zip(classes, masks, targets, strict=True)
        ]
        with full_precision(masks.device):
            label = _classification(classes.float(), targets, matches, settings.void_weight)
            logits_nP, targets_nP = _at_points(masks.float(), targets, matches, settings)
            entropy, dice = mask_losses(logits_nP, targets_nP)
            return {
                "class": weights.classes * label,
                "mask": weights.mask * entropy.sum() / count,
                "dice": weights.dice * dice.sum() / count,
            }


def count_masks(targets: Sequence[MaskTargets], device: torch.device) -> Tensor:
    """Divisor of mask losses: targets of a batch, averaged over processes, at least 1."""
    count = torch.tensor(float(sum(len(t.labels) for t in targets)), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1)


def mask_losses(logits_nP: Tensor, targets_nP: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy, averaged over points, and dice loss of each mask, both (n,).

    Args:
        logits_nP: mask logits at the points.
        targets_nP: target values at the same points, in [0, 1].
    """
    entropy = F.binary_cross_entropy_with_logits(logits_nP, targets_nP, reduction="none")
    inside = logits_nP.sigmoid()
    overlap_n = 2 * (inside * targets_nP).sum(dim=1) + 1
    return entropy.mean(dim=1), 1 - overlap_n / (inside.sum(dim=1) + targets_nP.sum(dim=1) + 1)


@torch.no_grad()
def uncertain_points(logits_nhw: Tensor, settings: LossSettings) -> Tensor:
    """Points (n, P, 2), (x, y) in [0, 1], mostly where logits are near 0 (PointRend, section 3.3)."""
    count = len(logits_nhw)
    hard = int(settings.important * settings.points)
    candidates = logits_nhw.new_empty(count, int(settings.oversample * settings.points), 2)
    candidates.uniform_()
    # The smaller a logit's magnitude, the less certain the prediction.
    doubt = -sample_points(logits_nhw, candidates).abs()
    best = doubt.topk(hard, dim=1).indices[..., None].expand(-1, -1, 2)
    others = logits_nhw.new_empty(count, settings.points - hard, 2).uniform_()
    return torch.cat([candidates.gather(1, best), others], dim=1)


def _classification(
    logits_BQK: Tensor,
    targets: Sequence[MaskTargets],
    matches: Matches,
    void_weight: float,
) -> Tensor:
    """Mean cross-entropy with a lower weight for void, the target of unmatched queries."""
    void = logits_BQK.shape[2] - 1
    wanted_BQ = torch.full(logits_BQK.shape[:2], void, device=logits_BQK.device)
    for wanted_Q, target, (queries, indices) in zip(wanted_BQ, targets, matches):
        wanted_Q[queries] = target.labels[indices]
    weights = logits_BQK.new_ones(void + 1)
    weights[void] = void_weight
    return F.cross_entropy(logits_BQK.flatten(0, 1), wanted_BQ.flatten(), weights)


def _at_points(
    masks_BQhw: Tensor,
    targets: Sequence[MaskTargets],
    matches: Matches,
    settings: LossSettings,
) -> tuple[Tensor, Tensor]:
    """Logits (n, P) and targets (n, P) of the matched masks at the same uncertain points."""
    logits_nhw = torch.cat([one[queries] for one, (queries, _) in zip(masks_BQhw, matches)])
    points_nP2 = uncertain_points(logits_nhw, settings)
    per_image = points_nP2.split([len(queries) for queries, _ in matches])
    wanted = [
        sample_points(target.masks[indices], points)
        for target, (_, indices), points in zip(targets, matches, per_image)
    ]
    return _sampled(logits_nhw, points_nP2), torch.cat(wanted)


def _sampled(logits_nhw: Tensor, points_nP2: Tensor) -> Tensor:
    """Logits (n, P) at the points; without masks an empty tensor that still has a gradient."""
    if len(logits_nhw):
        return sample_points(logits_nhw, points_nP2)
    # Parameters behind the masks have to get (zero) gradients even if nothing is sampled.
    return logits_nhw.flatten(1)[:, :1].expand(-1, points_nP2.shape[1])
