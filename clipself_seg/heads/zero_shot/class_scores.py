"""From dense features and texts of names to probabilities of classes, cell by cell.

The scores of training-free segmentation: `scale` times the cosine of a cell with every name, softmax over all names of
all classes, and of each class the best of its names. The softmax is that of a cell of one window; windows are averaged
as probabilities, not as cosines.

Shapes: E embedding, h x w cells, K classes, N names of all classes together, S names of the class that has most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipself_seg.clip.runtime import full_precision
from clipself_seg.data.vocabulary import Names
from clipself_seg.heads.cat_seg.cost_volume import cosine_cost


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
