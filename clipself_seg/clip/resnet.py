"""The ResNets of OpenAI's CLIP: open_clip's image tower with dense features.

Shapes: B images, N = h * w cells of 32 pixels, C channels of the last stage, E width of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from clipself_seg.clip.layers import merge_heads, split_heads
from clipself_seg.clip.linear import linear
from clipself_seg.clip.openai import STRIDE
from clipself_seg.clip.positions import patch_grid, resample_positions
from clipself_seg.clip.tower import CONVOLUTIONS, DENSE, STEM, FeatureShape, ImageTower
from clipself_seg.errors import InputError


class ResNetTower(ImageTower, ModifiedResNet):
    """ModifiedResNet whose dense features are the values of its attention pool, without attention.

    Batch norms are frozen (their statistics and factors are buffers). Image embeddings need square
    images of `image_size`, because the attention pool's positions are not resized for them.
    """

    readouts = CONVOLUTIONS
    avgpool: nn.AvgPool2d
    attnpool: Any  # open_clip's AttentionPool2d, whose parameters carry no types

    def __init__(
        self, *, image_size: int, width: int, layers: tuple[int, int, int, int], embed_dim: int
    ) -> None:
        ModifiedResNet.__init__(
            self,
            layers=list(layers),
            output_dim=embed_dim,
            heads=width * 32 // 64,
            image_size=image_size,
            width=width,
        )
        self.image_size = image_size
        self.patch_size = STRIDE
        self.width = width
        self.embed_dim = embed_dim
        _freeze_batch_norms(self)

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The four stages."""
        return nn.ModuleList(self.get_submodule(f"layer{stage}") for stage in (1, 2, 3, 4))

    def forward(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), not normalised, of normalised images (B, 3, S, S).

        Raises:
            InputError: S is not `image_size`.
        """
        if tuple(images.shape[-2:]) != (self.image_size, self.image_size):
            raise InputError(
                f"this ResNet embeds images of {self.image_size}x{self.image_size} pixels, got "
                f"{images.shape[-2]}x{images.shape[-1]}; resize the image or use its dense features"
            )
        x = self.avgpool(self._stem(images))
        for stage in self.blocks:
            x = stage(x)
        return self.attnpool(x)

    def features(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps by name: ``dense`` (B, E, h, w), the value path, ``block{i}``, stage i's output, and ``stem``.

        Args:
            images: (B, 3, H, W), normalised.
            names: names of features; ``stem`` is of stride 2, before it is pooled for the first stage.
        """
        wanted = self.check_names(names)
        patch_grid(images, STRIDE)
        maps: dict[str, Tensor] = {}
        x = self._stem(images)
        if STEM in wanted:
            maps[STEM] = x
        if self.deepest(wanted) >= 0:
            x = self.avgpool(x)
        for index, stage in enumerate(list(self.blocks)[: self.deepest(wanted) + 1]):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(stage, x, use_reentrant=False)
            else:
                x = stage(x)
            if f"block{index}" in wanted:
                maps[f"block{index}"] = x
        if DENSE in wanted:
            maps[DENSE] = self._value_path(x)
        return maps

    def _stem(self, images: Tensor) -> Tensor:
        """Map (B, width, H / 2, W / 2) of the three convolutions before the first stage."""
        x = images
        for step in (1, 2, 3):
            for layer in ("conv", "bn", "act"):
                x = self.get_submodule(f"{layer}{step}")(x)
        return x

    def pool_cells(self, last_1Dhw: Tensor, cells_Qhw: Tensor) -> Tensor:
        """Pools cells by the attention pool, which reads these cells alone (FC-CLIP), see `ImageTower.pool_cells`.

        The query is the mean of all cells of the image, the same for every set; unlike in an image's embedding it is
        not among what is read, and positions are resized bilinearly. No cell gives the output projection's bias.
        """
        pool = self.attnpool
        grid = (last_1Dhw.shape[2], last_1Dhw.shape[3])
        positions_LC = resample_positions(pool.positional_embedding, grid, mode="bilinear")
        cells_NC = last_1Dhw[0].flatten(1).T
        query_1C = pool.q_proj(cells_NC.mean(dim=0, keepdim=True) + positions_LC[0])
        placed_NC = cells_NC + positions_LC[1:]
        keys_NC, values_NC = pool.k_proj(placed_NC), pool.v_proj(placed_NC)
        query, keys, values = (
            split_heads(x[None], pool.num_heads) for x in (query_1C, keys_NC, values_NC)
        )
        open_QN = cells_Qhw.flatten(1)
        some_Q1 = open_QN.any(dim=1, keepdim=True)
        queries = query.expand(-1, -1, len(open_QN), -1)
        # A row without a cell is NaN in some versions of torch: it reads all of them, and is struck out.
        attended = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=open_QN | ~some_Q1
        )
        return pool.c_proj(merge_heads(attended)[0] * some_Q1)

    def _value_path(self, x_BChw: Tensor) -> Tensor:
        """Dense features (B, E, h, w): value and output projection of the attention pool."""
        pool = self.attnpool
        grid = x_BChw.shape[-2:]
        positions_LC = resample_positions(pool.positional_embedding, (grid[0], grid[1]))
        cells_BNC = x_BChw.flatten(2).transpose(1, 2) + positions_LC[1:].to(x_BChw.dtype)
        values_BNC = linear(cells_BNC, pool.v_proj.weight, pool.v_proj.bias)
        return pool.c_proj(values_BNC).transpose(1, 2).unflatten(2, grid)

    def feature_shapes(self) -> dict[str, FeatureShape]:
        """Channels and stride in pixels of every feature that `features` can return, by name."""
        stages = {f"block{i}": FeatureShape(4 * self.width << i, 4 << i) for i in range(4)}
        ends = {STEM: FeatureShape(self.width, 2), DENSE: FeatureShape(self.embed_dim, STRIDE)}
        return stages | ends

    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """Ordered partition of the parameters: stem, positions, block0 .. block3, head."""
        pool = self.attnpool
        stem = [p for step in (1, 2, 3) for p in self.get_submodule(f"conv{step}").parameters()]
        linears = (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj)
        return {
            "stem": stem,
            "positions": [pool.positional_embedding],
            **{f"block{i}": list(stage.parameters()) for i, stage in enumerate(self.blocks)},
            "head": [parameter for linear in linears for parameter in linear.parameters()],
        }


def _freeze_batch_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
        else:
            _freeze_batch_norms(child)
