"""Turns taps of a ViT, all of one stride, into maps of four strides: trained resizers of F-ViT.

Shapes: B images, D width of the tower, g x g cells of its grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.heads.fvit.layers import BatchNorm

# Strides of the maps in strides of the tower: the four of the pyramid, and the one above for the RPN.
RELATIVE_STRIDES = (0.25, 0.5, 1.0, 2.0, 4.0)


class TapResizers(nn.Module):
    """Transposed convolutions to 4 g and 2 g, nothing, and a max pool to g / 2 (ViTDet's, width kept).

    The paper says "interpolated"; the names are those of the official checkpoints.
    """

    def __init__(self, width: int) -> None:
        """
        Args:
            width: D.
        """
        super().__init__()
        self.interpolate1 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            BatchNorm(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        self.interpolate2 = nn.Sequential(nn.ConvTranspose2d(width, width, 2, stride=2))

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps (B, D, s, s) with s = 4 g, 2 g, g, g // 2, of four taps (B, D, g, g)."""
        return [
            self.interpolate1(taps[0]),
            self.interpolate2(taps[1]),
            taps[2],
            F.max_pool2d(taps[3], 2, 2),
        ]
