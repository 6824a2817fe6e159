"""What every image tower offers, and the part that the two transformer towers share.

Shapes: B images, L = 1 + N tokens, Q observers, R = L + Q rows, D width of the tower, E width of the embedding,
    h x w token grid.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipself_seg.errors import InputError, nearest

DENSE = "dense"


class ImageTower(nn.Module, abc.ABC):
    """An image encoder with an image embedding, dense features and named intermediate features.

    Attributes:
        image_size: side in pixels of the square images that the position table belongs to.
        patch_size: stride in pixels of the dense features; inputs must be multiples of it.
        embed_dim: E.
        blocks: the stages that can be trained, in order.
        checkpointing: recompute the blocks in the backward pass instead of keeping their activations.
    """

    image_size: int
    patch_size: int
    embed_dim: int
    blocks: nn.ModuleList
    checkpointing: bool = False

    @abc.abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), not normalised, of normalised images (B, 3, S, S)."""

    @abc.abstractmethod
    def features(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Named feature maps of one pass: ``dense`` (B, E, h, w), not normalised, and ``block{i}``."""

    @abc.abstractmethod
    def feature_shapes(self) -> dict[str, tuple[int, int]]:
        """Every name that `features` knows, with its channels and its stride in pixels."""

    @abc.abstractmethod
    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """An ordered partition of the parameters: stem, positions, block0, block1, ..., head."""

    def unused_by_dense(self) -> list[nn.Parameter]:
        """Parameters of trainable blocks that no feature of `features` ever touches."""
        return []

    def observe_regions(self, images: Tensor, masks: list[Tensor]) -> Tensor:
        """Region embeddings by masked attention, (sum n, E), not normalised."""
        raise InputError(f"{type(self).__name__} has no class token: masked attention needs a ViT")

    def dense(self, images: Tensor) -> Tensor:
        """Dense features (B, E, h, w), not normalised, of normalised images (B, 3, H, W)."""
        return self.features(images, [DENSE])[DENSE]

    def check_names(self, names: Iterable[str]) -> list[str]:
        """The names as a list, or an `InputError` for one that this tower does not have."""
        wanted, known = list(names), self.feature_shapes()
        for name in wanted:
            if name not in known:
                raise InputError(f'no feature "{name}" in this image tower; {nearest(name, known)}')
        return wanted

    def deepest(self, names: Iterable[str]) -> int:
        """Index of the last block that some features of `features` need; -1 for no features."""
        last = len(self.blocks) - 1
        return max((last if name == DENSE else int(name[5:]) for name in names), default=-1)


class TransformerTower(ImageTower):
    """The walk through a ViT; subclasses say how tokens are made and what a block is.

    Attributes:
        class_residual: the last block of the dense features adds the class token to every token's
            value, where CLIPSelf adds the token itself (CAT-Seg's CVPR 2024 code).
    """

    class_residual: bool = False

    @abc.abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[int, int]]:
        """Tokens (B, L, D) before the first block, extra block arguments, and the grid (h, w)."""

    @abc.abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Final norm and projection, (..., D) -> (..., E)."""

    def forward(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), not normalised, of normalised images (B, 3, H, W).

        Nothing but the class token leaves the last block, so only it is computed there.
        """
        tokens_BLD, extras, _ = self.embed(images)
        for block in self.blocks[:-1]:
            tokens_BLD = self._run(block, tokens_BLD, extras)
        last: Any = self.blocks[-1]
        return self.project(last.observe(tokens_BLD[:, :1], tokens_BLD, None, *extras)[:, 0])

    def features(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Named feature maps of one pass that ends as early as the names allow.

        ``block{i}`` is the residual stream after block i, (B, D, h, w), without class token and final
        norm. The last block runs without attention (`value_path`), for ``block{last}`` as for ``dense``.
        """
        wanted = self.check_names(names)
        last = len(self.blocks) - 1
        stop = self.deepest(wanted)
        tokens_BLD, extras, grid = self.embed(images)
        found: dict[str, Tensor] = {}
        for index, block in enumerate(self.blocks[: stop + 1]):
            if index == last:
                value_path: Any = block.value_path
                residual = (tokens_BLD[:, :1],) if self.class_residual else ()
                tokens_BLD = self._run(value_path, tokens_BLD[:, 1:], residual)
            else:
                tokens_BLD = self._run(block, tokens_BLD, extras)
            if f"block{index}" in wanted:
                found[f"block{index}"] = _as_map(tokens_BLD, grid)
        if DENSE in wanted:
            found[DENSE] = _as_map(self.project(tokens_BLD), grid)
        return found

    def feature_shapes(self) -> dict[str, tuple[int, int]]:
        """Every name that `features` knows, with its channels and its stride in pixels."""
        width = self.width
        shapes = {f"block{i}": (width, self.patch_size) for i in range(len(self.blocks))}
        return shapes | {DENSE: (self.embed_dim, self.patch_size)}

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """D, the width of the residual stream."""

    def observe_regions(self, images: Tensor, masks: list[Tensor]) -> Tensor:
        """Region embeddings by masked attention, the ``v1`` way.

        A copy of the class token for each region attends, in every block, to the class token and to
        the image tokens of its region; nobody attends to it. The image tokens are therefore those
        of a plain forward, computed once for all regions, and the copies are further rows of the same
        matrix products: the cost grows with R, not with its square.

        Args:
            images: (B, 3, H, W), normalised.
            masks: one boolean (n, h, w) for each image.

        Returns:
            (sum n, E), not normalised, image order.
        """
        tokens_BLD, extras, grid = self.embed(images)
        count = max((len(mask) for mask in masks), default=0)
        allowed_BQL = tokens_BLD.new_ones(
            (len(masks), count, tokens_BLD.shape[1]), dtype=torch.bool
        )
        for allowed_QL, mask in zip(allowed_BQL, masks, strict=True):
            if mask.shape[1:] != grid:
                raise InputError(f"masks of {tuple(mask.shape[1:])} cells on a grid of {grid}")
            allowed_QL[: len(mask), 1:] = mask.flatten(1)
        x_BRD = torch.cat([tokens_BLD, tokens_BLD[:, :1].expand(-1, count, -1)], dim=1)
        for block in list[Any](self.blocks)[:-1]:
            x_BRD = self._run(block.forward_and_observe, x_BRD, (allowed_BQL, *extras))
        last: Any = self.blocks[-1]
        tokens_BLD, observers_BQD = x_BRD.split([allowed_BQL.shape[2], count], dim=1)
        observers_BQD = last.observe(observers_BQD, tokens_BLD, allowed_BQL, *extras)
        rows = [row[: len(mask)] for row, mask in zip(observers_BQD, masks, strict=True)]
        none = observers_BQD.flatten(0, 1)[:0]  # a batch of no images
        return self.project(torch.cat([none, *rows]))

    def _run(self, block: Any, tokens_BLD: Tensor, extras: tuple[Tensor, ...]) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, tokens_BLD, *extras, use_reentrant=False)
        return block(tokens_BLD, *extras)


def _as_map(tokens_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    if tokens_BND.shape[1] != grid[0] * grid[1]:
        tokens_BND = tokens_BND[:, 1:]
    return tokens_BND.transpose(1, 2).unflatten(2, grid)


def train_last_blocks(tower: ImageTower, count: int, names: Iterable[str] = (DENSE,)) -> None:
    """Let the last `count` blocks train and freeze everything else (paper Table 1b).

    Args:
        tower: its `layer_groups` decide, every group is set, so calling twice is safe.
        count: 0 freezes the tower, -1 trains every block.
        names: features that the loss reads: parameters that none of them touches stay frozen.

    Raises:
        InputError: more blocks than there are, or only such as no feature passes.
    """
    depth = len(tower.blocks)
    if not -1 <= count <= depth:
        raise InputError(f"{count} trainable blocks asked of a tower of {depth}; use -1 for all")
    first = 0 if count == -1 else depth - count
    deepest = tower.deepest(names := list(names))
    trained = {f"block{i}" for i in range(first, deepest + 1)}
    if count and not trained:
        raise InputError(
            f"{count} trainable blocks of {depth} begin with block{first}, but the features "
            f"{', '.join(names)} end with block{deepest}: nothing would train; give "
            f"{depth - deepest} or more, or 0 to freeze all"
        )
    for name, parameters in tower.layer_groups().items():
        for parameter in parameters:
            parameter.requires_grad_(name in trained)
    for parameter in tower.unused_by_dense():
        parameter.requires_grad_(False)
