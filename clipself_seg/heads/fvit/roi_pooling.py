"""RoIAlign over a feature pyramid whose strides need not be powers of two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

LEVELS = 4
FINEST = 56.0
"""Side in pixels of a box from which on the second level is read, whatever the strides are."""


def pyramid_levels(boxes_n4: Tensor) -> Tensor:
    """Level 0 to 3, for P2 to P5, that each box is read from, (n,) int64."""
    sides = ((boxes_n4[:, 2] - boxes_n4[:, 0]) * (boxes_n4[:, 3] - boxes_n4[:, 1])).sqrt()
    return (sides / FINEST + 1e-6).log2().floor().clamp(0, LEVELS - 1).long()


def pool_boxes(
    levels: Sequence[Tensor], strides: Sequence[float], boxes: Sequence[Tensor], side: int
) -> Tensor:
    """Features (sum n, C, side, side) of the boxes of each image, in order, in float32.

    Args:
        levels: P2 to P5, (B, C, h, w) each.
        strides: pixels between the cells of each.
        boxes: boxes (n, 4) of each image, in pixels.
        side: bins along a side of the result; each is the mean of as many samples as it has cells.
    """
    together = torch.cat([*boxes])
    image = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
    numbered = torch.cat([image, together], dim=1).float()
    of_levels = _by_level(pyramid_levels(together))
    pooled = levels[0].new_zeros(len(together), levels[0].shape[1], side, side, dtype=torch.float32)
    for of_level, level, stride in zip(of_levels, levels[:LEVELS], strides):
        read = roi_align(
            level.float(), numbered[of_level], side, 1 / stride, sampling_ratio=0, aligned=True
        )
        pooled.index_copy_(0, of_level, read)
    return pooled


def _by_level(level_n: Tensor) -> Sequence[Tensor]:
    """Indices of the boxes of each level, ascending; a GPU is waited for once."""
    counts = (level_n[:, None] == torch.arange(LEVELS, device=level_n.device)).sum(dim=0)
    sizes = counts.tolist()
    # A box that is none (its sides are not numbers) has a level below all others, and is not read.
    return level_n.argsort(stable=True).split([len(level_n) - sum(sizes), *sizes])[1:]
