"""Low-rank updates of an image tower (LoRA, arXiv 2106.09685): of a matrix W the sum W + up down trains, W stays.

The towers read matrices in many ways: rows of a packed one, queries apart from their bias, attention without queries.
So the matrices themselves are parametrised, and whoever reads one reads the sum; a library that wraps the layers that
are called, as peft does, would miss those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.utils import parametrize

from clipself_seg.clip.tower import DENSE, ImageTower, train_last_blocks
from clipself_seg.errors import InputError


class LowRank(nn.Module):
    """The sum of a matrix (O, I) and the product of up (O, r), 0 at first, and down (r, I)."""

    def __init__(self, matrix: Tensor, rank: int) -> None:
        """
        Args:
            matrix: of the shape, type and device of the sum.
            rank: r, at least 1.
        """
        super().__init__()
        outputs, inputs = matrix.shape
        self.up = nn.Parameter(matrix.new_zeros(outputs, rank))
        self.down = nn.Parameter(matrix.new_empty(rank, inputs))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as LoRA's authors do

    def forward(self, matrix: Tensor) -> Tensor:
        """The sum, (O, I)."""
        return matrix + self.up @ self.down


def train_low_rank(
    tower: ImageTower, rank: int, count: int = -1, names: Iterable[str] = (DENSE,)
) -> None:
    """Adds trainable low-rank updates to the matrices of the last blocks, and freezes all else of the tower.

    Args:
        tower: image tower; what it computes stays as it is.
        rank: of the updates, at least 1.
        count: number of blocks, -1 for all.
        names: features that the loss uses; matrices that none of them depends on get no update.

    Raises:
        InputError: as `train_last_blocks`, or the blocks have no matrix, such as those of a ResNet.
    """
    train_last_blocks(tower, count, names)
    chosen = [
        (module, name, parameter)
        for module in tower.blocks.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad and parameter.ndim == 2
    ]
    if not chosen:
        raise InputError(
            "MODEL.CLIP.LOW_RANK updates matrices of the image tower's blocks, and none is trained: set it to 0, or "
            "MODEL.CLIP.TRAINABLE_BLOCKS to blocks that have matrices"
        )
    tower.requires_grad_(False)
    for module, name, matrix in chosen:
        parametrize.register_parametrization(module, name, LowRank(matrix.detach(), rank))


def merge_low_rank(model: nn.Module) -> None:
    """Puts each sum in the place of its matrix, under the ordinary name; a model without updates stays as it is."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
