"""Mask logits on a generator's canvas -> the cells of CLIP's grid that a mask makes visible.

Shapes: Q masks of m x n pixels, h x w cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BINARISATIONS = ("any", "centre", "centre_or_any")
MASKS_AT_ONCE = 16  # whose logits at CLIP's full input size are in memory


def visible_cells(
    logits_Qmn: Tensor,
    grid: tuple[int, int],
    patch: int,
    *,
    share: tuple[float, float] = (1.0, 1.0),
    shown: tuple[int, int] | None = None,
    binarise: str = "any",
) -> Tensor:
    """Boolean cells (Q, h, w) of a CLIP input of (h * patch, w * patch) pixels.

    Args:
        logits_Qmn: positive inside a mask.
        grid: (h, w).
        patch: side in pixels of a cell.
        share: rows and columns of the mask map that the whole input covers, as a fraction of (m, n);
            above 1 where the input has a padding that the map knows nothing about.
        shown: rows and columns in pixels of the input that show the image; cells of the padding
            are never visible. None: all of them.
        binarise: "any" opens a cell if a probability in it is at least one half (bilinear, at
            the input's size), "centre" if the logit at its centre is positive,
            "centre_or_any" is "centre" except for masks that it leaves without a cell.
    """
    rows, columns = shown or (grid[0] * patch, grid[1] * patch)
    if binarise == "any":
        return _any(logits_Qmn, grid, patch, share, (rows, columns))
    cells = _resample(logits_Qmn, grid, share) > 0
    centres_h, centres_w = (
        (torch.arange(count, device=cells.device) + 0.5) * patch for count in grid
    )
    cells = cells & (centres_h < rows)[:, None] & (centres_w < columns)
    if binarise == "centre_or_any":
        empty = (~cells.flatten(1).any(dim=1)).nonzero()[:, 0]
        cells[empty] = _any(logits_Qmn[empty], grid, patch, share, (rows, columns))
    return cells


def _any(
    logits_Qmn: Tensor,
    grid: tuple[int, int],
    patch: int,
    share: tuple[float, float],
    shown: tuple[int, int],
) -> Tensor:
    size = grid[0] * patch, grid[1] * patch
    cells = torch.zeros(len(logits_Qmn), *grid, dtype=torch.bool, device=logits_Qmn.device)
    # Between negative logits all are negative: a mask without another one opens nothing.
    positive = (logits_Qmn.flatten(1) >= 0).any(dim=1).nonzero()[:, 0]
    for part in positive.split(MASKS_AT_ONCE) if len(positive) else ():
        pixels = _resample(logits_Qmn[part], size, share)
        pixels[:, shown[0] :] = -torch.inf
        pixels[:, :, shown[1] :] = -torch.inf
        # A sigmoid is monotone: the largest probability is that of the largest logit.
        cells[part] = F.max_pool2d(pixels, patch) >= 0
    return cells


def _resample(logits_Qmn: Tensor, size: tuple[int, int], share: tuple[float, float]) -> Tensor:
    """`F.interpolate`, bilinear, of the upper left part of each map; beyond the map its border counts."""
    (down, right), logits = share, logits_Qmn.float()
    if not len(logits):
        return logits.new_zeros(0, *size)
    theta = logits.new_tensor([[[right, 0, right - 1], [0, down, down - 1]]])
    points = F.affine_grid(theta, [1, 1, *size], align_corners=False)
    return F.grid_sample(
        logits[None],
        points,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )[0]
