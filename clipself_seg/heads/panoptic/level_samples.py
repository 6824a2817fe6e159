"""Weighted sums of bilinear samples of several feature maps, the inner loop of deformable attention.

Shapes: B images, L queries, M heads, V levels (feature maps), P points on a level, C channels, N
    cells of all levels, h x w cells of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Grids = Sequence[tuple[int, int]]
POINTS_AT_ONCE = 2**16  # whose places and weights stay within a core's cache


def sample_levels(
    values_BNC: Tensor, grids: Grids, places_BLMVP2: Tensor, weights_BLMVP: Tensor
) -> Tensor:
    """Weighted sums of bilinear samples, (B, L, C); head m reads and writes the m-th part of C.

    Args:
        values_BNC: cells of all levels, one level after another.
        grids: rows and columns (h, w) of each level.
        places_BLMVP2: points (x, y) relative to the image; beyond [0, 1] the maps are zero.
        weights_BLMVP: weights of the samples, which sum to 1 over levels and points.
    """
    arguments = (values_BNC, places_BLMVP2, weights_BLMVP)
    same = all(x.device.type == "cpu" and x.dtype == values_BNC.dtype for x in arguments)
    wide = values_BNC.dtype in (torch.float32, torch.float64)
    with_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in arguments)
    take = summed_rows if same and wide and not with_gradients else summed_samples
    return take(values_BNC, grids, places_BLMVP2, weights_BLMVP)


def summed_samples(
    values_BNC: Tensor, grids: Grids, places_BLMVP2: Tensor, weights_BLMVP: Tensor
) -> Tensor:
    """`sample_levels` by torch's sampling, with gradients."""
    batch, _, heads = places_BLMVP2.shape[:3]
    total: Tensor | None = None
    levels = values_BNC.split([h * w for h, w in grids], dim=1)
    for level, (values, grid) in enumerate(zip(levels, grids)):
        maps = values.transpose(1, 2).reshape(batch * heads, -1, *grid)
        # Queries last, so that the sum over a query's points runs along memory.
        points = places_BLMVP2[:, :, :, level].permute(0, 2, 3, 1, 4).flatten(0, 1)
        weights = weights_BLMVP[:, :, :, level].permute(0, 2, 3, 1).flatten(0, 1)
        samples = F.grid_sample(
            maps,
            2 * points - 1,
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        summed = (samples * weights[:, None]).sum(dim=2)  # (B * M, C / M, L)
        total = summed if total is None else total + summed
    assert total is not None
    return total.unflatten(0, (batch, heads)).flatten(1, 2).transpose(1, 2)


def summed_rows(
    values_BNC: Tensor, grids: Grids, places_BLMVP2: Tensor, weights_BLMVP: Tensor
) -> Tensor:
    """`sample_levels` without gradients on a CPU: no sample is written to memory, only sums are.

    A sample is the weighted sum of four cells, and torch's `embedding_bag` sums weighted rows of a table. Cells are
    rows of one whose levels are equally wide and have borders of zeros, so that the other three cells
    of a sample are in the same three places from the first one, and points beyond a map need no case of their own.
    """
    _, queries, heads, _, points = weights_BLMVP.shape
    table, row, corners_V = _bordered(values_BNC, grids, heads)
    sizes_V12 = places_BLMVP2.new_tensor([(w, h) for h, w in grids])[:, None]
    tables = [table[shift:] for shift in (0, 1, row, row + 1)]
    sums_BLMC = values_BNC.new_empty(*weights_BLMVP.shape[:3], values_BNC.shape[-1] // heads)
    cells = len(table) // (len(values_BNC) * heads)
    heads_M11 = torch.arange(heads, dtype=torch.int32)[:, None, None] * cells
    at_once = max(1, POINTS_AT_ONCE // (heads * len(grids) * points))
    for image, (places, weights, sums) in enumerate(zip(places_BLMVP2, weights_BLMVP, sums_BLMC)):
        first_MV1 = corners_V[:, None] + heads_M11 + image * heads * cells
        for begin in range(0, queries, at_once):
            own = slice(begin, begin + at_once)
            rows, corner_weights = _corners(places[own], weights[own], sizes_V12, row)
            bags = (rows + first_MV1).flatten(2).flatten(0, 1)
            total: Tensor | None = None
            for part, corner in zip(tables, corner_weights):
                of_bags = corner.flatten(2).flatten(0, 1)
                summed = F.embedding_bag(bags, part, mode="sum", per_sample_weights=of_bags)
                total = summed if total is None else total.add_(summed)
            assert total is not None
            sums[own] = total.unflatten(0, (-1, heads))
    return sums_BLMC.flatten(2)


def _bordered(values_BNC: Tensor, grids: Grids, heads: int) -> tuple[Tensor, int, Tensor]:
    """Cells as rows, with a border of zeros before each level and two behind it.

    Returns:
        The table (B * M * cells, C / M), the length of its rows of cells, and where each level's first cell is, (V,).
    """
    row = max(w for _, w in grids) + 3
    lines = sum(h + 3 for h, _ in grids)
    split_BNMC = values_BNC.unflatten(-1, (heads, -1))
    shape = (len(values_BNC), heads, lines, row, split_BNMC.shape[-1])
    table_BMhwC = values_BNC.new_zeros(shape)
    corners, line = [], 1
    for (h, w), level in zip(grids, split_BNMC.split([h * w for h, w in grids], dim=1)):
        maps_BMhwC = level.unflatten(1, (h, w)).permute(0, 3, 1, 2, 4)
        table_BMhwC[:, :, line : line + h, 1 : w + 1] = maps_BMhwC
        corners.append(line * row + 1)
        line += h + 3
    return table_BMhwC.flatten(0, 3), row, torch.tensor(corners, dtype=torch.int32)


def _corners(
    places_LMVP2: Tensor, weights_LMVP: Tensor, sizes_V12: Tensor, row: int
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The first of the four cells around each point, from its level's first one, and the cells' weights.

    The cells are in the order of `summed_rows`: first, right of it, below it, below and right.
    """
    cells = (places_LMVP2 * sizes_V12).sub_(0.5)
    # A point further out reads the same zeros. One that is not a number has a weight that is none.
    cells = torch.minimum(cells.clamp_(min=-1), sizes_V12).nan_to_num_(nan=0.0)
    x, y = cells.unbind(-1)
    left, above = x.floor(), y.floor()
    right = x - left
    below_weights = weights_LMVP * (y - above)
    above_weights = weights_LMVP - below_weights
    below_right = below_weights * right
    above_right = above_weights * right
    rows = above.mul_(row).add_(left).int()
    below_left = below_weights.sub_(below_right)
    return rows, (above_weights.sub_(above_right), above_right, below_left, below_right)
