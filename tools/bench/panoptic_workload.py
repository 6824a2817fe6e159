"""Benchmark workloads of panoptic segmentation: mask generator, CLIP branches, merge.

Two systems read an image and give masks with their embeddings: one frozen ViT with a plain decoder (`OnePass`), and the
same ViT with a pyramid and Mask2Former's decoder, whose masks are named by a second pass (`TwoPasses`).

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
from torch import Tensor, nn

from bench import plain_panoptic as plain
from bench.case import PartWorkload, seeded
from bench.flops import (
    count_flops,
    flops_of_modules,
    pooling_flops,
    regions_flops,
    tower_flops,
)
from bench.inputs import areas, noise
from bench.measure import Run
from clipself_seg.clip import DenseCLIP
from clipself_seg.clip.runtime import without_values
from clipself_seg.clip.tower import TransformerTower
from clipself_seg.heads.panoptic.frozen_clip import (
    CELLS,
    BackbonePooling,
    CLIPPyramid,
    CLIPTaps,
    DensePooling,
    MaskedAttention,
)
from clipself_seg.heads.panoptic.generator import GeneratorSizes, MaskGenerator, QueryPrediction
from clipself_seg.heads.panoptic.panoptic_merge import merge_panoptic
from clipself_seg.heads.panoptic.pixel_decoder import STRIDES
from clipself_seg.heads.panoptic.plain_decoder import PlainDecoder, PlainDecoderSizes

IMAGE, CANVAS = (1024, 1365), (1024, 1408)  # of an image of 480 x 640 in the official test
SIZES, CHANNELS = GeneratorSizes(), 512  # ODISE's generator, and its feature maps
QUERIES, MERGED = 100, 250  # ODISE's; FC-CLIP's, for the merge


class OnePass(nn.Module):
    """Masks of a plain decoder on a frozen ViT, which the dense features of the same pass name."""

    def __init__(self, clip: DenseCLIP, sizes: GeneratorSizes) -> None:
        """Of `sizes` the number of queries is read; the others are those of PMT on the ViT."""
        super().__init__()
        self.source = CLIPTaps(clip, named=True)
        own = PlainDecoderSizes(
            width=self.source.width,
            heads=clip.visual.heads,
            queries=sizes.queries,
            hidden=self.source.width,
            patch=self.source.stride,
        )
        self.decoder = PlainDecoder(
            channels=self.source.channels, text_width=clip.embed_dim, sizes=own
        )
        self.branch = BackbonePooling(clip)

    def forward(self, image: Tensor) -> Tensor:
        """Embeddings (Q, E) of the masks of an image (3, S, S) in [0, 1]."""
        maps = self.source(image[None])
        masks = self.decoder(maps)[-1].mask_logits[0]
        return self.branch.embed(image, masks, backbone_map=maps[self.source.branch_map])[0]


class TwoPasses(nn.Module):
    """Masks of Mask2Former's decoder on a pyramid of a frozen ViT, which names them in a second pass."""

    def __init__(self, clip: DenseCLIP, sizes: GeneratorSizes) -> None:
        super().__init__()
        self.source = CLIPPyramid(clip)
        self.decoder = MaskGenerator(
            channels=self.source.channels, text_width=clip.embed_dim, sizes=sizes
        )
        self.branch = DensePooling(clip)

    def forward(self, image: Tensor) -> Tensor:
        """Embeddings (Q, E) of the masks of an image (3, S, S) in [0, 1]."""
        masks = self.decoder(self.source(image[None]))[-1].mask_logits[0]
        return self.branch.embed(image, masks)[0]


System = OnePass | TwoPasses
SYSTEMS: dict[str, type[System]] = {"one pass": OnePass, "two passes": TwoPasses}


class PanopticWorkload(PartWorkload):
    """ODISE's sizes with random weights and feature maps, and masks that divide the image."""

    @property
    def queries(self) -> int:
        """Q, but in the merge."""
        return self.case.queries or QUERIES

    def runs(self) -> dict[str, Run]:
        """Timed runs by name."""
        with without_values():
            outlined, maps = self._new_generator(), self._maps(torch.zeros)
            generator = count_flops(lambda: outlined(maps))
        given = 4 * self._merged * CANVAS[0] * CANVAS[1]
        memory: dict[str, Any] = {"memory": True}
        return {
            **self.pair("generator", self._generate, self._plain_generate, generator, **memory),
            **(self._attention_runs() if self._is_transformer else {}),
            **self._dense_runs(),
            **(self._system_runs() if self.outline.visual.plain else {}),
            **self.pair(
                "merge",
                self._merge,
                self._plain_merge,
                setup=lambda: self.large_masks,
                given=given,
                **memory,
            ),
        }

    @property
    def _merged(self) -> int:
        return self.case.queries or MERGED

    @property
    def _is_transformer(self) -> bool:
        """Whether there is masked attention of R x R to compare with: not in the one layer of a pool."""
        visual = self.outline.visual
        return isinstance(visual, TransformerTower) and not visual.pooled

    def _attention_runs(self) -> dict[str, Run]:
        flops = regions_flops(self.outline, self.queries)
        return self.pair("masked attention", self._attend, self._plain_attend, flops, memory=True)

    def _dense_runs(self) -> dict[str, Run]:
        side = CELLS * self.outline.patch_size
        flops = tower_flops(self.outline.visual, side, self.outline.image_size).dense
        flops += pooling_flops(CELLS**2, self.outline.embed_dim, self.queries)
        return self.pair("dense pooling", self._pool, self._plain_pool, flops, memory=True)

    def _system_runs(self) -> dict[str, Run]:
        """Each system whole, and its decoder on maps that are given, for a square canvas of the case's size."""
        runs: dict[str, Run] = {}
        side = self.case.size
        for name, kind in SYSTEMS.items():
            with without_values():
                outlined = kind(self.outline, self._sizes).eval().requires_grad_(False)
                image = torch.zeros(3, side, side)
                flops = flops_of_modules(functools.partial(outlined, image))
            total, decoder = flops["Global"], flops[f"{kind.__name__}.decoder"]
            made = functools.cache(functools.partial(self._system, kind))
            whole, part = self._whole_and_part(made)
            runs[name] = Run(self.without_gradients(whole), total, memory=True)
            runs[f"{name}: decoder"] = Run(self.without_gradients(part), decoder)
        return runs

    def _system(self, kind: type[System]) -> System:
        made = seeded(lambda: kind(self.clip, self._sizes))
        return made.eval().requires_grad_(False).to(self.device)

    def _whole_and_part(
        self, made: Callable[[], System]
    ) -> tuple[Callable[[None], Tensor], Callable[[None], QueryPrediction]]:
        """Calls of a system, and of its decoder, whose maps are made once."""
        maps = functools.cache(lambda: made().source(self._canvas[None]))
        return lambda _: made()(self._canvas), lambda _: made().decoder(maps())[-1]

    @functools.cached_property
    def _canvas(self) -> Tensor:
        """The image as a square of the case's size, (3, S, S) in [0, 1]."""
        size = (self.case.size, self.case.size)
        return F.interpolate(self.image[None], size, mode="bilinear", align_corners=False)[0]

    def _new_generator(self) -> MaskGenerator:
        channels, width = dict.fromkeys(STRIDES, CHANNELS), self.outline.embed_dim
        generator = MaskGenerator(channels=channels, text_width=width, sizes=self._sizes)
        return generator.eval().requires_grad_(False)

    @property
    def _sizes(self) -> GeneratorSizes:
        return dataclasses.replace(SIZES, queries=self.queries)

    @functools.cached_property
    def generator(self) -> MaskGenerator:
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
        return areas(self.queries, (CANVAS[0] // 4, CANVAS[1] // 4)).to(self.device)

    @functools.cached_property
    def large_masks(self) -> Tensor:
        """Mask logits (Q, H, W) for the merge."""
        return areas(self._merged, CANVAS).to(self.device)

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
        return noise(self._merged, self.case.classes + 1).softmax(dim=1).to(self.device)

    @property
    def _things(self) -> range:
        return range(self.case.classes * 3 // 5)  # first, as in COCO

    def _merge(self, masks: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        return merge_panoptic(self.probs, masks, self._things)

    def _plain_merge(self, masks: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        return plain.plain_panoptic(self.probs, masks, self._things)
