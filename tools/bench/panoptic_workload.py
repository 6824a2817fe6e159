"""Benchmark workloads of panoptic segmentation: mask generator, CLIP branches, merge.

Legend: Q queries, K classes, E embedding, C width of the generator, h x w pixels of stride 4,
    H W rows and columns of the canvas.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import plain_panoptic as plain
from bench.case import PartWorkload, noise, seeded
from bench.flops import count_flops, pooling_flops, regions_flops, tower_flops
from bench.measure import Run
from clipself_seg.clip.runtime import without_values
from clipself_seg.clip.tower import TransformerTower
from clipself_seg.heads.panoptic.clip_branches import CELLS, DensePooling, MaskedAttention
from clipself_seg.heads.panoptic.generator import CaptionGenerator, GeneratorSizes, QueryPrediction
from clipself_seg.heads.panoptic.panoptic_merge import merge_panoptic
from clipself_seg.heads.panoptic.pixel_decoder import STRIDES

IMAGE, CANVAS = (1024, 1365), (1024, 1408)  # of an image of 480 x 640 in the official test
SIZES, CHANNELS = GeneratorSizes(), 512  # ODISE's generator, and its feature maps
QUERIES, MERGED = 100, 250  # ODISE's; FC-CLIP's, for the merge
COARSE = (64, 88)  # of masks before they are made large


def areas(count: int, size: tuple[int, int]) -> Tensor:
    """Mask logits (count, *size) that divide the image: positive in what is nearest to a random
    place of one's own, and just beyond."""
    y_h, x_w = ((torch.arange(cells) + 0.5) / cells for cells in COARSE)
    places_2Q = torch.rand(2, count, generator=torch.Generator().manual_seed(0))
    rows_Qh1 = (places_2Q[0, :, None] - y_h)[:, :, None]
    columns_Q1w = (places_2Q[1, :, None] - x_w)[:, None]
    nearness_Qhw = -(rows_Qh1**2 + columns_Q1w**2)
    logits = 200 * (nearness_Qhw - nearness_Qhw.amax(dim=0)) + 0.5
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


class PanopticWorkload(PartWorkload):
    """ODISE's sizes with random weights and feature maps, and masks that divide the image."""

    def runs(self) -> dict[str, Run]:
        """Timed runs by name."""
        with without_values():
            outlined, maps = self._new_generator(), self._maps(torch.zeros)
            generator = count_flops(lambda: outlined(maps))
        given = 4 * MERGED * CANVAS[0] * CANVAS[1]
        return {
            **self.pair("generator", self._generate, self._plain_generate, generator),
            **(self._attention_runs() if self._is_transformer else {}),
            **self._dense_runs(),
            **self.pair(
                "merge",
                self._merge,
                self._plain_merge,
                setup=lambda: self.large_masks,
                given=given,
            ),
        }

    @property
    def _is_transformer(self) -> bool:
        """True if there is masked attention of R x R to compare with: not in the one layer of a pool."""
        visual = self.outline.visual
        return isinstance(visual, TransformerTower) and not visual.pooled

    def _attention_runs(self) -> dict[str, Run]:
        flops = regions_flops(self.outline, QUERIES)
        return self.pair("masked attention", self._attend, self._plain_attend, flops)

    def _dense_runs(self) -> dict[str, Run]:
        side = CELLS * self.outline.patch_size
        flops = tower_flops(self.outline.visual, side, self.outline.image_size).dense
        flops += pooling_flops(CELLS**2, self.outline.embed_dim, QUERIES)
        return self.pair("dense pooling", self._pool, self._plain_pool, flops)

    def _new_generator(self) -> CaptionGenerator:
        channels, width = dict.fromkeys(STRIDES, CHANNELS), self.outline.embed_dim
        sizes = dataclasses.replace(SIZES, queries=QUERIES)
        generator = CaptionGenerator(channels=channels, text_width=width, sizes=sizes)
        return generator.eval().requires_grad_(False)

    @functools.cached_property
    def generator(self) -> CaptionGenerator:
        """Random weights."""
        return seeded(self._new_generator).to(self.device)

    def _maps(self, make: Callable[..., Tensor]) -> dict[str, Tensor]:
        """Maps (1, channels, H / stride, W / stride), made by a function of their sizes."""
        rows, columns = CANVAS
        sizes = {name: (rows // stride, columns // stride) for name, stride in STRIDES.items()}
        return {name: make(1, CHANNELS, *size) for name, size in sizes.items()}

    @functools.cached_property
    def features(self) -> dict[str, Tensor]:
        """Random maps."""
        return self._maps(lambda *size: noise(*size).to(self.device))

    def _generate(self, _: None) -> QueryPrediction:
        return self.generator(self.features)[-1]

    def _plain_generate(self, _: None) -> QueryPrediction:
        return plain.plain_predictions(self.generator, self.features)[-1]

    @functools.cached_property
    def image(self) -> Tensor:
        """The image at the size of the test, (3, rows, columns) in [0, 1]."""
        pixels = torch.from_numpy(self.pixels).permute(2, 0, 1)[None].float() / 255
        resized = F.interpolate(pixels, IMAGE, mode="bilinear", align_corners=False)
        return resized[0].to(self.device)

    @functools.cached_property
    def masks(self) -> Tensor:
        """(Q, h, w)"""
        return areas(QUERIES, (CANVAS[0] // 4, CANVAS[1] // 4)).to(self.device)

    @functools.cached_property
    def large_masks(self) -> Tensor:
        """Mask logits (Q, H, W) for the merge."""
        return areas(MERGED, CANVAS).to(self.device)

    def _attend(self, _: None) -> Tensor:
        return MaskedAttention(self.clip).embed(self.image, self.masks, CANVAS)[0]

    def _plain_attend(self, _: None) -> Tensor:
        return plain.plain_masked_attention(MaskedAttention(self.clip), self.image, self.masks)

    def _pool(self, _: None) -> Tensor:
        return DensePooling(self.clip).embed(self.image, self.masks, CANVAS)[0]

    def _plain_pool(self, _: None) -> Tensor:
        return plain.plain_dense_pooling(DensePooling(self.clip), self.image, self.masks, CANVAS)

    @functools.cached_property
    def probs(self) -> Tensor:
        """Probabilities (Q, K + 1) for the merge: most queries are kept."""
        return noise(MERGED, self.case.classes + 1).softmax(dim=1).to(self.device)

    @property
    def _things(self) -> range:
        return range(self.case.classes * 3 // 5)  # first, as in COCO

    def _merge(self, masks: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        return merge_panoptic(self.probs, masks, self._things)

    def _plain_merge(self, masks: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        return plain.plain_panoptic(self.probs, masks, self._things)
