"""Losses on pairwise similarities of an image's tokens: the student's are pulled towards those of a frozen teacher.

Which of the formulas were read at their source, and which in notes on a paper: docs/distillation.md, section 9.

Shapes: B images, N tokens of an image, D and E channels of two models. `valid_BN` are tokens that count, such as those
that are no padding; each image has one at least. None stands for all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.runtime import full_precision

RANGE_EPS = 1e-10  # SCD's, where a row's largest value is its smallest


def cosine_similarities(tokens_BND: Tensor) -> Tensor:
    """Cosines (B, N, N) of all pairs of tokens of each image, in float32 or more; 0 for a token of length 0.

    Args:
        tokens_BND: tokens of any length.
    """
    with full_precision(tokens_BND.device):
        unit_BND = _unit(tokens_BND)
        return unit_BND @ unit_BND.mT


def coherence_loss(
    student_BNN: Tensor, target_BNN: Tensor, valid_BN: Tensor | None = None
) -> Tensor:
    """Mean of the squared differences of two similarity matrices (DenseRC's coherence), (B,) in [0, 4].

    Args:
        student_BNN: `cosine_similarities` of the student.
        target_BNN: those of the teacher; they get no gradient.
        valid_BN: boolean, tokens that count.
    """
    squares_BNN = (student_BNN - target_BNN.detach()).square()
    if valid_BN is None:
        return squares_BNN.mean((1, 2))
    count_B = valid_BN.sum(1)
    pairs_BNN = valid_BN[:, :, None] & valid_BN[:, None, :]
    return squares_BNN.masked_fill(~pairs_BNN, 0).sum((1, 2)) / count_B.square()


def context_loss(student_BNN: Tensor, target_BNN: Tensor, valid_BN: Tensor | None = None) -> Tensor:
    """Mean over tokens of the Euclidean length of the difference of their rows (DeCLIP's context), (B,), at least 0.

    Two equal matrices have a loss of 0 and a gradient of 0.

    Args:
        student_BNN: `cosine_similarities` of the student's context features.
        target_BNN: those of the teacher; they get no gradient.
        valid_BN: boolean, tokens that count.
    """
    difference_BNN = student_BNN - target_BNN.detach()
    if valid_BN is not None:
        difference_BNN = difference_BNN.masked_fill(~valid_BN[:, None, :], 0)
    return _token_mean(torch.linalg.vector_norm(difference_BNN, dim=2), valid_BN)


def spatial_correlation_loss(
    student_BND: Tensor,
    target_BNE: Tensor,
    temperature: float = 0.2,
    valid_BN: Tensor | None = None,
) -> Tensor:
    """Cross entropy of how tokens attend to each other (spatial correlation distillation, SCD of R-SC), (B,).

    Cosines of each token with all tokens are scaled to [0, 1] by their own smallest and largest one, and become a
    distribution by a softmax. Of a pair of the student's tokens only the first gets a gradient. The smallest value
    of the loss is the entropy of the target, not 0.

    Args:
        student_BND: the student's tokens, of any length.
        target_BNE: the frozen teacher's tokens, which get no gradient.
        temperature: of both softmaxes, greater than 0.
        valid_BN: boolean, tokens that count.
    """
    with full_precision(student_BND.device):
        unit_BND = _unit(student_BND)
        student_BNN = unit_BND @ unit_BND.detach().mT
        target_BNN = cosine_similarities(target_BNE.detach())
    log_own_BNN = _row_logits(student_BNN, temperature, valid_BN).log_softmax(2)
    chances_BNN = _row_logits(target_BNN, temperature, valid_BN).softmax(2)
    if valid_BN is not None:
        # Their logarithm is minus infinity, their chance 0.
        log_own_BNN = log_own_BNN.masked_fill(~valid_BN[:, None, :], 0)
    return _token_mean(-(chances_BNN * log_own_BNN).sum(2), valid_BN)


def _row_logits(similarities_BNN: Tensor, temperature: float, valid_BN: Tensor | None) -> Tensor:
    """Rows scaled to [0, 1] / temperature; minus infinity in columns that do not count."""
    if valid_BN is None:
        least_BN1 = similarities_BNN.amin(2, keepdim=True)
        most_BN1 = similarities_BNN.amax(2, keepdim=True)
        return (similarities_BNN - least_BN1) / (most_BN1 - least_BN1 + RANGE_EPS) / temperature
    left_out_B1N = ~valid_BN[:, None, :]
    least_BN1 = similarities_BNN.masked_fill(left_out_B1N, torch.inf).amin(2, keepdim=True)
    most_BN1 = similarities_BNN.masked_fill(left_out_B1N, -torch.inf).amax(2, keepdim=True)
    scaled_BNN = (similarities_BNN - least_BN1) / (most_BN1 - least_BN1 + RANGE_EPS)
    return (scaled_BNN / temperature).masked_fill(left_out_B1N, -torch.inf)


def _unit(tokens_BND: Tensor) -> Tensor:
    """Tokens of length 1, in float32 or more."""
    wide = torch.promote_types(tokens_BND.dtype, torch.float32)
    return F.normalize(tokens_BND.to(wide), dim=2, eps=1e-12)


def _token_mean(values_BN: Tensor, valid_BN: Tensor | None) -> Tensor:
    if valid_BN is None:
        return values_BN.mean(1)
    return values_BN.masked_fill(~valid_BN, 0).sum(1) / valid_BN.sum(1)
