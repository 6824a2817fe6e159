"""Counts floating-point operations of a task or a part of it: matrix products and convolutions, 2 for a multiply-add.

torch's own counter counts on tensors without memory, and fvcore's beside it (`counted_by_fvcore`). What a formulation
computes in vain, or twice (activation checkpointing), does not count.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipself_seg.clip import CLIP
from clipself_seg.clip.templates import TEMPLATES
from clipself_seg.clip.text import TextTower, texts_at_once
from clipself_seg.clip.tower import ImageTower, train_last_blocks
from clipself_seg.models import CATSeg


def count_flops(function: Callable[[], object]) -> int:
    """Operations that torch counts."""
    # torch's counter knows attention as two matrix products, not as the fused kernel of the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


# Operators that both counters count, by fvcore's names; its further ones are norms.
ATTENTION = "scaled_dot_product_attention"
PRODUCTS = ("conv", "linear", "matmul", ATTENTION)


def counted_by_fvcore(tower: ImageTower, images: Tensor) -> Counter[str]:
    """Multiply-adds of a tower's dense features by operator, as fvcore counts them; it computes them."""

    class Dense(nn.Sequential):
        """The dense features as a module, which fvcore traces."""

        def forward(self, images: Tensor) -> Tensor:
            return tower.dense(images)

    def attention(inputs: list[Any], outputs: list[Any]) -> int:
        """Two products, in an operator that fvcore does not know."""
        query, key = (value.type().sizes() for value in inputs[:2])
        return 2 * math.prod(query) * int(key[-2])

    with torch.no_grad():
        counted = FlopCountAnalysis(Dense(tower), images).set_op_handle(
            f"aten::{ATTENTION}", attention
        )
        counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counts: Counter[str] = counted.by_operator()
    return counts


class TowerFlops(NamedTuple):
    """Operations for one image.

    Attributes:
        dense: the dense features.
        dense_backward: their backward pass when every block trains; stem and head are frozen.
        image: the image embedding.
    """

    dense: int
    dense_backward: int
    image: int


def tower_flops(tower: ImageTower, dense_size: int, image_size: int) -> TowerFlops:
    """Operations of a tower whose every block trains.

    Args:
        tower: any; one of fake tensors, which cannot be copied, is itself set to train.
        dense_size: side in pixels of the image for dense features.
        image_size: side in pixels of the image for image embeddings.
    """
    first = next(tower.parameters())
    if not isinstance(first, FakeTensor):
        tower = copy.deepcopy(tower).to("meta")
        first = next(tower.parameters())
    train_last_blocks(tower, -1)
    tower.checkpointing = False
    dense_input, crop = (
        torch.zeros(1, 3, side, side, device=first.device) for side in (dense_size, image_size)
    )
    features: list[Tensor] = []
    forward = count_flops(lambda: features.append(tower.dense(dense_input)))
    backward = count_flops(lambda: features.pop().sum().backward())
    with torch.no_grad():
        image = count_flops(lambda: tower(crop))
    return TowerFlops(forward, backward, image)


def text_flops(model: CATSeg, device: torch.device, training: bool = False) -> int:
    """Encoding the vocabulary once; in training with its backward pass.

    Texts of like length are encoded together, each batch at the length of its longest; the device says how many.
    """
    assert isinstance(model.clip, CLIP)
    tower = model.clip.text
    templates = TEMPLATES[model.texts.templates]
    prompts = [t.format(name) for names in model.names for name in names for t in templates]
    tokens = model.clip.tokenize(prompts)
    order = tower.lengths(tokens).argsort()
    batches = tokens[order].split(texts_at_once(device, training))
    return sum(_batch_flops(model, batch, training) for batch in batches)


def _batch_flops(model: CATSeg, tokens: Tensor, training: bool) -> int:
    """Operations for a batch of texts at the length of its longest."""
    assert isinstance(model.clip, CLIP)
    tower = model.clip.text
    length = int(tower.lengths(tokens).max())
    if isinstance(tower, TextTower):
        length += 1  # what it has is the index of the last token
    # Where the cost of a text does not depend on its length, all tokens are read.
    length = length or tokens.shape[1]
    meta = copy.deepcopy(tower).to("meta")
    for parameter, original in zip(meta.parameters(), tower.parameters(), strict=True):
        parameter.requires_grad_(training and original.requires_grad)
    one_text = torch.empty(1, length, dtype=torch.long, device="meta")

    def run() -> None:
        encoded = meta.whole(one_text)
        if training:
            encoded.sum().backward()

    return len(tokens) * count_flops(run)


def step_flops(model: CATSeg, batch: int) -> int:
    """Forward and backward pass of a batch, without the texts'."""
    meta = on_meta(model)
    text = texts_on_meta(meta).requires_grad_()
    meta.texts.embed = lambda names, examples=(): text  # type: ignore[method-assign]
    side = meta.layout.size
    samples = [
        {
            "image": torch.empty(3, side, side, device="meta"),
            "sem_seg": torch.empty(side, side, dtype=torch.long, device="meta"),
        }
    ] * batch
    return count_flops(lambda: meta(samples)["loss_sem_seg"].backward())


def on_meta(model: CATSeg) -> CATSeg:
    """A copy without memory, in float32: that device has no autocast."""
    meta = copy.deepcopy(model).to("meta")
    meta.training_settings = dataclasses.replace(meta.training_settings, precision=None)
    return meta


def texts_on_meta(model: CATSeg) -> Tensor:
    """Embeddings of the model's vocabulary, without memory."""
    sizes = model.aggregator.sizes
    return torch.empty(len(model.names), sizes.prompts, sizes.text, device="meta")


def pooling_flops(cells: int, embed_dim: int, regions: int) -> int:
    """One pooling matrix product of all regions of an image; its backward pass costs as much."""
    return 2 * regions * cells * embed_dim


def window_flops(model: CATSeg, windows: int) -> int:
    """Logits of so many windows for the whole vocabulary, without the texts'."""
    meta = on_meta(model).requires_grad_(False)
    text, side = texts_on_meta(meta), meta.layout.size
    meta.texts.embed = lambda names, examples=(): text  # type: ignore[method-assign]
    window = torch.empty(1, 3, side, side, device="meta")
    with torch.no_grad():
        return windows * count_flops(lambda: meta.window_logits(window))


def regions_flops(clip: CLIP, regions: int) -> int:
    """Operations of regions by masked attention; counted by torch on tensors without memory.

    Args:
        clip: on the meta device, a transformer.
        regions: of one image of the size of CLIP's image embeddings.
    """
    side, grid = clip.image_size, clip.image_size // clip.patch_size
    image = torch.empty(1, 3, side, side, device="meta")
    cells = torch.empty(regions, grid, grid, dtype=torch.bool, device="meta")
    return count_flops(lambda: clip.visual.masked_attention(image, [cells]))
