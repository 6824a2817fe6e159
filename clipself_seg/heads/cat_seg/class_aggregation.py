"""Aggregation over classes: at every location, all classes attend to each other.

Short vocabularies are padded with learned tokens. All of them are the same token, so what they
contribute to the attention has a closed form, and none of them is ever made.

Several views of an image, or images, may pass together: the classes of one follow those of another,
and do not see them.

Shapes: V views, K classes of each, T = V * K, N = h * w cells (pooled: n), C channels, G guidance
    channels, H heads, c channels of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.linear import Linear
from clipself_seg.clip.runtime import chunk_size, compiled, full_precision
from clipself_seg.heads.cat_seg.cost_volume import at_least_float32
from clipself_seg.heads.cat_seg.spatial_aggregation import GuidedProjections

EPS = 1e-6
VALUES_AT_ONCE = 4096 * 128  # of tokens, whose activations stay in the CPU's cache
COPIES = 12  # numbers in memory for one of the input: its norm, query, key, value and their kernels, the MLP's


class ClassAggregation(nn.Module):
    """Attention over classes and an MLP, at every location by itself.

    Attributes:
        compiling: whether both are compiled, see `clip/runtime.py`.
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
        attention: str = "linear",
        mlp_ratio: int = 4,
    ) -> None:
        """
        Args:
            width: C.
            guidance_width: G, channels of the projected text guidance.
            heads: H.
            grid: (h, w) in cells, multiples of `pooling`.
            pooling: side in cells of the squares that are averaged before the attention.
            pad_to: number of classes that the attention sees at least; 0 has no padding.
            attention: "linear" or "full".
            mlp_ratio: hidden width of the MLP as a multiple of C.
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
        self.attend = {"linear": linear_attention, "full": softmax_attention}[attention]
        hidden = mlp_ratio * width
        relu = nn.ReLU(inplace=True)
        self.MLP = nn.Sequential(Linear(width, hidden), relu, Linear(hidden, width))
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
        if len(x_TNC) > classes:
            # Locations of all views are the batch.
            rows = pooled_TnC.unflatten(0, (-1, classes)).transpose(0, 1)
            refined = layer(rows.flatten(1, 2), contribution_VK3C, padding)
            refined = refined.unflatten(1, rows.shape[1:3]).transpose(0, 1).flatten(0, 1)
            return x_TNC + self._unpool(refined)
        if torch.is_grad_enabled():
            refined = layer(pooled_TnC, contribution_VK3C, padding)
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
        self,
        x_KnC: Tensor,
        contribution_VK3C: Tensor,
        padding: tuple[Tensor, Tensor, int] | None,
    ) -> Tensor:
        """Attention and MLP, both with their residuals, (K, n, C); locations n of one view follow those of another."""
        # Locations are the batch of the attention, classes its sequence.
        x_nKC = x_KnC.transpose(0, 1).contiguous()
        qkv = self.attention.of_tokens(self.norm1(x_nKC))
        qkv.unflatten(0, (len(contribution_VK3C), -1)).add_(contribution_VK3C[:, None])
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (n, H, T, c)
        x_nKC = x_nKC + self.attend(q, k, v, padding).transpose(1, 2).flatten(2)
        return self.MLP(self.norm2(x_nKC)).add_(x_nKC).transpose(0, 1)

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
        return _bilinear(maps, self.grid).flatten(2).transpose(1, 2)


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


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, padding: tuple[Tensor, Tensor, int] | None
) -> Tensor:
    """Attention with softmax, (n, H, T, c).

    Args:
        q: queries (n, H, T, c).
        k: keys (n, H, T, c).
        v: values (n, H, T, c).
        padding: key and value (H, 1, c) of the padding token and its number; None for no padding.
    """
    if padding is None:
        return F.scaled_dot_product_attention(q, k, v)
    key, value, count = padding
    k = torch.cat([k, key.expand(*k.shape[:2], 1, -1)], dim=2)
    v = torch.cat([v, value.expand(*v.shape[:2], 1, -1)], dim=2)
    # n equal keys weigh n exp(score), as one key does whose score is larger by log n.
    bias = q.new_zeros(q.shape[2], k.shape[2])
    bias[:, -1] = math.log(count)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)
