"""Detects in two stages behind F-ViT's tower: an RPN proposes boxes, and RoIs are scored against texts.

Shapes: B images, g x g cells of CLIP's grid, E embedding, K classes, n boxes. Boxes are XYXY in pixels of
the padded square, but for detections, which are in pixels of the original image.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from clipself_seg.clip.region_pooling import pool, strided_box_weights
from clipself_seg.clip.runtime import autocast, constant
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.heads.fusion import fuse_detections
from clipself_seg.heads.fvit.box_head import DELTA_WEIGHTS, RoITargets, box_losses
from clipself_seg.heads.fvit.boxes import decode_boxes
from clipself_seg.heads.fvit.detections import Detected, select_detections
from clipself_seg.heads.fvit.feature_pyramid import FeaturePyramid
from clipself_seg.heads.fvit.mask_head import mask_loss, mask_targets
from clipself_seg.heads.fvit.mask_pasting import paste_masks
from clipself_seg.heads.fvit.matching import (
    ROI_SAMPLING,
    RPN_RULE,
    RPN_SAMPLING,
    match_boxes,
    sample_boxes,
)
from clipself_seg.heads.fvit.roi_pooling import pool_boxes
from clipself_seg.heads.fvit.rpn import (
    RPNHead,
    RPNTargets,
    flatten_predictions,
    make_anchors,
    propose,
    rpn_losses,
)
from clipself_seg.models.fvit.parts import DetectionSettings, RoIHeads, TrainingSettings
from clipself_seg.models.inputs import on_device


class _Stage(nn.Module):
    """Strides and settings that both stages share.

    Attributes:
        strides: pixels between the cells of P2 to P6.
        settings: exponents, temperatures and thresholds of detection.
        loss_settings: settings of the losses.
        precision: dtype of autocast in training, or None.
        test_precision: dtype of autocast in evaluation, or None.
    """

    def __init__(
        self,
        strides: Sequence[float],
        training: TrainingSettings,
        settings: DetectionSettings,
        precisions: tuple[torch.dtype | None, torch.dtype | None] = (None, None),
    ) -> None:
        super().__init__()
        self.strides = list(strides)
        self.loss_settings = training
        self.settings = settings
        self.precision = precisions[0]
        self.test_precision = precisions[1]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def _objects(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Boxes (k, 4) of the objects of each image, on the device."""
        return [boxes.float() for boxes in on_device(samples, "boxes", self.device)]

    def _generator(self, sample: Sample, use: str) -> torch.Generator:
        """Generator of the random choices for an image, which depends on seed, draw of the image and use alone."""
        key = zlib.crc32(f"{self.loss_settings.seed} {sample.get('draw', 0)} {use}".encode())
        return torch.Generator().manual_seed(key)


class RPNStage(_Stage):
    """Mixin with the first stage, for modules that have an `rpn_head`."""

    rpn_head: RPNHead
    _anchors: tuple[Any, list[Tensor]] = (None, [])

    def rpn_losses_in(
        self, levels: Sequence[Tensor], samples: Sequence[Sample], sizes: Sequence[tuple[int, int]]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Losses of the RPN by name, scalars, and proposals (m, 4) of each image.

        Args:
            levels: P2 to P6, (B, C, s, s) each.
            samples: B samples with "boxes" (k, 4), and "draw" that random choices follow from.
            sizes: rows and columns of each image in the square.
        """
        with autocast(self.device, self.precision):
            logits, deltas = self.rpn_head(levels)
        anchors = self.anchors(levels)
        all_anchors = torch.cat(anchors)
        logits = [flatten_predictions(x, 1)[..., 0].float() for x in logits]
        deltas = [flatten_predictions(x, 4).float() for x in deltas]
        targets = self._rpn_targets(samples, all_anchors)
        proposals = []
        for index, size in enumerate(sizes):
            own = [x[index].detach() for x in logits], [x[index].detach() for x in deltas]
            proposals.append(propose(*own, anchors, size, self.settings.proposals)[0])
        classification, regression = rpn_losses(logits, deltas, anchors, targets)
        losses = {"loss_rpn_cls": classification.sum(), "loss_rpn_bbox": regression.sum()}
        return losses, proposals

    def anchors(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Anchors of each level, on the device of the levels; made once for all images of one size."""
        sizes = tuple((level.shape[2], level.shape[3]) for level in levels)
        made_for = (sizes, levels[0].device)
        if self._anchors[0] != made_for:
            anchors = [a.to(levels[0].device) for a in make_anchors(sizes, self.strides)]
            self._anchors = (made_for, anchors)
        return self._anchors[1]

    def _rpn_targets(self, samples: Sequence[Sample], anchors: Tensor) -> list[RPNTargets]:
        objects = self._objects(samples)
        assigned = [match_boxes(own, anchors, RPN_RULE) for own in objects]
        generators = [self._generator(sample, "anchors") for sample in samples]
        sampled = sample_boxes(assigned, RPN_SAMPLING, generators)
        return [
            RPNTargets(chosen, own[numbers[chosen.positive] - 1])
            for chosen, own, numbers in zip(sampled, objects, assigned)
        ]

    def propose_in(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        index: int,
        image_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Proposals (m, 4) of one image of a batch, the best first, and their scores (m,) in [0, 1].

        Args:
            logits: the RPN's logits (B, 3, s, s) of each level.
            deltas: its deltas (B, 12, s, s) of each level.
            index: number of the image in the batch.
            image_size: rows and columns of the image in the square.
        """
        own_logits = [flatten_predictions(x[index : index + 1], 1)[0, :, 0].float() for x in logits]
        own_deltas = [flatten_predictions(x[index : index + 1], 4)[0].float() for x in deltas]
        rule = self.settings.proposals
        return propose(own_logits, own_deltas, self.anchors(logits), image_size, rule)


class _RoIs(NamedTuple):
    """Sampled RoIs of an image, positives first.

    Attributes:
        rois: (n, 4).
        labels: (n,) class of each.
        numbers: (n,) number of the object of each from 1, or 0.
        objects: (n, 4) boxes of the objects.
        positives: number of RoIs that have an object.
    """

    rois: Tensor
    labels: Tensor
    numbers: Tensor
    objects: Tensor
    positives: int


class RoIStage(_Stage):
    """Mixin with the second stage, for modules that have a `roi_head`."""

    roi_head: RoIHeads

    def roi_losses(
        self,
        levels: Sequence[Tensor],
        proposals: Sequence[Tensor],
        samples: Sequence[Sample],
        text: Tensor,
        seen: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of box head and mask head for proposals (m, 4) of each image; the rest as `losses_in`."""
        chosen = self._sample_rois(proposals, samples, len(seen))
        boxes = [one.rois for one in chosen]
        targets = RoITargets(
            labels=torch.cat([one.labels for one in chosen]),
            positive=_positives(chosen).to(self.device, non_blocking=True),
            boxes=torch.cat(boxes),
            objects=torch.cat([one.objects for one in chosen]),
        )
        with autocast(self.device, self.precision):
            embeddings, deltas = self.roi_head.bbox_head(self._pool(levels, boxes, 7))
        logits = self.roi_head.bbox_head.logits(embeddings, text)
        classification, regression = box_losses(
            logits, deltas, targets, seen, self.loss_settings.background_weight
        )
        losses = {"loss_cls": classification, "loss_bbox": regression}
        if self.roi_head.mask_head is None:
            return losses
        positive = [one.rois[: one.positives] for one in chosen]
        masks = [
            own[one.numbers[: one.positives] - 1]
            for own, one in zip(on_device(samples, "masks", self.device), chosen)
        ]
        with autocast(self.device, self.precision):
            predicted = self.roi_head.mask_head(self._pool(levels, positive, 14))
        square = (levels[0].shape[2] * self.strides[0], levels[0].shape[3] * self.strides[0])
        wanted = mask_targets(positive, masks, square)
        return losses | {"loss_mask": mask_loss(predicted, wanted)}

    def _pool(self, levels: Sequence[Tensor], boxes: Sequence[Tensor], side: int) -> Tensor:
        return pool_boxes(levels, self.strides, boxes, side)

    def _sample_rois(
        self, proposals: Sequence[Tensor], samples: Sequence[Sample], background: int
    ) -> list[_RoIs]:
        objects = self._objects(samples)
        numbers = [
            torch.cat(
                [
                    torch.arange(1, len(own) + 1, device=self.device),
                    match_boxes(own, proposed, self.loss_settings.roi_rule),
                ]
            )
            for own, proposed in zip(objects, proposals, strict=True)
        ]
        rule = ROI_SAMPLING._replace(number=self.loss_settings.rois)
        generators = [self._generator(sample, "rois") for sample in samples]
        sampled = sample_boxes(numbers, rule, generators)
        parts = objects, on_device(samples, "labels", self.device), proposals, numbers, sampled
        chosen = []
        for own, labels, proposed, number, (positive, negative) in zip(*parts):
            both = torch.cat([positive, negative])
            number = number[both]
            # Row 0 stands for no object.
            padded = torch.cat([own.new_zeros(1, 4), own])
            classes = torch.cat([labels.new_full((1,), background), labels])
            rois = torch.cat([own, proposed])[both]
            chosen.append(_RoIs(rois, classes[number], number, padded[number], len(positive)))
        return chosen

    def select_in(
        self,
        levels: Sequence[Tensor],
        dense: Tensor,
        proposals: Tensor,
        image_size: tuple[int, int],
        scale: Tensor,
        text: Tensor,
        seen: Tensor,
    ) -> Detected:
        """Selects the best detections of one image among its proposals, with boxes divided by `scale`.

        Args:
            levels: P2 to P6, (1, C, s, s) each.
            dense: unit dense features (E, g, g).
            proposals: (n, 4).
            image_size: rows and columns of the image in the square.
            scale: pixels of the square for each pixel of the result, (4,).
            text: (K + 1, E), background last.
            seen: (K,) bool, classes of the training vocabulary.
        """
        scores, boxes = self.score_boxes(levels, dense, proposals, image_size, text, seen)
        return select_detections(boxes / scale, scores[:, :-1], self.settings.rule)

    def score_boxes(
        self,
        levels: Sequence[Tensor],
        dense: Tensor,
        proposals: Tensor,
        image_size: tuple[int, int],
        text: Tensor,
        seen: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Fused scores (n, K + 1) of proposals, background last, and refined boxes (n, 4).

        Both scores are of the proposal, before it is refined. The arguments are those of `select_in`.
        """
        settings = self.settings
        with autocast(self.device, self.test_precision):
            embeddings, deltas = self.roi_head.bbox_head(self._pool(levels, [proposals], 7))
        detector = self.roi_head.bbox_head.logits(embeddings, text, settings.temperature)
        clip_logits = self.clip_logits(dense, proposals, text)
        scores = fuse_detections(detector, clip_logits, seen, settings.alpha, settings.beta)
        return scores, decode_boxes(proposals, deltas, image_size, DELTA_WEIGHTS)

    def clip_logits(self, dense: Tensor, proposals: Tensor, text: Tensor) -> Tensor:
        """CLIP's logits (n, K + 1) of proposals, read from the dense features; the arguments are those of
        `select_in`."""
        grid = (dense.shape[1], dense.shape[2])
        weights = strided_box_weights(proposals, self.strides[2], grid)
        regions = F.normalize(pool(dense, weights), dim=1)
        return self.settings.clip_temperature * (regions @ text.T)

    def mask_scores(self, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Scores (m, 28, 28) in [0, 1] of the mask in boxes (m, 4) of one image, of a model with masks."""
        assert self.roi_head.mask_head is not None
        with autocast(self.device, self.test_precision):
            logits = self.roi_head.mask_head(self._pool(levels, [boxes], 14))
        return logits.float().sigmoid()


class TwoStageDetector(RPNStage, RoIStage):
    """Pyramid, RPN and RoI heads; a subclass brings the taps, the dense features and the texts."""

    def __init__(
        self,
        neck: FeaturePyramid,
        rpn_head: RPNHead,
        roi_head: RoIHeads,
        strides: Sequence[float],
        training: TrainingSettings,
        settings: DetectionSettings,
        precisions: tuple[torch.dtype | None, torch.dtype | None],
    ) -> None:
        """
        Args:
            neck: feature pyramid.
            rpn_head: head of the region proposal network.
            roi_head: box head, and mask head or None.
            strides: pixels between the cells of P2 to P6.
            training: settings of the losses.
            settings: settings of detection.
            precisions: dtypes of autocast in training and in evaluation, or None.
        """
        super().__init__(strides, training, settings, precisions)
        self.neck = neck
        self.rpn_head = rpn_head
        self.roi_head = roi_head

    def losses_in(
        self, levels: Sequence[Tensor], samples: Sequence[Sample], text: Tensor, seen: Tensor
    ) -> dict[str, Tensor]:
        """Losses of RPN, box head and mask head by name, scalars.

        Args:
            levels: P2 to P6, (B, C, s, s) each.
            samples: B samples of training, see `FViT.forward`.
            text: (K + 1, E), background last.
            seen: (K,) bool, classes that training shows.
        """
        sizes = [(s["image"].shape[1], s["image"].shape[2]) for s in samples]
        of_rpn, proposals = self.rpn_losses_in(levels, samples, sizes)
        return of_rpn | self.roi_losses(levels, proposals, samples, text, seen)

    def detect_in(
        self,
        levels: Sequence[Tensor],
        dense: Tensor,
        proposals: Tensor,
        image_size: tuple[int, int],
        original_size: tuple[int, int],
        text: Tensor,
        seen: Tensor,
    ) -> Instances:
        """Detections of one image among its proposals, in pixels of the original image.

        The arguments are those of `select_in`, with rows and columns of the original image in place of a scale.
        """
        pixels = [image_size[1] / original_size[1], image_size[0] / original_size[0]] * 2
        scale = constant(pixels, proposals)
        detected = self.select_in(levels, dense, proposals, image_size, scale, text, seen)
        instances = as_instances(detected, original_size)
        if self.roi_head.mask_head is not None:
            scores = self.mask_scores(levels, detected.boxes * scale)
            instances.pred_masks = paste_masks(scores, detected.boxes, original_size)
        return instances


def _positives(chosen: Sequence[_RoIs]) -> Tensor:
    """Which RoIs of a batch have an object, (p,), on the CPU."""
    rows, start = [], 0
    for one in chosen:
        rows.append(torch.arange(start, start + one.positives))
        start += len(one.rois)
    return torch.cat(rows)


def as_instances(detected: Detected, image_size: tuple[int, int]) -> Instances:
    """Detections as Detectron2 has them: "pred_boxes", "scores" and "pred_classes".

    Args:
        detected: of one image.
        image_size: rows and columns of the image that the boxes are of.
    """
    instances = Instances(image_size)
    instances.pred_boxes = Boxes(detected.boxes)
    instances.scores = detected.scores
    instances.pred_classes = detected.labels
    return instances
