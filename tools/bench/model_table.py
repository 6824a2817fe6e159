"""Parameters and operations of a model, module by module, as fvcore counts them."""

from __future__ import annotations

import math
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis, flop_count_table
from torch import Tensor, nn

from clipself_seg.clip import load_clip
from clipself_seg.clip.positions import patch_grid


class _Dense(nn.Module):
    """A tower whose forward gives dense features."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        """Dense features."""
        return self.visual.dense(images)


def _attention(inputs: list[Any], outputs: list[Any]) -> float:
    """Multiply-adds of scaled dot-product attention, which fvcore does not know: two products."""
    query, key = (value.type().sizes() for value in inputs[:2])
    return 2.0 * math.prod(query) * key[-2]


def model_table(name: str, size: int, depth: int) -> str:
    """fvcore's table for dense features of one image.

    Args:
        name: open_clip's name; its weights are random.
        size: side of the image in pixels.
        depth: modules inside of modules that get rows.

    Raises:
        InputError: unknown model, or a size that its patch does not divide.
    """
    clip = load_clip(name, None)
    image = torch.zeros(1, 3, size, size)
    patch_grid(image, clip.patch_size)
    with torch.no_grad():
        counted = FlopCountAnalysis(_Dense(clip.visual).eval(), image)
        counted.set_op_handle("aten::scaled_dot_product_attention", _attention)
        counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        table = flop_count_table(counted, max_depth=depth)
    head = (
        f"dense features of {name}, one image of {size} x {size} pixels; a multiply-add is one FLOP"
    )
    return f"{head}\n\n{table}"
