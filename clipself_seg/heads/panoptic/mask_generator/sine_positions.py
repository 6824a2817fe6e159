"""The fixed positions of a feature map: sines of row and column (DETR, arXiv 2005.12872, appendix).

Shapes: h x w cells, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10_000
EPS = 1e-6


def sine_positions(grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Positions (h * w, C), float32 whatever the features are: the row's half first.

    Args:
        grid: (h, w).
        width: C, a multiple of 4: sine and cosine alternate, for rows and for columns.
        device: of the result.
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
    # The last of `count` cells is a full turn.
    steps = torch.arange(1, count + 1, dtype=torch.float32, device=wavelengths.device)
    angles = (steps / (count + EPS) * (2 * math.pi))[:, None] / wavelengths
    return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)
