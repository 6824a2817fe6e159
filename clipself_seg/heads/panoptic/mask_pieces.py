"""Masks of many queries at the size of an image, processed in pieces that fit the cache.

Shapes: Q queries, n chosen queries, P pixels of a piece, H W rows and columns of the output.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from clipself_seg.clip.runtime import chunk_size, on_cpu

CPU_NUMBERS = 2**18  # numbers that are processed at once, within a core's cache
CANVAS_NUMBERS = 2**25  # of masks on the canvas at once, on a CPU
COPIES = 4  # numbers in memory for one of a piece: the copy, its product, the mask
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
    numbers = max(1, (count + more) * LANES)
    pixels = chunk_size(flat.device, CPU_NUMBERS // numbers, COPIES * numbers) * LANES
    for start in range(0, flat.shape[1], pixels):
        piece = slice(start, min(start + pixels, flat.shape[1]))
        part = flat[:, piece]
        chosen = part.clone() if queries is None else part.index_select(0, queries)
        yield piece, chosen.float()


def first_best(values_nP: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum (P,) over rows and the first row (P,) int64 that attains it; overwrites its argument.

    The same as `max(dim=0)`, which is about ten times as slow along rows on a CPU.
    """
    if not on_cpu(values_nP):
        best, first = values_nP.max(dim=0)
        return best, first
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
    """Mask logits (Q, H, W) of the original image from those of the generator, float32 unless nothing is resized.

    They are resized to the padded canvas, cut to the image's part of it (top left) and resized to the
    output, bilinearly and a few queries at a time. A single resize gives other numbers.

    Args:
        mask_logits: (Q, h, w), usually at a quarter of the canvas's resolution.
        canvas_size: rows and columns of the padded input in pixels.
        image_size: rows and columns of the resized image on the canvas.
        output_size: rows and columns (H, W) of the original image.
    """
    if tuple(mask_logits.shape[1:]) == canvas_size == image_size == output_size:
        return mask_logits
    rows, columns = image_size
    output = mask_logits.new_empty((len(mask_logits), *output_size), dtype=torch.float32)
    if output.numel() == 0:
        return output
    pixels = canvas_size[0] * canvas_size[1] + output[0].numel()
    count = chunk_size(
        output.device, CANVAS_NUMBERS // (canvas_size[0] * canvas_size[1]), 2 * pixels
    )
    for source, target in zip(mask_logits.split(count), output.split(count)):
        on_canvas = resize_bilinear(source[None].float(), canvas_size)
        target.copy_(resize_bilinear(on_canvas[..., :rows, :columns], output_size)[0])
    return output


def masks_of_image(
    mask_logits: Tensor, canvas_size: tuple[int, int], image_size: tuple[int, int]
) -> Tensor:
    """Mask logits (Q, h, w) float32 of the resized image, a copy: they are resized to the padded canvas and cut.

    Args:
        mask_logits: (Q, m, n), usually at a quarter of the canvas's resolution.
        canvas_size: rows and columns of the padded input in pixels.
        image_size: rows and columns (h, w) of the resized image on the canvas.
    """
    rows, columns = image_size
    output = mask_logits.new_empty((len(mask_logits), *image_size), dtype=torch.float32)
    if output.numel() == 0:
        return output
    pixels = canvas_size[0] * canvas_size[1]
    count = chunk_size(output.device, CANVAS_NUMBERS // pixels, 2 * pixels)
    for source, target in zip(mask_logits.split(count), output.split(count)):
        on_canvas = resize_bilinear(source[None].float(), canvas_size)
        target.copy_(on_canvas[0, :, :rows, :columns])
    return output


def resize_bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) at another size, as Detectron2 resizes them."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
