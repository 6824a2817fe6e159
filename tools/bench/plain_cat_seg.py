"""The plain formulation of CAT-Seg, over the weights of a `CATSeg`, guided by CLIP.

What its description says, step by step: texts at the full context length, all windows in one batch,
and maps of the image's size for all classes at once.

Shapes: B windows, T classes, P prompts of a class, E embedding, h x w cells, S side of a window in
    pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.plain_aggregator import aggregate
from clipself_seg.clip.openai import VisionTransformer
from clipself_seg.clip.templates import TEMPLATES
from clipself_seg.clip.text import TextTower
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.models import CATSeg


def text_embeddings(model: CATSeg) -> Tensor:
    """Unit vectors (T, P, E); every text passes the tower at its full context length."""
    templates = TEMPLATES[model.texts.templates]
    prompts = [template.format(name) for (name,) in model.names for template in templates]
    tokens = model.clip.tokenize(prompts).to(model.device)
    tower: Any = model.clip.text
    encode = _encode if isinstance(tower, TextTower) else type(tower).whole
    return F.normalize(encode(tower, tokens), dim=-1).unflatten(0, (len(model.names), -1))


def _encode(tower: Any, tokens: Tensor) -> Tensor:
    """Embeddings (K, E) of token ids (K, L) by CLIP's text tower."""
    x_KLD = tower.token_embedding(tokens) + tower.positional_embedding
    for block in tower.transformer.resblocks:
        x_KLD = block(x_KLD, True)  # causal
    x_KLD = tower.ln_final(x_KLD)
    x_KD = x_KLD[torch.arange(len(x_KLD), device=x_KLD.device), tokens.argmax(dim=-1)]
    return x_KD @ tower.text_projection


def image_features(model: CATSeg, images: Tensor) -> list[Tensor]:
    """Dense features (B, E, h, w) and the outputs of the two guiding blocks, (B, D, h, w).

    OpenAI's layout: the last block's attention runs in full beside the value path, for nothing. The value path keeps
    what stands before the patches to the end.
    """
    tower: Any = model.clip.visual
    x_BLD, extras, grid = tower.embed(images)
    seen = {}
    for index, block in enumerate(tower.blocks[:-1]):
        x_BLD = block(x_BLD, *extras)
        seen[f"block{index}"] = x_BLD
    last = tower.blocks[-1]
    if isinstance(tower, VisionTransformer):
        last.attn(last.ln_1(x_BLD), *extras)
    residual = x_BLD[:, :1] if tower.class_residual else x_BLD
    last_BLD = last(x_BLD, *extras) if tower.pooled else last.value_path(x_BLD, residual)
    maps = [tower.project(last_BLD), *(seen[name] for name in model.guidance_blocks)]
    return [x[:, tower.prefix :].transpose(1, 2).reshape(len(x), -1, *grid) for x in maps]


def window_logits(model: CATSeg, windows_B3SS: Tensor, text_TPE: Tensor) -> Tensor:
    """Logits (B, T, 4 h, 4 w) of normalised windows, before the sigmoid."""
    images = F.interpolate(windows_B3SS, (model.clip_size,) * 2, mode="bilinear")
    dense, first, second = image_features(model, images)
    decoder_guidance = (model.upsample1(first), model.upsample2(second))
    text_BTPE = text_TPE.expand(len(images), -1, -1, -1)
    return aggregate(model.aggregator, dense, decoder_guidance, text_BTPE)


def normalise(model: CATSeg, images: Tensor) -> Tensor:
    """RGB in 0..255 with CLIP's mean and deviation, (B, 3, H, W)."""
    mean, std = (
        255 * torch.tensor(values, device=images.device)[:, None, None]
        for values in (model.clip.mean, model.clip.std)
    )
    return (images - mean) / std


@torch.no_grad()
def scores(model: CATSeg, sample: Sample, text_TPE: Tensor | None = None) -> Tensor:
    """Probabilities (T, height, width) of one image, texts included unless they are given."""
    text = text_embeddings(model) if text_TPE is None else text_TPE
    image = sample["image"].to(model.device).float()
    probabilities = (_sliding if model.evaluation.sliding else _whole)(model, image, text)
    size = (sample.get("height", image.shape[1]), sample.get("width", image.shape[2]))
    return F.interpolate(probabilities, size, mode="bilinear")[0]


def _whole(model: CATSeg, image_3hw: Tensor, text_TPE: Tensor) -> Tensor:
    down, right = (-side % model.evaluation.size_divisibility for side in image_3hw.shape[1:])
    padded = F.pad(normalise(model, image_3hw[None]), (0, right, 0, down))
    return window_logits(model, padded, text_TPE).sigmoid()


def _sliding(model: CATSeg, image_3hw: Tensor, text_TPE: Tensor) -> Tensor:
    canvas, size = model.layout.canvas, model.layout.size
    square = F.interpolate(image_3hw[None], (canvas, canvas), mode="bilinear")
    views = [square[:, :, y : y + size, x : x + size] for y, x in model.layout.corners]
    views.append(F.interpolate(image_3hw[None], (size, size), mode="bilinear"))
    return merge(model, window_logits(model, normalise(model, torch.cat(views)), text_TPE))


def merge(model: CATSeg, logits: Tensor) -> Tensor:
    """Logits of windows and whole view, (V, T, 4 h, 4 w) -> probabilities (1, T, canvas, canvas)."""
    canvas, size = model.layout.canvas, model.layout.size
    probabilities = F.interpolate(logits, (size, size), mode="bilinear").sigmoid()
    whole = F.interpolate(probabilities[-1:], (canvas, canvas), mode="bilinear")
    total, count = torch.zeros_like(whole), torch.zeros_like(whole[:, :1])
    for window, (y, x) in zip(probabilities, model.layout.corners):
        total[:, :, y : y + size, x : x + size] += window
        count[:, :, y : y + size, x : x + size] += 1
    return (total / count + whole) / 2


def loss(model: CATSeg, images_B3SS: Tensor, labels_BSS: Tensor) -> Tensor:
    """Binary cross-entropy with one-hot targets, a scalar; all texts are encoded for it."""
    logits = window_logits(model, normalise(model, images_B3SS.float()), text_embeddings(model))
    logits = F.interpolate(logits, labels_BSS.shape[1:], mode="bilinear")
    valid = labels_BSS != model.ignore_label
    targets = F.one_hot(labels_BSS.where(valid, 0).long(), logits.shape[1]).to(logits)
    targets = (targets * valid[..., None]).permute(0, 3, 1, 2)
    weight = (
        valid[:, None].expand_as(targets).to(logits)
        if model.training_settings.mask_ignored
        else None
    )
    costs = F.binary_cross_entropy_with_logits(logits, targets, weight, reduction="sum")
    return costs / (targets.numel() if weight is None else weight.sum())
