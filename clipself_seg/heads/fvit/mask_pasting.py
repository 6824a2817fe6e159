"""Masks of boxes, all of one size, become masks of the image: sampled inside of their boxes alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def paste_masks(
    probs_nSS: Tensor, boxes_n4: Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Masks (n, H, W) bool: where a box's own mask, read bilinearly at pixel centres, reaches the threshold.

    Equal to Detectron2's `paste_masks_in_image`, which on a GPU samples each mask all over the image.

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
    # A pixel beyond: a mask of 1 is 1/2 at the edge of its box.
    windows = torch.cat([boxes_n4[:, :2].floor() - 1, boxes_n4[:, 2:].ceil() + 1], dim=1)
    for mask, probs, rows, columns, (left, top, right, bottom) in zip(
        masks, probs_nSS, rows_nH, columns_nW, windows.clamp(min=0).long().tolist()
    ):
        y, x = rows[top:bottom, None], columns[None, left:right]
        grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)
        read = F.grid_sample(probs[None, None], grid[None], align_corners=False)
        mask[top:bottom, left:right] = read[0, 0] >= threshold
    return masks


def _positions(start_n1: Tensor, end_n1: Tensor, cells: int) -> Tensor:
    """Where pixel centres lie between start and end of a box, (n, cells), from -1 to 1."""
    centres = torch.arange(cells, device=start_n1.device, dtype=torch.float32) + 0.5
    return (centres - start_n1) / (end_n1 - start_n1) * 2 - 1
