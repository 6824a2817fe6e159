"""The pixel decoder of Mask2Former (arXiv 2112.01527): deformable attention over three maps, a fourth on top.

Shapes: B images, C channels, N cells of all levels of the encoder; strides in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.precision import full_precision
from clipself_seg.heads.panoptic.mask_generator.deformable_attention import (
    DeformableAttention,
    Grids,
)
from clipself_seg.heads.panoptic.mask_generator.sine_positions import sine_positions

GROUPS = 32
STRIDES = {"s2": 4, "s3": 8, "s4": 16, "s5": 32}
"""Of the maps that a feature source gives, in pixels."""
ENCODED = ("s5", "s4", "s3")  # the order of the encoder's levels: coarse to fine
FINEST = "s2"


class NormedConv(nn.Conv2d):
    """A convolution without bias and a group norm, under the names that Detectron2 gives them."""

    def __init__(self, channels: int, width: int, kernel_size: int) -> None:
        super().__init__(channels, width, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, width)
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, input: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, width, h, w)"""
        return self.norm(super().forward(input))


class EncoderLayer(nn.Module):
    """Deformable attention of all cells to all maps, and an MLP; norms after the sums."""

    def __init__(self, *, width: int, heads: int, points: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(
            width=width, heads=heads, levels=len(ENCODED), points=points
        )
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, cells_BNC: Tensor, positions_NC: Tensor, places_N2: Tensor, grids: Grids
    ) -> Tensor:
        """(B, N, C) -> (B, N, C)"""
        seen = self.self_attn(cells_BNC + positions_NC, places_N2, cells_BNC, grids)
        cells_BNC = self.norm1(cells_BNC + seen)
        return self.norm2(cells_BNC + self.linear2(F.relu(self.linear1(cells_BNC))))


class Encoder(nn.Module):
    """A stack of layers, with a learned vector that tells the levels apart."""

    def __init__(self, layers: Sequence[EncoderLayer], width: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.level_embed = nn.Parameter(torch.randn(len(ENCODED), width))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, h, w) of the levels -> as many of the same shapes, in float32."""
        grids = [(m.shape[2], m.shape[3]) for m in maps]
        device, width = maps[0].device, maps[0].shape[1]
        # Sampling places do not survive half precision.
        with full_precision(device):
            cells_BNC = torch.cat([m.float().flatten(2).transpose(1, 2) for m in maps], dim=1)
            positions_NC = torch.cat(
                [sine_positions(g, width, device) + e for g, e in zip(grids, self.level_embed)]
            )
            places_N2 = torch.cat([_centres(grid, device) for grid in grids])
            layers: Any = self.encoder["layers"]
            for layer in layers:
                cells_BNC = layer(cells_BNC, positions_NC.to(cells_BNC.dtype), places_N2, grids)
        parts = cells_BNC.split([h * w for h, w in grids], dim=1)
        return [part.transpose(1, 2).unflatten(2, grid) for part, grid in zip(parts, grids)]


class PixelDecoder(nn.Module):
    """Parameter names are those of ODISE's checkpoints below ``sem_seg_head.pixel_decoder.``."""

    def __init__(
        self,
        *,
        channels: Mapping[str, int],
        width: int = 256,
        heads: int = 8,
        layers: int = 6,
        points: int = 4,
        hidden: int = 1024,
    ) -> None:
        """
        Args:
            channels: of the maps s2, s3, s4 and s5, whose strides are 4, 8, 16 and 32.
            width: C, a multiple of 32.
            heads: of the encoder's attention.
            layers: of the encoder.
            points: that a head looks at, on each level.
            hidden: width of the encoder's MLPs.
        """
        super().__init__()
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels[name], width, 1), nn.GroupNorm(GROUPS, width))
            for name in ENCODED
        )
        for name, parameter in self.input_proj.named_parameters():
            if name.endswith("0.weight"):
                nn.init.xavier_uniform_(parameter)
        how = {"width": width, "heads": heads, "points": points, "hidden": hidden}
        self.transformer = Encoder([EncoderLayer(**how) for _ in range(layers)], width)
        self.adapter_1 = NormedConv(channels[FINEST], width, 1)
        self.layer_1 = NormedConv(width, width, 3)
        self.mask_features = nn.Conv2d(width, width, 1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """
        Args:
            features: maps (B, channels, H / stride, W / stride) s2, s3, s4, s5.

        Returns:
            Mask features (B, C, H / 4, W / 4), and maps (B, C, ...) of strides 32, 16, 8.
        """
        projected = [p(features[name]) for p, name in zip(self.input_proj, ENCODED)]
        maps = self.transformer(projected)
        fine = self.adapter_1(features[FINEST])
        size = (fine.shape[2], fine.shape[3])
        fine = fine + F.interpolate(maps[-1], size, mode="bilinear", align_corners=False)
        return self.mask_features(F.relu(self.layer_1(fine))), maps


def _centres(grid: tuple[int, int], device: torch.device) -> Tensor:
    """(x, y) of the cells' centres, relative to the map, (h * w, 2)."""
    y_h, x_w = ((torch.arange(count, device=device) + 0.5) / count for count in grid)
    return torch.cartesian_prod(y_h, x_w).flip(-1)
