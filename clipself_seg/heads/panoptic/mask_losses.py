"""The losses of a mask generator: of queries matched one to one with targets, and of words of captions.

Matching and losses of masks are Mask2Former's (section 3.3) with ODISE's settings; the grounding loss is that of
ODISE's caption model.

Shapes: B images, Q queries, K + 1 classes with void last, T targets of an image, n matched masks of a batch, P
    points, N maps, h x w pixels of the predictions, H x W pixels of the targets, W words of a caption, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.precision import full_precision
from clipself_seg.clip.runtime import QUEUES
from clipself_seg.heads.distillation_losses import of_all_processes
from clipself_seg.heads.maps import mean_over_processes, several_processes

# Indices of queries and of the targets that they are matched with.
Match = tuple[Tensor, Tensor]


# ODISE's, which are Mask2Former's: weights of the three terms, in the matching and in the loss.
CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0
VOID_WEIGHT = 0.1  # of a query without a target in the classification loss
OVERSAMPLE = 3.0  # random candidates for each point
IMPORTANT = 0.75  # fraction of the points that are the candidates with the least certain prediction


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


@torch.no_grad()
def matching_costs(
    class_logits_QK: Tensor,
    mask_logits_Qhw: Tensor,
    labels_T: Tensor,
    masks_THW: Tensor,
    points_1P2: Tensor,
) -> Tensor:
    """Costs (Q, T) of every query with every target of an image, finite.

    Args:
        class_logits_QK: class logits of the queries, void included.
        mask_logits_Qhw: mask logits of the queries, of any size.
        labels_T: class indices of the targets.
        masks_THW: boolean masks of the targets, of any size, over the canvas of the queries' masks.
        points_1P2: points (x, y) in [0, 1] at which masks are compared, the same for all pairs.
    """
    with full_precision(mask_logits_Qhw.device):
        logits, targets = (sample_points(m, points_1P2) for m in (mask_logits_Qhw, masks_THW))
        classes_QT = -class_logits_QK.float().softmax(dim=-1)[:, labels_T]
        # softplus(x) - x t is the cross-entropy of sigmoid(x) with t.
        entropy_QT = F.softplus(logits).sum(dim=1)[:, None] - logits @ targets.T
        entropy_QT = entropy_QT / logits.shape[1]
        inside = logits.sigmoid()
        sums_QT = inside.sum(dim=1)[:, None] + targets.sum(dim=1)
        dice_QT = 1 - (2 * inside @ targets.T + 1) / (sums_QT + 1)
        costs = CLASS_WEIGHT * classes_QT + MASK_WEIGHT * entropy_QT + DICE_WEIGHT * dice_QT
    # With such costs the loss is not finite for any match: the trainer reports it with the images.
    return costs.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def match_queries(costs: Sequence[Tensor]) -> list[Match]:
    """Indices of the matched queries and of their targets, for each problem two tensors (min(Q, T),).

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
    on_device = pairs_2n.to(costs[0].device, non_blocking=QUEUES)
    return [(one[0], one[1]) for one in on_device.split([pairs.shape[1] for pairs in solved], 1)]


@dataclasses.dataclass(frozen=True)
class MaskTargets:
    """Segments of an image: labels (T,) int64 in [0, K), masks (T, H, W) bool over the canvas."""

    labels: Tensor
    masks: Tensor


@dataclasses.dataclass(frozen=True)
class RandomPoints:
    """Points of one layer, (x, y) in [0, 1].

    Attributes:
        matching: (1, P, 2) of each image, at which queries are compared with targets.
        candidates: (n, oversample x P, 2) among which uncertain ones are chosen.
        others: (n, the rest of P, 2) that are taken as they are.
    """

    matching: list[Tensor]
    candidates: Tensor
    others: Tensor


class MaskCriterion:
    """Matches queries with targets and computes classification, mask and dice loss of every layer."""

    def __init__(self, *, class_agnostic: bool, points: int) -> None:
        """
        Args:
            class_agnostic: True if the classification is between object and void only (the caption
                model).
            points: P, number of points at which a mask is compared with its target.
        """
        self.class_agnostic = class_agnostic
        self.points = points

    def losses(
        self, predictions: Sequence[tuple[Tensor, Tensor]], targets: Sequence[MaskTargets]
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
        # All layers are matched before any loss: a GPU is waited for once.
        points = [draw_points(masks, targets, self.points) for _, masks in named.values()]
        matches = self._match(list(named.values()), targets, points)
        for suffix, layer, own_matches, own_points in zip(named, named.values(), matches, points):
            terms = self._layer(layer, targets, own_matches, own_points, count)
            losses |= {f"loss_{name}{suffix}": term for name, term in terms.items()}
        return losses

    def _match(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        targets: Sequence[MaskTargets],
        points: Sequence[RandomPoints],
    ) -> list[list[Match]]:
        """Matches of each layer and image."""
        costs = [
            matching_costs(c, m, t.labels, t.masks, where)
            for (classes, masks), own in zip(layers, points)
            for c, m, t, where in zip(classes, masks, targets, own.matching, strict=True)
        ]
        matches = match_queries(costs)
        return [matches[i : i + len(targets)] for i in range(0, len(matches), len(targets))]

    def _layer(
        self,
        prediction: tuple[Tensor, Tensor],
        targets: Sequence[MaskTargets],
        matches: Sequence[Match],
        points: RandomPoints,
        count: Tensor,
    ) -> dict[str, Tensor]:
        """Weighted "class", "mask" and "dice" loss of one layer; `count` divides the mask losses."""
        classes, masks = prediction
        with full_precision(masks.device):
            label = _classification(classes.float(), targets, matches)
            logits_nP, targets_nP = _at_points(masks.float(), targets, matches, points)
            entropy, dice = mask_losses(logits_nP, targets_nP)
            return {
                "class": CLASS_WEIGHT * label,
                "mask": MASK_WEIGHT * entropy.sum() / count,
                "dice": DICE_WEIGHT * dice.sum() / count,
            }


def count_masks(targets: Sequence[MaskTargets], device: torch.device) -> Tensor:
    """Divisor of mask losses: targets of a batch, averaged over processes, at least 1."""
    count = torch.full((), float(sum(len(t.labels) for t in targets)), device=device)
    return mean_over_processes(count).clamp(min=1)


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


def draw_points(masks_BQhw: Tensor, targets: Sequence[MaskTargets], points: int) -> RandomPoints:
    """Random points of a layer, from torch's generator of the device.

    How many masks will be matched is known before they are: as many as there are targets, or queries.

    Args:
        masks_BQhw: mask logits of the layer; their number and device count.
        targets: segments of each image.
        points: P, of each mask.
    """
    device, queries = masks_BQhw.device, masks_BQhw.shape[1]
    matched = sum(min(queries, len(target.labels)) for target in targets)
    hard = int(IMPORTANT * points)
    return RandomPoints(
        matching=[torch.rand(1, points, 2, device=device) for _ in targets],
        candidates=torch.rand(matched, int(OVERSAMPLE * points), 2, device=device),
        others=torch.rand(matched, points - hard, 2, device=device),
    )


@torch.no_grad()
def uncertain_points(logits_nhw: Tensor, points: RandomPoints) -> Tensor:
    """Points (n, P, 2), (x, y) in [0, 1], mostly where logits are near 0 (PointRend, section 3.3)."""
    candidates, others = points.candidates, points.others
    # The smaller a logit's magnitude, the less certain the prediction.
    doubt = -sample_points(logits_nhw, candidates).abs()
    hard = points.matching[0].shape[1] - others.shape[1]
    best = doubt.topk(hard, dim=1).indices[..., None].expand(-1, -1, 2)
    return torch.cat([candidates.gather(1, best), others], dim=1)


def _classification(
    logits_BQK: Tensor, targets: Sequence[MaskTargets], matches: Sequence[Match]
) -> Tensor:
    """Mean cross-entropy with a lower weight for void, the target of unmatched queries."""
    void = logits_BQK.shape[2] - 1
    wanted_BQ = torch.full(logits_BQK.shape[:2], void, device=logits_BQK.device)
    for wanted_Q, target, (queries, indices) in zip(wanted_BQ, targets, matches):
        wanted_Q[queries] = target.labels[indices]
    weights = logits_BQK.new_ones(void + 1)
    weights[void] = VOID_WEIGHT
    return F.cross_entropy(logits_BQK.flatten(0, 1), wanted_BQ.flatten(), weights)


def _at_points(
    masks_BQhw: Tensor,
    targets: Sequence[MaskTargets],
    matches: Sequence[Match],
    points: RandomPoints,
) -> tuple[Tensor, Tensor]:
    """Logits (n, P) and targets (n, P) of the matched masks at the same uncertain points."""
    logits_nhw = torch.cat([one[queries] for one, (queries, _) in zip(masks_BQhw, matches)])
    points_nP2 = uncertain_points(logits_nhw, points)
    per_image = points_nP2.split([len(queries) for queries, _ in matches])
    wanted = [
        sample_points(target.masks[indices], where)
        for target, (_, indices), where in zip(targets, matches, per_image)
    ]
    return _sampled(logits_nhw, points_nP2), torch.cat(wanted)


def _sampled(logits_nhw: Tensor, points_nP2: Tensor) -> Tensor:
    """Logits (n, P) at the points; without masks an empty tensor that still has a gradient."""
    if len(logits_nhw):
        return sample_points(logits_nhw, points_nP2)
    # Parameters behind the masks have to get (zero) gradients even if nothing is sampled.
    return logits_nhw.flatten(1)[:, :1].expand(-1, points_nP2.shape[1])


def grounding_loss(
    embeddings_BQC: Tensor, words_BWC: Tensor, valid: Tensor, scale: Tensor
) -> Tensor:
    """Mean of two cross-entropies, images against captions and captions against images; a scalar.

    The score of an image and a caption is the mean score of the caption's words; a word's score is
    the mean of its scaled cosines with all queries of the image, weighted by their softmax. Captions
    of all processes are negatives, so the loss is the same in each process;
    `DistributedDataParallel` averages the gradients.

    As in ODISE, a pair whose caption has no words is a negative like any other, and its own two terms
    are left out. The images' terms are divided by the number of pairs with words, the captions' terms
    by the number of all pairs.

    Args:
        embeddings_BQC: embeddings of the queries, of any norm.
        words_BWC: projected text embeddings, of any norm, of the words of each image's caption; with
            several processes W is the largest of `caption_lengths`.
        valid: boolean, on the CPU, False for a caption without words, of the captions of all processes; see
            `caption_lengths`. Without any valid pair the loss is 0, where ODISE's is NaN.
        scale: positive scalar that cosines are multiplied by.
    """
    with full_precision(embeddings_BQC.device):
        queries = F.normalize(of_all_processes(embeddings_BQC.float()), dim=-1)
        words = F.normalize(of_all_processes(words_BWC.float()), dim=-1)
        if not valid.any():
            # Zero with a gradient: DistributedDataParallel waits for one of every parameter.
            return 0.0 * (embeddings_BQC.sum() + words_BWC.sum() + scale)
        scores_iqjw = scale.float() * torch.einsum("iqc,jwc->iqjw", queries, words)
        scores_ij = (scores_iqjw.softmax(dim=1) * scores_iqjw).sum(dim=1).mean(dim=-1)
        # Indices: a mask would make Python wait for the GPU.
        rows = valid.nonzero()[:, 0].to(scores_ij.device, non_blocking=QUEUES)
        images = -scores_ij.log_softmax(dim=1).diagonal()[rows]
        captions = -scores_ij.log_softmax(dim=0).diagonal()[rows]
        return 0.5 * (images.mean() + captions.sum() / len(valid))


def caption_lengths(captions: Sequence[Sequence[str]], device: torch.device) -> Tensor:
    """Number of words of each caption of all processes, int64, on the CPU.

    Args:
        captions: words of the caption of each image of this process.
        device: device of the model, through which several processes communicate, and wait for each other.
    """
    own = torch.tensor([len(words) for words in captions])
    if not several_processes():
        return own
    return of_all_processes(own.to(device, non_blocking=QUEUES)).cpu()
