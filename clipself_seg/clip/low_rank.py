"""Low-rank updates of an image tower (LoRA, arXiv 2106.09685): of a matrix W the sum W + up down trains, W stays.

The towers read matrices in many ways: rows of a packed one, queries apart from their bias, attention without queries.
So the matrices themselves are parametrised, and whoever reads one reads the sum; a library that wraps the layers that
are called, as peft does, would miss those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

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
    """Makes low-rank updates of the matrices of the last blocks trainable, and freezes all else of the tower.

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
        update = LowRank(matrix.detach(), rank)
        parametrize.register_parametrization(module, name, update)
        matrix.requires_grad_(False)


def has_low_rank(model: nn.Module) -> bool:
    """Whether any matrix of a model has an update."""
    return any(isinstance(module, LowRank) for module in model.modules())


def matrices_of_updates(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a model by name, in place of updates their matrices under the names that they have once merged."""
    ordinary = {}
    for name, tensor in tensors.items():
        owner, is_update, rest = name.partition(".parametrizations.")
        matrix = rest.partition(".")[0]
        if is_update:
            tensor = model.get_parameter(f"{owner}.parametrizations.{matrix}.original")
        ordinary[f"{owner}.{matrix}" if is_update else name] = tensor
    return ordinary


def merge_low_rank(model: nn.Module) -> None:
    """Puts the sums in the places of their matrices, under the ordinary names; other models stay as they are."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
