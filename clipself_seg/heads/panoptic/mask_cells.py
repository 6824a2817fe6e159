"""Converts mask logits on a generator's canvas into the cells of CLIP's grid that a mask makes visible.

Shapes: Q masks of m x n pixels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.constants import constant
from clipself_seg.clip.pieces import at_once, on_cpu

BINARISATIONS = ("any", "centre", "centre_or_any")
MASKS_AT_ONCE = 16  # masks whose logits are in memory at CLIP's full input size, on a CPU


def visible_cells(
    logits_Qmn: Tensor,
    grid: tuple[int, int],
    patch: int,
    *,
    fraction: tuple[float, float] = (1.0, 1.0),
    shown: tuple[int, int] | None = None,
    binarise: str = "any",
) -> Tensor:
    """Boolean cells (Q, h, w) of a CLIP input of (h * patch, w * patch) pixels.

    Args:
        logits_Qmn: mask logits, positive inside a mask.
        grid: rows and columns of CLIP's grid, (h, w).
        patch: side of a cell in pixels.
        fraction: rows and columns of the mask map that the whole input covers, as a fraction of
            (m, n); above 1 where the input has padding that the map does not have.
        shown: rows and columns in pixels of the input that show the image; cells of the padding
            are never visible. None: the whole input.
        binarise: "any" opens a cell if a probability in it is at least one half (bilinear, at
            the input's size), "centre" if the logit at its centre is positive,
            "centre_or_any" is "centre", and "any" for masks that "centre" leaves without a cell.
    """
    rows, columns = shown or (grid[0] * patch, grid[1] * patch)
    if binarise == "any":
        return _any(logits_Qmn, grid, patch, fraction, (rows, columns))
    cells = _resample(logits_Qmn, grid, fraction) > 0
    centres_h, centres_w = (
        (torch.arange(count, device=cells.device) + 0.5) * patch for count in grid
    )
    cells = cells & (centres_h < rows)[:, None] & (centres_w < columns)
    if binarise == "centre_or_any":
        empty = ~cells.flatten(1).any(dim=1)
        rest = empty.nonzero()[:, 0] if on_cpu(cells) else slice(None)
        opened = _any(logits_Qmn[rest], grid, patch, fraction, (rows, columns))
        cells[rest] = torch.where(empty[rest, None, None], opened, cells[rest])
    return cells


def _any(
    logits_Qmn: Tensor,
    grid: tuple[int, int],
    patch: int,
    fraction: tuple[float, float],
    shown: tuple[int, int],
) -> Tensor:
    """Cells of the binarisation "any"; the arguments are those of `visible_cells`."""
    size = (grid[0] * patch, grid[1] * patch)
    cells = torch.zeros(len(logits_Qmn), *grid, dtype=torch.bool, device=logits_Qmn.device)
    for part in _parts(logits_Qmn, size[0] * size[1]):
        pixels = _resample(logits_Qmn[part], size, fraction)
        pixels[:, shown[0] :].fill_(-torch.inf)
        pixels[:, :, shown[1] :].fill_(-torch.inf)
        # A sigmoid is monotone: the largest probability is that of the largest logit.
        cells[part] = F.max_pool2d(pixels, patch) >= 0
    return cells


def _parts(logits_Qmn: Tensor, pixels: int) -> Iterator[Tensor | slice]:
    """Yields indices of masks that are resampled together, to some number of pixels each.

    Interpolation between negative logits is negative: such a mask opens no cell, and a CPU leaves it out. A GPU would
    have to be waited for, to know which they are.
    """
    count = at_once(logits_Qmn.device, MASKS_AT_ONCE, 2 * pixels)
    if not on_cpu(logits_Qmn):
        yield from (slice(start, start + count) for start in range(0, len(logits_Qmn), count))
        return
    positive = (logits_Qmn.flatten(1) >= 0).any(dim=1).nonzero()[:, 0]
    yield from positive.split(count) if len(positive) else ()


def _resample(logits_Qmn: Tensor, size: tuple[int, int], fraction: tuple[float, float]) -> Tensor:
    """Bilinear resize of the top left `fraction` of each map; beyond the map its border goes on."""
    if not logits_Qmn.is_floating_point() and len(logits_Qmn) > MASKS_AT_ONCE:
        # Masks that somebody gave, of a byte a pixel: not all of them as floats.
        parts = logits_Qmn.split(MASKS_AT_ONCE)
        return torch.cat([_resample(part, size, fraction) for part in parts])
    logits = logits_Qmn.float()
    if not len(logits):
        return logits.new_zeros(0, *size)
    if fraction == (1, 1):
        # The official operation: a cell near the threshold depends on the rounding, which is that of all maps at once
        # in parts of a CPU's vectors, in a sixth of the time.
        count = at_once(logits.device, MASKS_AT_ONCE, logits[0].numel())
        parts = [F.interpolate(p[None], size, mode="bilinear") for p in logits.split(count)]
        return torch.cat(parts, dim=1)[0]
    down, right = fraction
    # Maps [-1, 1] of the output to [-1, 2 * fraction - 1] of the map: the same top left corner.
    theta = constant([[[right, 0, right - 1], [0, down, down - 1]]], logits)
    points = F.affine_grid(theta, [1, 1, *size], align_corners=False)
    return F.grid_sample(
        logits[None],
        points,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )[0]
