"""Gives each mask the class that most of its pixels have, and masks of pixels to the cells of windows.

Shapes: n masks, H x W pixels, V windows of r x c pixels, h x w cells of a window, K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.heads.windows import StridedWindows

AT_ONCE = 16  # masks that are resized together


def vote_in_masks(
    labels_HW: Tensor, best_HW: Tensor, masks_nHW: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Labels and probabilities where each mask has the class that most of its pixels have.

    Its pixels have the mean of what was their probability. Where masks overlap the smallest one counts, the later of
    equal ones; pixels of no mask stay as they are.

    Args:
        labels_HW: class of each pixel, in [0, K).
        best_HW: its probability.
        masks_nHW: boolean masks.
        num_classes: K.

    Returns:
        Labels and probabilities (H, W).
    """
    areas = masks_nHW.flatten(1).sum(dim=1)
    voted, probabilities = labels_HW.clone(), best_HW.clone()
    for index in torch.argsort(areas, descending=True, stable=True):
        mask = masks_nHW[index]
        votes = torch.bincount(
            torch.where(mask, labels_HW, num_classes).flatten(), minlength=num_classes + 1
        )
        mean = (best_HW * mask).sum() / areas[index].clamp(min=1)
        voted = torch.where(mask, votes[:num_classes].argmax(), voted)
        probabilities = torch.where(mask, mean, probabilities)
    return voted, probabilities


def mask_cells(
    masks_nHW: Tensor, image_size: tuple[int, int], windows: StridedWindows, patch: int, finer: int
) -> Tensor:
    """Boolean cells (V, n, h, w) of which a mask covers half or more.

    Args:
        masks_nHW: boolean masks of an image, at any size.
        image_size: rows and columns of the image that the windows are cut from.
        windows: where they lie; they are padded to whole patches at the bottom and right.
        patch: side in pixels of a patch.
        finer: cells along a side of a patch, which divide it.
    """
    rows, columns = windows.extent(image_size)
    padding = (0, -columns % patch, 0, -rows % patch)
    corners = windows.corners(image_size)
    side = patch // finer
    grid = (math.ceil(rows / patch) * finer, math.ceil(columns / patch) * finer)
    parts = [masks_nHW.new_zeros(len(corners), 0, *grid, dtype=torch.bool)]
    for part in masks_nHW.split(AT_ONCE) if len(masks_nHW) else ():
        resized = F.interpolate(part.float()[None], image_size, mode="area")[0]
        covered = F.avg_pool2d(F.pad(windows.cut(resized, corners), padding), side)
        parts.append(covered >= 0.5)
    return torch.cat(parts, dim=1)
