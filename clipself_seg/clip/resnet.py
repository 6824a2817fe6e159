"""The ResNets of OpenAI's CLIP: open_clip's image tower with dense features.

Shapes: B images, N = h * w cells of 32 pixels, C channels of the last stage, E width of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from clipself_seg.clip.linear import linear
from clipself_seg.clip.positions import patch_grid, resample_positions
from clipself_seg.clip.resnet_kind import STRIDE
from clipself_seg.clip.tower import DENSE, ImageTower
from clipself_seg.errors import InputError


class ResNetTower(ImageTower, ModifiedResNet):
    """ModifiedResNet whose dense features are the values of its attention pool, without attention.

    Batch norms are frozen (their statistics and factors are buffers). Image embeddings need square
    images of `image_size`, because the attention pool's positions are not resized for them.
    """

    conv1: nn.Conv2d
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
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
        self.embed_dim = embed_dim
        _freeze_batch_norms(self)

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The four stages."""
        return nn.ModuleList([self.layer1, self.layer2, self.layer3, self.layer4])

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
        x: Tensor = ModifiedResNet.stem(self, images)
        for stage in self.blocks:
            x = stage(x)
        return self.attnpool(x)

    def features(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps by name: ``dense`` (B, E, h, w), the value path, and ``block{i}``, stage i's output.

        Args:
            images: (B, 3, H, W), normalised.
            names: names of features, ``dense`` or ``block{i}``.
        """
        wanted = self.check_names(names)
        patch_grid(images, STRIDE)
        maps: dict[str, Tensor] = {}
        x: Tensor = ModifiedResNet.stem(self, images)
        for index, stage in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(stage, x, use_reentrant=False)
            else:
                x = stage(x)
            if f"block{index}" in wanted:
                maps[f"block{index}"] = x
        if DENSE in wanted:
            maps[DENSE] = self._value_path(x)
        return maps

    def _value_path(self, x_BChw: Tensor) -> Tensor:
        """Dense features (B, E, h, w): value and output projection of the attention pool."""
        pool = self.attnpool
        grid = x_BChw.shape[-2:]
        positions_LC = resample_positions(pool.positional_embedding, (grid[0], grid[1]))
        cells_BNC = x_BChw.flatten(2).transpose(1, 2) + positions_LC[1:].to(x_BChw.dtype)
        values_BNC = linear(cells_BNC, pool.v_proj.weight, pool.v_proj.bias)
        return pool.c_proj(values_BNC).transpose(1, 2).unflatten(2, grid)

    def feature_shapes(self) -> dict[str, tuple[int, int]]:
        """Channels and stride in pixels of every feature that `features` can return, by name."""
        width = self.conv3.out_channels * 4
        stages = {f"block{i}": (width << i, 4 << i) for i in range(4)}
        return stages | {DENSE: (self.embed_dim, STRIDE)}

    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """Ordered partition of the parameters: stem, positions, block0 .. block3, head."""
        pool = self.attnpool
        stem = [*self.conv1.parameters(), *self.conv2.parameters(), *self.conv3.parameters()]
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
