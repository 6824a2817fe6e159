"""Losses of region-text training: regions against nouns (CLIPSelf, Table 7; RegionCLIP, arXiv 2112.09106).

Logits are cosines times a temperature. Everything is computed in float32 at least, whatever the type of
the inputs. Means over regions are left to `losses.region_mean`.

Shapes: R regions of all images of a process, K nouns, F nouns that a process compares with, E embedding width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.runtime import full_precision
from clipself_seg.heads.distillation.info_nce import summed_cross_entropy


def noun_logits(regions_RE: Tensor, nouns_KE: Tensor, scale: Tensor | float) -> Tensor:
    """Logits (R, K): cosines times `scale`; a region of zeros has logits of 0.

    Args:
        regions_RE: embeddings of regions, of any norm.
        nouns_KE: embeddings of nouns, of unit length.
        scale: temperature, greater than 0.
    """
    dtype = torch.promote_types(regions_RE.dtype, torch.float32)
    with full_precision(regions_RE.device):
        return scale * F.normalize(regions_RE.to(dtype), dim=-1) @ nouns_KE.to(dtype).T


def federated_nouns(
    labels: np.ndarray, num_nouns: int, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Nouns (F,) that the regions of a process are compared with, ascending: their own, topped up at random.

    Args:
        labels: (R,) nouns of the regions.
        num_nouns: K; no more than those come out.
        count: the own nouns are topped up to so many, without replacement; if there are more, all stay.
        rng: draws the others.
    """
    own = np.unique(labels)
    others = np.setdiff1d(np.arange(num_nouns), own)
    drawn = rng.permutation(others)[: max(count - len(own), 0)]
    return np.sort(np.concatenate([own, drawn])).astype(np.int64)


def federated_bce(logits_RK: Tensor, labels_R: Tensor, nouns_F: Tensor) -> Tensor:
    """Sigmoid cross-entropies of each region with the nouns in `nouns_F`, summed over them, (R,).

    The official code's loss: the region's own noun is right, each of the others wrong.

    Args:
        logits_RK: see `noun_logits`.
        labels_R: nouns of the regions.
        nouns_F: see `federated_nouns`; every label is among them.
    """
    right_RF = (labels_R[:, None] == nouns_F).to(logits_RK.dtype)
    logits_RF = logits_RK[:, nouns_F]
    return F.binary_cross_entropy_with_logits(logits_RF, right_RF, reduction="none").sum(1)


def noun_cross_entropy(logits_RK: Tensor, labels_R: Tensor) -> Tensor:
    """Cross-entropies (R,) of a softmax over all nouns."""
    return F.cross_entropy(logits_RK, labels_R, reduction="none")


def concept_contrast(logits_RK: Tensor, labels_R: Tensor) -> Tensor:
    """RegionCLIP's contrast of the regions with each other's nouns, (R,).

    Each region brings its noun to a softmax over R entries; those with the region's own noun are all right,
    and their probabilities are summed.

    Args:
        logits_RK: see `noun_logits`.
        labels_R: nouns of the regions.
    """
    logits_RR = logits_RK[:, labels_R]
    return summed_cross_entropy(logits_RR, labels_R[:, None] != labels_R, 1)


def teacher_divergence(student_RK: Tensor, teacher_RK: Tensor) -> Tensor:
    """Kullback-Leibler divergences (R,) of the student's softmax over all nouns from the teacher's.

    Args:
        student_RK: the student's logits.
        teacher_RK: the teacher's; they get no gradient.
    """
    student, teacher = student_RK.log_softmax(1), teacher_RK.detach().log_softmax(1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def pseudo_labels(logits_RK: Tensor, candidates_RK: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nouns that the teacher gives to regions: labels (R,) int64 and their scores (R,).

    A label is the candidate with the largest logit, the first of equals; -1 where there is none. Its score
    is its probability among all nouns, in [0, 1]; 0 where there is none.

    Args:
        logits_RK: see `noun_logits`, of embeddings of the regions' crops.
        candidates_RK: bool, the nouns that a region may have; None for all.
    """
    chances_RK = logits_RK.softmax(1)
    if candidates_RK is None:
        candidates_RK = torch.ones_like(logits_RK, dtype=torch.bool)
    allowed_RK = logits_RK.masked_fill(~candidates_RK, -torch.inf)
    best_RK = candidates_RK & (allowed_RK == allowed_RK.amax(1, keepdim=True))
    number = torch.arange(logits_RK.shape[1], device=logits_RK.device)
    first_R = number.where(best_RK, len(number)).amin(1)
    none_R = first_R == len(number)
    labels_R = first_R.masked_fill(none_R, 0)
    scores_R = chances_RK.gather(1, labels_R[:, None])[:, 0].masked_fill(none_R, 0)
    return labels_R.masked_fill(none_R, -1), scores_R
