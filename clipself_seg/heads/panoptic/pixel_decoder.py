"""The pixel decoder of Mask2Former (arXiv 2112.01527): deformable attention over three feature maps.

A query of deformable attention (arXiv 2010.04159) samples every map at a few points around its own place. A
fourth, finer map is added to the result for the mask features. The inner loop of the attention are weighted sums
of bilinear samples of several maps, which `sample_levels` makes.

Shapes: B images, L queries, M heads, V levels (feature maps), P points on a level, C channels, N cells of all
    levels, h x w cells of a map; strides in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import Tensor, nn

from clipself_seg.clip.linear import Linear
from clipself_seg.clip.precision import full_precision
from clipself_seg.clip.runtime import constant, on_cpu

Grids = Sequence[tuple[int, int]]
POINTS_AT_ONCE = 2**16  # whose places and weights stay within a core's cache
GROUPS = 32
STRIDES = {"s2": 4, "s3": 8, "s4": 16, "s5": 32}
"""Strides in pixels of the maps that every feature source gives."""
ENCODED = ("s5", "s4", "s3")  # the order of the encoder's levels: coarse to fine
FINEST = "s2"
# DETR's constants of sine positions.
TEMPERATURE = 10_000
EPS = 1e-6


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
    same = all(on_cpu(x) and x.dtype == values_BNC.dtype for x in arguments)
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
            maps, 2 * points - 1, mode="bilinear", padding_mode="zeros", align_corners=False
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


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention under the parameter names of the published code."""

    def __init__(self, *, width: int, heads: int, levels: int, points: int) -> None:
        """
        Args:
            width: number of channels C, a multiple of `heads`.
            heads: number of heads M.
            levels: number of feature maps V.
            points: number of points P of a head on each level.
        """
        super().__init__()
        self.heads = heads
        self.levels = levels
        self.points = points
        self.sampling_offsets = Linear(width, heads * levels * points * 2)
        self.attention_weights = Linear(width, heads * levels * points)
        self.value_proj = Linear(width, width)
        self.output_proj = Linear(width, width)
        self._initialise()

    def _initialise(self) -> None:
        """Published initialisation: head m looks in direction m of M, point p at a distance of p cells."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles_M = torch.arange(self.heads) * (2 * math.pi / self.heads)
        rays_M2 = torch.stack([angles_M.cos(), angles_M.sin()], dim=-1)
        rays_M2 = rays_M2 / rays_M2.abs().amax(dim=-1, keepdim=True)
        steps_P1 = torch.arange(1, self.points + 1)[:, None]
        bias = (rays_M2[:, None, None] * steps_P1).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.flatten())
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)

    def forward(
        self, queries_BLC: Tensor, places_L2: Tensor, values_BNC: Tensor, grids: Grids
    ) -> Tensor:
        """Attended values (B, L, C).

        Args:
            queries_BLC: queries, from which offsets and weights of the points are predicted.
            places_L2: position (x, y) of each query relative to the image, in [0, 1].
            values_BNC: cells of all levels, one level after another, row by row.
            grids: rows and columns (h, w) of each level.
        """
        parts = (self.heads, self.levels, self.points)
        offsets_BLMVP2 = self.sampling_offsets(queries_BLC).unflatten(-1, (*parts, 2))
        weights_BLMVP = self.attention_weights(queries_BLC).unflatten(-1, (self.heads, -1))
        weights_BLMVP = weights_BLMVP.softmax(dim=-1).unflatten(-1, parts[1:])
        # Offsets are in cells of their level, places in fractions of the image.
        sizes_V12 = constant([(w, h) for h, w in grids], queries_BLC)[:, None]
        places = places_L2[:, None, None, None] + offsets_BLMVP2 / sizes_V12
        values = self.value_proj(values_BNC)
        return self.output_proj(sample_levels(values, grids, places, weights_BLMVP))


def normed_conv(channels: int, width: int, kernel_size: int) -> Conv2d:
    """Detectron2's convolution, (B, channels, h, w) -> (B, width, h, w), without bias and with a group norm."""
    norm = nn.GroupNorm(GROUPS, width)
    padding = kernel_size // 2
    conv = Conv2d(channels, width, kernel_size, padding=padding, bias=False, norm=norm)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return conv


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
        width: int,
        heads: int,
        layers: int,
        points: int,
        hidden: int,
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
        self.adapter_1 = normed_conv(channels[FINEST], width, 1)
        self.layer_1 = normed_conv(width, width, 3)
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
    axes = []
    for count in grid:  # the last place is a full turn
        steps = torch.arange(1, count + 1, dtype=torch.float32, device=device)
        angles = (steps / (count + EPS) * (2 * math.pi))[:, None] / wavelengths
        axes.append(torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1))
    rows_hwc = axes[0][:, None].expand(-1, grid[1], -1)
    columns_hwc = axes[1][None].expand(grid[0], -1, -1)
    return torch.cat([rows_hwc, columns_hwc], dim=-1).flatten(0, 1)
