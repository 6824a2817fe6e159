"""F-ViT behind the tower, as the project has it and in a plain formulation, to time both.

Shapes: D width of the tower, E embedding, K classes, n boxes, g x g cells of the tower, H W rows and columns of
    the original image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from torch import Tensor

from bench import plain_detection as plain
from clipself_seg.clip.precision import autocast
from clipself_seg.heads.fvit.boxes import Detected, decode_boxes
from clipself_seg.heads.fvit.pyramid import FeaturePyramid, TapResizers
from clipself_seg.heads.fvit.roi_heads import DELTA_WEIGHTS, MASK_SIDE, RoIHeads
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

    @property
    def scale(self) -> Tensor:
        """Pixels of the square for each pixel of the image, (4,)."""
        (rows, columns), (height, width) = self.image_size, self.original_size
        return self.text.new_tensor([columns / width, rows / height] * 2)


def our_detections(setting: Setting, taps: Maps, dense: Tensor) -> tuple[Detected, Tensor]:
    """Detections of an image as `FViT` makes them, and their masks (n, H, W) bool.

    Args:
        setting: the detector.
        taps: four maps (1, D, g, g).
        dense: unit dense features (E, g, g).
    """
    size, precision = setting.image_size, setting.precision
    with autocast(dense.device, precision):
        levels = setting.neck(taps, setting.resizers)
        logits, deltas = setting.rpn(levels)
    boxes, _ = setting.rpn.propose(logits, deltas, 0, size)
    classes = setting.text, setting.seen, precision
    detected, probs = setting.heads.detect(levels, dense, boxes, size, setting.scale, *classes)
    return detected, paste_masks_in_image(probs, detected.boxes, setting.original_size)


def plain_detections(setting: Setting, taps: Maps, dense: Tensor) -> tuple[Detected, Tensor]:
    """The same in the plain formulation: convolutions and linear layers in the precision, all else in float32."""
    heads, rpn, scale = setting.heads, setting.rpn, setting.scale
    rule, strides, device = heads.settings, heads.strides, dense.device
    assert heads.mask_head is not None
    with autocast(device, setting.precision):
        levels = plain.plain_levels(setting.neck, setting.resizers, taps)
        logits, deltas = plain.plain_rpn(rpn, levels)
    boxes, _ = plain.plain_proposals(logits, deltas, strides, setting.image_size, rpn.rule)
    pooled = plain.plain_pooling(levels, strides, boxes, 7)
    with autocast(device, setting.precision):
        embeddings, moves = plain.plain_box_head(heads.bbox_head, pooled)
    detector = heads.bbox_head.logits(embeddings, setting.text, rule.temperature)
    clip = plain.plain_clip_logits(dense, boxes, strides[2], setting.text, rule.clip_temperature)
    scores = plain.plain_scores(detector, clip, setting.seen, rule.alpha, rule.beta)
    refined = decode_boxes(boxes, moves, setting.image_size, DELTA_WEIGHTS) / scale
    detected = plain.plain_detections(refined, scores[:, :-1], rule.rule)
    pooled = plain.plain_pooling(levels, strides, detected.boxes * scale, MASK_SIDE)
    with autocast(device, setting.precision):
        probs = plain.plain_mask_probs(heads.mask_head, pooled)
    return detected, plain.plain_masks(probs, detected.boxes, setting.original_size)
