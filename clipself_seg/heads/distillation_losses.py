"""The losses of distillation and of training with texts: crops, correlations of tokens, captions, nouns of regions.

All are computed in float32 at least, whatever the type of the inputs; those of regions are one value a region, of
which `region_mean` is the mean. Correlations pull pairwise similarities of an image's tokens towards those of a frozen
teacher; which of their formulas were read at their source, and which in notes on a paper: docs/objectives.md.
Logits of nouns are cosines times a temperature (CLIPSelf, Table 7; RegionCLIP,
arXiv 2112.09106).

Shapes: B images (of a process, with as many captions), R regions of all images in image order, N tokens of an image, L
    tokens of a caption, D and E channels of two models or E embedding width, K nouns, F nouns that a process compares
    with. `valid_BN` are tokens that count, those that are no padding; each image has one at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.precision import full_precision
from clipself_seg.clip.runtime import QUEUES
from clipself_seg.heads.maps import AllSum

Average = Literal["regions", "images"]
RANGE_EPS = 1e-10  # SCD's, where a row's largest value is its smallest
TEMPERATURE = 0.2  # of SCD's softmaxes


def cosine_distance(student_RE: Tensor, teacher_RE: Tensor) -> Tensor:
    """``1 - cos(student, teacher)`` of each region, (R,) in [0, 2] (CLIPSelf, equation 1).

    It is computed in float32, whatever the type of the inputs.

    Args:
        student_RE: pooled dense features of the regions, of any norm.
        teacher_RE: image embeddings of the regions' crops, of any norm; they get no gradient.
    """
    return 1 - F.cosine_similarity(
        student_RE.float(), teacher_RE.detach().float(), dim=-1, eps=1e-12
    )


def region_mean(
    values_R: Tensor,
    regions_per_image: Sequence[int],
    average: Average = "regions",
    count: float | Tensor | None = None,
) -> Tensor:
    """Mean of a value of each region; 0 if there is no region.

    Args:
        values_R: one value a region.
        regions_per_image: number of regions of each of the B images; they sum to R.
        average: "regions" gives every region the same weight (official code), "images" gives every
            image the same weight (paper; D3).
        count: divisor of the summed values; None means `loss_count` of this batch. Under data
            parallelism give the mean of `loss_count` over the processes: then the mean of their losses
            and gradients equals that of one process on the whole batch, however regions are spread.
    """
    if average == "images":
        sizes_B = torch.tensor(regions_per_image)
        sizes_R = sizes_B.repeat_interleave(sizes_B)
        values_R = values_R / sizes_R.to(values_R.device, non_blocking=QUEUES)
    if count is None:
        count = max(loss_count(regions_per_image, average), 1)
    return values_R.sum() / count


def loss_count(regions_per_image: Sequence[int], average: Average) -> int:
    """Divisor of a batch's loss: its number of regions, or of images that have any region.

    Args:
        regions_per_image: number of regions of each image.
        average: "regions" or "images", as in `region_mean`.
    """
    if average == "regions":
        return sum(regions_per_image)
    return sum(size > 0 for size in regions_per_image)


def cosine_similarities(tokens_BND: Tensor) -> Tensor:
    """Cosines (B, N, N) of all pairs of tokens of each image, in float32 or more; 0 for a token of length 0.

    Args:
        tokens_BND: tokens of any length.
    """
    with full_precision(tokens_BND.device):
        unit_BND = _unit(tokens_BND)
        return unit_BND @ unit_BND.mT


def coherence_loss(student_BNN: Tensor, target_BNN: Tensor, valid_BN: Tensor) -> Tensor:
    """Mean of the squared differences of two similarity matrices (DenseRC's coherence), (B,) in [0, 4].

    Args:
        student_BNN: `cosine_similarities` of the student.
        target_BNN: similarities of the teacher; they get no gradient.
        valid_BN: boolean, tokens that count.
    """
    squares_BNN = (student_BNN - target_BNN.detach()).square()
    pairs_BNN = valid_BN[:, :, None] & valid_BN[:, None, :]
    return squares_BNN.masked_fill(~pairs_BNN, 0).sum((1, 2)) / valid_BN.sum(1).square()


def context_loss(student_BNN: Tensor, target_BNN: Tensor, valid_BN: Tensor) -> Tensor:
    """Mean over tokens of the Euclidean length of the difference of their rows (DeCLIP's context), (B,), at least 0.

    Two equal matrices have a loss of 0 and a gradient of 0.

    Args:
        student_BNN: `cosine_similarities` of the student's context features.
        target_BNN: correlations of the teacher; they get no gradient.
        valid_BN: boolean, tokens that count.
    """
    difference_BNN = (student_BNN - target_BNN.detach()).masked_fill(~valid_BN[:, None, :], 0)
    return _token_mean(torch.linalg.vector_norm(difference_BNN, dim=2), valid_BN)


def spatial_correlation_loss(student_BND: Tensor, target_BNE: Tensor, valid_BN: Tensor) -> Tensor:
    """Cross entropy of how tokens attend to each other (spatial correlation distillation, SCD of R-SC), (B,).

    Cosines of each token with all tokens are scaled to [0, 1] by their own smallest and largest one, and become a
    distribution by a softmax. Of a pair of the student's tokens only the first gets a gradient. The smallest value
    of the loss is the entropy of the target, not 0.

    Args:
        student_BND: the student's tokens, of any length.
        target_BNE: the frozen teacher's tokens, which get no gradient.
        valid_BN: boolean, tokens that count.
    """
    with full_precision(student_BND.device):
        unit_BND = _unit(student_BND)
        student_BNN = unit_BND @ unit_BND.detach().mT
        target_BNN = cosine_similarities(target_BNE.detach())
    log_own_BNN = _row_logits(student_BNN, valid_BN).log_softmax(2)
    chances_BNN = _row_logits(target_BNN, valid_BN).softmax(2)
    # The logarithm of those that do not count is minus infinity, their chance 0.
    log_own_BNN = log_own_BNN.masked_fill(~valid_BN[:, None, :], 0)
    return _token_mean(-(chances_BNN * log_own_BNN).sum(2), valid_BN)


def _row_logits(similarities_BNN: Tensor, valid_BN: Tensor) -> Tensor:
    """Rows scaled to [0, 1] / `TEMPERATURE`; minus infinity in columns that do not count."""
    left_out_B1N = ~valid_BN[:, None, :]
    least_BN1 = similarities_BNN.masked_fill(left_out_B1N, torch.inf).amin(2, keepdim=True)
    most_BN1 = similarities_BNN.masked_fill(left_out_B1N, -torch.inf).amax(2, keepdim=True)
    scaled_BNN = (similarities_BNN - least_BN1) / (most_BN1 - least_BN1 + RANGE_EPS)
    return (scaled_BNN / TEMPERATURE).masked_fill(left_out_B1N, -torch.inf)


def _unit(tokens_BND: Tensor) -> Tensor:
    """Tokens of length 1, in float32 or more."""
    wide = torch.promote_types(tokens_BND.dtype, torch.float32)
    return F.normalize(tokens_BND.to(wide), dim=2, eps=1e-12)


def _token_mean(values_BN: Tensor, valid_BN: Tensor) -> Tensor:
    return values_BN.masked_fill(~valid_BN, 0).sum(1) / valid_BN.sum(1)


def of_all_processes(own: Tensor) -> Tensor:
    """Tensors (B, ...) of all processes, concatenated in their order; gradients flow back to each process.

    Args:
        own: this process's tensor, of one shape in all of them.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return own
    places = own.new_zeros(dist.get_world_size(), *own.shape)
    return AllSum.apply(places.index_put((torch.tensor(dist.get_rank()),), own)).flatten(0, 1)


def info_nce_loss(
    images_BE: Tensor, texts_BE: Tensor, tokens_BL: Tensor, scale: Tensor, gather: bool = True
) -> Tensor:
    """Mean of two cross-entropies, images against captions and captions against images; a scalar of at least 0.

    Where all captions differ, it is the loss of CLIP's training (open_clip's `ClipLoss`). Equal captions
    are all right for each of their images: their probabilities are summed, as RegionCLIP does with
    equal nouns; else the loss would have a floor that nothing can learn away. It is computed in float32,
    whatever the type of the inputs.

    Args:
        images_BE: image embeddings, of any norm.
        texts_BE: text embeddings of the images' captions, of any norm.
        tokens_BL: tokens of the captions, integers; captions with equal tokens are equal; on any device.
        scale: positive scalar that cosines are multiplied by.
        gather: True if images and captions of all processes, of which each has B, compete. Then the
            loss is the same in each process, and `DistributedDataParallel` averages the gradients to
            those of one process on the whole batch.
    """
    with full_precision(images_BE.device):
        images = F.normalize(images_BE.float(), dim=-1)
        texts = F.normalize(texts_BE.float(), dim=-1)
        tokens = tokens_BL.to(images.device, non_blocking=QUEUES)
        if gather:
            images, texts, tokens = (of_all_processes(own) for own in (images, texts, tokens))
        logits_ij = scale.float() * images @ texts.T
        different_ij = (tokens[:, None] != tokens).any(dim=-1)
        losses = [summed_cross_entropy(logits_ij, different_ij, dim) for dim in (0, 1)]
        return 0.5 * torch.stack(losses).sum(0).mean()


def summed_cross_entropy(logits: Tensor, wrong: Tensor, dim: int) -> Tensor:
    """Cross-entropies of a softmax in which several entries may be right: their probabilities are summed.

    Args:
        logits: of any shape.
        wrong: bool of that shape, entries that are not right.
        dim: dimension of the softmax, which the result has lost.
    """
    right = logits.masked_fill(wrong, -torch.inf)
    return logits.logsumexp(dim) - right.logsumexp(dim)


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
