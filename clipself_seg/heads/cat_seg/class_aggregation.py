"""Aggregation over classes: at every location, all classes attend to each other.

Short vocabularies are padded with learned tokens. All of them are the same token, so their share of
the attention has a closed form and none is ever made.

Shapes: T classes, N = h * w cells (pooled: n), C channels, G guidance channels, H heads, c channels
    of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.linear import Linear
from clipself_seg.clip.precision import full_precision
from clipself_seg.heads.cat_seg.cost_volume import at_least_float32
from clipself_seg.heads.cat_seg.spatial_aggregation import GuidedProjections

EPS = 1e-6
VALUES_AT_ONCE = 4096 * 128  # of tokens, whose activations stay in the CPU's cache


class ClassAggregation(nn.Module):
    """Attention over classes and an MLP, at every location by itself."""

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
            pooling: side in cells of what is averaged before the attention.
            pad_to: classes that the attention sees at least; 0 has no padding.
            attention: "linear" or "full".
            mlp_ratio: hidden width of the MLP in C.
        """
        super().__init__()
        self.grid, self.pooling, self.pad_to, self.heads = grid, pooling, pad_to, heads
        if pad_to:
            self.padding_tokens = nn.Parameter(torch.zeros(1, 1, width))
            self.padding_guidance = nn.Parameter(torch.zeros(1, 1, guidance_width))
        self.attention = GuidedProjections(width=width, guidance_width=guidance_width)
        self.attend = {"linear": linear_attention, "full": softmax_attention}[attention]
        hidden = mlp_ratio * width
        self.MLP = nn.Sequential(Linear(width, hidden), nn.ReLU(), Linear(hidden, width))
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x_TNC: Tensor, guidance_TG: Tensor) -> Tensor:
        """(T, N, C) -> (T, N, C). The residual counts twice: the layer's output contains its input."""
        share_T3C = self.attention.of_guidance(guidance_TG)
        padding = self._padding(len(x_TNC))
        pooled_TnC = self._pool(x_TNC)
        if torch.is_grad_enabled():
            seen = self._layer(pooled_TnC, share_T3C, padding)
            return x_TNC + self._unpool(seen)
        # Some locations at a time; each is by itself.
        step = max(1, VALUES_AT_ONCE // (len(x_TNC) * x_TNC.shape[-1]))
        parts = pooled_TnC.split(step, dim=1)
        if self.pooling == 1:
            # The locations' own input is not needed again: the sum goes where it came from.
            for part in parts:
                part += self._layer(part, share_T3C, padding)
            return x_TNC
        seen = torch.cat([self._layer(part, share_T3C, padding) for part in parts], dim=1)
        return x_TNC + self._unpool(seen)

    def _layer(
        self,
        x_TnC: Tensor,
        share_T3C: Tensor,
        padding: tuple[Tensor, Tensor, int] | None,
    ) -> Tensor:
        x_nTC = x_TnC.transpose(0, 1).contiguous()
        qkv = self.attention.of_tokens(self.norm1(x_nTC)).add_(share_T3C)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (n, H, T, c)
        x_nTC = x_nTC + self.attend(q, k, v, padding).transpose(1, 2).flatten(2)
        return self.MLP(self.norm2(x_nTC)).add_(x_nTC).transpose(0, 1)

    def _padding(self, classes: int) -> tuple[Tensor, Tensor, int] | None:
        """Key and value (H, 1, c) of a padding token, and how many there are."""
        count = self.pad_to - classes
        if count <= 0:
            return None
        token = self.attention.of_tokens(self.norm1(self.padding_tokens[0]))
        qkv = token + self.attention.of_guidance(self.padding_guidance[0])
        _, key, value = qkv.view(3, self.heads, 1, -1)
        return key, value, count

    def _pool(self, x_TNC: Tensor) -> Tensor:
        """Means of squares of cells, (T, n, C)."""
        if self.pooling == 1:
            return x_TNC
        p, (height, width) = self.pooling, self.grid
        squares = x_TNC.unflatten(1, (height // p, p, width // p, p))
        return squares.mean(dim=(2, 4)).flatten(1, 2)

    def _unpool(self, x_TnC: Tensor) -> Tensor:
        """Back to the grid, bilinear with aligned corners."""
        if self.pooling == 1:
            return x_TnC
        pooled = (self.grid[0] // self.pooling, self.grid[1] // self.pooling)
        maps = x_TnC.transpose(1, 2).unflatten(2, pooled)
        return _bilinear(maps, self.grid).flatten(2).transpose(1, 2)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, padding: tuple[Tensor, Tensor, int] | None
) -> Tensor:
    """Attention with the kernel ``elu(x) + 1`` (Katharopoulos et al., 2020), cost linear in T.

    Its sums over classes are made in float32 also of half precision, whose type the result has.

    Args:
        q: (n, H, T, c), and so `k` and `v`.
        k: keys.
        v: values.
        padding: key and value (H, 1, c) that are there so many times more.
    """
    dtype = q.dtype
    with full_precision(q.device):
        q, k, v = (at_least_float32(x) for x in (q, k, v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        products_nHcc = k.transpose(-2, -1) @ v
        sums_nHc1 = k.sum(dim=-2).unsqueeze(-1)
        if padding is not None:
            key, value, count = padding
            key, value = F.elu(at_least_float32(key)) + 1, at_least_float32(value)
            products_nHcc = products_nHcc + count * (key.transpose(-2, -1) @ value)
            sums_nHc1 = sums_nHc1 + count * key.transpose(-2, -1)
        return ((q @ products_nHcc) / (q @ sums_nHc1 + EPS)).to(dtype)


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, padding: tuple[Tensor, Tensor, int] | None
) -> Tensor:
    """Attention with softmax; equal keys that are there n times are one with log n on its score."""
    if padding is None:
        return F.scaled_dot_product_attention(q, k, v)
    key, value, count = padding
    k = torch.cat([k, key.expand(*k.shape[:2], 1, -1)], dim=2)
    v = torch.cat([v, value.expand(*v.shape[:2], 1, -1)], dim=2)
    bias = q.new_zeros(q.shape[2], k.shape[2])
    bias[:, -1] = math.log(count)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)
