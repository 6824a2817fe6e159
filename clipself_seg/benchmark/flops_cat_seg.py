"""Counts floating-point operations of CAT-Seg: matrix products and convolutions, 2 for a multiply-add.

CLIP's texts have a closed formula, since their length decides. The rest is counted by torch on tensors
without memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipself_seg.clip.prompts import TEMPLATES
from clipself_seg.clip.text import TextTower, texts_at_once
from clipself_seg.heads.cat_seg.cost_aggregator import Guidance
from clipself_seg.models import CATSeg


def text_flops(model: CATSeg, device: torch.device, training: bool = False) -> int:
    """Encoding the vocabulary once; in training with its backward pass for queries and values.

    Texts of like length are encoded together, each batch at the length of its longest; the device says how many.
    """
    tower: Any = model.clip.text
    templates = TEMPLATES[model.texts.templates]
    prompts = [t.format(name) for names in model.names for name in names for t in templates]
    tokens = model.clip.tokenize(prompts)
    order = tower.lengths(tokens).argsort()
    batches = tokens[order].split(texts_at_once(device, training))
    if not isinstance(model.clip.text, TextTower):
        return sum(_counted_texts(model, batch, training) for batch in batches)
    lengths = [tower.lengths(batch) + 1 for batch in batches]
    block = tower.transformer.resblocks[0]
    width, depth = len(block.ln_1.weight), len(tower.transformer.resblocks)
    linear = 4 * width**2 + 2 * block.mlp.c_fc.weight.numel()
    projection = 2 * width * model.clip.embed_dim
    total = 0
    for batch in lengths:
        length = int(batch.max())
        attention = 4 * length**2 * width
        text = depth * (2 * length * linear + attention) + projection
        if training:
            # Every product once more for its input's gradient, attention's for both of its inputs,
            # and the matrices of query, key and value; nothing below the first block trains.
            packed = 6 * length * width**2
            text += depth * (2 * length * linear + 2 * attention + packed) - packed + projection
        total += len(batch) * text
    return total


def _counted_texts(model: CATSeg, tokens: Tensor, training: bool) -> int:
    """What torch counts for a batch of texts of another tower than CLIP's, at the length of its longest."""
    # Where the cost of a text does not depend on its length, all tokens are read.
    length = int(model.clip.text.lengths(tokens).max()) or tokens.shape[1]
    meta = copy.deepcopy(model.clip.text).to("meta").requires_grad_(False)
    learning = zip(meta.parameters(), model.clip.text.parameters(), strict=True)
    for parameter, own in learning:
        parameter.requires_grad_(training and own.requires_grad)
    given = torch.empty(1, length, dtype=torch.long, device="meta")

    def run() -> None:
        encoded = meta.whole(given)
        if training:
            encoded.sum().backward()

    return len(tokens) * count_flops(run)


def feature_flops(model: CATSeg, views: int) -> int:
    """CLIP's dense and guiding features of so many windows."""
    names = ("dense", *model.guidance_blocks)
    return views * _count(model, lambda meta: meta.clip.visual.features(_windows(meta), names))


def upsample_flops(model: CATSeg, views: int) -> int:
    """Bringing the guiding features to the decoder's sizes."""

    def run(meta: CATSeg) -> None:
        width = meta.clip.visual.feature_shapes()[meta.guidance_blocks[0]][0]
        x = torch.empty(1, width, *meta.aggregator.sizes.grid, device="meta")
        meta.upsample1(x)
        meta.upsample2(x)

    return views * _count(model, run)


def aggregator_flops(model: CATSeg, views: int) -> int:
    """From features and texts to logits, the vocabulary for every window."""
    sizes = model.aggregator.sizes
    rows, columns = sizes.grid

    def run(meta: CATSeg) -> None:
        dense = torch.empty(sizes.text, rows, columns, device="meta")
        first, second = (
            torch.empty(channels, scale * rows, scale * columns, device="meta")
            for channels, scale in zip(sizes.decoder_guidance, (2, 4))
        )
        meta.aggregator(dense, Guidance(dense, (first, second)), _texts(meta))

    return views * _count(model, run)


def step_flops(model: CATSeg, batch: int) -> int:
    """Forward and backward pass of a batch, without the texts'."""
    meta = _on_meta(model)
    text = _texts(meta).requires_grad_()
    meta.texts.embed = lambda names: text  # type: ignore[method-assign]
    side = meta.layout.size
    samples = [
        {
            "image": torch.empty(3, side, side, device="meta"),
            "sem_seg": torch.empty(side, side, dtype=torch.long, device="meta"),
        }
    ] * batch
    return count_flops(lambda: meta(samples)["loss_sem_seg"].backward())


def count_flops(function: Callable[[], Any]) -> int:
    """Operations that torch counts."""
    # torch's counter knows attention as two matrix products, not as the fused kernel of the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def _count(model: CATSeg, function: Callable[[CATSeg], Any]) -> int:
    meta = _on_meta(model).requires_grad_(False)
    with torch.no_grad():
        return count_flops(lambda: function(meta))


def _on_meta(model: CATSeg) -> CATSeg:
    return copy.deepcopy(model).to("meta")


def _windows(model: CATSeg) -> Tensor:
    return torch.empty(1, 3, model.clip_size, model.clip_size, device="meta")


def _texts(model: CATSeg) -> Tensor:
    sizes = model.aggregator.sizes
    return torch.empty(len(model.names), sizes.prompts, sizes.text, device="meta")
