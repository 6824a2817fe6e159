"""Class logits from embeddings and texts: scaled cosines, with the best synonym of each class.

Shapes: Q queries, S texts (all synonyms of all classes), K classes, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.kind import LARGEST_SCALE
from clipself_seg.clip.runtime import constant, full_precision
from clipself_seg.errors import InputError


def similarity_scale(logit_scale: Tensor) -> Tensor:
    """Factor that a generator's cosines are multiplied by, a positive scalar of at most 100, from its logarithm.

    That of a CLIP is `DenseCLIP.similarity_scale`.
    """
    return logit_scale.exp().clamp(max=LARGEST_SCALE)


def class_logits(
    embeddings: Tensor, text_SE: Tensor, synonyms: Sequence[int], scale: Tensor
) -> Tensor:
    """Largest ``scale * cosine`` among the synonyms of each class, (..., Q, K), in float32.

    Args:
        embeddings: (..., Q, E), of any norm; a zero vector has the logit 0 for every class.
        text_SE: text embeddings of any norm, the synonyms of a class one after another.
        synonyms: number of texts of each of the K classes.
        scale: factor of the cosines, a positive scalar.

    Raises:
        InputError: the counts do not add up to S, or a class has no text.
    """
    if sum(synonyms) != len(text_SE) or min(synonyms, default=0) < 1:
        raise InputError(
            f"{len(text_SE)} texts for {len(synonyms)} classes with {sum(synonyms)} synonyms; "
            "give every class at least one text, and every text a class"
        )
    with full_precision(embeddings.device):
        unit_SE = F.normalize(text_SE.float(), dim=-1)
        logits = scale.float() * (F.normalize(embeddings.float(), dim=-1) @ unit_SE.T)
        return _best_of_synonyms(logits, synonyms)


def _best_of_synonyms(logits: Tensor, synonyms: Sequence[int]) -> Tensor:
    """Maximum over the synonyms of each class, (..., S) -> (..., K)."""
    if max(synonyms) == 1:
        return logits
    class_of_S = torch.repeat_interleave(torch.tensor(synonyms))
    class_of_S = class_of_S.to(logits.device, non_blocking=True)
    best = logits.new_zeros(*logits.shape[:-1], len(synonyms))
    # include_self=False: the zeros of `best` must not beat negative logits.
    return best.scatter_reduce(-1, class_of_S.expand_as(logits), logits, "amax", include_self=False)


def only_classes(logits_QK: Tensor, classes: Sequence[int]) -> Tensor:
    """Logits as if those classes alone had been given: the others have minus infinity.

    Scores of a class do not depend on the other classes, so that probabilities are those of the short vocabulary.

    Args:
        logits_QK: class logits.
        classes: indices in [0, K); none leaves all classes.
    """
    if not len(classes):
        return logits_QK
    kept = constant(list(classes), logits_QK).long()
    return torch.full_like(logits_QK, -torch.inf).index_copy(1, kept, logits_QK[:, kept])
