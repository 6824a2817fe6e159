"""Measures how dense features group without class names: whether a token's nearest neighbours are of its class.

Region accuracy asks whether a place is named rightly; this asks whether places of one class are near to each other and
far from all others, which clustering needs.

Shapes: n regions of an image, N tokens, E channels, h x w tokens of an image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NO_CLASS = -1


class Grouping(NamedTuple):
    """Purity of an image, in [0, 1]; NaN for an image that has nothing to tell apart.

    Attributes:
        purity: see `neighbour_purity`.
        chance: what it is on average where neighbours are drawn at random.
    """

    purity: float
    chance: float


def token_classes(masks_nhw: Tensor, labels_n: Tensor) -> Tensor:
    """Class of each token, (h, w) int64; `NO_CLASS` where no region is, or regions of several classes.

    Args:
        masks_nhw: boolean masks of the regions at the resolution of the tokens.
        labels_n: their classes, 0 or more.
    """
    classes_hw = torch.full(masks_nhw.shape[1:], NO_CLASS, device=masks_nhw.device)
    several_hw = torch.zeros_like(classes_hw, dtype=torch.bool)
    for label in labels_n.unique():
        here_hw = masks_nhw[labels_n == label].any(0)
        several_hw |= here_hw & (classes_hw != NO_CLASS)
        classes_hw = torch.where(here_hw, label, classes_hw)
    return classes_hw.masked_fill(several_hw, NO_CLASS)


def neighbour_purity(tokens_NE: Tensor, classes_N: Tensor) -> Grouping:
    """Mean over classes of the fraction of a token's nearest tokens that are of its class.

    A token of a class with m others in the image is asked for its m nearest ones by cosine, so that 1 is a perfect
    grouping whatever the sizes. Classes of a single token are not asked, but are there to be mistaken for.

    Args:
        tokens_NE: dense features of one image, of any length.
        classes_N: class of each token; tokens of `NO_CLASS` do not count at all.
    """
    counts = classes_N != NO_CLASS
    classes_N = classes_N[counts]
    unit_NE = F.normalize(tokens_NE[counts].float(), dim=1)
    labels, sizes = classes_N.unique(return_counts=True)
    purities, chances = [], []
    for label, size in zip(labels.tolist(), sizes.tolist()):
        if size < 2:
            continue
        own_n = (classes_N == label).nonzero()[:, 0]
        cosines_nN = unit_NE[own_n] @ unit_NE.T
        cosines_nN.scatter_(1, own_n[:, None], -torch.inf)  # a token is no neighbour of itself
        nearest_nm = cosines_nN.topk(size - 1, dim=1).indices
        purities.append(float((classes_N[nearest_nm] == label).double().mean()))
        chances.append((size - 1) / (len(classes_N) - 1))
    if len(labels) < 2 or not purities:
        return Grouping(math.nan, math.nan)
    return Grouping(sum(purities) / len(purities), sum(chances) / len(chances))
