"""Aggregation over space: a pair of blocks with window attention, for every class by itself.

The features that guide the attention are the same for every class. What they contribute to query and
key is a sum of its own, ``W [y ; g] = W_y y + W_g g``, and is computed once an image, not once a class.

Several views of an image, or images, may pass together: the classes of one follow those of another.

Shapes: V views, T classes of all of them, N = h * w cells, C channels, G guidance channels, W windows
    of M cells, H heads, c channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.linear import Linear, linear
from clipself_seg.clip.runtime import compiled

APART = -100.0  # added where two cells of a shifted window are no neighbours in the image


class GuidedProjections(nn.Module):
    """Query, key and value of an attention; query and key also depend on the guidance of the tokens.

    The two summands are separate methods, because one guidance serves many tokens.
    """

    def __init__(self, *, width: int, guidance_width: int) -> None:
        """
        Args:
            width: C.
            guidance_width: G.
        """
        super().__init__()
        self.width = width
        self.q = Linear(width + guidance_width, width)
        self.k = Linear(width + guidance_width, width)
        self.v = Linear(width, width)

    def of_guidance(self, guidance: Tensor) -> Tensor:
        """Contribution of the guidance, biases included, (..., G) -> (..., 3 C): query, key, value."""
        weight = torch.cat([self.q.weight[:, self.width :], self.k.weight[:, self.width :]])
        query_key = linear(guidance, weight, torch.cat([self.q.bias, self.k.bias]))
        return torch.cat([query_key, self.v.bias.expand_as(query_key[..., : self.width])], dim=-1)

    def of_tokens(self, tokens: Tensor) -> Tensor:
        """Contribution of the tokens, (..., C) -> (..., 3 C): query, key, value."""
        query = self.q.weight[:, : self.width]
        key = self.k.weight[:, : self.width]
        return linear(tokens, torch.cat([query, key, self.v.weight]))


class WindowAttention(GuidedProjections):
    """Softmax attention within windows, without position bias."""

    def __init__(self, *, width: int, guidance_width: int, heads: int) -> None:
        super().__init__(width=width, guidance_width=guidance_width)
        self.heads = heads
        self.proj = Linear(width, width)

    def forward(self, y_TWMC: Tensor, guidance_VWM3C: Tensor, mask_WMM: Tensor | None) -> Tensor:
        """Attention within every window, (T, W, M, C).

        Args:
            y_TWMC: tokens in window order.
            guidance_VWM3C: contribution of each view's guidance to query, key and value.
            mask_WMM: added to the scores of every window, or None.
        """
        qkv = self.of_tokens(y_TWMC)
        qkv.unflatten(0, (len(guidance_VWM3C), -1)).add_(guidance_VWM3C[:, None])
        attend = _attend_by_head if _lean(qkv) else _attend
        return self.proj(attend(qkv, self.heads, mask_WMM))


def _lean(x: Tensor) -> bool:
    """Whether memory is small without a fused kernel: no gradients, and the few classes of a CPU."""
    return (
        x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    )


def _attend(qkv_TWM3C: Tensor, heads: int, mask_WMM: Tensor | None) -> Tensor:
    """Softmax attention (T, W, M, C) by torch's fused kernel."""
    q, k, v = qkv_TWM3C.flatten(0, 1).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mask = None if mask_WMM is None else mask_WMM.repeat(len(qkv_TWM3C), 1, 1)[:, None]
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attended.transpose(1, 2).reshape(*qkv_TWM3C.shape[:3], -1)


def _attend_by_head(qkv_TWM3C: Tensor, heads: int, mask_WMM: Tensor | None) -> Tensor:
    """Softmax attention (T, W, M, C) one head at a time: small score matrices are faster on a CPU."""
    classes, windows, cells, width = qkv_TWM3C.shape
    attended = qkv_TWM3C.new_empty(classes, windows, cells, width // 3)
    parts = qkv_TWM3C.flatten(0, 1).unflatten(-1, (3, heads, -1))
    scale = parts.shape[-1] ** -0.5
    for head, attended_TWMc in enumerate(attended.unflatten(-1, (heads, -1)).unbind(3)):
        q, k, v = parts[:, :, :, head].unbind(2)
        # With beta 0 the first argument is not read: a product with a scale, without another pass.
        scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale)
        if mask_WMM is not None:
            scores.unflatten(0, (classes, windows)).add_(mask_WMM)
        attended_TWMc.copy_((scores.softmax(dim=-1) @ v).unflatten(0, (classes, windows)))
    return attended


class MLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Window attention and MLP, each behind a norm and with a residual.

    The order of the cells in (shifted) windows is a fixed permutation, which one indexing applies.
    """

    order: Tensor
    back: Tensor
    mask: Tensor | None

    def __init__(
        self,
        *,
        width: int,
        guidance_width: int,
        heads: int,
        grid: tuple[int, int],
        window: int,
        shift: int,
        mlp_ratio: int = 4,
    ) -> None:
        """
        Args:
            width: C.
            guidance_width: G.
            heads: H.
            grid: (h, w) in cells, multiples of the window.
            window: side of the windows in cells.
            shift: cells by which the windows are shifted; 0 for plain windows.
            mlp_ratio: hidden width of the MLP as a multiple of C.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width=width, guidance_width=guidance_width, heads=heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width=width, hidden=mlp_ratio * width)
        order_WM = window_order(grid, window, shift)
        self.windows = tuple(order_WM.shape)
        self.register_buffer("order", order_WM.flatten(), persistent=False)
        self.register_buffer("back", order_WM.flatten().argsort(), persistent=False)
        mask = shifted_mask(grid, window, shift) if shift else None
        self.register_buffer("mask", mask, persistent=False)

    def guidance_contribution(self, guidance_VNG: Tensor) -> Tensor:
        """What the normed guidance adds to query, key and value, (V, W, M, 3 C)."""
        return self.attn.of_guidance(guidance_VNG[:, self.order]).unflatten(1, self.windows)

    def forward(self, x_TNC: Tensor, contribution_VWM3C: Tensor) -> Tensor:
        """(T, N, C) -> (T, N, C), any number of classes at a time.

        Args:
            x_TNC: cells in raster order.
            contribution_VWM3C: result of `guidance_contribution`.
        """
        y_TWMC = self.norm1(x_TNC)[:, self.order].unflatten(1, self.windows)
        mask = None if self.mask is None else self.mask.to(x_TNC.dtype)
        attended_TNC = self.attn(y_TWMC, contribution_VWM3C, mask).flatten(1, 2)
        x_TNC = attended_TNC[:, self.back].add_(x_TNC)
        return self.mlp(self.norm2(x_TNC)).add_(x_TNC)


class SpatialAggregation(nn.Module):
    """A block with plain windows, then one with windows shifted by half their side.

    Attributes:
        compiling: whether the blocks are compiled, see `clip/runtime.py`.
    """

    compiling: bool = False

    def __init__(
        self,
        *,
        width: int,
        guidance_width: int,
        heads: int,
        grid: tuple[int, int],
        window: int,
    ) -> None:
        """
        Args:
            width: C.
            guidance_width: G, channels of the projected appearance guidance.
            heads: H.
            grid: (h, w) in cells, multiples of the window.
            window: side in cells. One that is not smaller than the grid is cut to its shorter side, and
                no block is shifted then.
        """
        super().__init__()
        fits = min(grid) > window
        window = min(window, *grid)
        sizes = {"width": width, "guidance_width": guidance_width, "heads": heads}
        self.block_1 = SwinBlock(**sizes, grid=grid, window=window, shift=0)
        shift = window // 2 if fits else 0
        self.block_2 = SwinBlock(**sizes, grid=grid, window=window, shift=shift)
        self.guidance_norm = nn.LayerNorm(guidance_width)

    def guidance_contributions(self, guidance_VNG: Tensor) -> tuple[Tensor, Tensor]:
        """What the guidance of each view adds in both blocks, the same for every class."""
        normed = self.guidance_norm(guidance_VNG)
        return self.block_1.guidance_contribution(normed), self.block_2.guidance_contribution(
            normed
        )

    def forward(self, x_TNC: Tensor, contributions: tuple[Tensor, Tensor]) -> Tensor:
        """(T, N, C) -> (T, N, C), any number of classes at a time.

        Args:
            x_TNC: cells in raster order.
            contributions: result of `guidance_contributions`.
        """
        for block, contribution in zip((self.block_1, self.block_2), contributions):
            x_TNC = (compiled(block) if self.compiling else block)(x_TNC, contribution)
        return x_TNC


def window_order(grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """Raster indices (W, M) of the cells of each window, after a cyclic shift up and left.

    Raises:
        ValueError: the windows do not tile the grid.
    """
    height, width = grid
    if height % window or width % window:
        raise ValueError(f"windows of {window} cells do not tile a grid of {height} x {width}")
    raster = torch.arange(height * width).view(height, width).roll((-shift, -shift), (0, 1))
    tiles = raster.view(height // window, window, width // window, window)
    return tiles.transpose(1, 2).reshape(-1, window * window)


def shifted_mask(grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """Summands (W, M, M) of the scores of shifted windows: 0, or `APART` for cells of two regions.

    A cyclic shift puts cells of opposite borders into one window; they must not see each other.
    """
    regions = [_seams(side, window, shift) for side in grid]
    # Three regions along each axis, nine in all; the rolled grid is cut into plain windows.
    region = (3 * regions[0][:, None] + regions[1]).flatten()[window_order(grid, window, 0)]
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, APART)


def _seams(side: int, window: int, shift: int) -> Tensor:
    """Region of each cell of a rolled axis: 0 all windows but the last, 1 its rest, 2 what came round."""
    cells = torch.arange(side)
    return (cells >= side - window).long() + (cells >= side - shift).long()
