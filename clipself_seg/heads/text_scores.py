"""Scores of features against texts: cosines, and how the names of a class count.

CAT-Seg reads the cosines of every cell (`cosine_cost`). Segmentation without training makes probabilities of them
(`class_probabilities`): `scale` times the cosine of a cell with every name, softmax over all names of all classes,
and of each class the best of its names. Mask generators and CLIP's branches compare embeddings of masks
(`class_logits`).

Shapes: E embedding, h x w cells, P prompts of a class, T or K classes, N or S names of all classes together, Q
    queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.precision import full_precision
from clipself_seg.clip.runtime import QUEUES, constant
from clipself_seg.data.vocabulary import Names


def cosine_cost(dense_Ehw: Tensor, text_TPE: Tensor) -> Tensor:
    """Cosines (P, T, h, w) in [-1, 1], in float32 or better.

    Args:
        dense_Ehw: features of every location, of any length.
        text_TPE: embeddings of every prompt, of any length.
    """
    with full_precision(dense_Ehw.device):
        dense = F.normalize(at_least_float32(dense_Ehw).flatten(1), dim=0)
        text_PTE = F.normalize(at_least_float32(text_TPE), dim=-1).transpose(0, 1)
        return (text_PTE @ dense).unflatten(-1, dense_Ehw.shape[1:])


def at_least_float32(x: Tensor) -> Tensor:
    """Converts half precision to float32, and returns anything else as it is."""
    return x.float() if x.element_size() < 4 else x


def class_probabilities(
    dense_Ehw: Tensor, text_NE: Tensor, members_KS: Tensor, scale: float
) -> Tensor:
    """Probabilities (K, h, w) in [0, 1], in float32 or better; they add up to 1 where no class has two names.

    Args:
        dense_Ehw: features of every cell, of any length.
        text_NE: embeddings of the names, of any length.
        members_KS: the names of each class, see `members_of`.
        scale: factor of the cosines, a softmax's inverse temperature.
    """
    cosines_Nhw = cosine_cost(dense_Ehw, text_NE[:, None])[0]
    with full_precision(dense_Ehw.device):
        return class_maxima((scale * cosines_Nhw).softmax(dim=0), members_KS)


def class_maxima(numbers_Nhw: Tensor, members_KS: Tensor) -> Tensor:
    """The highest number (K, h, w) among the names of each class; NaN if one of them is NaN."""
    first, *others = members_KS.unbind(1)
    best_Khw = numbers_Nhw[first]
    for names in others:
        best_Khw = torch.maximum(best_Khw, numbers_Nhw[names])
    return best_Khw


def members_of(names: Names) -> Tensor:
    """Positions (K, S) int64 of each class's names among all names; a class with fewer repeats its first one."""
    most = max(len(synonyms) for synonyms in names)
    rows, start = [], 0
    for synonyms in names:
        rows.append([start + (number if number < len(synonyms) else 0) for number in range(most)])
        start += len(synonyms)
    return torch.tensor(rows)


def class_logits(
    embeddings: Tensor, text_SE: Tensor, synonyms: Sequence[int] | None, scale: Tensor
) -> Tensor:
    """Largest ``scale * cosine`` among the synonyms of each class, (..., Q, K), in float32.

    Args:
        embeddings: (..., Q, E), of any norm; a zero vector has the logit 0 for every class.
        text_SE: text embeddings of any norm, the synonyms of a class one after another.
        synonyms: number of texts of each of the K classes; None: each text is a class.
        scale: factor of the cosines, a positive scalar.
    """
    if synonyms is not None:
        assert sum(synonyms) == len(text_SE) and min(synonyms, default=0) >= 1
    with full_precision(embeddings.device):
        unit_SE = F.normalize(text_SE.float(), dim=-1)
        logits = scale.float() * (F.normalize(embeddings.float(), dim=-1) @ unit_SE.T)
    if synonyms is None or max(synonyms) == 1:
        return logits
    class_of_S = torch.repeat_interleave(torch.tensor(synonyms))
    class_of_S = class_of_S.to(logits.device, non_blocking=QUEUES)
    best = logits.new_zeros(*logits.shape[:-1], len(synonyms))
    # include_self=False: the zeros of `best` must not beat negative logits.
    return best.scatter_reduce(-1, class_of_S.expand_as(logits), logits, "amax", include_self=False)


def only_classes(logits_QK: Tensor, classes: Sequence[int]) -> Tensor:
    """Logits as if those classes alone had been given: the others have minus infinity.

    Scores of a class do not depend on the other classes, so that probabilities are those of the short vocabulary.

    Args:
        logits_QK: class logits.
        classes: indices in [0, K), at least one.
    """
    kept = constant(list(classes), logits_QK).long()
    return torch.full_like(logits_QK, -torch.inf).index_copy(1, kept, logits_QK[:, kept])
