"""The interface of every image tower, and the forward passes that the two ViTs have in common.

Shapes: B images, L = 1 + N tokens, Q mask tokens, R = L + Q rows, D width of the tower, E width of the
    embedding, h x w token grid.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from clipself_seg.clip.compilation import require_compiler
from clipself_seg.clip.recomputation import run_block
from clipself_seg.errors import InputError, nearest

DENSE = "dense"


class ImageTower(nn.Module, abc.ABC):
    """Image encoder with image embeddings, dense features and named intermediate features.

    Attributes:
        image_size: side in pixels of the square images for which the position table is made.
        patch_size: stride in pixels of the dense features; sides of inputs must be multiples of it.
        embed_dim: width E of the embedding.
        blocks: stages that can be trained, in order.
        checkpointing: whether blocks keep their input alone for the backward pass, see `recomputation.py`.
        compiling: whether blocks are compiled; set by `compile_blocks`.
    """

    image_size: int
    patch_size: int
    embed_dim: int
    blocks: nn.ModuleList
    checkpointing: bool = False
    compiling: bool = False

    @abc.abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), not normalised, of normalised images (B, 3, S, S)."""

    @abc.abstractmethod
    def features(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps of one pass by name: ``dense`` (B, E, h, w), not normalised, and ``block{i}``."""

    @abc.abstractmethod
    def feature_shapes(self) -> dict[str, tuple[int, int]]:
        """Channels and stride in pixels of every feature that `features` can return, by name."""

    @abc.abstractmethod
    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """Ordered partition of the parameters: stem, positions, block0, block1, ..., head."""

    def unused_by_dense(self) -> list[nn.Parameter]:
        """Parameters of trainable blocks that no feature of `features` depends on."""
        return []

    def masked_attention(self, images: Tensor, masks: list[Tensor]) -> Tensor:
        """Region embeddings (sum n, E) by masked attention, not normalised; see `TransformerTower`.

        Raises:
            InputError: the tower is no ViT.
        """
        raise InputError(f"{type(self).__name__} has no class token: masked attention needs a ViT")

    def dense(self, images: Tensor) -> Tensor:
        """Dense features (B, E, h, w), not normalised, of normalised images (B, 3, H, W)."""
        return self.features(images, [DENSE])[DENSE]

    def compile_blocks(self) -> None:
        """Has blocks compiled from now on, each when it is first called with inputs of a kind; see `compilation.py`.

        Raises:
            InputError: the tower is no ViT, or torch is too old.
        """
        raise InputError(
            f"MODEL.CLIP.COMPILE is for ViTs: leave it False for {type(self).__name__}"
        )

    def check_names(self, names: Iterable[str]) -> list[str]:
        """Feature names as a list.

        Raises:
            InputError: this tower has no feature of that name.
        """
        wanted = list(names)
        known = self.feature_shapes()
        for name in wanted:
            if name not in known:
                raise InputError(f'no feature "{name}" in this image tower; {nearest(name, known)}')
        return wanted

    def deepest(self, names: Iterable[str]) -> int:
        """Index of the last block that the named features need; -1 for no features."""
        last = len(self.blocks) - 1
        return max((last if name == DENSE else int(name[5:]) for name in names), default=-1)


class TransformerTower(ImageTower):
    """Forward passes of a ViT; subclasses define the embedding of images and the blocks.

    Attributes:
        class_residual: whether the last block of the dense features adds the class token to every
            token's value (CAT-Seg's CVPR 2024 code) instead of the token itself (CLIPSelf).
    """

    class_residual: bool = False

    def compile_blocks(self) -> None:
        """As `ImageTower.compile_blocks`; the last block of `forward` alone, which computes one token, never is."""
        require_compiler()
        self.compiling = True

    @abc.abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[int, int]]:
        """Tokens (B, L, D) before the first block, extra arguments of the blocks and the grid (h, w)."""

    @abc.abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Final norm and projection, (..., D) -> (..., E)."""

    def forward(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), not normalised, of normalised images (B, 3, H, W).

        Only the class token of the last block is used, so only it is computed there.
        """
        tokens_BLD, extras, _ = self.embed(images)
        for block in self.blocks[:-1]:
            tokens_BLD = self._run(block, tokens_BLD, extras)
        last: Any = self.blocks[-1]
        # The class token is the mask token that may attend to everything.
        class_B1D = last.forward_mask_tokens(tokens_BLD[:, :1], tokens_BLD, None, *extras)
        return self.project(class_B1D[:, 0])

    def features(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps by name from one pass, which ends after the last block that they need.

        ``block{i}`` is the residual stream after block i, (B, D, h, w), without class token and final
        norm. The last block runs without attention (`value_path`), for ``block{last}`` and ``dense``.

        Args:
            images: (B, 3, H, W), normalised.
            names: names of features, ``dense`` or ``block{i}``.
        """
        wanted = self.check_names(names)
        last = len(self.blocks) - 1
        stop = self.deepest(wanted)
        tokens_BLD, extras, grid = self.embed(images)
        maps: dict[str, Tensor] = {}
        for index, block in enumerate(self.blocks[: stop + 1]):
            if index == last:
                value_path: Any = block.value_path
                residual = (tokens_BLD[:, :1],) if self.class_residual else ()
                tokens_BLD = self._run(value_path, tokens_BLD[:, 1:], residual)
            else:
                tokens_BLD = self._run(block, tokens_BLD, extras)
            if f"block{index}" in wanted:
                maps[f"block{index}"] = _as_map(tokens_BLD, grid)
        if DENSE in wanted:
            maps[DENSE] = _as_map(self.project(tokens_BLD), grid)
        return maps

    def feature_shapes(self) -> dict[str, tuple[int, int]]:
        """Channels and stride in pixels of every feature that `features` can return, by name."""
        width = self.width
        shapes = {f"block{i}": (width, self.patch_size) for i in range(len(self.blocks))}
        return shapes | {DENSE: (self.embed_dim, self.patch_size)}

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Width D of the residual stream."""

    def masked_attention(self, images: Tensor, masks: list[Tensor]) -> Tensor:
        """Region embeddings by masked attention (``v1`` of CLIPSelf's official code).

        Each region has a mask token, a copy of the class token, that attends in every block to the class
        token and to the patch tokens of its region; no token attends to it. The other tokens are
        therefore those of a plain forward, computed once for all regions, and mask tokens are further
        rows of the same matrix products: the cost grows with R, not with its square.

        Args:
            images: (B, 3, H, W), normalised.
            masks: one boolean mask (n, h, w) of the regions' cells for each image.

        Returns:
            Embeddings (sum n, E), not normalised, in image order.

        Raises:
            InputError: masks of another grid than the images'.
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
            x_BRD = self._run(block.forward_with_mask_tokens, x_BRD, (allowed_BQL, *extras))
        last: Any = self.blocks[-1]
        tokens_BLD, mask_tokens_BQD = x_BRD.split([allowed_BQL.shape[2], count], dim=1)
        mask_tokens_BQD = last.forward_mask_tokens(
            mask_tokens_BQD, tokens_BLD, allowed_BQL, *extras
        )
        regions = [q_QD[: len(mask)] for q_QD, mask in zip(mask_tokens_BQD, masks, strict=True)]
        none = mask_tokens_BQD.flatten(0, 1)[:0]  # torch.cat needs a tensor in a batch of no images
        return self.project(torch.cat([none, *regions]))

    def _run(self, block: Any, tokens_BLD: Tensor, extras: tuple[Tensor, ...]) -> Tensor:
        how = {"checkpointing": self.checkpointing, "compiling": self.compiling}
        return run_block(block, tokens_BLD, *extras, **how)


def _as_map(tokens_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    """Map (B, D, h, w) of tokens, whose class token is dropped if they have one."""
    if tokens_BND.shape[1] != grid[0] * grid[1]:
        tokens_BND = tokens_BND[:, 1:]
    return tokens_BND.transpose(1, 2).unflatten(2, grid)


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
        for parameter in tower.unused_by_dense():
            parameter.requires_grad_(False)
