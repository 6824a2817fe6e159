"""The losses of a mask generator (Mask2Former; ODISE's settings).

Shapes: B images, Q queries, K + 1 classes with void last, T targets of an image, n matched masks of
    a batch, P points, h x w pixels of the predictions, H x W of the targets.
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
    """The segments of an image: labels (T,) int64 in [0, K), masks (T, H, W) bool over the canvas."""

    labels: Tensor
    masks: Tensor


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Weights and points; the defaults are ODISE's.

    Attributes:
        weights: of the terms.
        void_weight: what a query without target counts in the classification.
        points: P, where a mask is compared.
        oversample: random candidates for each point.
        important: the share of points taken from the candidates, where the prediction is least sure;
            the others are random.
    """

    weights: TermWeights = TermWeights()
    void_weight: float = 0.1
    points: int = 12544
    oversample: float = 3.0
    important: float = 0.75


class MaskCriterion:
    """Matches queries with targets, and adds up classification, mask and dice loss of every layer."""

    def __init__(self, *, class_agnostic: bool, settings: LossSettings | None = None) -> None:
        """
        Args:
            class_agnostic: the classification knows objects and void only (the caption model).
            settings: None for ODISE's.
        """
        self.class_agnostic, self.settings = class_agnostic, settings or LossSettings()

    def losses(
        self,
        predictions: Sequence[tuple[Tensor, Tensor]],
        targets: Sequence[MaskTargets],
    ) -> dict[str, Tensor]:
        """Weighted losses: ``loss_{class,mask,dice}`` of the last layer, ``..._{i}`` of the i-th before.

        Args:
            predictions: for each layer class logits with void (B, Q, K + 1), of the class-agnostic
                kind (B, Q, 2), and mask logits (B, Q, h, w).
            targets: of each image; no targets at all are fine.
        """
        if self.class_agnostic:
            targets = [MaskTargets(torch.zeros_like(t.labels), t.masks) for t in targets]
        count = count_masks(targets, predictions[0][1].device)
        found: dict[str, Tensor] = {}
        *earlier, last = predictions
        named = {"": last} | {f"_{index}": layer for index, layer in enumerate(earlier)}
        for suffix, (class_logits, mask_logits) in named.items():
            terms = self._layer(class_logits, mask_logits, targets, count)
            found |= {f"loss_{name}{suffix}": term for name, term in terms.items()}
        return found

    def _layer(
        self,
        classes: Tensor,
        masks: Tensor,
        targets: Sequence[MaskTargets],
        count: Tensor,
    ) -> dict[str, Tensor]:
        settings, weights = self.settings, self.settings.weights
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
    """Targets of the batch, the mean over processes and at least 1: what mask losses are divided by."""
    count = torch.tensor(float(sum(len(t.labels) for t in targets)), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1)


def mask_losses(logits_nP: Tensor, targets_nP: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy, the mean over points, and dice loss of each mask, both (n,)."""
    entropy = F.binary_cross_entropy_with_logits(logits_nP, targets_nP, reduction="none")
    inside = logits_nP.sigmoid()
    overlap_n = 2 * (inside * targets_nP).sum(dim=1) + 1
    return entropy.mean(dim=1), 1 - overlap_n / (inside.sum(dim=1) + targets_nP.sum(dim=1) + 1)


@torch.no_grad()
def uncertain_points(logits_nhw: Tensor, settings: LossSettings) -> Tensor:
    """Points (n, P, 2), (x, y) in [0, 1], mostly where the logits are near zero (PointRend, 3.3)."""
    count = len(logits_nhw)
    hard = int(settings.important * settings.points)
    candidates = logits_nhw.new_empty(count, int(settings.oversample * settings.points), 2)
    candidates.uniform_()
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
    """Cross-entropy, a mean that counts void less; queries without a target are void."""
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
    """Logits and targets (n, P) of the matched masks at the same points."""
    logits_nhw = torch.cat([one[queries] for one, (queries, _) in zip(masks_BQhw, matches)])
    points_nP2 = uncertain_points(logits_nhw, settings)
    per_image = points_nP2.split([len(queries) for queries, _ in matches])
    wanted = [
        sample_points(target.masks[indices], points)
        for target, (_, indices), points in zip(targets, matches, per_image)
    ]
    return _sampled(logits_nhw, points_nP2), torch.cat(wanted)


def _sampled(logits_nhw: Tensor, points_nP2: Tensor) -> Tensor:
    if len(logits_nhw):
        return sample_points(logits_nhw, points_nP2)
    # Nothing to sample, but the parameters behind the masks still get their (zero) gradients.
    return logits_nhw.flatten(1)[:, :1].expand(-1, points_nP2.shape[1])
