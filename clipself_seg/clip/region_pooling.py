"""Pools dense features in boxes or masks into region embeddings, with one matrix product.

RoIAlign with a 1x1 output averages bilinear samples on a regular grid. Bilinear weights are products
of a row weight and a column weight, so the whole operation is ``w_y^T F w_x``: one weight for each cell.
Masked attention, which reads regions without dense features, is in ``tower.py``.

Shapes: n regions, s samples on an axis, E channels, h x w cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clipself_seg.clip.precision import full_precision
from clipself_seg.clip.runtime import QUEUES, constant, on_cpu
from clipself_seg.errors import InputError

MASK_EPS = 1e-12
# Limits of box corners: those inside an image lie in [0, 1], those of enlarged boxes near it.
FARTHEST = -1.0, 2.0


def check_regions(
    kind: str, regions: Sequence[Tensor], images: Tensor, shape: tuple[int, ...]
) -> list[Tensor]:
    """The regions on the images' device, if there is one tensor (n, *shape) of usable values for each image.

    Args:
        kind: "boxes" or "masks", for messages.
        regions: one tensor for each image.
        images: (B, 3, H, W).
        shape: shape of one region, (4,) for boxes and (h, w) for masks.

    Raises:
        InputError: the number of tensors, a type or a shape is wrong; a value is not finite; or a box
            lies far outside its image, as one in pixels does.
    """
    given = [tuple(r.shape) if isinstance(r, Tensor) else type(r).__name__ for r in regions]
    fitting = [isinstance(one, tuple) and one[:1] + shape == one for one in given]
    if len(given) != len(images) or not all(fitting):
        raise InputError(
            f"{kind} of {len(images)} images must be a list with a tensor (n, {', '.join(map(str, shape))}) for each, "
            f"n = 0 for none, got {given}"
        )
    for tensor in regions:
        _check_values(kind, tensor)
    return [tensor.to(images.device, non_blocking=QUEUES) for tensor in regions]


def _check_values(kind: str, tensor: Tensor) -> None:
    """Raises an `InputError` for wrong values; on a GPU this waits for the result once, but for bool masks."""
    if tensor.dtype == torch.bool:
        return
    rule, wrong = "finite numbers", ~tensor.isfinite()
    if kind == "boxes":
        rule = "XYXY relative to the image, in [0, 1] (divide pixels by width and height)"
        wrong |= (tensor < FARTHEST[0]) | (tensor > FARTHEST[1])
    if wrong.any():
        index = int(wrong.flatten(1).any(dim=1).nonzero()[0])
        values = f": {tensor[index].tolist()}" if kind == "boxes" else ""
        raise InputError(f"{kind} must be {rule}, but number {index} of an image is not{values}")


def box_weights(boxes_n4: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cell weights (n, h, w) of torchvision's RoIAlign with 1x1 output, aligned, adaptive sampling.

    They are computed in float32, autocast or not, as RoIAlign is.

    Args:
        boxes_n4: boxes XYXY relative to the padded image, in [0, 1], or near it as `check_regions` has it.
        grid: rows and columns of the dense features.
    """
    rows, columns = grid
    x0, y0, x1, y1 = boxes_n4.float().unbind(-1)
    return _box_weights((x0 * columns, y0 * rows, x1 * columns, y1 * rows), grid)


def strided_box_weights(boxes_n4: Tensor, stride: float, grid: tuple[int, int]) -> Tensor:
    """`box_weights` of boxes in pixels, scaled to cells as RoIAlign does with a spatial scale of 1 / stride.

    Dividing by the image's side instead would round otherwise, and with strides that are no powers of two boxes that
    end at a cell's border would have a sample less.

    Args:
        boxes_n4: boxes XYXY in pixels, in the image or near it.
        stride: pixels of a cell.
        grid: rows and columns of the dense features.
    """
    return _box_weights((boxes_n4.float() * (1 / stride)).unbind(-1), grid)


def _box_weights(corners: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Cell weights of boxes whose x0, y0, x1, y1 (n,) are in cells."""
    x0, y0, x1, y1 = corners
    weights_nh, weights_nw = _axis_weights(y0, y1, grid[0]), _axis_weights(x0, x1, grid[1])
    return weights_nh[:, :, None] * weights_nw[:, None, :]


def _axis_weights(start_n: Tensor, end_n: Tensor, cells: int) -> Tensor:
    """Mean of linear-interpolation weights over ceil(length) samples at bin centres, (n, cells)."""
    # Shifted before they are subtracted, as in torchvision: rounding may decide between two numbers of samples.
    start_n, end_n = start_n - 0.5, end_n - 0.5
    length_n = end_n - start_n
    count_n = length_n.ceil().clamp(min=1)
    # A GPU is not waited for: no box is longer than the limits of its corners.
    most = cells * math.ceil(FARTHEST[1] - FARTHEST[0])
    if on_cpu(count_n):
        # A box of no numbers has no samples.
        most = int(count_n.nan_to_num().max()) if len(count_n) else 1
    index_s = torch.arange(most, device=start_n.device)
    centres_ns = start_n[:, None] + (index_s + 0.5) * (length_n / count_n)[:, None]
    used_ns = (index_s < count_n[:, None]) & (centres_ns >= -1) & (centres_ns <= cells)
    # A hat function over the clamped position is linear interpolation with border clamping.
    clamped_ns = centres_ns.clamp(0, cells - 1)
    cell_w = torch.arange(cells, device=start_n.device)
    hats_nsw = (1 - (clamped_ns[:, :, None] - cell_w).abs()).clamp(min=0)
    with full_precision(start_n.device):
        summed_nw = torch.einsum("ns,nsw->nw", used_ns.to(hats_nsw.dtype), hats_nsw)
    empty_n1 = (length_n <= 0)[:, None]
    return (summed_nw / count_n[:, None]).masked_fill(empty_n1, 0.0)


def mask_weights(masks_nhw: Tensor) -> Tensor:
    """Cell weights (n, h, w) that average over each mask (n, h, w); zeros for an empty mask."""
    masks_nhw = masks_nhw.float()
    return masks_nhw / masks_nhw.sum((-2, -1), keepdim=True).clamp(min=MASK_EPS)


def pool(features_Ehw: Tensor, weights_nhw: Tensor) -> Tensor:
    """Sums (n, E) of the features over cells with the given weights; in float32, autocast or not."""
    with full_precision(features_Ehw.device):
        return weights_nhw.float().flatten(1) @ features_Ehw.float().flatten(1).T


def box_cells(boxes_n4: Tensor, grid: tuple[int, int]) -> Tensor:
    """Boolean cells (n, h, w) of boxes for masked attention, from floor(start) to before floor(end).

    A box inside one cell may have no cell at all.

    Args:
        boxes_n4: boxes XYXY relative to the padded image, in [0, 1].
        grid: rows and columns of the dense features.
    """
    rows, columns = grid
    scale = constant([columns, rows, columns, rows], boxes_n4)
    x0, y0, x1, y1 = (boxes_n4 * scale).floor().unbind(-1)
    y = torch.arange(rows, device=boxes_n4.device)
    x = torch.arange(columns, device=boxes_n4.device)
    in_rows = (y >= y0[:, None]) & (y < y1[:, None])
    in_columns = (x >= x0[:, None]) & (x < x1[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]
