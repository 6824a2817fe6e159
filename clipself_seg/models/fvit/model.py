"""F-ViT: a two-stage detector on the taps of a frozen CLIP ViT, whose classes are texts (CLIPSelf, 4.2).

Shapes: B images, g x g cells of CLIP's grid, E embedding, K classes, n boxes. Boxes are XYXY in pixels of
the padded square, but for detections, which are in pixels of the original image.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.clip import DenseCLIP, TextBank
from clipself_seg.clip.precision import autocast
from clipself_seg.clip.region_pooling import box_weights, pool
from clipself_seg.clip.tower import DENSE, TransformerTower
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Vocabulary, class_names, seen_by_synonym
from clipself_seg.errors import InputError
from clipself_seg.heads.fusion import fuse_detections
from clipself_seg.heads.fvit.box_head import DELTA_WEIGHTS, RoITargets, box_losses
from clipself_seg.heads.fvit.boxes import decode_boxes
from clipself_seg.heads.fvit.detections import Detected, select_detections
from clipself_seg.heads.fvit.feature_pyramid import FeaturePyramid
from clipself_seg.heads.fvit.mask_head import mask_loss, mask_targets
from clipself_seg.heads.fvit.matching import (
    ROI_SAMPLING,
    RPN_RULE,
    RPN_SAMPLING,
    match_boxes,
    sample_boxes,
)
from clipself_seg.heads.fvit.resizers import RELATIVE_STRIDES, TapResizers
from clipself_seg.heads.fvit.roi_pooling import pool_boxes
from clipself_seg.heads.fvit.rpn import (
    RPNHead,
    RPNTargets,
    flatten_predictions,
    make_anchors,
    propose,
    rpn_losses,
)
from clipself_seg.models.fvit.config import fvit_parts
from clipself_seg.models.fvit.parts import DetectionSettings, RoIHeads, TrainingSettings
from clipself_seg.models.fvit.weights import export_weights, load_weights
from clipself_seg.models.parameter_groups import Group, by_rate_and_kind
from clipself_seg.models.protocol import Classes

BACKGROUND = "background"


@META_ARCH_REGISTRY.register()
class FViT(nn.Module):
    """Boxes, and masks where the model has a mask head, of the classes that `set_vocabulary` gives.

    Attributes:
        classes: the classes; those of the training vocabulary are seen.
        settings: exponents, temperatures and thresholds of detection.
        trained_names: names of each class of the training vocabulary; () before any training.
    """

    @configurable
    def __init__(
        self,
        *,
        clip: DenseCLIP,
        backbone: TapResizers,
        neck: FeaturePyramid,
        rpn_head: RPNHead,
        roi_head: RoIHeads,
        blocks: Sequence[int],
        side: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        training: TrainingSettings = TrainingSettings(),
        settings: DetectionSettings = DetectionSettings(),
        all_synonyms: bool = False,
        clip_multiplier: float = 0.0,
        precision: torch.dtype | None = None,
        test_precision: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            clip: CLIP with a ViT and both towers.
            backbone: resizers of the taps.
            neck: feature pyramid.
            rpn_head: head of the region proposal network.
            roi_head: box head, and mask head or None.
            blocks: the four blocks, from 0, whose outputs are the taps; one may come several times.
            side: side in pixels of the padded square input.
            pixel_mean: mean of RGB values in 0..255.
            pixel_std: standard deviation of RGB values.
            training: settings of the losses.
            settings: settings of detection.
            all_synonyms: whether the mean of all names of a class is its text, or the first alone.
            clip_multiplier: multiple of the base learning rate at which CLIP's image tower learns; 0 keeps
                it frozen.
            precision: dtype of autocast in training, or None.
            test_precision: dtype of autocast in evaluation, or None.
            seed: seed of the random choices of anchors and RoIs.

        Raises:
            InputError: the tower is no ViT, lacks a block, or its patch does not divide the side.
        """
        super().__init__()
        if not isinstance(clip.visual, TransformerTower):
            raise InputError(f"F-ViT needs a ViT, MODEL.CLIP.NAME is {clip.name}")
        if len(blocks) != 4:
            raise InputError(f"MODEL.FVIT.BLOCKS is {tuple(blocks)}: give four blocks")
        if side < 1 or side % clip.patch_size:
            raise InputError(
                f"INPUT.DETECTION.SIDE is {side}, which the patch of {clip.name}, {clip.patch_size}, "
                "does not divide"
            )
        self.clip = clip.eval().requires_grad_(False)
        self.taps = clip.visual.check_names(f"block{index}" for index in blocks)
        self.backbone = backbone
        self.neck = neck
        self.rpn_head = rpn_head
        self.roi_head = roi_head
        self.side = side
        self.strides = [clip.patch_size * factor for factor in RELATIVE_STRIDES]
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), False)
        self.loss_settings = training
        self.settings = settings
        self.all_synonyms = all_synonyms
        self.clip_multiplier = clip_multiplier
        self.precision = precision
        self.test_precision = test_precision
        self.seed = seed
        self.bank = TextBank(clip, "vild63")
        self.classes = Classes()
        self.trained_names: tuple[tuple[str, ...], ...] = ()
        if clip_multiplier:
            self.train_tower()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Builds the parts from configuration keys, see `fvit_parts`."""
        return fvit_parts(cfg)

    @classmethod
    def task(cls) -> str:
        """Returns "detection"."""
        return "detection"

    @classmethod
    def require_trained(cls, cfg: CfgNode) -> None:
        """Refuse a random detector."""
        if not cfg.MODEL.WEIGHTS:
            raise InputError(
                "MODEL.WEIGHTS is empty, so the detector is random: give a trained checkpoint, such as "
                "the model_final.pth of train_net.py, or --resume"
            )

    @classmethod
    def training_config(cls, cfg: CfgNode) -> CfgNode:
        """The configuration as it is: CLIP has a key of its own."""
        return cfg

    def train_tower(self) -> None:
        """Lets the image tower learn, but for parameters that no tap depends on."""
        tower = self.clip.visual
        deepest = tower.deepest(self.taps)
        used = {"stem", "positions", *(f"block{i}" for i in range(deepest + 1))}
        for name, parameters in tower.layer_groups().items():
            for parameter in parameters:
                parameter.requires_grad_(name in used)
        for parameter in tower.unused_by_dense():
            parameter.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.clip.logit_scale.device

    def train(self, mode: bool = True) -> FViT:
        """Switches the training mode as in every module; CLIP stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def set_vocabulary(
        self, words: Vocabulary | Sequence[str], seen: np.ndarray | None = None
    ) -> None:
        """Give the classes; labels are positions in them.

        Args:
            words: a vocabulary, or names with synonyms, "dog|puppy".
            seen: (K,) bool, classes of the training vocabulary. None: those that share a name with the
                vocabulary that the weights were trained on; all of them if that is not known.

        Raises:
            InputError: as `class_names`.
            ValueError: `seen` is of another number of classes.
        """
        names = class_names(words, all_synonyms=self.all_synonyms)
        if seen is not None and len(seen) != len(names):
            raise ValueError(f"seen has {len(seen)} classes, there are {len(names)}")
        if seen is None and self.trained_names:
            given = words if isinstance(words, Vocabulary) else Vocabulary.from_names(words)
            seen = seen_by_synonym(given, Vocabulary.from_names(["|".join(n) for n in self.trained_names]))
        self.classes = Classes(
            names=names, seen=None if seen is None else np.asarray(seen, dtype=bool)
        )

    def setup_training(self, vocabulary: Vocabulary | Sequence[str] | None) -> None:
        """Give the training vocabulary; classes that it does not mark as seen leave the softmax.

        Raises:
            InputError: there are no classes, or none is seen.
        """
        if vocabulary is None:
            raise InputError("F-ViT trains on classes: DATASETS.TRAIN has to name detection data sets")
        seen = None
        if isinstance(vocabulary, Vocabulary) and vocabulary.classes[0].seen is not None:
            seen = vocabulary.seen
            if not seen.any():
                raise InputError(
                    f'vocabulary "{vocabulary.name}" has no seen class, so there is nothing to train on'
                )
        names = class_names(vocabulary)
        self.set_vocabulary(vocabulary, seen)
        self.trained_names = tuple(
            synonyms for i, synonyms in enumerate(names) if seen is None or seen[i]
        )

    def optimizer_groups(self, solver: CfgNode) -> list[Group]:
        """Parameter groups: all with weight decay, norms and biases too, CLIP's tower with its own rate."""
        decay = solver.WEIGHT_DECAY
        return by_rate_and_kind(
            self,
            multipliers=[(self.clip, self.clip_multiplier)],
            weight_decay=decay,
            norm_decay=decay,
            embedding_decay=decay,
        )

    def after_optimizer_step(self) -> None:
        """Does nothing: what is frozen is not in the optimiser."""

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training, detections of each image in evaluation.

        Args:
            samples: for each image "image" (3, h, w) RGB in 0..255, h and w at most `side`. In training
                "boxes" (k, 4), "labels" (k,), for a model with masks "masks" (k, h, w), and "seed" of the
                random choices. In evaluation "height" and "width" of the original image, by default those
                of the image itself.

        Returns:
            Losses by name; or for each image "instances", Detectron2's: "pred_boxes", "scores",
            "pred_classes" and, with a mask head, "pred_masks", at the original size.
        """
        if not self.classes.names:
            raise RuntimeError("call set_vocabulary before the model")
        if self.training:
            return self.losses(samples)
        with torch.no_grad():
            return self._detect(samples)

    def text(self) -> Tensor:
        """Unit text embeddings (K + 1, E) of the classes, and of the word "background"."""
        return torch.cat([self.bank.embed(self.classes.names), self.bank.embed([(BACKGROUND,)])])

    def features(self, images: Tensor, dense: bool) -> tuple[list[Tensor], Tensor | None]:
        """Levels P2 to P6 of normalised images (B, 3, side, side), and unit dense features (B, E, g, g)."""
        wanted = [*self.taps, DENSE] if dense else self.taps
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.clip_multiplier > 0):
            maps = self.clip.visual.features(images, wanted)
        levels = self.neck([maps[name] for name in self.taps], self.backbone)
        return levels, F.normalize(maps[DENSE].float(), dim=1) if dense else None

    def preprocess(self, samples: Sequence[Sample]) -> Tensor:
        """Normalised images, then padded at the right and bottom with 0, (B, 3, side, side).

        Raises:
            InputError: an image is larger than the square.
        """
        square = torch.zeros(len(samples), 3, self.side, self.side, device=self.device)
        for canvas, sample in zip(square, samples):
            image = sample["image"].to(self.device).float()
            height, width = image.shape[1:]
            if max(height, width) > self.side:
                raise InputError(
                    f"an image of {width} x {height} pixels does not fit into INPUT.DETECTION.SIDE {self.side}"
                )
            canvas[:, :height, :width] = (image - self.pixel_mean) / self.pixel_std
        return square

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Losses of RPN, box head and mask head by name, scalars."""
        images = self.preprocess(samples)
        with autocast(self.device, self.precision):
            levels, _ = self.features(images, dense=False)
            logits, deltas = self.rpn_head(levels)
        anchors = self._anchors(levels)
        logits = [flatten_predictions(x, 1)[..., 0].float() for x in logits]
        deltas = [flatten_predictions(x, 4).float() for x in deltas]
        targets = []
        proposals = []
        for index, sample in enumerate(samples):
            objects = sample["boxes"].to(self.device).float()
            targets.append(self._rpn_targets(objects, torch.cat(anchors), sample))
            own = [x[index].detach() for x in logits], [x[index].detach() for x in deltas]
            size = tuple(sample["image"].shape[1:])
            proposals.append(propose(*own, anchors, size, self.settings.proposals)[0])
        classification, regression = rpn_losses(logits, deltas, anchors, targets)
        of_rpn = {"loss_rpn_cls": classification.sum(), "loss_rpn_bbox": regression.sum()}
        return of_rpn | self.roi_losses(levels, proposals, samples)

    def _anchors(self, levels: Sequence[Tensor]) -> list[Tensor]:
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        return [level.to(self.device) for level in make_anchors(sizes, self.strides)]

    def _generator(self, sample: Sample, use: str) -> torch.Generator:
        """Source of the random choices for an image: of seed, draw of the image and use alone."""
        key = zlib.crc32(f"{self.seed} {sample.get('seed', 0)} {use}".encode())
        return torch.Generator().manual_seed(key)

    def _rpn_targets(self, objects: Tensor, anchors: Tensor, sample: Sample) -> RPNTargets:
        assigned = match_boxes(objects, anchors, RPN_RULE)
        sampled = sample_boxes(assigned, RPN_SAMPLING, self._generator(sample, "anchors"))
        return RPNTargets(sampled, objects[assigned[sampled.positive] - 1])

    def roi_losses(
        self, levels: Sequence[Tensor], proposals: Sequence[Tensor], samples: Sequence[Sample]
    ) -> dict[str, Tensor]:
        """Losses of box head and mask head for proposals (m, 4) of each image."""
        chosen = [self._sample_rois(p, s) for p, s in zip(proposals, samples, strict=True)]
        boxes = [rois for rois, _, _, _ in chosen]
        targets = RoITargets(
            labels=torch.cat([labels for _, labels, _, _ in chosen]),
            positive=torch.cat([number > 0 for _, _, number, _ in chosen]),
            boxes=torch.cat(boxes),
            objects=torch.cat([objects for _, _, _, objects in chosen]),
        )
        with autocast(self.device, self.precision):
            embeddings, deltas = self.roi_head.bbox_head(self._pool(levels, boxes, 7))
        logits = self.roi_head.bbox_head.logits(embeddings, self.text())
        classification, regression = box_losses(
            logits, deltas, targets, self._seen(), self.loss_settings.background_weight
        )
        losses = {"loss_cls": classification, "loss_bbox": regression}
        if self.roi_head.mask_head is None:
            return losses
        positive = [rois[number > 0] for rois, _, number, _ in chosen]
        masks = [
            s["masks"].to(self.device)[number[number > 0] - 1]
            for s, (_, _, number, _) in zip(samples, chosen)
        ]
        with autocast(self.device, self.precision):
            predicted = self.roi_head.mask_head(self._pool(levels, positive, 14))
        return losses | {"loss_mask": mask_loss(predicted, mask_targets(positive, masks))}

    def _pool(self, levels: Sequence[Tensor], boxes: Sequence[Tensor], side: int) -> Tensor:
        return pool_boxes(levels, self.strides, boxes, side)

    def _seen(self) -> Tensor:
        names, _, known = self.classes
        seen = torch.ones(len(names)) if known is None else torch.from_numpy(known)
        return seen.to(self.device).bool()

    def _sample_rois(
        self, proposals: Tensor, sample: Sample
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """RoIs (n, 4), positives first; class, number of the object from 1 or 0, and its box, of each."""
        objects = sample["boxes"].to(self.device).float()
        labels = sample["labels"].to(self.device)
        assigned = match_boxes(objects, proposals, self.loss_settings.roi_rule)
        own = torch.arange(1, len(objects) + 1, device=self.device)
        rois, number = torch.cat([objects, proposals]), torch.cat([own, assigned])
        sampled = sample_boxes(number, ROI_SAMPLING, self._generator(sample, "rois"))
        both = torch.cat([sampled.positive, sampled.negative])
        number = number[both]
        # Row 0 stands for no object.
        padded = torch.cat([objects.new_zeros(1, 4), objects])
        classes = torch.cat([labels.new_full((1,), len(self.classes.names)), labels])
        return rois[both], classes[number], number, padded[number]

    def _detect(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        images = self.preprocess(samples)
        with autocast(self.device, self.test_precision):
            levels, dense = self.features(images, dense=True)
            logits, deltas = self.rpn_head(levels)
        assert dense is not None
        anchors = self._anchors(levels)
        outputs = []
        for index, sample in enumerate(samples):
            size = (sample["image"].shape[1], sample["image"].shape[2])
            own_logits = [flatten_predictions(x[index : index + 1], 1)[0, :, 0].float() for x in logits]
            own_deltas = [flatten_predictions(x[index : index + 1], 4)[0].float() for x in deltas]
            rois, _ = propose(own_logits, own_deltas, anchors, size, self.settings.proposals)
            original = (sample.get("height", size[0]), sample.get("width", size[1]))
            own_levels = [level[index : index + 1] for level in levels]
            instances = self.detect_in(own_levels, dense[index], rois, size, original)
            outputs.append({"instances": instances})
        return outputs

    def detect_in(
        self,
        levels: Sequence[Tensor],
        dense: Tensor,
        proposals: Tensor,
        image_size: tuple[int, int],
        original_size: tuple[int, int],
    ) -> Instances:
        """Detections of one image among its proposals.

        Args:
            levels: P2 to P6, (1, C, s, s) each.
            dense: unit dense features (E, g, g).
            proposals: (n, 4).
            image_size: rows and columns of the image in the square.
            original_size: rows and columns of the original image.
        """
        scores, boxes = self.score_boxes(levels, dense, proposals, image_size)
        scale = boxes.new_tensor(
            [image_size[1] / original_size[1], image_size[0] / original_size[0]] * 2
        )
        detected = select_detections(boxes / scale, scores[:, :-1], self.settings.rule)
        instances = Instances(original_size)
        instances.pred_boxes = Boxes(detected.boxes)
        instances.scores = detected.scores
        instances.pred_classes = detected.labels
        if self.roi_head.mask_head is not None:
            instances.pred_masks = self._masks(levels, detected, scale, original_size)
        return instances

    def score_boxes(
        self,
        levels: Sequence[Tensor],
        dense: Tensor,
        proposals: Tensor,
        image_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Fused scores (n, K + 1) of proposals, background last, and refined boxes (n, 4).

        Both scores are of the proposal, before it is refined.
        """
        settings = self.settings
        text = self.text()
        with autocast(self.device, self.test_precision):
            embeddings, deltas = self.roi_head.bbox_head(self._pool(levels, [proposals], 7))
        detector = self.roi_head.bbox_head.logits(embeddings, text, settings.temperature)
        grid = (dense.shape[1], dense.shape[2])
        weights = box_weights(proposals / (grid[1] * self.clip.patch_size), grid)
        regions = F.normalize(pool(dense, weights), dim=1)
        clip_logits = settings.clip_temperature * (regions @ text.T)
        scores = fuse_detections(
            detector, clip_logits, self._seen(), settings.alpha, settings.beta
        )
        return scores, decode_boxes(proposals, deltas, image_size, DELTA_WEIGHTS)

    def _masks(
        self,
        levels: Sequence[Tensor],
        detected: Detected,
        scale: Tensor,
        original_size: tuple[int, int],
    ) -> Tensor:
        """Masks (m, H, W) bool of detections, pasted into the original image."""
        assert self.roi_head.mask_head is not None
        with autocast(self.device, self.test_precision):
            features = self._pool(levels, [detected.boxes * scale], 14)
            logits = self.roi_head.mask_head(features)
        return paste_masks_in_image(logits.float().sigmoid(), detected.boxes, original_size, 0.5)

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Loads ``MODEL.WEIGHTS``: a checkpoint of this project or a released one, see `load_weights`."""
        load_weights(self, tensors, source)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes all weights under the official names, with both towers of CLIP, atomically."""
        export_weights(self, path)

    def weights_hash(self) -> str:
        """Hash of all weights."""
        return hash_tensors(self.state_dict())

    def original_hash(self) -> str:
        """Hash of the weights that do not train, which have to be the same when a run is resumed."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return hash_tensors(
            {n: t for n, t in self.clip.state_dict().items() if f"clip.{n}" not in trained}
        )
