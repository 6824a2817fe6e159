"""The steps of the decoder, which make the cost embedding twice as large, guided by image features.

A step is a transposed convolution, its result beside the guidance, and two 3x3 convolutions. Nothing
non-linear stands between the first two, so they are one convolution of the small map: half the work,
and no large map of many channels in between. The contribution of the guidance to it is the same for
every class and is computed once.

Several views of an image, or images, may pass together: the classes of one follow those of another.

Shapes: V views, T classes of all of them, C channels, D output channels, G guidance channels, h x w cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with group norm (16 channels a group) and ReLU."""

    def __init__(self, *, channels: int, out_channels: int) -> None:
        super().__init__()
        groups = max(1, out_channels // 16)
        self.double_conv = nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(T, C, h, w) -> (T, D, h, w)"""
        return self.double_conv(x)


class UpBlock(nn.Module):
    """One step, (T, C, h, w) -> (T, D, 2 h, 2 w)."""

    def __init__(self, *, channels: int, out_channels: int, guidance_channels: int) -> None:
        """
        Args:
            channels: C.
            out_channels: D.
            guidance_channels: G, less than C: the transposed convolution gives the other C - G.
        """
        super().__init__()
        kept = channels - guidance_channels
        self.up = nn.ConvTranspose2d(channels, kept, 2, stride=2)
        self.conv = DoubleConv(channels=channels, out_channels=out_channels)

    def guidance_contribution(self, guidance_VG2h2w: Tensor) -> Tensor:
        """What guidance and bias add to the output of the first convolution, (V, D, 2 h, 2 w)."""
        assert self.up.bias is not None
        # The bias of the transposed convolution is a constant map in front of the first convolution,
        # so its contribution differs at the border alone, where zeros are padded.
        views, _, height, width = guidance_VG2h2w.shape
        bias = self.up.bias[:, None, None].expand(views, -1, height, width)
        contribution = self._first()(torch.cat([bias, guidance_VG2h2w], dim=1))
        return contribution.contiguous(memory_format=torch.channels_last)

    def corner_weight(self) -> Tensor:
        """Transposed convolution and first convolution as one kernel, (4 D, C, 2, 2).

        It stands on the corner of four cells and gives the four pixels around it.
        """
        kernel = self._first().weight[:, : self.up.out_channels]
        taps = _corner_taps(kernel)
        # o, i, u: output, input and intermediate channels; p, q: pixel; k, l: cell; d, x: tap of the
        # 3x3 kernel; a, b: half of a cell, which is the place in the transposed kernel.
        weight = torch.einsum("oudx,iuab,pkda,qlxb->pqoikl", kernel, self.up.weight, taps, taps)
        return weight.flatten(0, 2)

    def forward(self, x_TChw: Tensor, corner_weight: Tensor, contribution: Tensor) -> Tensor:
        """(T, C, h, w) -> (T, D, 2 h, 2 w), any number of classes at a time.

        Args:
            x_TChw: maps of the classes.
            corner_weight: result of `corner_weight`.
            contribution: result of `guidance_contribution`.
        """
        corners = F.conv2d(x_TChw, corner_weight, padding=1)
        _, norm1, relu, conv2, norm2, _ = self.conv.double_conv
        x = relu(norm1(_with_views(_around_corners(corners), contribution)))
        return relu(norm2(conv2(x)))

    def _first(self) -> nn.Conv2d:
        conv = self.conv.double_conv[0]
        assert isinstance(conv, nn.Conv2d)
        return conv


def _with_views(x_TDhw: Tensor, contribution_VDhw: Tensor) -> Tensor:
    """Adds the contribution of each view to all of its classes."""
    if len(contribution_VDhw) == 1:
        return x_TDhw + contribution_VDhw
    split = x_TDhw.unflatten(0, (len(contribution_VDhw), -1))
    return (split + contribution_VDhw[:, None]).flatten(0, 1)


def _corner_taps(like: Tensor) -> Tensor:
    """One axis of `corner_weight`: [pixel p, cell k, tap d, half a] is 1 where tap d of the 3-tap
    kernel at pixel p reads half a of cell k. The pixels are the two beside the corner of two cells.
    """
    taps = like.new_zeros(2, 2, 3, 2)
    for pixel in range(2):
        for tap in range(3):
            # Halves along the axis: 0 1 | 2 3, the corner is the bar, the pixels are 1 and 2.
            cell, half = divmod(pixel + tap, 2)
            taps[pixel, cell, tap, half] = 1
    return taps


def _around_corners(corners: Tensor) -> Tensor:
    """(T, 4 D, h + 1, w + 1), four pixels a corner -> (T, D, 2 h, 2 w)."""
    count, _, rows, columns = corners.shape
    parts = corners.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1))
    pixels = parts.transpose(2, 3).reshape(count, 2 * rows, 2 * columns, -1)
    # Corners on the border have pixels outside of the map.
    return pixels[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
