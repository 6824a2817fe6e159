"""The interface of every image tower, what each may be asked for, and the forward passes that all ViTs share.

Shapes: B images, L = P + N tokens, P those before the patches' (1 for most towers), Q mask tokens, R = L + Q
    rows, D width of the tower, E width of the embedding, h x w token grid.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipself_seg.checkpoints.dense_feature import KINDS, TOKEN, DenseFeature
from clipself_seg.clip.block_calls import INPUT_KINDS, run_block
from clipself_seg.clip.layers import ViTBlock, merge_heads
from clipself_seg.clip.region_pooling import mask_weights, pool
from clipself_seg.clip.training_free import ATTENTIONS, NONE, attended_tokens
from clipself_seg.errors import InputError, nearest
from clipself_seg.private_torch import allow_graphs

Run = Callable[..., Tensor]
"""Calls a method of a block with tokens and further arguments, such as `TransformerTower.run`."""
Grid = tuple[int, int]


class FeatureShape(NamedTuple):
    """Channels of a feature map, and its stride in pixels."""

    channels: int
    stride: int


class HeadGate(nn.Module):
    """Weight (H, D) and bias (H,) of the gate of all blocks, see `layers.gated`; 0 at first."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads))


def sum_of_values(
    blocks: Sequence[ViTBlock], inputs_BND: Sequence[Tensor], gate: tuple[Tensor, ...], run: Run
) -> Tensor:
    """Sum of what some blocks' values add to their tokens, (B, N, D), before the final norm.

    Args:
        blocks: blocks with the method `values`, one at least.
        inputs_BND: tokens before each of them, of the places that are read.
        gate: weight and bias of the gate; () for none.
        run: calls the method of a block, see `Run`.
    """
    # Summed in the dtype of the tokens: autocast would round each term.
    first, *others = (
        run(block.values, tokens_BND, *gate).to(tokens_BND.dtype)
        for block, tokens_BND in zip(blocks, inputs_BND, strict=True)
    )
    return sum(others, first)


DENSE = "dense"
STEM = "stem"  # of a tower of convolutions, what its first stage reads
QUERIES = "queries"
KEYS = "keys"
GATE = "gate"  # group of the gate's parameters


@dataclasses.dataclass(frozen=True)
class Readouts:
    """The features and embeddings that a tower gives of an image; anything else is refused.

    Attributes:
        dense_kinds: values of ``MODEL.CLIP.DENSE``.
        attentions: True if ``MODEL.CLIP.ATTENTION`` may name one of `training_free.ATTENTIONS`.
        masked_attention: True if masked attention can give a region's embedding.
        compiled: values of ``MODEL.CLIP.COMPILE``.
    """

    dense_kinds: tuple[str, ...] = (TOKEN,)
    attentions: bool = False
    masked_attention: bool = True
    compiled: tuple[bool, ...] = (False, True)


@dataclasses.dataclass(frozen=True)
class TowerOptions:
    """Settings by which an image tower computes its features, see `ImageTower.configure`.

    Attributes:
        dense: the kind of dense features.
        attention: name of the attention without training by which they are made, or ``none``.
        checkpointing: True if blocks keep least for the backward pass, see `block_calls.run_block`.
        compiled: True if blocks are compiled, each when it is first called with inputs of a kind.
        class_residual: True if the last block of a ViT's dense feature ``token`` adds the class token to every
            token's value (CAT-Seg's CVPR 2024 code) instead of the token itself (CLIPSelf).
    """

    dense: DenseFeature = DenseFeature()
    attention: str = NONE
    checkpointing: bool = False
    compiled: bool = False
    class_residual: bool = False


VIT = Readouts(dense_kinds=KINDS, attentions=True)
ATTENTION_POOL = Readouts()
CONVOLUTIONS = Readouts(masked_attention=False, compiled=(False,))


class ImageTower(nn.Module, abc.ABC):
    """Image encoder with image embeddings, dense features and named intermediate features.

    Attributes:
        image_size: side in pixels of the square images for which the position table is made.
        patch_size: stride in pixels of the dense features; sides of inputs must be multiples of it.
        embed_dim: width E of the embedding.
        blocks: stages that can be trained, in order.
        checkpointing: True if blocks keep least for the backward pass, see `block_calls.run_block`.
        compiling: True if blocks are compiled.
        dense_feature: the kind of ``dense``, and its number of blocks.
        attention: name of the attention without training by which ``dense`` is made.
        class_residual: as in `TowerOptions`.
        readouts: the features and embeddings that the tower gives.
    """

    readouts: ClassVar[Readouts]

    image_size: int
    patch_size: int
    embed_dim: int
    blocks: nn.ModuleList
    checkpointing: bool = False
    compiling: bool = False
    dense_feature: DenseFeature = DenseFeature()
    attention: str = NONE
    class_residual: bool = False

    @abc.abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), not normalised, of normalised images (B, 3, S, S)."""

    @abc.abstractmethod
    def features(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps of one pass by name: ``dense`` (B, E, h, w), not normalised, and ``block{i}``."""

    @abc.abstractmethod
    def feature_shapes(self) -> dict[str, FeatureShape]:
        """Channels and stride in pixels of every feature that `features` can return, by name."""

    @abc.abstractmethod
    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """Ordered partition of the parameters: stem, positions, block0, block1, ..., head, gate if there is one."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def plain(self) -> bool:
        """True if every ``block{i}`` has the grid of the dense features, as all blocks of a ViT have."""
        shapes = self.feature_shapes()
        blocks = [shape for name, shape in shapes.items() if name.startswith("block")]
        return all(shape.stride == shapes[DENSE].stride for shape in blocks)

    def description(self) -> str:
        """The dense features in words: their kind, and the further changes of the last block, if there are any."""
        text = str(self.dense_feature)
        if self.class_residual:
            text += ", residual of the class token"
        return text if self.attention == NONE else f"{text}, attention {self.attention}"

    def require_images(self) -> None:
        """Refuses to embed whole images and crops where the tower has no such embedding; all towers here have.

        Raises:
            InputError: it has none.
        """

    def unused_by(self, names: Iterable[str] = (DENSE,)) -> list[nn.Parameter]:
        """Parameters of the last block that get no gradient where these features alone are used."""
        return []

    def configure(self, options: TowerOptions) -> None:
        """Sets how features are computed, once, when the tower is built; a gate that is asked for is at its start.

        Raises:
            InputError: the tower leaves no such choice, it has fewer blocks, or two choices exclude each other.
        """
        dense, attention, depth = options.dense, options.attention, max(self.depth, 1)
        self._require("MODEL.CLIP.DENSE", dense.kind, self.readouts.dense_kinds)
        if dense.blocks > depth:
            raise InputError(
                f"MODEL.CLIP.DENSE_BLOCKS is {dense.blocks}, the tower has {depth} blocks: give {depth} at most"
            )
        known = (NONE, *(ATTENTIONS if self.readouts.attentions else ()))
        self._require("MODEL.CLIP.ATTENTION", attention, known)
        if attention != NONE and dense != DenseFeature():
            raise InputError(
                f"MODEL.CLIP.ATTENTION {attention} and MODEL.CLIP.DENSE {dense} both say what the last "
                f"block does: leave the one at {NONE} or the other at {TOKEN}"
            )
        if options.compiled:
            self._require("MODEL.CLIP.COMPILE", True, self.readouts.compiled)
            allow_graphs(INPUT_KINDS)
        self.dense_feature = dense
        self.attention = attention
        self.checkpointing = options.checkpointing
        self.compiling = options.compiled
        self.class_residual = options.class_residual

    def _require(self, key: str, value: object, possible: Sequence[object]) -> None:
        """Refuses a choice that this tower does not leave.

        Raises:
            InputError: says which ones it leaves.
        """
        if value not in possible:
            choices = " or ".join(map(str, possible))
            raise InputError(f"{key} is {value}: for {type(self).__name__} it is {choices}")

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Tokens (..., D) of any block behind the norm that follows the last one; as they are without such a norm."""
        return tokens

    def masked_attention(self, images: Tensor, masks: list[Tensor]) -> Tensor:
        """Region embeddings (sum n, E) by masked attention, not normalised; see `TransformerTower`.

        Raises:
            InputError: the tower is no ViT.
        """
        raise InputError(f"{type(self).__name__} has no class token: masked attention needs a ViT")

    @property
    def pooled_map(self) -> str:
        """Name of the feature whose cells `pool_cells` pools: dense features, or the last stage of convolutions."""
        return DENSE if self.plain else f"block{self.depth - 1}"

    def pool_cells(self, map_1Chw: Tensor, cells_Qhw: Tensor) -> Tensor:
        """Embeddings (Q, E), not normalised, of sets of cells of `pooled_map`.

        A ViT takes the mean of dense features of unit length, as `CLIP.encode_masks` does. A tower of convolutions
        applies its own pooling to these cells alone.

        Args:
            map_1Chw: the feature `pooled_map` of one image.
            cells_Qhw: boolean; a set may be empty, and has one and the same embedding then.
        """
        return pool(F.normalize(map_1Chw[0], dim=0), mask_weights(cells_Qhw))

    @property
    def heads(self) -> int:
        """Number of heads of the last block's attention.

        Raises:
            InputError: the tower is no ViT.
        """
        raise InputError(f"{type(self).__name__} has no attention with heads: take a ViT")

    def dense(self, images: Tensor) -> Tensor:
        """Dense features (B, E, h, w), not normalised, of normalised images (B, 3, H, W)."""
        return self.features(images, [DENSE])[DENSE]

    def check_names(self, names: Iterable[str]) -> list[str]:
        """Feature names as a list.

        Raises:
            InputError: this tower has no feature of that name.
        """
        wanted = list(names)
        for name in wanted:
            if name not in self.feature_names:
                close = nearest(name, self.feature_shapes())
                raise InputError(f'no feature "{name}" in this image tower; {close}')
        return wanted

    @functools.cached_property
    def feature_names(self) -> frozenset[str]:
        """Names of all features, see `feature_shapes`."""
        return frozenset(self.feature_shapes())

    def deepest(self, names: Iterable[str]) -> int:
        """Index of the last block that the named features need; -1 for no features."""
        last = self.depth - 1
        blocks = [int(n[5:]) if n.startswith("block") else last for n in names if n != STEM]
        return max(blocks, default=-1)


class TransformerTower(ImageTower):
    """Forward passes of a ViT; subclasses define the embedding of images and the blocks.

    Attributes:
        width: width D of the residual stream.
        prefix: number of tokens before those of the patches; the first is the class token.
        pooled: True if an attention pool follows the last block, which attends then; dense features are the value path
            of the pool (`pooled.PooledTower`).
        dense_gate: gate of the heads' values, or None.
    """

    readouts = VIT
    prefix: int = 1
    pooled: bool = False
    dense_gate: HeadGate | None

    def __init__(self, *, image_size: int, patch_size: int, width: int, embed_dim: int) -> None:
        """
        Args:
            image_size, patch_size, embed_dim: as in `ImageTower`.
            width: D.
        """
        super().__init__()
        self.image_size = image_size
        self.patch_size = patch_size
        self.width = width
        self.embed_dim = embed_dim
        self.register_module("dense_gate", None)

    def configure(self, options: TowerOptions) -> None:
        super().configure(options)
        self.dense_gate = None
        if options.dense.gated:
            like = next(self.parameters())
            gate = HeadGate(width=self.width, heads=self.stack[-1].attn.heads)
            self.dense_gate = gate.to(like.device, like.dtype)

    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """Ordered partition of the parameters: stem, positions, block0, block1, ..., head, gate if there is one."""
        stem, positions, head = self.ends()
        blocks = {f"block{i}": list(b.parameters()) for i, b in enumerate(self.blocks)}
        gate = {} if self.dense_gate is None else {GATE: list(self.dense_gate.parameters())}
        return {"stem": stem, "positions": positions, **blocks, "head": head, **gate}

    @abc.abstractmethod
    def ends(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the stem and of the positions, before the blocks, and of the head, behind them."""

    def unused_by(self, names: Iterable[str] = (DENSE,)) -> list[nn.Parameter]:
        # Queries and keys, and the MLP if no feature has been through it.
        last = self.stack[-1]
        through_mlp = self.dense_feature.kind == TOKEN or f"block{len(self.blocks) - 1}" in names
        parts = last.query_key_parameters()
        unread = [p for name in parts if name not in names for p in parts[name]]
        return unread + ([] if through_mlp else last.mlp_parameters())

    @abc.abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Grid]:
        """Tokens (B, L, D) before the first block, extra arguments of the blocks and the grid (h, w)."""

    @abc.abstractmethod
    def final_norm(self, tokens: Tensor) -> Tensor:
        """The norm behind the last block, (..., D) -> (..., D)."""

    @abc.abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Final norm and projection, (..., D) -> (..., E)."""

    @property
    def heads(self) -> int:
        return self.stack[-1].attn.heads

    def forward(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), not normalised, of normalised images (B, 3, H, W).

        Only the class token of the last block is used, so only it is computed there.
        """
        tokens_BLD, extras, _ = self.embed(images)
        for block in self.stack[:-1]:
            tokens_BLD = self.run(block, tokens_BLD, *extras)
        # The class token is the mask token that may attend to everything.
        class_B1D = self.stack[-1].forward_mask_tokens(tokens_BLD[:, :1], tokens_BLD, None, *extras)
        return self.project(class_B1D[:, 0])

    def features(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps by name from one pass, which ends after the last block that they need.

        ``block{i}`` is the residual stream after block i, (B, D, h, w), without class token and final
        norm. ``block{last}`` skips the attention of the last block (`value_path`) unless a pool follows it.
        ``dense`` is set by `configure`, and the same value path by default.

        Args:
            images: (B, 3, H, W), normalised.
            names: names of features: ``dense``, ``block{i}``, and ``queries`` and ``keys`` of the last block's
                attention (B, D, h, w), all heads of a token side by side, before positions turn them.
        """
        wanted = self.check_names(names)
        last, stop, count = len(self.blocks) - 1, self.deepest(wanted), self.dense_feature.blocks
        tokens_BLD, extras, grid = self.embed(images)
        inputs_BLD: list[Tensor] = []  # tokens before each of the last blocks that ``dense`` reads
        maps: dict[str, Tensor] = {}
        for index, block in enumerate(self.stack[: min(stop + 1, last)]):
            inputs_BLD = [*inputs_BLD, tokens_BLD][-count:]
            tokens_BLD = self.run(block, tokens_BLD, *extras)
            if f"block{index}" in wanted:
                maps[f"block{index}"] = as_map(tokens_BLD[:, self.prefix :], grid)
        if stop < last:
            return maps
        block, name = self.stack[last], f"block{last}"
        patches_BND = [x_BLD[:, self.prefix :] for x_BLD in [*inputs_BLD, tokens_BLD][-count:]]
        if not {QUERIES, KEYS}.isdisjoint(wanted):
            queries_BHNC, keys_BHNC, _ = block.queries_keys_values(patches_BND[-1])
            maps[QUERIES] = as_map(merge_heads(queries_BHNC), grid)
            maps[KEYS] = as_map(merge_heads(keys_BHNC), grid)
        of_last_block = self.dense_feature.kind == TOKEN and self.attention == NONE
        if name in wanted or of_last_block:
            if self.pooled:
                last_BND = self.run(block, tokens_BLD, *extras)[:, self.prefix :]
            else:
                residual = (tokens_BLD[:, :1],) if self.class_residual else ()
                last_BND = self.run(block.value_path, patches_BND[-1], *residual)
            maps[name] = as_map(last_BND, grid)
        if DENSE in wanted:
            if self.attention != NONE:
                attention = ATTENTIONS[self.attention]
                last_BND, grid = attended_tokens(block, tokens_BLD, attention, grid)
            elif not of_last_block:
                gate = self.dense_gate
                weights = () if gate is None else (gate.weight, gate.bias)
                last_BND = sum_of_values(self.stack[-count:], patches_BND, weights, self.run)
            maps[DENSE] = as_map(self.project(last_BND), grid)
        return {name: maps[name] for name in wanted}

    def feature_shapes(self) -> dict[str, FeatureShape]:
        """Channels and stride in pixels of every feature that `features` can return, by name."""
        names = [*(f"block{i}" for i in range(len(self.blocks))), QUERIES, KEYS]
        shapes = dict.fromkeys(names, FeatureShape(self.width, self.patch_size))
        return shapes | {DENSE: FeatureShape(self.embed_dim, self.patch_size)}

    def masked_attention(self, images: Tensor, masks: list[Tensor]) -> Tensor:
        """Region embeddings by masked attention (``v1`` of CLIPSelf's official code).

        Each region has a mask token, a copy of the class token, that attends in every block to the class
        token, to what else stands before the patches, and to the patch tokens of its region; no token
        attends to it. The other tokens are therefore those of a plain forward, computed once for all
        regions, and mask tokens are further rows of the same matrix products: the cost grows with R, not
        with its square.

        Args:
            images: (B, 3, H, W), normalised.
            masks: one boolean mask (n, h, w) of the regions' cells for each image.

        Returns:
            Embeddings (sum n, E), not normalised, in image order.
        """
        tokens_BLD, extras, grid = self.embed(images)
        allowed_BQL = self.allowed(masks, tokens_BLD, grid, sees_prefix=True)
        count, tokens = allowed_BQL.shape[1:]
        x_BRD = torch.cat([tokens_BLD, tokens_BLD[:, :1].expand(-1, count, -1)], dim=1)
        for block in self.stack[:-1]:
            x_BRD = self.run(block.forward_with_mask_tokens, x_BRD, allowed_BQL, *extras)
        tokens_BLD, mask_tokens_BQD = x_BRD.split([tokens, count], dim=1)
        mask_tokens_BQD = self.stack[-1].forward_mask_tokens(
            mask_tokens_BQD, tokens_BLD, allowed_BQL, *extras
        )
        return self.project(rows_of_masks(mask_tokens_BQD, masks))

    def allowed(
        self, masks: Sequence[Tensor], tokens_BLD: Tensor, grid: Grid, sees_prefix: bool
    ) -> Tensor:
        """Mask of the tokens that each region may attend to, bool (B, Q, L); all False beyond an image's own regions.

        Args:
            masks: (n, h, w) of each image.
            tokens_BLD: of the images.
            grid: rows and columns of the images' patches.
            sees_prefix: True if regions attend to the tokens before the patches.
        """
        count = max((len(mask) for mask in masks), default=0)
        size = (len(masks), count, tokens_BLD.shape[1])
        allowed_BQL = tokens_BLD.new_zeros(size, dtype=torch.bool)
        allowed_BQL[..., : self.prefix] = sees_prefix
        for allowed_QL, mask in zip(allowed_BQL, masks, strict=True):
            assert mask.shape[1:] == grid, (mask.shape, grid)
            allowed_QL[: len(mask), self.prefix :] = mask.flatten(1)
        return allowed_BQL

    @property
    def run(self) -> Run:
        """Calls a block, or a method of one, as `checkpointing` and `compiling` say."""
        return functools.partial(
            run_block, checkpointing=self.checkpointing, compiling=self.compiling
        )

    @property
    def stack(self) -> list[ViTBlock]:
        """`blocks` as a list of their own type."""
        return cast(list[ViTBlock], list(self.blocks))


def rows_of_masks(rows_BQD: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """The first n of each image's Q rows, (sum n, D), as many as it has masks (n, h, w)."""
    rows = [rows_QD[: len(mask)] for rows_QD, mask in zip(rows_BQD, masks, strict=True)]
    none = rows_BQD.flatten(0, 1)[:0]  # torch.cat needs a tensor in a batch of no images
    return torch.cat([none, *rows])


def as_map(tokens_BND: Tensor, grid: Grid) -> Tensor:
    """Map (B, D, h, w) of the tokens of patches."""
    return tokens_BND.transpose(1, 2).unflatten(2, grid)


def train_last_blocks(
    tower: ImageTower, count: int, names: Iterable[str] = (DENSE,), attention: bool = False
) -> None:
    """Makes the last `count` blocks trainable and freezes everything else (CLIPSelf, Table 1b).

    Args:
        tower: image tower; every group of its `layer_groups` is set, so calling twice is safe.
        count: number of blocks that train; 0 freezes the tower, -1 trains every block.
        names: features that the loss uses; parameters that none of them depends on stay frozen.
        attention: True if query and key of the last block train all the same, for a loss that uses the
            image embedding.

    Raises:
        InputError: there are fewer blocks, or none of those that would train is used by a feature.
    """
    groups, depth = tower.layer_groups(), tower.depth
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
    for name, parameters in groups.items():
        for parameter in parameters:
            parameter.requires_grad_(name in trained)
    if not attention:
        for parameter in tower.unused_by(names):
            parameter.requires_grad_(False)
