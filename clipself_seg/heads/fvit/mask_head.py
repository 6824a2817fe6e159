"""The class-agnostic mask head of F-ViT (OV-LVIS): logits of RoIs, their loss, and masks of the image.

Shapes: n RoIs, S = 28 cells of a side of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from clipself_seg.clip.runtime import at_once
from clipself_seg.heads.fvit.feature_pyramid import CHANNELS
from clipself_seg.heads.fvit.layers import ConvNorm, kaiming_normal

SIDE = 14
ROIS = 64
"""RoIs whose maps are in memory at once on a CPU, but in training."""
COPIES = 8
"""Numbers in memory for one of an RoI's: maps of two layers, and the four times as many cells of the mask."""


class MaskHead(nn.Module):
    """Four convolutions, one transposed, and a mask of 28 x 28 cells whatever the class."""

    def __init__(self, channels: int = CHANNELS) -> None:
        """
        Args:
            channels: channels of the pyramid.
        """
        super().__init__()
        self.convs = nn.Sequential(*(ConvNorm(channels, channels, 3) for _ in range(4)))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(channels, 1, 1)
        kaiming_normal(self)

    def forward(self, features: Tensor) -> Tensor:
        """Mask logits (n, 28, 28) of features (n, channels, 14, 14)."""
        if not len(features):
            # Zero with a gradient: a batch norm trains on no empty batch, and several processes wait.
            nothing = torch.stack([p.sum() for p in self.parameters()]).sum() * 0
            return nothing.expand(0, 2 * SIDE, 2 * SIDE)
        if torch.is_grad_enabled():
            return self._logits(self.convs(features))
        count = at_once(features.device, ROIS, COPIES * features[0].numel())
        return torch.cat([self._logits(self.convs(part)) for part in features.split(count)])

    def _logits(self, hidden: Tensor) -> Tensor:
        """``conv_logits(relu(upsample(hidden)))``, without maps of 256 channels and 28 x 28 cells.

        The four cells that come of one are groups of channels, and only their logits are put in place.
        """
        weight = self.upsample.weight.permute(2, 3, 1, 0).flatten(0, 2)[:, :, None, None]
        assert self.upsample.bias is not None and self.conv_logits.bias is not None
        cells = F.relu_(F.conv2d(hidden, weight, self.upsample.bias.repeat(4)))
        own, bias = self.conv_logits.weight.repeat(4, 1, 1, 1), self.conv_logits.bias.repeat(4)
        return F.pixel_shuffle(F.conv2d(cells, own, bias, groups=4), 2)[:, 0]


def mask_targets(
    boxes: Sequence[Tensor], masks: Sequence[Tensor], square: tuple[float, float]
) -> Tensor:
    """Masks of RoIs, (n, 28, 28) in {0, 1}: the object's mask read in the RoI by RoIAlign, at least 1/2.

    Args:
        boxes: positive RoIs (m, 4) of each image.
        masks: for each image the mask (m, h, w) of the object of each RoI, without padding.
        square: rows and columns in pixels of the padded image.
    """
    read = [
        roi_align(
            _padded(own.float(), square)[:, None],
            torch.cat([torch.arange(len(b), device=b.device)[:, None].to(b), b], dim=1),
            2 * SIDE,
            1.0,
            sampling_ratio=0,
            aligned=True,
        )[:, 0]
        for b, own in zip(boxes, masks, strict=True)
    ]
    return (torch.cat(read) >= 0.5).float()


def _padded(masks: Tensor, square: tuple[float, float]) -> Tensor:
    """Masks (m, h, w) with zeros below and at the right where the image is padded.

    A sample lies at most half a pixel outside of the last one, so that one row and one column are as good as all.
    """
    below, right = (int(side > own) for side, own in zip(square, masks.shape[1:]))
    return F.pad(masks, (0, right, 0, below)) if below or right else masks


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels of all positive RoIs; 0 without any."""
    if not len(logits):
        return logits.sum()
    return F.binary_cross_entropy_with_logits(logits.float(), targets)
