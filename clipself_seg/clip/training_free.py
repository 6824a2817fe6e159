"""Training-free attentions in place of a ViT's last one: SCLIP's, ClearCLIP's, NACLIP's and others.

Each entry of `ATTENTIONS` (``MODEL.CLIP.ATTENTION``) puts another attention in the place of the last block's; weights
are the original CLIP's. With s = 1 / sqrt(C), C the channels of a head, softmax over the keys j:

    sclip       softmax(s q q^T) + softmax(s k k^T), residual and MLP kept (arXiv 2312.01597)
    clearclip   softmax(s q q^T), residual and MLP dropped (arXiv 2407.12442)
    kk          softmax(s k k^T), dropped
    qq_kk       softmax(s q q^T) + softmax(s k k^T), dropped
    naclip      softmax(s k k^T + G), dropped; G = exp(-d^2 / 50), d the distance of two patches in patches, 0 in row
                and column of the class token (WACV 2025)

All of them are written down from formulas, and no number of theirs is promised. Queries and keys of EVA's blocks are
taken before their rotation, which compares places and not content (DeCLIP does the same).

Shapes: B images, H heads, L = P + N tokens, the class token first, h x w grid of N patches, M = h' x w' places of
    an attention, C channels of a head, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.layers import ViTBlock, attention, merge_heads
from clipself_seg.errors import InputError
from clipself_seg.registry import Registry

NONE = "none"
GAUSSIAN_DEVIATION = 5.0  # of NACLIP, in patches

Grid = tuple[int, int]
Attend = Callable[[Tensor, Tensor, Tensor, Grid], tuple[Tensor, Grid]]


class Attention(NamedTuple):
    """An attention of the last block.

    Attributes:
        attend: queries, keys and values (B, H, L, C) and the grid -> values (B, H, M, C) of places, and their grid.
        keep: True if the block's residual and MLP are kept, which needs the places to be the patches.
    """

    attend: Attend
    keep: bool = False


def attended_tokens(
    block: ViTBlock, tokens_BLD: Tensor, attention: Attention, grid: Grid
) -> tuple[Tensor, Grid]:
    """Tokens (B, M, D) behind a block with another attention, before the final norm, and their grid.

    Args:
        block: the last block.
        tokens_BLD: tokens before it.
        attention: the attention in place of the block's own.
        grid: grid of the patches.
    """
    q, k, v = block.queries_keys_values(tokens_BLD)
    values_BHMC, cells = attention.attend(q, k, v, grid)
    residual = tokens_BLD[:, _prefix(tokens_BLD, grid) :] if attention.keep else None
    return block.finish(merge_heads(values_BHMC), residual), cells


def _prefix(tokens_BLD: Tensor, grid: Grid) -> int:
    """Number P of tokens (..., L, D) before those of the patches."""
    return tokens_BLD.shape[-2] - grid[0] * grid[1]


def _of_themselves(*parts: str, near: bool = False) -> Attend:
    """The sum over x of softmax(s x x^T) V at the patches; x are queries, "q", or keys, "k", and `near` adds G."""

    def attend(q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        prefix = _prefix(v, grid)
        bias_NL = gaussian_bias(grid, GAUSSIAN_DEVIATION, k, prefix)[prefix:] if near else None
        chosen = [{"q": q, "k": k}[part] for part in parts]
        first, *others = (attention(x[:, :, prefix:], x, v, mask=bias_NL) for x in chosen)
        return sum(others, first), grid

    return attend


def gaussian_bias(grid: Grid, deviation: float, like: Tensor, prefix: int = 1) -> Tensor:
    """NACLIP's bias of nearness, ``exp(-d^2 / (2 deviation^2))``, (L, L); 0 in row and column of the class token.

    Args:
        grid: grid of the patches, between which d is the distance.
        deviation: in patches.
        like: tensor with the bias's device and type.
        prefix: number of tokens before those of the patches.
    """
    axes = [torch.arange(side, device=like.device, dtype=torch.float32) for side in grid]
    places_N2 = torch.cartesian_prod(*axes)
    squared_NN = (places_N2[:, None] - places_N2[None]).square().sum(-1)
    bias_NN = (-squared_NN / (2 * deviation**2)).exp()
    return F.pad(bias_NN, (prefix, 0, prefix, 0)).to(like.dtype)


ATTENTIONS = Registry[Attention](reserved=NONE)
ATTENTIONS.enter("sclip", Attention(_of_themselves("q", "k"), keep=True))
ATTENTIONS.enter("clearclip", Attention(_of_themselves("q")))
ATTENTIONS.enter("naclip", Attention(_of_themselves("k", near=True)))
ATTENTIONS.enter("kk", Attention(_of_themselves("k")))
ATTENTIONS.enter("qq_kk", Attention(_of_themselves("q", "k")))


def refuse_training(name: str) -> None:
    """Refuses to train with an attention of `ATTENTIONS`.

    Raises:
        InputError: the name is another than ``none``.
    """
    if name != NONE:
        raise InputError(
            f"MODEL.CLIP.ATTENTION {name} is for evaluation: a training would fit the weights to an attention that is "
            f"not part of them; leave it {NONE} to train, or freeze it (--eval-only, MODEL.CLIP.TRAINABLE_BLOCKS "
            "0 of a CLIPBackbone)"
        )
