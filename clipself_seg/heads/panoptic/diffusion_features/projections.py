"""Projects the eight taps of the diffusion model to the four maps of a mask generator.

Shapes: B crops, C channels of a tap, h x w cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.heads.panoptic.mask_generator.pixel_decoder import STRIDES, NormedConv

WIDTH = 512  # channels of the maps
HIDDEN = 128  # channels inside a residual block
# The map that each tap is added to: encoder (2), U-Net (4), decoder (2). The first tap of the U-Net
# has a stride of 64 and is enlarged.
TAP_MAPS = ("s2", "s3", "s5", "s5", "s4", "s3", "s3", "s2")


class Bottleneck(nn.Module):
    """Residual block of ResNet-50 with group norms, under the parameter names of Detectron2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = NormedConv(channels, HIDDEN, 1)
        self.conv2 = NormedConv(HIDDEN, HIDDEN, 3)
        self.conv3 = NormedConv(HIDDEN, WIDTH, 1)
        if channels != WIDTH:
            self.shortcut = NormedConv(channels, WIDTH, 1)
        for convolution in self.children():
            assert isinstance(convolution, NormedConv)
            # The initialisation of layers with ReLU (He et al.), which NormedConv's own does not assume.
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Transforms (B, C, h, w) into (B, WIDTH, h, w)."""
        inner = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(inner + (self.shortcut(x) if hasattr(self, "shortcut") else x))


def tap_projections(channels: Sequence[int]) -> nn.ModuleList:
    """Projections of the taps under the names of ODISE's ``backbone.feature_projections``.

    Args:
        channels: number of channels of each tap.
    """
    return nn.ModuleList(nn.Sequential(Bottleneck(count)) for count in channels)


def project_taps(
    projections: nn.ModuleList, taps: Sequence[Tensor], side: int
) -> dict[str, Tensor]:
    """Maps (B, WIDTH, side / stride, side / stride) of crops, each the sum of its projected taps.

    Args:
        projections: modules that `tap_projections` returned.
        taps: taps (B, C, h, w) of any size, resized by taking the nearest cell.
        side: side of the crops in pixels.
    """
    maps: dict[str, Tensor] = {}
    for projection, tap, name in zip(projections, taps, TAP_MAPS, strict=True):
        size = (side // STRIDES[name], side // STRIDES[name])
        if tuple(tap.shape[-2:]) != size:
            tap = F.interpolate(tap, size, mode="nearest")
        projected = projection(tap)
        maps[name] = maps[name] + projected if name in maps else projected
    return {name: maps[name] for name in STRIDES}
