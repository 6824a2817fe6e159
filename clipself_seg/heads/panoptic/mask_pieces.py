"""Masks of many queries at the size of an image, processed in pieces that fit the cache.

Shapes: Q queries, n chosen queries, P pixels of a piece, H W rows and columns of the output.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# Numbers that are processed at once: within a core's cache, and enough for a GPU.
CPU_NUMBERS = 2**18
GPU_NUMBERS = 2**25
# Pieces are multiples of a vector register: scalar arithmetic on a rest may differ in the last bit.
LANES = 64


def pixel_pieces(
    mask_logits: Tensor, queries: Tensor | None = None, more: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """Yields a slice of pixels and a float32 copy (n, P) of their logits that may be overwritten.

    Args:
        mask_logits: (Q, H, W); the slices are of its flattened pixels.
        queries: indices (n,) of the queries to yield; None for all Q.
        more: further numbers a pixel that the caller computes, so that pieces get smaller.
    """
    flat = mask_logits.flatten(1)
    count = len(flat) if queries is None else len(queries)
    numbers = CPU_NUMBERS if flat.device.type == "cpu" else GPU_NUMBERS
    at_once = max(1, numbers // max(1, (count + more) * LANES)) * LANES
    for start in range(0, flat.shape[1], at_once):
        piece = slice(start, min(start + at_once, flat.shape[1]))
        part = flat[:, piece]
        chosen = part.clone() if queries is None else part.index_select(0, queries)
        yield piece, chosen.float()


def first_best(values_nP: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum (P,) over rows and the first row (P,) int64 that attains it; overwrites its argument.

    The same as `max(dim=0)`, which is about ten times as slow along rows on a CPU.
    """
    best = values_nP.amax(dim=0)
    count = len(values_nP)
    # Row i is given n - i where it attains the maximum, so the largest number marks the first row.
    backwards = torch.arange(count, 0, -1, dtype=values_nP.dtype, device=values_nP.device)
    first = count - values_nP.eq_(best).mul_(backwards[:, None]).amax(dim=0)
    # Nothing equals a maximum of NaN, which leaves n.
    return best, first.long().clamp_(max=count - 1)


def resize_masks(
    mask_logits: Tensor,
    canvas_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> Tensor:
    """Mask logits (Q, H, W) float32 of the original image from those of the generator.

    They are resized to the padded canvas, cut to the image's part of it (top left) and resized to the
    output, bilinearly and a few queries at a time. A single resize gives other numbers.

    Args:
        mask_logits: (Q, h, w), usually at a quarter of the canvas's resolution.
        canvas_size: rows and columns of the padded input in pixels.
        image_size: rows and columns of the resized image on the canvas.
        output_size: rows and columns (H, W) of the original image.
    """
    rows, columns = image_size
    output = mask_logits.new_empty((len(mask_logits), *output_size), dtype=torch.float32)
    if output.numel() == 0:
        return output
    at_once = max(1, GPU_NUMBERS // (canvas_size[0] * canvas_size[1]))
    for source, target in zip(mask_logits.split(at_once), output.split(at_once)):
        on_canvas = _bilinear(source[None].float(), canvas_size)
        target.copy_(_bilinear(on_canvas[..., :rows, :columns], output_size)[0])
    return output


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
