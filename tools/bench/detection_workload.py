"""Benchmark workloads of open-vocabulary detection: F-ViT beside its plain formulation.

Legend: D width of the tower, C channels of the pyramid, E embedding, g x g cells of the tower, S side of the square.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.case import IMAGE_SIZE, Case, PartWorkload, noise, seeded
from bench.detection_formulations import Maps, Setting, our_detections, plain_detections
from bench.flops import count_flops, pooling_flops, tower_flops
from bench.measure import Run
from clipself_seg.clip.levers import stock_products
from clipself_seg.clip.precision import autocast
from clipself_seg.clip.tower import DENSE, TransformerTower
from clipself_seg.errors import InputError
from clipself_seg.heads.fvit.boxes import DetectionRule
from clipself_seg.heads.fvit.pyramid import CHANNELS, RELATIVE_STRIDES, FeaturePyramid, TapResizers
from clipself_seg.heads.fvit.roi_heads import DetectionSettings, LossSettings, RoIHeads
from clipself_seg.heads.fvit.rpn import RPN, ProposalRule

BEHIND = "behind the tower"  # all but the tower
RULE, PROPOSALS = DetectionRule(1e-4, 0.5, 300), ProposalRule()  # of OV-LVIS


class DetectionWorkload(PartWorkload):
    """F-ViT with random weights, and parts with made-up inputs."""

    def __init__(self, case: Case) -> None:
        """
        Raises:
            InputError: the model is unknown or no ViT, or its patch does not divide the size.
        """
        super().__init__(case)
        visual = self.outline.visual
        if not isinstance(visual, TransformerTower):
            raise InputError(f"F-ViT needs a ViT, --model is {case.model}")
        self.outline.check_side(case.size)
        self.width = visual.width
        self.cells = case.size // visual.patch_size
        self.image_size = (case.size * IMAGE_SIZE[0] // IMAGE_SIZE[1], case.size)
        depth = len(visual.blocks)
        blocks = (depth * 3 // 12, depth * 5 // 12, depth * 7 // 12, depth - 1)
        self.taps = [f"block{index}" for index in blocks]

    def runs(self) -> dict[str, Run]:
        """Timed runs by name: all that is behind the tower, and the image."""
        tower = tower_flops(self.outline.visual, self.case.size, self.outline.image_size).dense
        behind = self._flops()
        return {
            **self._both(
                BEHIND,
                lambda maps: maps,
                behind,
                setup=lambda: self.maps,
                given=4 * (4 * self.width + self.outline.embed_dim) * self.cells**2,
            ),
            **self._both("image", self._tower, tower + behind, setup=lambda: self.images),
        }

    def _both(
        self, name: str, maps_of: Callable[[Any], tuple[Maps, Tensor]], flops: int, **how: Any
    ) -> dict[str, Run]:
        def ours(inputs: Any) -> Any:
            with torch.no_grad():
                return our_detections(self.setting, *maps_of(inputs))

        def plain(inputs: Any) -> Any:
            with stock_products(), torch.no_grad():
                return plain_detections(self.setting, *maps_of(inputs))

        runs = {name: ours, f"plain {name}": plain}
        return {key: Run(run, flops, **how) for key, run in runs.items()}

    def _tower(self, images: Tensor) -> tuple[Maps, Tensor]:
        """Taps and unit dense features of one pass."""
        with autocast(self.device, self.precision):
            maps = self.clip.features(images, [*self.taps, DENSE])
        return [maps[name] for name in self.taps], F.normalize(maps[DENSE].float(), dim=1)[0]

    def _flops(self) -> int:
        """Operations behind the tower, counted by torch on tensors without memory."""
        with torch.device("meta"), torch.no_grad():
            resizers, neck, rpn, roi_heads = self._new_detector()
            taps = [torch.empty(1, self.width, self.cells, self.cells) for _ in self.taps]
            sides = [int(self.cells / factor) for factor in RELATIVE_STRIDES]  # P2 to P6
            levels = [torch.empty(1, CHANNELS, side, side) for side in sides]
            heads: Any = roi_heads
            numbers = ((PROPOSALS.after, 7), (RULE.most, 14))
            rois = [torch.empty(number, CHANNELS, side, side) for number, side in numbers]
            parts = [
                lambda: neck(taps, resizers),
                lambda: rpn(levels),
                lambda: heads.bbox_head(rois[0]),
                lambda: heads.mask_head(rois[1]),
            ]
            flops = sum(map(count_flops, parts))
        return flops + pooling_flops(self.cells**2, self.outline.embed_dim, PROPOSALS.after)

    def _new_detector(self) -> tuple[TapResizers, FeaturePyramid, RPN, RoIHeads]:
        strides = [self.outline.patch_size * factor for factor in RELATIVE_STRIDES]
        neck = FeaturePyramid(self.width, CHANNELS)
        rpn = RPN(strides, PROPOSALS, channels=CHANNELS, norm=True)
        detection = DetectionSettings(beta=0.6, clip_temperature=50.0, rule=RULE)
        how = LossSettings(), detection
        embed_dim = self.outline.embed_dim
        heads = RoIHeads(embed_dim, strides, *how, channels=CHANNELS, masks=True)
        return TapResizers(self.width), neck, rpn, heads

    @functools.cached_property
    def setting(self) -> Setting:
        """Random weights, and random text with a quarter of the classes unseen."""
        parts = seeded(self._new_detector)
        for part in parts:
            part.to(self.device).eval().requires_grad_(False)
        # Unit vectors, the background last; the words would take hours to encode.
        text = F.normalize(noise(self.case.classes + 1, self.outline.embed_dim), dim=1)
        seen = torch.arange(self.case.classes, device=self.device) % 4 > 0
        return Setting(
            *parts, self.precision, text.to(self.device), seen, self.image_size, IMAGE_SIZE
        )

    @functools.cached_property
    def images(self) -> Tensor:
        """The normalised square (1, 3, S, S), padded with zeros."""
        square = torch.zeros(1, 3, self.case.size, self.case.size)
        square[:, :, : self.image_size[0]] = noise(1, 3, *self.image_size)
        return square.to(self.device)

    @functools.cached_property
    def maps(self) -> tuple[Maps, Tensor]:
        """Noise in place of the four taps (1, D, g, g) and the unit dense features (E, g, g)."""
        grid = (self.cells, self.cells)
        taps = [noise(1, self.width, *grid, seed=seed).to(self.device) for seed in range(4)]
        dense = F.normalize(noise(self.outline.embed_dim, *grid), dim=0)
        return taps, dense.to(self.device)
