"""Operations of parts of the tasks that the benchmark times, beside those that clipself_seg/tables/flops.py counts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clipself_seg.clip import DenseCLIP
from clipself_seg.heads.cat_seg.cost_aggregator import Guidance
from clipself_seg.heads.panoptic.generator import GeneratorSizes
from clipself_seg.heads.panoptic.pixel_decoder import ENCODED, FINEST, STRIDES
from clipself_seg.models import CATSeg
from clipself_seg.tables.flops import count_flops, on_meta, texts_on_meta


def pooling_flops(cells: int, embed_dim: int, regions: int) -> int:
    """One pooling matrix product of all regions of an image; its backward pass costs as much."""
    return 2 * regions * cells * embed_dim


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
        meta.aggregator(dense, Guidance(dense, (first, second)), texts_on_meta(meta))

    return views * _count(model, run)


def _count(model: CATSeg, function: Callable[[CATSeg], object]) -> int:
    meta = on_meta(model).requires_grad_(False)
    with torch.no_grad():
        return count_flops(lambda: function(meta))


def _windows(model: CATSeg) -> Tensor:
    return torch.empty(1, 3, model.clip_size, model.clip_size, device="meta")


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
