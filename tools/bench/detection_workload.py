"""Benchmark workloads of open-vocabulary detection: each part of F-ViT beside its plain formulation.

Legend: D width of the tower, C channels of the pyramid, E embedding, K classes, n boxes, g x g cells of the tower,
    s x s cells of a level, S side of the square.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.case import IMAGE_SIZE, Case, PartWorkload, seeded
from bench.detection_formulations import (
    Formulation,
    Maps,
    Scored,
    Setting,
    detect,
    our_formulation,
    plain_formulation,
)
from bench.flops import count_flops, pooling_flops, tower_flops
from bench.inputs import (
    KINDS,
    noise,
    random_boxes,
    random_probs,
    random_text,
)
from bench.measure import Run
from clipself_seg.clip.linear import stock_linear
from clipself_seg.clip.runtime import autocast
from clipself_seg.clip.tower import DENSE, TransformerTower
from clipself_seg.errors import InputError
from clipself_seg.heads.fvit.pyramid import (
    CHANNELS,
    RELATIVE_STRIDES,
    FeaturePyramid,
    TapResizers,
)
from clipself_seg.heads.fvit.roi_heads import RoIHeads, TrainingSettings
from clipself_seg.heads.fvit.rpn import RPN

# Parts that are made of matrix products and convolutions, and those that are not.
PRODUCTS = ("tower", "neck", "rpn head", "box head", "mask head")
OTHERS = ("proposals", "roi pooling", "clip scores", "detections", "pasting")
BEHIND = "behind the tower"  # all but the tower
SPREAD = 50 / 512**0.5  # of a detector's logits: its temperature times cosines of random vectors


class Part(NamedTuple):
    """A part of a detector.

    Attributes:
        call: gets a formulation and what `inputs` makes.
        inputs: makes the inputs.
        flops: operations of the part.
    """

    call: Callable[[Formulation, Any], Any]
    inputs: Callable[[], Any]
    flops: int = 0


class DetectionWorkload(PartWorkload):
    """F-ViT with random weights, and parts with made-up inputs."""

    def __init__(self, case: Case) -> None:
        """
        Raises:
            InputError: the model is unknown or no ViT, or its patch does not divide the size.
        """
        super().__init__(case)
        self.kind = KINDS[case.kind]
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
        self.counts = (self.kind.proposals.after, self.kind.settings.rule.most)

    def runs(self) -> dict[str, Run]:
        """Timed runs by name: the parts in their order, all that is behind the tower, and the image."""
        tower = tower_flops(self.outline.visual, self.case.size, self.outline.image_size).dense
        parts = self._parts()
        behind = sum(part.flops for part in parts.values())
        parts = {
            "tower": Part(lambda _, images: self._tower(images), lambda: self.images, tower),
            **parts,
            BEHIND: Part(self._detect, lambda: self.maps, behind),
            "image": Part(
                lambda pieces, images: self._detect(pieces, self._tower(images)),
                lambda: self.images,
                tower + behind,
            ),
        }
        maps = 4 * (4 * self.width + self.outline.embed_dim) * self.cells**2
        runs: dict[str, Run] = {}
        for name, (call, inputs, flops) in parts.items():
            how: dict[str, Any] = {"setup": inputs, "memory": True}
            if name == BEHIND:
                how["given"] = maps  # of the tower
            runs[name] = Run(self._ours(call), flops, **how)
            runs[f"plain {name}"] = Run(self._plain(call), flops, **how)
        return runs

    def _parts(self) -> dict[str, Part]:
        """All parts but the tower."""
        flops = self._flops()
        pooled = pooling_flops(self.cells**2, self.outline.embed_dim, self.counts[0])
        parts = {
            "neck": Part(lambda do, maps: do.levels(maps[0]), lambda: self.maps, flops["neck"]),
            "rpn head": Part(
                lambda do, levels: do.rpn(levels), lambda: self.levels, flops["rpn head"]
            ),
            "proposals": Part(lambda do, given: do.propose(*given), lambda: self.predictions),
            "roi pooling": Part(self._pool, lambda: self.levels),
            "box head": Part(
                lambda do, rois: do.boxes(rois), lambda: self.rois(7), flops["box head"]
            ),
            "clip scores": Part(
                lambda do, maps: do.clip_logits(maps[1], self.boxes[0]), lambda: self.maps, pooled
            ),
            "detections": Part(lambda do, scored: do.select(scored), lambda: self.scored),
        }
        if self.kind.masks:
            parts["mask head"] = Part(
                lambda do, rois: do.mask_probs(rois), lambda: self.rois(14), flops["mask head"]
            )
            parts["pasting"] = Part(lambda do, probs: do.paste(probs, self.pasted), self._probs)
        return parts

    def _ours(self, call: Callable[[Formulation, Any], Any]) -> Callable[[Any], Any]:
        def run(inputs: Any) -> Any:
            with torch.no_grad():
                return call(our_formulation(self.setting), inputs)

        return run

    def _plain(self, call: Callable[[Formulation, Any], Any]) -> Callable[[Any], Any]:
        def run(inputs: Any) -> Any:
            with stock_linear(), torch.no_grad():
                return call(plain_formulation(self.setting), inputs)

        return run

    def _tower(self, images: Tensor) -> tuple[Maps, Tensor]:
        """Taps and unit dense features of one pass."""
        with autocast(self.device, self.precision):
            maps = self.clip.visual.features(images, [*self.taps, DENSE])
        return [maps[name] for name in self.taps], F.normalize(maps[DENSE].float(), dim=1)[0]

    def _detect(self, pieces: Formulation, maps: tuple[Maps, Tensor]) -> Any:
        return detect(pieces, self.setting, *maps)

    def _pool(self, pieces: Formulation, levels: Maps) -> list[Tensor]:
        """Of proposals, and of detections that have masks."""
        sides = (7, 14) if self.kind.masks else (7,)
        return [pieces.pool(levels, boxes, side) for boxes, side in zip(self.boxes, sides)]

    def _flops(self) -> dict[str, int]:
        """Operations of convolutions and linear layers, counted by torch on tensors without memory."""
        with torch.device("meta"), torch.no_grad():
            resizers, neck, rpn, roi_heads = self._new_detector()
            taps = [torch.empty(1, self.width, self.cells, self.cells) for _ in self.taps]
            levels = [torch.empty(1, CHANNELS, *size) for size in self.level_sizes]
            heads: Any = roi_heads
            rois = [torch.empty(n, CHANNELS, s, s) for n, s in zip(self.counts, (7, 14))]
            flops = {
                "neck": count_flops(lambda: neck(taps, resizers)),
                "rpn head": count_flops(lambda: rpn(levels)),
                "box head": count_flops(lambda: heads.bbox_head(rois[0])),
            }
            if self.kind.masks:
                flops["mask head"] = count_flops(lambda: heads.mask_head(rois[1]))
        return flops

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """Rows and columns of P2 to P6."""
        sides = [int(self.cells / factor) for factor in RELATIVE_STRIDES]
        return [(side, side) for side in sides]

    def _new_detector(self) -> tuple[TapResizers, FeaturePyramid, RPN, RoIHeads]:
        kind = self.kind
        strides = [self.outline.patch_size * factor for factor in RELATIVE_STRIDES]
        neck = FeaturePyramid(self.width, CHANNELS)
        rpn = RPN(strides, kind.proposals, channels=CHANNELS, norm=kind.masks)
        how = TrainingSettings(), kind.settings
        embed_dim = self.outline.embed_dim
        heads = RoIHeads(embed_dim, strides, *how, channels=CHANNELS, masks=kind.masks)
        return TapResizers(self.width), neck, rpn, heads

    @functools.cached_property
    def setting(self) -> Setting:
        """Random weights, and random text with a quarter of the classes unseen."""
        parts = seeded(self._new_detector)
        for part in parts:
            part.to(self.device).eval().requires_grad_(False)
        text = random_text(self.case.classes, self.outline.embed_dim).to(self.device)
        seen = torch.arange(self.case.classes, device=self.device) % 4 > 0
        return Setting(*parts, self.precision, text, seen, self.image_size, IMAGE_SIZE)

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

    @functools.cached_property
    def levels(self) -> Maps:
        """Noise in place of P2 to P6, (1, C, s, s) each."""
        return [noise(1, CHANNELS, *size).to(self.device) for size in self.level_sizes]

    @functools.cached_property
    def predictions(self) -> tuple[Maps, Maps]:
        """Noise in place of the RPN's logits and deltas of each level."""
        logits = [noise(1, 3, *size).to(self.device) for size in self.level_sizes]
        deltas = [0.3 * noise(1, 12, *size, seed=1) for size in self.level_sizes]
        return logits, [of_level.to(self.device) for of_level in deltas]

    @functools.cached_property
    def boxes(self) -> list[Tensor]:
        """Proposals and detections (n, 4) in the square, of all sizes."""
        return [random_boxes(count, self.image_size).to(self.device) for count in self.counts]

    @functools.cached_property
    def pasted(self) -> Tensor:
        """Detections (n, 4) in the original image."""
        return random_boxes(self.counts[1], IMAGE_SIZE).to(self.device)

    def rois(self, side: int) -> Tensor:
        """Noise in place of the pooled features of proposals or detections, (n, C, side, side)."""
        proposals, detections = self.counts
        number = detections if side == 14 else proposals
        return noise(number, CHANNELS, side, side).to(self.device)

    def _probs(self) -> Tensor:
        """Smooth masks of detections, (n, 28, 28)."""
        return random_probs(self.counts[1]).to(self.device)

    @functools.cached_property
    def scored(self) -> Scored:
        """Proposals with logits of the detector and of CLIP."""
        size = (self.counts[0], self.case.classes + 1)
        logits = [SPREAD * noise(*size, seed=seed).to(self.device) for seed in (0, 1)]
        return Scored(self.boxes[0], *logits)
