"""Feature pyramids over the taps of a ViT: F-ViT's FPN, and ViTDet's SimpleFPN of Table A3.

Shapes: B images, D width of the tower, g x g cells of its grid. Levels P2 to P6 have 4 g, 2 g, g, g / 2
and g / 4 cells a side and 256 channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.heads.fvit.layers import ConvNorm, double, fold_norm, xavier_uniform
from clipself_seg.heads.fvit.resizers import TapResizers

CHANNELS = 256


class FeaturePyramid(nn.Module):
    """FPN with batch norms and without activations; P6 is every second cell of P5."""

    top_down = True

    def __init__(self, width: int, channels: int = CHANNELS) -> None:
        """
        Args:
            width: D, channels of the maps.
            channels: channels of the levels.
        """
        super().__init__()
        self.channels = channels
        self.lateral_convs = nn.ModuleList(
            ConvNorm(width, channels, 1, relu=False) for _ in range(4)
        )
        self.fpn_convs = nn.ModuleList(
            ConvNorm(channels, channels, 3, relu=False) for _ in range(4)
        )
        xavier_uniform(self)

    def forward(self, taps: Sequence[Tensor], resizers: TapResizers) -> list[Tensor]:
        """Levels P2 to P6 of four taps (B, D, g, g); the resizers are folded into the lateral convolutions."""
        laterals = self.laterals(taps, resizers)
        if self.top_down:
            for fine, coarse in ((2, 3), (1, 2), (0, 1)):
                above = F.interpolate(laterals[coarse], laterals[fine].shape[-2:], mode="nearest")
                laterals[fine] = laterals[fine] + above
        levels = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals)]
        return [*levels, levels[-1][:, :, ::2, ::2]]

    def laterals(self, taps: Sequence[Tensor], resizers: TapResizers) -> list[Tensor]:
        """Maps of four strides with the channels of the levels, before they are added up.

        Nothing lies between a transposed convolution and the 1x1 convolution behind it, so one with the
        product of both weights does the same: maps of width D at the fine strides never exist.
        """
        first, second, third, fourth = self.lateral_convs
        hidden = _resize_and_norm(resizers.interpolate1, taps[0])
        return [
            _fold(resizers.interpolate1[3], first, hidden),
            _fold(resizers.interpolate2[0], second, taps[1]),
            third(taps[2]),
            fourth(F.max_pool2d(taps[3], 2, 2)),
        ]


def _fold(resizer: nn.Module, lateral: nn.Module, maps: Tensor) -> Tensor:
    """``lateral(resizer(maps))`` by one transposed convolution."""
    assert isinstance(resizer, nn.ConvTranspose2d) and isinstance(lateral, ConvNorm)
    assert resizer.bias is not None
    project = lateral.conv.weight[:, :, 0, 0]
    project, bias = lateral.folded(project, project @ resizer.bias)
    weight = torch.einsum("iokl,co->ickl", resizer.weight, project)
    return lateral.finish(double(maps, weight, bias))


def _resize_and_norm(resizer: nn.Sequential, maps: Tensor) -> Tensor:
    """The finest resizer without its last layer."""
    first, norm, activation, _ = resizer
    assert isinstance(first, nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d)
    weight, bias = fold_norm(norm, first.weight.transpose(0, 1), first.bias)
    maps = double(maps, weight.transpose(0, 1), bias)
    return activation(norm(maps) if norm.training else maps)


class SimpleFeaturePyramid(FeaturePyramid):
    """ViTDet's pyramid: each map goes its own way, nothing is added from above (Table A3, first row)."""

    top_down = False
