"""Embeddings against texts: scaled cosines, and for a class the best of its synonyms.

Shapes: Q queries, S texts (all synonyms of all classes), K classes, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.precision import full_precision
from clipself_seg.errors import InputError

LARGEST_SCALE = 100.0


def similarity_scale(logit_scale: Tensor) -> Tensor:
    """The factor of cosines, a positive scalar of at most 100, from its logarithm."""
    return logit_scale.exp().clamp(max=LARGEST_SCALE)


def class_logits(
    embeddings: Tensor, text_SE: Tensor, synonyms: Sequence[int], scale: Tensor
) -> Tensor:
    """``scale * cosine`` of the synonym that fits best, (..., Q, K), in float32.

    Args:
        embeddings: (..., Q, E), of any length; a zero vector has the logit 0 everywhere.
        text_SE: of any length, the synonyms of a class one after another.
        synonyms: how many of the S texts belong to each of the K classes.
        scale: a scalar, see `similarity_scale`.

    Raises:
        InputError: the counts do not add up to S, or a class has no text.
    """
    if sum(synonyms) != len(text_SE) or min(synonyms, default=0) < 1:
        raise InputError(
            f"{len(text_SE)} texts for {len(synonyms)} classes with {sum(synonyms)} synonyms; "
            "give every class at least one text, and every text a class"
        )
    with full_precision(embeddings.device):
        texts_SE = F.normalize(text_SE.float(), dim=-1)
        logits = scale.float() * (F.normalize(embeddings.float(), dim=-1) @ texts_SE.T)
        return _best_of_synonyms(logits, synonyms)


def _best_of_synonyms(logits: Tensor, synonyms: Sequence[int]) -> Tensor:
    """(..., S) -> (..., K)"""
    if max(synonyms) == 1:
        return logits
    class_of_S = torch.repeat_interleave(torch.tensor(synonyms)).to(logits.device)
    best = logits.new_zeros(*logits.shape[:-1], len(synonyms))
    return best.scatter_reduce(-1, class_of_S.expand_as(logits), logits, "amax", include_self=False)
