"""Computes dense features from the values of a ViT's last blocks, with a gate that weighs their heads.

``MODEL.CLIP.DENSE`` names one of them (`clipself_seg.checkpoints.dense_feature`). With x_l the tokens before block l,
LN_l its first norm, V_l its value matrix and bias, and O_l its output projection (EVA's inner norm before it, a
LayerScale behind it where there is one):

    token               the last block for a token alone: y = x + O(V LN x), then y + MLP(y); CLIPSelf
    value               O(V LN x) of the last block, without residual and MLP; MaskCLIP (arXiv 2112.01071)
    multi_value         the sum over the last n blocks of O_l(V_l LN_l x_l)
    gated_multi_value   the sum of O_l(g_l * V_l LN_l x_l), g_l a number for each head and token

behind all of which stand the tower's final norm and projection. The last two are DenseRC's (CVPR 2026), from notes on
the paper: the image embedding is, up to MLPs, a sum over blocks of attended values, so that values are of its kind.
What the notes leave open is chosen here. Every block has its own output projection. The tokens x_l are those of the
plain pass, in which blocks attend and have their MLPs. The gate is ``2 sigmoid(W LN_l x_l + b)``, one W (H, D) for
all blocks, before the output projection and its norm, where attention's weights would be; W and b start at 0, where
it is 1 and the feature that of ``multi_value``.

Shapes: B images, N patches, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[..., Tensor]
"""Calls a method of a block with tokens and further arguments, such as `TransformerTower.run`."""


class HeadGate(nn.Module):
    """Weight (H, D) and bias (H,) of the gate of all blocks, see `layers.head_gates`; 0 at first."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, as `ResidualBlock.values` takes them."""
        return self.weight, self.bias


def call(method: Run, tokens: Tensor, *others: Any) -> Tensor:
    """Calls a method of a block, with nothing around it."""
    return method(tokens, *others)


def sum_of_values(
    blocks: Sequence[Any],
    inputs_BND: Sequence[Tensor],
    gate: tuple[Tensor, ...] = (),
    run: Run = call,
) -> Tensor:
    """Sum of what some blocks' values add to their tokens, (B, N, D), before the final norm.

    Args:
        blocks: blocks with the method `values`, one at least.
        inputs_BND: tokens before each of them, of the places that are read.
        gate: weight and bias of the gate; () for none.
        run: how a block is called.
    """
    total: Tensor | None = None
    for block, tokens_BND in zip(blocks, inputs_BND, strict=True):
        # In the precision of the tokens: autocast's products have less of it, and a sum loses more.
        values_BND = run(block.values, tokens_BND, *gate).to(tokens_BND.dtype)
        total = values_BND if total is None else total + values_BND
    assert total is not None
    return total
