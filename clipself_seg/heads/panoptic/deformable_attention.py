"""Multi-scale deformable attention in plain PyTorch (arXiv 2010.04159).

Each query samples every feature map at a few points around its own place; it predicts their offsets
and weights.

Shapes: B images, L queries, M heads, V levels (feature maps), P points on a level, C channels, N
    cells of all levels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clipself_seg.clip.linear import Linear
from clipself_seg.clip.runtime import constant
from clipself_seg.heads.panoptic.level_samples import Grids, sample_levels


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
