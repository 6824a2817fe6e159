"""The two attentions of CAT-Seg's aggregator: over space for every class, and over classes at every location.

The features that guide an attention are the same for many tokens. What they contribute to query and key is a sum
of its own, ``W [y ; g] = W_y y + W_g g``, and is computed once an image, not once a class. Short vocabularies are
padded with learned tokens. All of them are the same token, so what they contribute to the attention over classes
has a closed form, and none of them is ever made.

Several views of an image, or images, may pass together: the classes of one follow those of another, and do not see
them.

Shapes: V views, K classes of each, T = V * K, N = h * w cells (pooled: n), C channels, G guidance channels, W
    windows of M cells, H heads, c channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.block_calls import compiled
from clipself_seg.clip.layers import TwoLayers
from clipself_seg.clip.linear import Linear, linear
from clipself_seg.clip.precision import full_precision
from clipself_seg.clip.runtime import chunk_size
from clipself_seg.heads.text_scores import at_least_float32

APART = -100.0  # added where two cells of a shifted window are no neighbours in the image
EPS = 1e-6
VALUES_AT_ONCE = 4096 * 128  # of tokens, whose activations stay in the CPU's cache
COPIES = 12  # numbers in memory for one of the input: its norm, query, key, value and their kernels, the MLP's


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
        q, k, v = qkv.flatten(0, 1).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if mask_WMM is None else mask_WMM.to(q).repeat(len(y_TWMC), 1, 1)[:, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(attended.transpose(1, 2).reshape(*qkv.shape[:3], -1))


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
    ) -> None:
        """
        Args:
            width: C.
            guidance_width: G.
            heads: H.
            grid: (h, w) in cells, multiples of the window.
            window: side of the windows in cells.
            shift: cells by which the windows are shifted; 0 for plain windows.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width=width, guidance_width=guidance_width, heads=heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TwoLayers(width=width, hidden=4 * width)
        order_WM = window_order(grid, window, shift)
        self.windows = tuple(order_WM.shape)
        self.register_buffer("order", order_WM.flatten(), persistent=False)
        self.register_buffer("back", order_WM.flatten().argsort(), persistent=False)
        mask = shifted_mask(grid, window, shift) if shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x_TNC: Tensor, contribution_VWM3C: Tensor) -> Tensor:
        """(T, N, C) -> (T, N, C), any number of classes at a time.

        Args:
            x_TNC: cells in raster order.
            contribution_VWM3C: of `SpatialAggregation.guidance_contributions`.
        """
        y_TWMC = self.norm1(x_TNC)[:, self.order].unflatten(1, self.windows)
        attended_TNC = self.attn(y_TWMC, contribution_VWM3C, self.mask).flatten(1, 2)
        # Sums are in the precision of the input, as in a tower; autocast's products have less of it.
        x_TNC = attended_TNC[:, self.back].to(x_TNC.dtype).add_(x_TNC)
        return _sum(self.mlp(self.norm2(x_TNC)).to(x_TNC.dtype), x_TNC)


def _sum(own: Tensor, x: Tensor) -> Tensor:
    """The sum; without gradients in the place of `own`, which may else be kept for the backward pass."""
    return own.add(x) if torch.is_grad_enabled() else own.add_(x)


class SpatialAggregation(nn.Module):
    """A block with plain windows, then one with windows shifted by half their side.

    Attributes:
        compiling: True if the blocks are compiled, see `clip/block_calls.py`.
    """

    compiling: bool = False

    def __init__(
        self, *, width: int, guidance_width: int, heads: int, grid: tuple[int, int], window: int
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
        """Contributions (V, W, M, 3 C) of each view to query, key and value in both blocks, for all classes."""
        normed = self.guidance_norm(guidance_VNG)
        first, second = (
            block.attn.of_guidance(normed[:, block.order]).unflatten(1, block.windows)
            for block in (self.block_1, self.block_2)
        )
        return first, second

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
    """Raster indices (W, M) of the cells of each window, after a cyclic shift up and left."""
    height, width = grid
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


class ClassAggregation(nn.Module):
    """Attention over classes and an MLP, at every location by itself.

    Attributes:
        compiling: True if both are compiled, see `clip/block_calls.py`.
    """

    compiling: bool = False

    def __init__(
        self,
        *,
        width: int,
        guidance_width: int,
        heads: int,
        grid: tuple[int, int],
        pooling: int,
        pad_to: int,
    ) -> None:
        """
        Args:
            width: C.
            guidance_width: G, channels of the projected text guidance.
            heads: H.
            grid: (h, w) in cells, multiples of `pooling`.
            pooling: side in cells of the squares that are averaged before the attention.
            pad_to: number of classes that the attention sees at least; 0 has no padding.
        """
        super().__init__()
        self.grid = grid
        self.pooling = pooling
        self.pad_to = pad_to
        self.heads = heads
        if pad_to:
            self.padding_tokens = nn.Parameter(torch.zeros(1, 1, width))
            self.padding_guidance = nn.Parameter(torch.zeros(1, 1, guidance_width))
        self.attention = GuidedProjections(width=width, guidance_width=guidance_width)
        relu = nn.ReLU(inplace=True)
        self.MLP = nn.Sequential(Linear(width, 4 * width), relu, Linear(4 * width, width))
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x_TNC: Tensor, guidance_VKG: Tensor) -> Tensor:
        """(T, N, C) -> (T, N, C). The residual counts twice: the layer's output contains its input.

        Without gradients and pooling the result of one view overwrites `x_TNC`.

        Args:
            x_TNC: tokens of every class and location.
            guidance_VKG: projected text guidance of every class of each view; (1, K, G) is that of all views.
        """
        layer = compiled(self._layer) if self.compiling else self._layer
        contribution_VK3C = self.attention.of_guidance(guidance_VKG)
        classes = guidance_VKG.shape[1]
        padding = self._padding(classes)
        pooled_TnC = self._pool(x_TNC)
        if x_TNC.shape[0] > classes or torch.is_grad_enabled():
            # Locations of all views are the batch.
            rows = pooled_TnC.unflatten(0, (-1, classes)).transpose(0, 1)
            refined = layer(rows.flatten(1, 2), contribution_VK3C, padding)
            refined = refined.unflatten(1, rows.shape[1:3]).transpose(0, 1).flatten(0, 1)
            return x_TNC + self._unpool(refined)
        # Locations do not see each other: as many at a time as a CPU's cache holds.
        values = len(x_TNC) * x_TNC.shape[-1]
        step = chunk_size(x_TNC.device, VALUES_AT_ONCE // values, COPIES * values)
        parts = pooled_TnC.split(step, dim=1)
        if self.pooling == 1:
            # The input of a location is not needed again: parts are views of it, which take the sum.
            for part in parts:
                part += layer(part, contribution_VK3C, padding)
            return x_TNC
        layers = [layer(part, contribution_VK3C, padding) for part in parts]
        refined = torch.cat(layers, dim=1)
        return x_TNC + self._unpool(refined)

    def _layer(
        self, x_KnC: Tensor, contribution_VK3C: Tensor, padding: tuple[Tensor, Tensor, int] | None
    ) -> Tensor:
        """Attention and MLP, both with their residuals, (K, n, C); locations n of one view follow those of another."""
        # Locations are the batch of the attention, classes its sequence.
        x_nKC = x_KnC.transpose(0, 1).contiguous()
        qkv = self.attention.of_tokens(self.norm1(x_nKC))
        qkv.unflatten(0, (len(contribution_VK3C), -1)).add_(contribution_VK3C[:, None])
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (n, H, T, c)
        x_nKC = x_nKC + linear_attention(q, k, v, padding).transpose(1, 2).flatten(2)
        return _sum(self.MLP(self.norm2(x_nKC)).to(x_nKC.dtype), x_nKC).transpose(0, 1)

    def _padding(self, classes: int) -> tuple[Tensor, Tensor, int] | None:
        """Key and value (H, 1, c) of a padding token and the number of such tokens; None for none."""
        count = self.pad_to - classes
        if count <= 0:
            return None
        token = self.attention.of_tokens(self.norm1(self.padding_tokens[0]))
        qkv = token + self.attention.of_guidance(self.padding_guidance[0])
        _, key, value = qkv.view(3, self.heads, 1, -1)
        return key, value, count

    def _pool(self, x_TNC: Tensor) -> Tensor:
        """Averages squares of cells, (T, N, C) -> (T, n, C)."""
        if self.pooling == 1:
            return x_TNC
        # The transposed view is what torch calls channels_last; a mean over two dimensions takes fifteen times as long.
        maps_TChw = x_TNC.transpose(1, 2).unflatten(2, self.grid)
        return F.avg_pool2d(maps_TChw, self.pooling).flatten(2).transpose(1, 2)

    def _unpool(self, x_TnC: Tensor) -> Tensor:
        """Interpolates back to the grid, (T, n, C) -> (T, N, C), bilinear with aligned corners."""
        if self.pooling == 1:
            return x_TnC
        pooled = (self.grid[0] // self.pooling, self.grid[1] // self.pooling)
        maps = x_TnC.transpose(1, 2).unflatten(2, pooled)
        unpooled = F.interpolate(maps, self.grid, mode="bilinear", align_corners=True)
        return unpooled.flatten(2).transpose(1, 2)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, padding: tuple[Tensor, Tensor, int] | None
) -> Tensor:
    """Attention with the kernel ``elu(x) + 1`` (Katharopoulos et al., 2020), cost linear in T.

    Sums over classes are in float32 or better; the result (n, H, T, c) has the type of the queries.

    Args:
        q: queries (n, H, T, c).
        k: keys (n, H, T, c).
        v: values (n, H, T, c).
        padding: key and value (H, 1, c) of the padding token and its number; None for no padding.
    """
    dtype = q.dtype
    with full_precision(q.device):
        q, k, v = (at_least_float32(x) for x in (q, k, v))
        q = F.elu(q).add_(1)
        k = F.elu(k).add_(1)
        products_nHcc = k.transpose(-2, -1) @ v
        sums_nHc1 = k.sum(dim=-2).unsqueeze(-1)
        if padding is not None:
            key, value, count = padding
            key = F.elu(at_least_float32(key)) + 1
            value = at_least_float32(value)
            # Equal tokens add up to one of them times their number.
            products_nHcc = products_nHcc + count * (key.transpose(-2, -1) @ value)
            sums_nHc1 = sums_nHc1 + count * key.transpose(-2, -1)
        return ((q @ products_nHcc) / (q @ sums_nHc1 + EPS)).to(dtype)
