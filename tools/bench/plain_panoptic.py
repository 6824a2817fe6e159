"""Plain reference formulation of open-vocabulary panoptic segmentation, with all queries at once.

The generator says ten times what its queries think, CLIP's mask tokens are keys as well as queries,
and outputs are made query by query.

Shapes: B images, Q queries, K classes, C width of the generator, E embedding, L tokens, R = L + Q rows,
    D width of CLIP, N cells, h x w pixels of stride 4, H W rows and columns of the output.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import plain
from bench.plain_pixel_decoder import plain_pixel_decoder
from clipself_seg.clip.layers import ResidualBlock, merge_heads, split_heads
from clipself_seg.clip.positions import rotate
from clipself_seg.heads.panoptic.clip_branches import DensePooling, MaskedAttention
from clipself_seg.heads.panoptic.generator import Level, MaskGenerator, QueryPrediction
from clipself_seg.heads.panoptic.pixel_decoder import sine_positions


def plain_predictions(
    generator: MaskGenerator, features: Mapping[str, Tensor]
) -> list[QueryPrediction]:
    """Predictions of the initial queries and of every layer, with masks in full and pooled embeddings.

    Args:
        generator: its layers are used, not its walk through them.
        features: maps (B, channels, H / stride, W / stride) s2, s3, s4, s5.
    """
    mask_features, maps = plain_pixel_decoder(generator.sem_seg_head.pixel_decoder, features)
    decoder = generator.sem_seg_head.predictor
    positions_QC = decoder.query_embed.weight
    states = decoder.query_feat.weight.expand(len(mask_features), -1, -1)
    predictions = [_predict(generator, states, mask_features)]
    layers = zip(
        decoder.transformer_cross_attention_layers,
        decoder.transformer_self_attention_layers,
        decoder.transformer_ffn_layers,
    )
    for index, (cross, own, mlp) in enumerate(layers):
        one = maps[index % len(maps)]
        kind = decoder.level_embed.weight[index % len(maps)]
        grid, values = (one.shape[2], one.shape[3]), one.flatten(2).transpose(1, 2) + kind
        keys = values + sine_positions(grid, one.shape[1], one.device).to(values.dtype)
        masks = F.interpolate(
            predictions[-1].mask_logits, grid, mode="bilinear", align_corners=False
        )
        allowed = masks.flatten(2).sigmoid() >= 0.5
        allowed = allowed | ~allowed.any(dim=-1, keepdim=True)
        states = cross(states, positions_QC, Level(keys, values, mask_features), allowed)
        states = mlp(own(states, positions_QC))
        predictions.append(_predict(generator, states, mask_features))
    return predictions


def _predict(generator: MaskGenerator, states: Tensor, mask_features: Tensor) -> QueryPrediction:
    decoder: Any = generator.sem_seg_head.predictor
    states = decoder.decoder_norm(states)
    masks = torch.einsum("bqc,bchw->bqhw", decoder.mask_embed(states), mask_features)
    embeddings = decoder.post_mask_embed(states, mask_features, masks)
    return QueryPrediction(states, masks, embeddings, decoder.class_embed(states))


def plain_masked_attention(branch: MaskedAttention, image: Tensor, mask_logits: Tensor) -> Tensor:
    """The result of `MaskedAttention.embed` by attention of R x R, (Q, E).

    Args:
        branch: with its defaults, of a transformer.
        image: (3, H, W), RGB in [0, 1].
        mask_logits: (Q, h, w), laid over the image.
    """
    tower: Any = branch.clip.visual
    side = (branch.input_size, branch.input_size)
    pixels = F.interpolate(mask_logits[None], side, mode="bilinear", align_corners=False).sigmoid()
    visible_QN = (F.max_pool2d(pixels, branch.clip.patch_size)[0] >= 0.5).flatten(1)
    tokens_BLD, extras, _ = tower.embed(branch.clip_input(image)[None])
    count, length = len(mask_logits), tokens_BLD.shape[1]
    x_BRD = torch.cat([tokens_BLD, tokens_BLD[:, :1].expand(-1, count, -1)], dim=1)
    allowed_BRR = x_BRD.new_zeros(1, length + count, length + count, dtype=torch.bool)
    allowed_BRR[:, :, :length] = True
    allowed_BRR[:, length:, 1:length] = visible_QN
    for block in tower.blocks:
        x_BRD = _masked_block(block, x_BRD, allowed_BRR, *extras)
    return tower.project(x_BRD)[0, length:]


def _masked_block(
    block: Any, x_BRD: Tensor, allowed_BRR: Tensor, rotary: Tensor | None = None
) -> Tensor:
    """A block in which every row attends to all rows that it is allowed."""
    if isinstance(block, ResidualBlock):
        return block.forward_mask_tokens(x_BRD, x_BRD, allowed_BRR)
    assert rotary is not None
    attention, normed = block.attn, block.norm1(x_BRD)
    q, k, v = (
        split_heads(F.linear(normed, layer.weight, bias), attention.heads)
        for layer, bias in (
            (attention.q_proj, attention.q_bias),
            (attention.k_proj, None),
            (attention.v_proj, attention.v_bias),
        )
    )
    # Mask tokens are turned as the class token is.
    turns = torch.cat([rotary, rotary[:1].expand(x_BRD.shape[1] - len(rotary), -1, -1)])
    seen = F.scaled_dot_product_attention(
        rotate(q, turns), rotate(k, turns), v, attn_mask=allowed_BRR[:, None]
    )
    x_BRD = x_BRD + attention.proj(attention.inner_attn_ln(merge_heads(seen)))
    return x_BRD + block.mlp(block.norm2(x_BRD))


def plain_dense_pooling(
    branch: DensePooling, image: Tensor, mask_logits: Tensor, canvas: tuple[int, int]
) -> Tensor:
    """The result of `DensePooling.embed`, (Q, E): both rules for all masks, a copy of the map for each.

    Args:
        branch: with its defaults.
        image: (3, H, W), RGB in [0, 1].
        mask_logits: (Q, h, w).
        canvas: rows and columns in pixels that the masks cover.
    """
    size = (image.shape[1], image.shape[2])
    touched, centred = (
        DensePooling(branch.clip, binarise=rule).cells(mask_logits, size, canvas)
        for rule in ("any", "centre")
    )
    empty_Q11 = ~centred.any(dim=(1, 2), keepdim=True)
    cells = torch.where(empty_Q11, touched, centred)
    dense = plain.dense_features(branch.clip.visual, branch.clip_input(image)[None])[0]
    return F.normalize(plain.pool_masks(dense, cells), dim=-1)


def plain_panoptic(
    probs: Tensor,
    mask_logits: Tensor,
    thing_ids: Collection[int],
    object_threshold: float = 0.0,
    overlap_threshold: float = 0.8,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The result of `merge_panoptic`, step by step.

    Args:
        probs: (Q, K + 1), void last.
        mask_logits: (Q, H, W).
        thing_ids: indices of the thing classes.
        object_threshold: in [0, 1].
        overlap_threshold: in [0, 1].
    """
    scores, labels = probs.max(dim=1)
    kept = (labels != probs.shape[1] - 1) & (scores > object_threshold)
    ids = torch.zeros(mask_logits.shape[1:], dtype=torch.int64, device=mask_logits.device)
    segments: list[dict[str, Any]] = []
    if not kept.any():
        return ids, segments
    masks = mask_logits[kept].sigmoid()
    winner = (scores[kept][:, None, None] * masks).argmax(dim=0)
    stuff: dict[int, int] = {}
    for query, label in enumerate(labels[kept].tolist()):
        won = (winner == query).sum().item()
        half = (masks[query] >= 0.5).sum().item()
        mask = (winner == query) & (masks[query] >= 0.5)
        if won == 0 or half == 0 or not mask.any() or won / half < overlap_threshold:
            continue
        if label in stuff:
            ids[mask] = stuff[label]
            own = segments[stuff[label] - 1]
            own["score"] = max(own["score"], scores[kept][query].item())
            own["queries"].append(int(kept.nonzero()[query]))
            continue
        isthing = label in thing_ids
        segment = {"id": len(segments) + 1, "isthing": isthing, "category_id": label}
        segment["queries"] = [int(kept.nonzero()[query])]
        segments.append(segment | {"score": scores[kept][query].item()})
        ids[mask] = len(segments)
        if not isthing:
            stuff[label] = len(segments)
    return ids, segments
