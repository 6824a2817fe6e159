"""Counts floating-point operations of panoptic segmentation: matrix products and convolutions, 2 for a multiply-add.

Legend: Q queries, C width of the generator, N cells of a feature map.
"""

from __future__ import annotations

import torch

from clipself_seg.benchmark.flops_cat_seg import count_flops
from clipself_seg.clip import DenseCLIP
from clipself_seg.heads.panoptic.mask_generator import GeneratorSizes
from clipself_seg.heads.panoptic.mask_generator.pixel_decoder import ENCODED, FINEST, STRIDES


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
