"""The cost volume, cosines between all locations and all classes, and the choice of the best classes.

Shapes: T classes, P prompts of a class, E embedding, h x w cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.runtime import full_precision


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


def best_classes(cost_PThw: Tensor, count: int) -> Tensor | None:
    """Indices (count,), ascending, of the classes whose highest cost in the image is highest.

    Args:
        cost_PThw: cosines.
        count: number of classes to keep; 0 keeps all.

    Returns:
        None if all classes are kept.
    """
    if not count or cost_PThw.shape[1] <= count:
        return None
    peaks_T = cost_PThw.amax(dim=(0, 2, 3))
    return torch.topk(peaks_T, count, sorted=False).indices.sort().values


def text_direction(text_TPE: Tensor) -> Tensor:
    """Mean embedding of the prompts of each class, scaled to unit length, (T, E)."""
    return F.normalize(text_TPE.mean(dim=1), dim=-1)
