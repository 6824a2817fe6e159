"""Chooses which blocks of an image tower train, and freezes everything else."""

from __future__ import annotations

from collections.abc import Iterable

from clipself_seg.clip.tower import DENSE, GATE, ImageTower
from clipself_seg.errors import InputError


def train_last_blocks(
    tower: ImageTower, count: int, names: Iterable[str] = (DENSE,), attention: bool = False
) -> None:
    """Makes the last `count` blocks trainable and freezes everything else (CLIPSelf, Table 1b).

    Args:
        tower: image tower; every group of its `layer_groups` is set, so calling twice is safe.
        count: number of blocks that train; 0 freezes the tower, -1 trains every block.
        names: features that the loss uses; parameters that none of them depends on stay frozen.
        attention: whether query and key of the last block train all the same, for a loss that uses the
            image embedding.

    Raises:
        InputError: there are fewer blocks, or none of those that would train is used by a feature.
    """
    depth = len(tower.blocks)
    if not -1 <= count <= depth:
        raise InputError(f"{count} trainable blocks asked of a tower of {depth}; use -1 for all")
    first = 0 if count == -1 else depth - count
    deepest = tower.deepest(names := list(names))
    trained = {f"block{i}" for i in range(first, deepest + 1)}
    if trained and DENSE in names:
        trained.add(GATE)  # one gate is for all blocks, and trains with any of them
    if count and not trained:
        raise InputError(
            f"{count} trainable blocks of {depth} begin with block{first}, but the features "
            f"{', '.join(names)} end with block{deepest}: nothing would train; give "
            f"{depth - deepest} or more, or 0 to freeze all"
        )
    for name, parameters in tower.layer_groups().items():
        for parameter in parameters:
            parameter.requires_grad_(name in trained)
    if not attention:
        for parameter in tower.unused_by(names):
            parameter.requires_grad_(False)
