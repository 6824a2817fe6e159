"""Masks of many queries at the size of a picture, some at a time.

Shapes: Q queries, P pixels of a piece, H W rows and columns of the output.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# Numbers that are worked on at once: within a core's cache, or enough for a GPU.
CPU_NUMBERS, GPU_NUMBERS = 2**18, 2**25
# Vectorised and scalar arithmetic may differ in the last bit: pieces have no scalar rest.
LANES = 64


def pixel_pieces(
    mask_logits: Tensor, queries: Tensor | None = None, more: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """Pixels from ... to, and a float32 copy (n, P) of their logits that may be overwritten.

    Args:
        mask_logits: (Q, H, W).
        queries: (n,) indices; None for all.
        more: numbers per pixel that the caller makes besides.
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
    """Maximum (P,) and the first row (P,) int64 that has it. Overwrites its argument.

    As `max(dim=0)`, which on a CPU is some ten times as slow along rows.
    """
    best = values_nP.amax(dim=0)
    count = len(values_nP)
    backwards = torch.arange(count, 0, -1, dtype=values_nP.dtype, device=values_nP.device)
    first = count - values_nP.eq_(best).mul_(backwards[:, None]).amax(dim=0)
    # Where the best is NaN nothing equals it.
    return best, first.long().clamp_(max=count - 1)


def resize_masks(
    mask_logits: Tensor,
    canvas_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> Tensor:
    """Masks (Q, H, W) float32 of the original picture from those of the generator.

    Bilinear to the padded canvas, cut to what the picture covers of it (top left), and bilinear to
    the output: two steps, a few queries at a time, since one step gives other numbers.

    Args:
        mask_logits: (Q, h, w), usually a quarter of the canvas.
        canvas_size: (rows, columns) of the padded input.
        image_size: (rows, columns) of the picture on it.
        output_size: (H, W).
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
