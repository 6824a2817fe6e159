"""Position tables for any grid, as pure functions that are tested against the official models.

Shapes: B images, H heads, N = h * w patch tokens, L = 1 + N tokens (class token first), D width, C
channels of one head.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.errors import InputError

EVA_PRETRAINING_GRID = 16  # rotary positions span [0, 16) for every input size
ROTARY_BASE = 10000.0


def patch_grid(images: Tensor, patch_size: int) -> tuple[int, int]:
    """Rows and columns of the token grid of images.

    Args:
        images: (B, 3, H, W).
        patch_size: side of a patch in pixels.

    Raises:
        InputError: a side is not a multiple of the patch; the message has the nearest sizes that are.
    """
    _, _, height, width = images.shape
    if height % patch_size or width % patch_size or not height * width:
        good = [max(1, round(side / patch_size)) * patch_size for side in (height, width)]
        raise InputError(
            f"image size {height}x{width} is not a multiple of {patch_size} pixels; "
            f"resize or pad to {good[0]}x{good[1]}"
        )
    return height // patch_size, width // patch_size


def resample_positions(
    table_LD: Tensor,
    grid: tuple[int, int],
    antialias: bool = False,
    first: int = 1,
    mode: str = "bicubic",
) -> Tensor:
    """Position table (first + rows * columns, D) of another grid; the first rows, the class token's, are kept.

    The rows of the patches are resized. CLIP's official models resize without antialiasing in
    a forward; open_clip's loader, which changes a checkpoint for good, antialiases.

    Args:
        table_LD: position table (first + g * g, D) of a square grid.
        grid: rows and columns of the new grid.
        antialias: True if a table is smoothed before it is made smaller.
        first: number of rows in front of the patches'.
        mode: "bicubic" or "bilinear".
    """
    side = math.isqrt(len(table_LD) - first)
    # Sides are no numbers while a graph for grids of any size is exported.
    if all(isinstance(length, int) for length in grid) and (side, side) == tuple(grid):
        return table_LD
    patches = table_LD[first:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(
        patches.float(), grid, mode=mode, align_corners=False, antialias=antialias
    )
    patches_ND = resized[0].flatten(1).T.to(table_LD.dtype)
    return torch.cat([table_LD[:first], patches_ND])


class Rotary(NamedTuple):
    """Settings by which a tower numbers the cells of a grid for rotary positions.

    Attributes:
        span: side in cells to which those of any grid are scaled: the grid of pretraining.
        first: number of the first cell.
        columns_first: True if the first half of the factors is the column's, False if it is the row's.
        prefix: number of tokens before the patches, which are not turned.
    """

    span: int
    first: int = 0
    columns_first: bool = False
    prefix: int = 1


EVA_ROTARY = Rotary(EVA_PRETRAINING_GRID)


def rotary_factors(
    grid: tuple[int, int], head_channels: int, device: torch.device, rotary: Rotary = EVA_ROTARY
) -> Tensor:
    """Rotary factors e^(i angle) as pairs of cosine and sine, (P + N, head_channels / 2, 2) float32.

    EVA-02's first half of the factors encodes the row, the second half the column; the angles of the class
    token are 0. Each axis is scaled on its own, so that a grid of h x w cells spans [0, 16) in both. On
    square grids these are the official factors, on others their only consistent generalisation.

    Args:
        grid: rows and columns (h, w) of the token grid; their tables are kept. For symbols, while a graph is
            exported, the factors are part of the graph.
        head_channels: number of channels of a head, a multiple of 4.
        device: device of the factors.
        rotary: numbers of the cells, EVA-02's or others.
    """
    if all(isinstance(side, int) for side in grid):
        return _rotary_table(grid, head_channels, device, rotary)
    steps = [rotary.span / torch.scalar_tensor(side) for side in grid]
    return _cosine_and_sine(_angles(grid, steps, head_channels, rotary).float(), device)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # a cached inference tensor could not be used in training later
def _rotary_table(
    grid: tuple[int, int], head_channels: int, device: torch.device, rotary: Rotary
) -> Tensor:
    angles = _angles(grid, [rotary.span / side for side in grid], head_channels, rotary)
    return _cosine_and_sine(angles, device)


def _cosine_and_sine(angles: Tensor, device: torch.device) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float().to(device)


def _angles(
    grid: tuple[int, int], steps: Sequence[float | Tensor], head_channels: int, rotary: Rotary
) -> Tensor:
    """Angles (P + N, head_channels / 2) float64 of `rotary_factors`; `steps` are those of each axis."""
    per_axis = head_channels // 4
    frequencies = ROTARY_BASE ** (-torch.arange(per_axis, dtype=torch.float64) / per_axis)
    axes = [
        torch.outer((torch.arange(side) + rotary.first) * step, frequencies)
        for side, step in zip(grid, steps, strict=True)
    ]
    rows = axes[0][:, None].expand(*grid, per_axis)
    columns = axes[1][None, :].expand(*grid, per_axis)
    halves = [columns, rows] if rotary.columns_first else [rows, columns]
    angles = torch.cat(halves, dim=-1).reshape(-1, 2 * per_axis)
    return torch.cat([torch.zeros(rotary.prefix, 2 * per_axis), angles])


def rotate(heads_BHLC: Tensor, factors: Tensor) -> Tensor:
    """Rotates adjacent channel pairs (a, b) of heads by the angles of `rotary_factors`, in float32.

    Pairs are turned as complex numbers, one product that takes a third of the time of what it consists of. Compilers
    and formats of exported graphs have no complex numbers; they are given the same sums of products, and fuse them.
    """
    pairs = heads_BHLC.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        a, b = pairs.unbind(-1)
        cosine, sine = factors.unbind(-1)
        turned = torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(factors))
    return turned.flatten(-2).to(heads_BHLC.dtype)
