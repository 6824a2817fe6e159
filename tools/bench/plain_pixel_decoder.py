"""Plain reference formulation of deformable attention, with all samples in memory at once.

It is the form that Deformable DETR's authors published for devices without their kernel (arXiv 2010.04159).

Shapes: B images, C channels, N cells of all levels, M heads, V levels, P points, h x w cells of a level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.heads.panoptic.pixel_decoder import (
    ENCODED,
    FINEST,
    DeformableAttention,
    Grids,
    PixelDecoder,
    cell_centres,
    sine_positions,
)


def plain_pixel_decoder(
    decoder: PixelDecoder, features: Mapping[str, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Computes the outputs of `PixelDecoder` in the plain formulation.

    Args:
        decoder: its layers are used, not its walk through them.
        features: maps (B, channels, H / stride, W / stride) s2, s3, s4, s5.
    """
    maps = [layer(features[name]) for layer, name in zip(decoder.input_proj, ENCODED)]
    grids = [(m.shape[2], m.shape[3]) for m in maps]
    device, width = maps[0].device, maps[0].shape[1]
    cells = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
    levels = zip(grids, decoder.transformer.level_embed)
    positions = torch.cat([sine_positions(grid, width, device) + kind for grid, kind in levels])
    places = torch.cat([cell_centres(grid, device) for grid in grids])
    layers: Any = decoder.transformer.encoder["layers"]
    for layer in layers:
        attended = _attend(layer.self_attn, cells + positions, places, cells, grids)
        cells = layer.norm1(cells + attended)
        cells = layer.norm2(cells + layer.linear2(F.relu(layer.linear1(cells))))
    parts = cells.split([h * w for h, w in grids], dim=1)
    maps = [part.transpose(1, 2).unflatten(2, grid) for part, grid in zip(parts, grids)]
    fine = decoder.adapter_1(features[FINEST])
    size = (fine.shape[2], fine.shape[3])
    fine = fine + F.interpolate(maps[-1], size, mode="bilinear", align_corners=False)
    return decoder.mask_features(F.relu(decoder.layer_1(fine))), maps


def _attend(
    attention: DeformableAttention, queries: Tensor, places_N2: Tensor, cells: Tensor, grids: Grids
) -> Tensor:
    """The result of `DeformableAttention`, (B, N, C)."""
    parts = (attention.heads, attention.levels, attention.points)
    offsets = attention.sampling_offsets(queries).unflatten(-1, (*parts, 2))
    weights = attention.attention_weights(queries).unflatten(-1, (attention.heads, -1))
    weights = weights.softmax(dim=-1)
    sizes = torch.tensor([(w, h) for h, w in grids], device=queries.device)[:, None]
    places = 2 * (places_N2[:, None, None, None] + offsets / sizes) - 1
    values = attention.value_proj(cells).unflatten(-1, (attention.heads, -1))
    samples = []
    for level, (own, grid) in enumerate(zip(values.split([h * w for h, w in grids], 1), grids)):
        maps = own.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, grid)
        points = places[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(maps, points, padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]  # (B M, 1, N, V P)
    summed = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(-1)
    summed = summed.unflatten(0, (-1, attention.heads)).flatten(1, 2).transpose(1, 2)
    return attention.output_proj(summed)
