"""Pastes masks of boxes, all of one size, into an image, by sampling inside of their boxes alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.runtime import at_once, on_cpu

COPIES = 4  # numbers in memory for a pixel of a mask: where it is read, what is read, and whether it is inside


def paste_masks(
    probs_nSS: Tensor, boxes_n4: Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Masks (n, H, W) bool: where a box's own mask, read bilinearly at pixel centres, reaches the threshold.

    Equal to Detectron2's `paste_masks_in_image`. As there, a GPU samples each mask all over the image, many of them
    together.

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
        count = at_once(probs_nSS.device, 1, COPIES * height * width)
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
