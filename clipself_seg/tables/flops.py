"""Counts floating-point operations of a task: matrix products and convolutions, 2 for a multiply-add.

OpenAI's ViTs and EVA-02's have closed formulas, tested against torch's own counter; all other towers are counted by
that counter on tensors without memory. What a formulation computes in vain, or twice
(activation checkpointing), does not count.

Legend: N patch tokens, L = 1 + N, D width, E embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.eva import EvaTransformer
from clipself_seg.clip.openai import VisionTransformer
from clipself_seg.clip.prompts import TEMPLATES
from clipself_seg.clip.text import TextTower, texts_at_once
from clipself_seg.clip.tower import ImageTower, TransformerTower, train_last_blocks
from clipself_seg.heads.cat_seg.cost_aggregator import Guidance
from clipself_seg.heads.panoptic.generator import GeneratorSizes
from clipself_seg.heads.panoptic.pixel_decoder import ENCODED, FINEST, STRIDES
from clipself_seg.models import CATSeg


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
    """Operations of a tower.

    Args:
        tower: any.
        dense_size: side in pixels of the image for dense features.
        image_size: side in pixels of the image for image embeddings.
    """
    if isinstance(tower, (VisionTransformer, EvaTransformer)):
        return _transformer_flops(tower, dense_size, image_size)
    return _counted_flops(tower, dense_size, image_size)


def pooling_flops(cells: int, embed_dim: int, regions: int) -> int:
    """One pooling matrix product of all regions of an image; its backward pass costs as much."""
    return 2 * regions * cells * embed_dim


def _transformer_flops(tower: TransformerTower, dense_size: int, image_size: int) -> TowerFlops:
    width, depth, patch = tower.width, len(tower.blocks), tower.patch_size
    mlp = _mlp_weights(tower)

    def stem(tokens: int) -> int:
        return 2 * tokens * 3 * patch**2 * width

    def block(tokens: int) -> int:
        return 2 * tokens * (4 * width**2 + mlp) + 4 * tokens**2 * width

    patches = (dense_size // patch) ** 2
    head = 2 * patches * width * tower.embed_dim
    blocks = (depth - 1) * block(1 + patches) + 2 * patches * (2 * width**2 + mlp)
    crop_patches = (image_size // patch) ** 2
    crop_tokens = 1 + crop_patches
    # The last block of an image embedding: keys and values of all tokens, the rest of one.
    keys_and_values = 2 * crop_tokens * 2 * width**2 + 4 * crop_tokens * width
    class_token = 2 * (2 * width**2 + mlp) + 2 * width * tower.embed_dim
    return TowerFlops(
        dense=stem(patches) + blocks + head,
        dense_backward=2 * blocks + head,  # the head passes a gradient on and gets none
        image=stem(crop_patches) + (depth - 1) * block(crop_tokens) + keys_and_values + class_token,
    )


def _mlp_weights(tower: TransformerTower) -> int:
    mlp: Any = tower.blocks[0].mlp
    if isinstance(tower, EvaTransformer):
        return 3 * mlp.w1.weight.numel()
    return 2 * mlp.c_fc.weight.numel()


def _counted_flops(tower: ImageTower, dense_size: int, image_size: int) -> TowerFlops:
    tower = copy.deepcopy(tower)
    first = next(tower.parameters())
    if not isinstance(first, FakeTensor):  # which has no memory either, and cannot be moved
        first = next(tower.to("meta").parameters())
    train_last_blocks(tower, -1)
    dense_input, crop = (
        torch.zeros(1, 3, side, side, device=first.device) for side in (dense_size, image_size)
    )
    return TowerFlops(*count_tower_flops(tower, dense_input, crop))


def count_tower_flops(
    tower: ImageTower, dense_input: torch.Tensor, crop: torch.Tensor
) -> tuple[int, int, int]:
    """Operations that torch counts for dense features, their backward pass and image embeddings of a batch."""
    # torch's counter knows attention as two matrix products, not as the fused kernel of the CPU.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            features = tower.dense(dense_input)
        with FlopCounterMode(display=False) as backward:
            features.sum().backward()
        with FlopCounterMode(display=False) as image, torch.no_grad():
            tower(crop)
    return forward.get_total_flops(), backward.get_total_flops(), image.get_total_flops()


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


def generator_flops(sizes: GeneratorSizes, channels: int, canvas: tuple[int, int]) -> int:
    """From feature maps to one prediction of the caption model; a closed formula.

    Args:
        sizes: of the generator.
        channels: of the feature maps.
        canvas: rows and columns in pixels.
    """
    cells = {name: canvas[0] // s * (canvas[1] // s) for name, s in STRIDES.items()}
    encoded, finest = sum(cells[name] for name in ENCODED), cells[FINEST]
    width, queries = sizes.width, sizes.queries
    square = width**2
    samples = sizes.heads * len(ENCODED) * sizes.points
    # Value and output, two offsets and a weight for each sample, and the MLP.
    encoder = 2 * square + 3 * width * samples + 2 * width * sizes.encoder_hidden
    pixel_decoder = encoded * (channels * width + sizes.encoder_layers * encoder)
    pixel_decoder += finest * (channels * width + 10 * square)
    query_decoder = 0
    for layer in range(sizes.decoder_layers):
        seen = cells[ENCODED[layer % len(ENCODED)]]
        # Nine square matrices: three of the mask embedding, two and four of the attentions.
        rows = 9 * square + 2 * width * sizes.decoder_hidden + 2 * queries * width
        query_decoder += queries * rows + 3 * queries * seen * width + 2 * seen * square
    prediction = queries * (7 * square + 2 * width) + 2 * queries * finest * width
    return 2 * (pixel_decoder + query_decoder + prediction)


def regions_flops(clip: DenseCLIP, regions: int) -> int:
    """So many regions by masked attention; counted by torch on tensors without memory.

    Args:
        clip: on the meta device, a transformer.
        regions: of one image of the size of CLIP's image embeddings.
    """
    side, grid = clip.image_size, clip.image_size // clip.patch_size
    image = torch.empty(1, 3, side, side, device="meta")
    cells = torch.empty(regions, grid, grid, dtype=torch.bool, device="meta")
    return count_flops(lambda: clip.visual.masked_attention(image, [cells]))
