"""Runs F-ViT behind the tower, part by part, in the project's formulation and in a plain one, to time both.

Shapes: D width of the tower, E embedding, K classes, n boxes, g x g cells of the tower, H W rows and columns of
    the original image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from torch import Tensor

from bench import plain_detection as plain
from clipself_seg.clip.precision import autocast
from clipself_seg.heads.fusion import fuse_detections
from clipself_seg.heads.fvit.boxes import Detected, decode_boxes, select_detections
from clipself_seg.heads.fvit.pyramid import FeaturePyramid, TapResizers
from clipself_seg.heads.fvit.roi_heads import DELTA_WEIGHTS, RoIHeads, pool_boxes
from clipself_seg.heads.fvit.rpn import RPN

Maps = list[Tensor]


class Setting(NamedTuple):
    """A detector, its classes and the sizes of an image.

    Attributes:
        resizers: of the taps.
        neck: feature pyramid.
        rpn: region proposal network.
        heads: second stage.
        precision: dtype of autocast, or None.
        text: (K + 1, E), background last.
        seen: (K,) bool.
        image_size: rows and columns of the image in the square.
        original_size: H and W.
    """

    resizers: TapResizers
    neck: FeaturePyramid
    rpn: RPN
    heads: RoIHeads
    precision: torch.dtype | None
    text: Tensor
    seen: Tensor
    image_size: tuple[int, int]
    original_size: tuple[int, int]


class Scored(NamedTuple):
    """Boxes and their scores, from which detections are selected.

    Attributes:
        boxes: (n, 4) in pixels of the original image.
        detector_logits: (n, K + 1).
        clip_logits: (n, K + 1).
    """

    boxes: Tensor
    detector_logits: Tensor
    clip_logits: Tensor


class Formulation(NamedTuple):
    """The parts of a detector as functions.

    Attributes:
        levels: four taps (1, D, g, g) -> P2 to P6.
        rpn: levels -> logits and deltas of every anchor of each level.
        propose: logits and deltas -> proposals (n, 4) and their scores (n,).
        pool: levels, boxes (n, 4) and a side -> features (n, C, side, side).
        boxes: features (n, C, 7, 7) -> class embeddings (n, E) and deltas (n, 4).
        clip_logits: unit dense features (E, g, g) and boxes (n, 4) -> CLIP's logits (n, K + 1).
        select: `Scored` -> detections: both scores are fused, and each class suppressed.
        mask_probs: features (n, C, 14, 14) -> masks (n, 28, 28) in [0, 1].
        paste: masks (n, 28, 28) and boxes (n, 4) -> masks (n, H, W) bool.
    """

    levels: Callable[[Maps], Maps]
    rpn: Callable[[Maps], tuple[Maps, Maps]]
    propose: Callable[[Maps, Maps], tuple[Tensor, Tensor]]
    pool: Callable[[Maps, Tensor, int], Tensor]
    boxes: Callable[[Tensor], tuple[Tensor, Tensor]]
    clip_logits: Callable[[Tensor, Tensor], Tensor]
    select: Callable[[Scored], Detected]
    mask_probs: Callable[[Tensor], Tensor]
    paste: Callable[[Tensor, Tensor], Tensor]


def our_formulation(setting: Setting) -> Formulation:
    """The project's."""
    low = partial(_in_low_precision, setting)
    heads: Any = setting.heads
    rule = heads.settings

    def select(scored: Scored) -> Detected:
        logits = scored.detector_logits, scored.clip_logits
        scores = fuse_detections(*logits, setting.seen, rule.alpha, rule.beta)
        return select_detections(scored.boxes, scores[:, :-1], rule.rule)

    return Formulation(
        levels=low(lambda taps: setting.neck(taps, setting.resizers)),
        rpn=low(setting.rpn),
        propose=lambda logits, deltas: setting.rpn.propose(logits, deltas, 0, setting.image_size),
        pool=lambda levels, boxes, side: pool_boxes(levels, heads.strides, [boxes], side),
        boxes=low(heads.bbox_head),
        clip_logits=lambda dense, boxes: heads.clip_logits(dense, boxes, setting.text),
        select=select,
        mask_probs=low(lambda rois: heads.mask_head(rois).float().sigmoid()),
        paste=lambda probs, boxes: paste_masks_in_image(probs, boxes, setting.original_size),
    )


def plain_formulation(setting: Setting) -> Formulation:
    """The plain one."""
    low = partial(_in_low_precision, setting)
    heads: Any = setting.heads
    rule, sizes = heads.settings, (heads.strides, setting.image_size)
    clip = heads.strides[2], setting.text, rule.clip_temperature

    def select(scored: Scored) -> Detected:
        logits = scored.detector_logits, scored.clip_logits
        scores = plain.plain_scores(*logits, setting.seen, rule.alpha, rule.beta)
        return plain.plain_detections(scored.boxes, scores[:, :-1], rule.rule)

    return Formulation(
        levels=low(partial(plain.plain_levels, setting.neck, setting.resizers)),
        rpn=low(partial(plain.plain_rpn, setting.rpn)),
        propose=lambda logits, deltas: plain.plain_proposals(
            logits, deltas, *sizes, setting.rpn.rule
        ),
        pool=lambda levels, boxes, side: plain.plain_pooling(levels, heads.strides, boxes, side),
        boxes=low(partial(plain.plain_box_head, heads.bbox_head)),
        clip_logits=lambda dense, boxes: plain.plain_clip_logits(dense, boxes, *clip),
        select=select,
        mask_probs=low(partial(plain.plain_mask_probs, heads.mask_head)),
        paste=lambda probs, boxes: plain.plain_masks(probs, boxes, setting.original_size),
    )


def _in_low_precision(setting: Setting, function: Callable[..., Any]) -> Callable[..., Any]:
    """Convolutions and linear layers run in the precision of evaluation, all else in float32."""

    def run(*inputs: Any) -> Any:
        with autocast(setting.text.device, setting.precision):
            return function(*inputs)

    return run


def detect(
    pieces: Formulation, setting: Setting, taps: Maps, dense: Tensor
) -> tuple[Detected, Tensor]:
    """Detections of an image, and masks (m, H, W) bool.

    Args:
        pieces: of one formulation.
        setting: that the pieces were made with.
        taps: four maps (1, D, g, g).
        dense: unit dense features (E, g, g).
    """
    heads = setting.heads
    levels = pieces.levels(taps)
    proposals, _ = pieces.propose(*pieces.rpn(levels))
    embeddings, deltas = pieces.boxes(pieces.pool(levels, proposals, 7))
    (rows, columns), (height, width) = setting.image_size, setting.original_size
    scale = proposals.new_tensor([columns / width, rows / height] * 2)
    refined = decode_boxes(proposals, deltas, setting.image_size, DELTA_WEIGHTS)
    logits = heads.bbox_head.logits(embeddings, setting.text)
    scored = Scored(refined / scale, logits, pieces.clip_logits(dense, proposals))
    detected = pieces.select(scored)
    probs = pieces.mask_probs(pieces.pool(levels, detected.boxes * scale, 14))
    return detected, pieces.paste(probs, detected.boxes)
