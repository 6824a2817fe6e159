"""The pixel decoder of Mask2Former (arXiv 2112.01527): deformable attention over three feature maps.

A fourth, finer map is added to the result for the mask features.

Shapes: B images, C channels, N cells of all levels of the encoder, h x w cells of a map; strides in
    pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.linear import Linear
from clipself_seg.clip.runtime import full_precision
from clipself_seg.heads.panoptic.deformable_attention import (
    DeformableAttention,
    Grids,
)

GROUPS = 32
STRIDES = {"s2": 4, "s3": 8, "s4": 16, "s5": 32}
"""Strides in pixels of the maps that every feature source gives."""
ENCODED = ("s5", "s4", "s3")  # the order of the encoder's levels: coarse to fine
FINEST = "s2"
# DETR's constants of sine positions.
TEMPERATURE = 10_000
EPS = 1e-6


class NormedConv(nn.Conv2d):
    """Convolution without bias and a group norm, under the parameter names of Detectron2."""

    def __init__(self, channels: int, width: int, kernel_size: int) -> None:
        super().__init__(channels, width, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, width)
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, input: Tensor) -> Tensor:
        """Transforms (B, channels, h, w) into (B, width, h, w)."""
        return self.norm(super().forward(input))


class EncoderLayer(nn.Module):
    """Deformable attention of all cells to all maps, and an MLP; post-norm residuals."""

    def __init__(self, *, width: int, heads: int, points: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(
            width=width, heads=heads, levels=len(ENCODED), points=points
        )
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = Linear(width, hidden)
        self.linear2 = Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, cells_BNC: Tensor, positions_NC: Tensor, places_N2: Tensor, grids: Grids
    ) -> Tensor:
        """Updates the cells of all levels, (B, N, C) -> (B, N, C).

        Args:
            cells_BNC: cells of all levels, one level after another.
            positions_NC: positional embeddings, added to the queries.
            places_N2: centre (x, y) of each cell relative to the image, in [0, 1].
            grids: rows and columns (h, w) of each level.
        """
        attended = self.self_attn(cells_BNC + positions_NC, places_N2, cells_BNC, grids)
        cells_BNC = self.norm1(cells_BNC + attended)
        return self.norm2(cells_BNC + self.linear2(F.relu(self.linear1(cells_BNC))))


class Encoder(nn.Module):
    """Stack of encoder layers with a learned embedding of each level."""

    def __init__(self, layers: Sequence[EncoderLayer], width: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.level_embed = nn.Parameter(torch.randn(len(ENCODED), width))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Transforms the maps (B, C, h, w) of the levels into maps of the same shapes, in float32."""
        grids = [(m.shape[2], m.shape[3]) for m in maps]
        device = maps[0].device
        width = maps[0].shape[1]
        # Half precision is too coarse for the sampling places.
        with full_precision(device):
            cells_BNC = torch.cat([m.float().flatten(2).transpose(1, 2) for m in maps], dim=1)
            positions_NC = torch.cat(
                [sine_positions(g, width, device) + e for g, e in zip(grids, self.level_embed)]
            )
            places_N2 = torch.cat([cell_centres(grid, device) for grid in grids])
            layers: Any = self.encoder["layers"]
            for layer in layers:
                cells_BNC = layer(cells_BNC, positions_NC.to(cells_BNC.dtype), places_N2, grids)
        parts = cells_BNC.split([h * w for h, w in grids], dim=1)
        return [part.transpose(1, 2).unflatten(2, grid) for part, grid in zip(parts, grids)]


class PixelDecoder(nn.Module):
    """Encoder of three maps, and mask features from its finest output and a fourth map.

    Parameter names are those of ODISE's checkpoints below ``sem_seg_head.pixel_decoder.``.
    """

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
            channels: channels of the maps s2, s3, s4 and s5 (strides 4, 8, 16 and 32).
            width: number of channels C, a multiple of 32.
            heads: number of heads of the encoder's attention.
            layers: number of layers of the encoder.
            points: number of points that a head samples on each level.
            hidden: hidden width of the encoder's MLPs.
        """
        super().__init__()
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels[name], width, 1), nn.GroupNorm(GROUPS, width))
            for name in ENCODED
        )
        for name, parameter in self.input_proj.named_parameters():
            if name.endswith("0.weight"):
                nn.init.xavier_uniform_(parameter)
        sizes = {"width": width, "heads": heads, "points": points, "hidden": hidden}
        self.transformer = Encoder([EncoderLayer(**sizes) for _ in range(layers)], width)
        self.adapter_1 = NormedConv(channels[FINEST], width, 1)
        self.layer_1 = NormedConv(width, width, 3)
        self.mask_features = nn.Conv2d(width, width, 1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Mask features and the encoder's maps.

        Args:
            features: maps (B, channels, H / stride, W / stride) s2, s3, s4, s5.

        Returns:
            Mask features (B, C, H / 4, W / 4), and maps (B, C, ...) of strides 32, 16 and 8.
        """
        projected = [p(features[name]) for p, name in zip(self.input_proj, ENCODED)]
        maps = self.transformer(projected)
        fine = self.adapter_1(features[FINEST])
        size = (fine.shape[2], fine.shape[3])
        fine = fine + F.interpolate(maps[-1], size, mode="bilinear", align_corners=False)
        return self.mask_features(F.relu(self.layer_1(fine))), maps


def cell_centres(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Centres (x, y) of a map's cells relative to the map, (h * w, 2), row by row.

    Args:
        grid: rows and columns (h, w) of the map.
        device: device of the result.
    """
    y_h, x_w = ((torch.arange(count, device=device) + 0.5) / count for count in grid)
    return torch.cartesian_prod(y_h, x_w).flip(-1)


def sine_positions(grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Fixed positions (h * w, C) of a map's cells, float32: half from the row, half from the column.

    They are the sines of DETR (arXiv 2005.12872, appendix).

    Args:
        grid: rows and columns (h, w) of the map.
        width: number of channels C, a multiple of 4, since sine and cosine alternate in each half.
        device: device of the result.
    """
    half = width // 2
    index = torch.arange(half, device=device)
    wavelengths = TEMPERATURE ** (2 * (index // 2) / half)
    rows_hc, columns_wc = (_axis(count, wavelengths) for count in grid)
    height, width = grid
    rows_hwc = rows_hc[:, None].expand(-1, width, -1)
    columns_hwc = columns_wc[None].expand(height, -1, -1)
    return torch.cat([rows_hwc, columns_hwc], dim=-1).flatten(0, 1)


def _axis(count: int, wavelengths: Tensor) -> Tensor:
    """Sines and cosines (count, C / 2) of the positions on one axis; the last is a full turn."""
    steps = torch.arange(1, count + 1, dtype=torch.float32, device=wavelengths.device)
    angles = (steps / (count + EPS) * (2 * math.pi))[:, None] / wavelengths
    return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)
