"""Levels P2 to P6 of one pass of a ViT: trained resizers of its taps, and F-ViT's or ViTDet's feature pyramid.

Shapes: B images, D width of the tower, E embedding, g x g cells of its grid. Levels P2 to P6 have 4 g, 2 g, g, g / 2
and g / 4 cells a side and 256 channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.tower import DENSE, ImageTower
from clipself_seg.heads.fvit.layers import BatchNorm, ConvNorm, double, fold_norm, xavier_uniform

CHANNELS = 256
# Strides of P2 to P6 in strides of the tower.
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


# MODEL.FVIT.PYRAMID -> its class.
PYRAMIDS = {"fpn": FeaturePyramid, "simple": SimpleFeaturePyramid}


def pyramid_and_dense(
    images: Tensor,
    tower: ImageTower,
    taps: Sequence[str],
    resizers: TapResizers,
    neck: FeaturePyramid,
    *,
    dense: bool,
    tower_learns: bool,
) -> tuple[list[Tensor], Tensor | None]:
    """Levels P2 to P6 of normalised images (B, 3, side, side), and unit dense features (B, E, g, g) or None.

    Args:
        images: normalised and padded.
        tower: CLIP's image tower.
        taps: names of the four features of it that the pyramid is made of.
        resizers: resizers of the taps.
        neck: feature pyramid.
        dense: whether dense features are made.
        tower_learns: whether gradients reach the tower.
    """
    names = [*taps, DENSE] if dense else list(taps)
    with torch.set_grad_enabled(torch.is_grad_enabled() and tower_learns):
        maps = tower.features(images, names)
    levels = neck([maps[name] for name in taps], resizers)
    return levels, F.normalize(maps[DENSE].float(), dim=1) if dense else None
