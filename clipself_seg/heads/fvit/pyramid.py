"""Levels P2 to P6 of one pass of a ViT: trained resizers of its taps, and F-ViT's or ViTDet's feature pyramid.

First the convolution with batch norm that this and the other parts of F-ViT are made of.

Shapes: B images, D width of the tower, E embedding, g x g cells of its grid. Levels P2 to P6 have 4 g, 2 g, g, g / 2
and g / 4 cells a side and 256 channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.runtime import on_cpu
from clipself_seg.heads.maps import BatchNorm


def fold_norm(
    norm: nn.BatchNorm2d | None, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Weight (outputs, ...) and bias (outputs,) of a convolution with what the norm behind it does in evaluation.

    In training, and without a norm, they stay as they are.
    """
    if norm is None or norm.training:
        return weight, bias
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    return weight * factor.view(-1, *[1] * (weight.dim() - 1)), norm.bias - mean * factor


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm and, if asked, ReLU; or convolution with bias and ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, norm: bool = True, relu: bool = True
    ) -> None:
        """
        Args:
            inputs: channels of the input.
            outputs: channels of the output.
            kernel: side of the kernel; the size of the map stays.
            norm: True if there is a batch norm; the convolution has a bias where there is none.
            relu: True if a ReLU ends it.
        """
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not norm)
        self.bn = BatchNorm(outputs) if norm else None
        self.relu = relu

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, outputs, H, W) of maps (B, inputs, H, W)."""
        if self.bn is not None and not on_cpu(maps):
            # Folding takes a CPU nothing; for a GPU it is five small operations in place of one.
            maps = self.bn(self.conv(maps))
            return F.relu_(maps) if self.relu else maps
        weight, bias = fold_norm(self.bn, self.conv.weight, self.conv.bias)
        return self.finish(F.conv2d(maps, weight, bias, padding=self.conv.padding))

    def finish(self, maps: Tensor) -> Tensor:
        """Applies the rest after a convolution with weights of `fold_norm`: norm of a training step, ReLU.

        The maps are overwritten.
        """
        if self.bn is not None and self.bn.training:
            maps = self.bn(maps)
        return F.relu_(maps) if self.relu else maps


def xavier_uniform(module: nn.Module) -> None:
    """Initialises every convolution and linear layer by Xavier's rule, biases with 0 (MMDetection's FPN)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def kaiming_normal(module: nn.Module) -> None:
    """Initialises every convolution by Kaiming's rule over its outputs, biases with 0 (MMDetection's ConvModule)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


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

    def __init__(self, width: int, channels: int = CHANNELS, top_down: bool = True) -> None:
        """
        Args:
            width: D, channels of the maps.
            channels: channels of the levels.
            top_down: False for ViTDet's, where each map goes its own way and nothing is added from above (Table A3).
        """
        super().__init__()
        self.channels = channels
        self.top_down = top_down
        self.lateral_convs = nn.ModuleList(
            ConvNorm(width, channels, 1, relu=False) for _ in range(4)
        )
        self.fpn_convs = nn.ModuleList(
            ConvNorm(channels, channels, 3, relu=False) for _ in range(4)
        )
        xavier_uniform(self)

    def forward(self, taps: Sequence[Tensor], resizers: TapResizers) -> list[Tensor]:
        """Levels P2 to P6 of four taps (B, D, g, g); the resizers are folded into the lateral convolutions.

        Nothing lies between a transposed convolution and the 1x1 convolution behind it, so one with the
        product of both weights does the same: maps of width D at the fine strides never exist.
        """
        first, second, third, fourth = self.lateral_convs
        hidden = _resize_and_norm(resizers.interpolate1, taps[0])
        laterals = [
            _fold(resizers.interpolate1[3], first, hidden),
            _fold(resizers.interpolate2[0], second, taps[1]),
            third(taps[2]),
            fourth(F.max_pool2d(taps[3], 2, 2)),
        ]
        if self.top_down:
            for fine, coarse in ((2, 3), (1, 2), (0, 1)):
                above = F.interpolate(laterals[coarse], laterals[fine].shape[-2:], mode="nearest")
                laterals[fine] = laterals[fine] + above
        levels = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals)]
        return [*levels, levels[-1][:, :, ::2, ::2]]


def _fold(resizer: nn.Module, lateral: nn.Module, maps: Tensor) -> Tensor:
    """``lateral(resizer(maps))`` by one transposed convolution."""
    assert isinstance(resizer, nn.ConvTranspose2d) and isinstance(lateral, ConvNorm)
    assert resizer.bias is not None
    project = lateral.conv.weight[:, :, 0, 0]
    project, bias = fold_norm(lateral.bn, project, project @ resizer.bias)
    weight = torch.einsum("iokl,co->ickl", resizer.weight, project)
    return lateral.finish(F.conv_transpose2d(maps, weight, bias, stride=2))


def _resize_and_norm(resizer: nn.Sequential, maps: Tensor) -> Tensor:
    """The finest resizer without its last layer."""
    first, norm, activation, _ = resizer
    assert isinstance(first, nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d)
    weight, bias = fold_norm(norm, first.weight.transpose(0, 1), first.bias)
    maps = F.conv_transpose2d(maps, weight.transpose(0, 1), bias, stride=2)
    return activation(norm(maps) if norm.training else maps)
