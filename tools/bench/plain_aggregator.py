"""CAT-Seg's aggregator in its plain formulation, over the weights of a `CostAggregator`.

Guidance is repeated for every class and put beside the tokens, padding tokens are made, class maps of
all windows are one batch with channels first, and attention matrices are made.

Shapes: B windows, T classes, P prompts of a class, E embedding, C channels, G guidance channels,
    h x w cells, N = h * w, W attention windows of M = s * s cells, m = B * T maps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.heads.cat_seg.cost_aggregator import LEFT_OUT, CostAggregator


def aggregate(
    aggregator: CostAggregator,
    dense_BEhw: Tensor,
    decoder_guidance: tuple[Tensor, Tensor],
    text_BTPE: Tensor,
) -> Tensor:
    """Logits (B, T, 4 h, 4 w); -100 for the classes that are not among the best of a window."""
    pad_len = aggregator.sizes.pad_len
    cost_BPThw = _cost(dense_BEhw, text_BTPE)
    classes, kept = text_BTPE.shape[1], None
    if 0 < pad_len < classes:
        kept = cost_BPThw.amax(dim=(1, 3, 4)).topk(pad_len, sorted=False).indices  # (B, K)
        text_BTPE = torch.stack([text[index] for text, index in zip(text_BTPE, kept)])
        cost_BPThw = _cost(dense_BEhw, text_BTPE)
    x_BCThw = _every_map(cost_BPThw, aggregator.conv1)
    appearance_BGhw = aggregator.guidance_projection(dense_BEhw)
    text_BTG = aggregator.text_guidance_projection(F.normalize(text_BTPE.mean(dim=2), dim=-1))
    for layer in aggregator.layers:
        x_BCThw = _space(layer.swin_block, x_BCThw, appearance_BGhw)
        x_BCThw = _over_classes(layer.attention, x_BCThw, text_BTG)
    projected = [
        project(guidance)
        for project, guidance in zip(aggregator.decoder_guidance_projection, decoder_guidance)
    ]
    logits_BThw = _decode(aggregator, x_BCThw, projected)
    if kept is None:
        return logits_BThw
    full = logits_BThw.new_full((len(kept), classes, *logits_BThw.shape[2:]), LEFT_OUT)
    for filled, index, logits in zip(full, kept, logits_BThw):
        filled[index] = logits
    return full


def _cost(dense_BEhw: Tensor, text_BTPE: Tensor) -> Tensor:
    dense, text = F.normalize(dense_BEhw, dim=1), F.normalize(text_BTPE, dim=-1)
    return torch.einsum("behw,btpe->bpthw", dense, text)


def _maps(x_BCThw: Tensor) -> Tensor:
    """(B T, C, h, w)"""
    return x_BCThw.transpose(1, 2).flatten(0, 1)


def _unmaps(x: Tensor, images: int) -> Tensor:
    """(B T, C, h, w) -> (B, C, T, h, w)"""
    return x.unflatten(0, (images, -1)).transpose(1, 2).contiguous()


def _every_map(x_BCThw: Tensor, function: Any) -> Tensor:
    return _unmaps(function(_maps(x_BCThw)), len(x_BCThw))


def _repeat(guidance_BGhw: Tensor, classes: int) -> Tensor:
    """A copy for every class, (B T, G, h, w)."""
    return guidance_BGhw[:, None].repeat(1, classes, 1, 1, 1).flatten(0, 1)


def _space(pair: Any, x_BCThw: Tensor, appearance_BGhw: Tensor) -> Tensor:
    images, _, classes, *sides = x_BCThw.shape
    grid = (sides[0], sides[1])
    x_mNC = _maps(x_BCThw).flatten(2).transpose(1, 2)
    guidance_mNG = _repeat(appearance_BGhw, classes).flatten(2).transpose(1, 2)
    guidance_mNG = pair.guidance_norm(guidance_mNG)
    for block in (pair.block_1, pair.block_2):
        x_mNC = _swin_block(block, x_mNC, guidance_mNG, grid)
    return _unmaps(x_mNC.transpose(1, 2).unflatten(2, grid), images)


def _swin_block(block: Any, x_mNC: Tensor, guidance_mNG: Tensor, grid: tuple[int, int]) -> Tensor:
    side = math.isqrt(block.windows[1])
    shift = 0 if block.mask is None else side // 2
    tokens = torch.cat([block.norm1(x_mNC), guidance_mNG], dim=-1).unflatten(1, grid)
    mask = _shift_mask(grid, side, shift, x_mNC) if shift else 0
    tokens = _partition(tokens.roll((-shift, -shift), (1, 2)), side)  # (m W, M, C + G)
    seen = _window_attention(block.attn, tokens, mask)
    seen = _unpartition(seen, side, grid).roll((shift, shift), (1, 2))
    x_mNC = x_mNC + seen.flatten(1, 2)
    return x_mNC + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x_mNC))))


def _window_attention(attention: Any, tokens: Tensor, mask: Tensor | int) -> Tensor:
    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)

    q, k = heads(attention.q(tokens)), heads(attention.k(tokens))
    v = heads(attention.v(tokens[..., : attention.width]))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if isinstance(mask, Tensor):
        scores = (scores.unflatten(0, (-1, len(mask))) + mask[None, :, None]).flatten(0, 1)
    seen = scores.softmax(dim=-1) @ v
    return attention.proj(seen.transpose(1, 2).reshape(*tokens.shape[:2], -1))


def _partition(x: Tensor, side: int) -> Tensor:
    """(m, h, w, C) -> (m W, M, C)"""
    count, rows, columns, width = x.shape
    tiles = x.reshape(count, rows // side, side, columns // side, side, width)
    return tiles.transpose(2, 3).reshape(-1, side * side, width)


def _unpartition(x: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """(m W, M, C) -> (m, h, w, C)"""
    tiles = x.reshape(-1, grid[0] // side, grid[1] // side, side, side, x.shape[-1])
    return tiles.transpose(2, 3).reshape(-1, *grid, x.shape[-1])


def _shift_mask(grid: tuple[int, int], side: int, shift: int, like: Tensor) -> Tensor:
    """(W, M, M): -100 between cells of a rolled grid that are no neighbours in the image."""
    region = like.new_zeros(1, *grid, 1)
    cuts = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for index, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
        region[:, rows, columns] = index
    of_window = _partition(region, side)[..., 0]
    return (of_window[:, None, :] != of_window[:, :, None]).to(like) * -100


def _over_classes(layer: Any, x_BCThw: Tensor, text_BTG: Tensor) -> Tensor:
    (images, _, classes), grid = x_BCThw.shape[:3], x_BCThw.shape[3:]
    pooled = _every_map(x_BCThw, lambda x: F.avg_pool2d(x, layer.pooling))
    pooled_grid = pooled.shape[3:]
    x = pooled.permute(0, 3, 4, 2, 1).flatten(0, 2)  # (B N, T, C)
    cells = len(x) // images
    guidance = text_BTG[:, None].repeat(1, cells, 1, 1).flatten(0, 1)
    if classes < layer.pad_to:
        missing = layer.pad_to - classes
        x = torch.cat([x, layer.padding_tokens.repeat(len(x), missing, 1)], dim=1)
        guidance = torch.cat([guidance, layer.padding_guidance.repeat(len(x), missing, 1)], dim=1)
    x = x + _class_attention(layer, layer.norm1(x), guidance)
    x = x + layer.MLP(layer.norm2(x))
    x = x.unflatten(0, (images, *pooled_grid)).permute(0, 4, 3, 1, 2)  # (B, C, T, h, w)
    if pooled_grid != grid:
        x = _every_map(x, lambda m: F.interpolate(m, grid, mode="bilinear", align_corners=True))
    return x_BCThw + x[:, :, :classes]


def _class_attention(layer: Any, x: Tensor, guidance: Tensor) -> Tensor:
    def heads(y: Tensor) -> Tensor:
        return y.unflatten(-1, (layer.heads, -1))  # (n, T, H, c)

    project, both = layer.attention, torch.cat([x, guidance], dim=-1)
    q, k, v = heads(project.q(both)), heads(project.k(both)), heads(project.v(x))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    length = v.shape[1]  # divided out and in again, as against overflow in half precision
    products = torch.einsum("nshc,nshd->nhcd", k, v / length)
    scale = 1 / (torch.einsum("nthc,nhc->nth", q, k.sum(dim=1)) + 1e-6)
    return (torch.einsum("nthc,nhcd,nth->nthd", q, products, scale) * length).flatten(2)


def _decode(aggregator: Any, x_BCThw: Tensor, guidance: list[Tensor]) -> Tensor:
    images, classes = len(x_BCThw), x_BCThw.shape[2]
    x = _maps(x_BCThw)
    for block, features in zip((aggregator.decoder1, aggregator.decoder2), guidance):
        x = torch.cat([block.up(x), _repeat(features, classes)], dim=1)
        x = block.conv(x)
    return aggregator.head(x)[:, 0].unflatten(0, (images, classes))
