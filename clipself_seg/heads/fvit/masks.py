"""The class-agnostic mask head of F-ViT (OV-LVIS): logits of RoIs, their loss, and masks pasted into the image.

Shapes: n RoIs, S = 28 cells of a side of a mask, H W rows and columns of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from clipself_seg.clip.runtime import chunk_size, on_cpu
from clipself_seg.heads.fvit.layers import ConvNorm, kaiming_normal
from clipself_seg.heads.fvit.pyramid import CHANNELS

SIDE = 14
ROIS = 64
"""RoIs whose maps are in memory at once on a CPU, but in training."""
COPIES = 8
"""Numbers in memory for one of an RoI's: maps of two layers, and the four times as many cells of the mask."""
PASTED = 4
"""Numbers in memory for a pixel of a pasted mask: where it is read, what is read, and whether it is inside."""


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
        count = chunk_size(features.device, ROIS, COPIES * features[0].numel())
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


def paste_masks(
    probs_nSS: Tensor, boxes_n4: Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Masks (n, H, W) bool: where a box's own mask, read bilinearly at pixel centres, reaches the threshold.

    Equal to Detectron2's `paste_masks_in_image`, which takes twice as long on a CPU. As there, a GPU samples each mask
    all over the image, many of them together.

    Args:
        probs_nSS: probabilities (n, S, S), laid over the boxes; outside they are 0.
        boxes_n4: boxes in pixels of the image.
        image_size: H and W.
        threshold: above 0.
    """
    height, width = image_size
    masks = probs_nSS.new_zeros(len(boxes_n4), height, width, dtype=torch.bool)
    x0, y0, x1, y1 = boxes_n4[:, :, None].unbind(1)
    columns_nW = _positions(x0, x1, width)
    rows_nH = _positions(y0, y1, height)
    if not on_cpu(probs_nSS):
        count = chunk_size(probs_nSS.device, 1, PASTED * height * width)
        parts = (own.split(count) for own in (masks, probs_nSS, rows_nH, columns_nW))
        for of_part, probs, rows, columns in zip(*parts):
            of_part.copy_(_read(probs, rows, columns) >= threshold)
        return masks
    # A pixel beyond: a mask of 1 is 1/2 at the edge of its box.
    windows = torch.cat([boxes_n4[:, :2].floor() - 1, boxes_n4[:, 2:].ceil() + 1], dim=1)
    for mask, probs, rows, columns, (left, top, right, bottom) in zip(
        masks, probs_nSS, rows_nH, columns_nW, windows.clamp(min=0).long().tolist()
    ):
        read = _read(probs[None], rows[None, top:bottom], columns[None, left:right])
        mask[top:bottom, left:right] = read[0] >= threshold
    return masks


def _read(probs_nSS: Tensor, rows_nH: Tensor, columns_nW: Tensor) -> Tensor:
    """Bilinear samples (n, H, W) of each mask at its own rows and columns."""
    grid = torch.stack(torch.broadcast_tensors(columns_nW[:, None], rows_nH[:, :, None]), dim=-1)
    return F.grid_sample(probs_nSS[:, None], grid, align_corners=False)[:, 0]


def _positions(start_n1: Tensor, end_n1: Tensor, cells: int) -> Tensor:
    """Where pixel centres lie between start and end of a box, (n, cells), from -1 to 1."""
    centres = torch.arange(cells, device=start_n1.device, dtype=torch.float32) + 0.5
    return (centres - start_n1) / (end_n1 - start_n1) * 2 - 1
