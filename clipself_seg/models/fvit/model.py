"""F-ViT: a two-stage detector on the taps of a frozen CLIP ViT, whose classes are texts (CLIPSelf, 4.2).

First the model, then how its parts are built from configuration keys, and last how checkpoints are read and written.

Shapes: B images, g x g cells of CLIP's grid, E embedding, K classes, n boxes. Boxes are XYXY in pixels of
the padded square, but for detections, which are in pixels of the original image.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.read import Checkpoint, name_problem
from clipself_seg.checkpoints.zoo import untrained
from clipself_seg.clip import DenseCLIP, TextBank
from clipself_seg.clip.backbone import BackboneTower, build_clip, load_state, other_pixels
from clipself_seg.clip.model import CLIP_MEAN
from clipself_seg.clip.runtime import QUEUES, autocast, constant, on_device
from clipself_seg.clip.text_bank import check_lengths, templates_text
from clipself_seg.clip.tower import DENSE, train_last_blocks
from clipself_seg.clip.weights import load_strictly, to_layout
from clipself_seg.config.keys import CLIP_BACKBONE
from clipself_seg.config.load import evaluation_precision, precision_from_config
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import (
    Vocabulary,
    Words,
    class_names,
    examples_of,
    read_given,
    seen_by_plain_spelling,
)
from clipself_seg.errors import InputError
from clipself_seg.heads.distillation import cosine_distance
from clipself_seg.heads.fusion import fusion_of
from clipself_seg.heads.fvit.boxes import ROI_RULES, Detected, DetectionRule, Objects
from clipself_seg.heads.fvit.pyramid import (
    PYRAMIDS,
    RELATIVE_STRIDES,
    FeaturePyramid,
    TapResizers,
)
from clipself_seg.heads.fvit.roi_heads import (
    TEMPERATURE,
    DetectionSettings,
    RoIHeads,
    TrainingSettings,
    paste_masks,
)
from clipself_seg.heads.fvit.rpn import RPN, ProposalRule
from clipself_seg.models.base import (
    ModelBase,
    as_bytes,
    by_rate_and_kind,
    chosen_classes,
    on_host,
    save_atomically,
    sizes_of,
)
from clipself_seg.models.preservation import frozen_copy, score_divergence
from clipself_seg.models.protocol import FIRST_NAME, Group, Memory, Reading

logger = logging.getLogger(__name__)

Maps = tuple[list[Tensor], list[Tensor], Tensor | None]  # levels, objectness, dense features
BACKGROUND = "background"
BACKBONE = "backbone."
CLIP = "clip."
RESIZERS = ("backbone.interpolate",)
# Text of the training vocabulary (made anew from the text tower), a layer that nothing uses, tables that the
# towers make themselves.
IGNORED = ("roi_head.bbox_head.fc_cls.", "roi_head.bbox_head.all_embeddings")
COUNTER = "num_batches_tracked"
# Entry with the training vocabulary: bytes of a JSON list of lists of names.
NAMES = "training_names"
# Entry with the hash of the CLIP, bytes of its hexadecimal digits, in a checkpoint that holds none.
CLIP_HASH = "clip_hash"


@META_ARCH_REGISTRY.register()
class FViT(ModelBase):
    """Boxes, and masks where the model has a mask head, of the classes that `set_vocabulary` gives.

    Attributes:
        bank: text embeddings of class names by CLIP.
        trained_names: names of each class of the training vocabulary; () before any training.
    """

    purpose = "open-vocabulary detection (F-ViT)"
    memory = Memory(weights=(0.9, 2.4), step=(0.32, 0.6), recomputed=(0.32, 0.6))
    bank: TextBank
    trained_names: tuple[tuple[str, ...], ...] = ()

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        clip: DenseCLIP,
        backbone: TapResizers,
        neck: FeaturePyramid,
        rpn_head: RPN,
        roi_head: RoIHeads,
        blocks: Sequence[int],
        side: int,
        pixels: tuple[Sequence[float], Sequence[float]],
        clip_multiplier: float = 0.0,
        trainable_blocks: int = -1,
        precisions: tuple[torch.dtype | None, torch.dtype | None] = (None, None),
        preservation: float = 0.0,
    ) -> None:
        """
        Args:
            clip: CLIP with a ViT and both towers.
            backbone: resizers of the taps.
            neck: feature pyramid.
            rpn_head: region proposal network.
            roi_head: box head, and mask head or None.
            blocks: the four blocks, from 0, whose outputs are the taps; one may come several times.
            side: side in pixels of the padded square input.
            pixels: mean and standard deviation of RGB values in 0..255.
            clip_multiplier: multiple of the base learning rate at which CLIP's image tower learns; 0 keeps
                it frozen.
            trainable_blocks: number of its last blocks that learn then; -1 for all, with stem and positions.
            precisions: dtypes of autocast in training and in evaluation, or None.
            preservation: weight in training of the objects that the start proposes, see `_divergence`.
        """
        super().__init__()
        self.neck = neck
        self.rpn_head = rpn_head
        self.roi_head = roi_head
        self.clip = clip.eval().requires_grad_(False)
        self.taps = clip.visual.check_names(f"block{index}" for index in blocks)
        self.backbone = backbone
        self.side = side
        for name, values in zip(("pixel_mean", "pixel_std"), pixels, strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.tower_features = tuple(self.taps)
        self.clip_multiplier = clip_multiplier
        self.trainable_blocks = trainable_blocks
        self.precision, self.test_precision = precisions
        self.preservation = preservation
        self._start: tuple[FViT] | None = None
        self.bank = TextBank(clip, "vild63")
        if clip_multiplier:
            self.train_tower()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Reads ``MODEL.{CLIP, FVIT, FUSION}``, ``INPUT.DETECTION.SIDE``, ``TEST.DETECTIONS_PER_IMAGE``,
        ``TEST.PRECISION``, ``SOLVER.{AMP, CLIP_MULTIPLIER}`` and ``SEED``.

        Raises:
            InputError: the tower is no ViT, or values do not fit each other.
        """
        clip = _vit(cfg)
        keys = cfg.MODEL.FVIT
        backbone, neck = _pyramid_parts(cfg, clip)
        strides = [clip.patch_size * factor for factor in RELATIVE_STRIDES]
        clip_multiplier = cfg.SOLVER.CLIP_MULTIPLIER if keys.TRAIN_CLIP else 0.0
        if cfg.MODEL.CLIP.LOW_RANK and not clip_multiplier:
            raise InputError(
                f"MODEL.CLIP.LOW_RANK is {cfg.MODEL.CLIP.LOW_RANK}, and the image tower is frozen: set it to 0, or "
                "MODEL.FVIT.TRAIN_CLIP to True and SOLVER.CLIP_MULTIPLIER above 0"
            )
        return {
            "clip": clip,
            "backbone": backbone,
            "neck": neck,
            "rpn_head": rpn(cfg, strides),
            "roi_head": roi_heads(cfg, strides, clip.embed_dim),
            "blocks": keys.BLOCKS,
            "side": cfg.INPUT.DETECTION.SIDE,
            "pixels": _pixels(cfg, clip),
            "clip_multiplier": clip_multiplier,
            "trainable_blocks": cfg.MODEL.CLIP.TRAINABLE_BLOCKS,
            "precisions": (precision_from_config(cfg), evaluation_precision(cfg)),
            "preservation": cfg.MODEL.PRESERVATION.WEIGHT,
        }

    @classmethod
    def task(cls) -> str:
        """Returns "detection"."""
        return "detection"

    @classmethod
    def require_trained(cls, cfg: CfgNode) -> None:
        """Refuse a random detector."""
        if not cfg.MODEL.WEIGHTS:
            raise untrained(
                "detector", folder="detection/", shipped="mini-fvit", clip=cfg.MODEL.CLIP.NAME
            )

    @classmethod
    def most_proposals(cls, cfg: CfgNode) -> tuple[str, int]:
        """Key that limits the proposals of an image, and its value."""
        return "MODEL.FVIT.PROPOSALS_AFTER", cfg.MODEL.FVIT.PROPOSALS_AFTER

    def train_tower(self) -> None:
        """Lets the image tower learn, but for parameters that no tap depends on."""
        tower = self.clip.visual
        train_last_blocks(tower, self.trainable_blocks, self.taps)
        if self.trainable_blocks == -1:
            groups = tower.layer_groups()
            for parameter in (*groups["stem"], *groups["positions"]):
                parameter.requires_grad_(True)

    @property
    def settings(self) -> DetectionSettings:
        """Exponents, temperatures and thresholds of detection."""
        return self.roi_head.settings

    @property
    def has_masks(self) -> bool:
        """Whether there is a mask head, which trains on masks."""
        return self.roi_head.mask_head is not None

    def train(self, mode: bool = True) -> FViT:
        """Switches the training mode as in every module; CLIP stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def reading(self) -> Reading:
        """How it reads names and images, for the protocol of its numbers."""
        return Reading(
            FIRST_NAME,
            templates_text(self.bank.templates),
            background=f'the word "{BACKGROUND}"',
            features=self.clip.visual.description(),
            scale=f"{self.settings.clip_temperature:g}",
            size=f"padded to {self.side} x {self.side} px",
            precision=self.test_precision,
        )

    def set_vocabulary(
        self,
        words: Words,
        seen: np.ndarray | None = None,
        all_synonyms: bool = False,
    ) -> None:
        """Give the classes; labels are positions in them.

        Args:
            words: text, a file or a built-in name, see `read_words`; a list of names with synonyms, "dog|puppy"; or a
                vocabulary.
            seen: (K,) bool, classes of the training vocabulary. None: those that share a name with the
                vocabulary that the weights were trained on; all of them if that is not known.
            all_synonyms: whether the mean of all names of a class is its text, or the first alone (official).

        Raises:
            InputError: as `class_names`, a name that CLIP cannot read whole, or classes with examples.
            ValueError: `seen` is of another number of classes.
        """
        words = read_given(words)
        if examples_of(words):
            raise InputError(
                "F-ViT finds words alone, for examples make its boxes worse (docs/detection.md): give the words "
                "without examples"
            )
        names = class_names(words, all_synonyms=all_synonyms)
        check_lengths(self.bank.clip, names, self.bank.templates)
        if seen is None and self.trained_names:
            given = words if isinstance(words, Vocabulary) else Vocabulary.from_names(words)
            seen = seen_by_plain_spelling(
                given, Vocabulary.from_names(["|".join(n) for n in self.trained_names])
            )
        self.give_classes(names, seen)

    def text(self) -> Tensor:
        """Unit text embeddings (K + 1, E) of the classes, and of the word "background"."""
        return self.bank.embed_joined((self.names, ((BACKGROUND,),)))

    def setup_training(self, vocabulary: Vocabulary | Sequence[str] | None) -> None:
        """Give the training vocabulary; classes that it does not mark as seen leave the softmax.

        Raises:
            InputError: there are no classes, or none is seen.
        """
        if vocabulary is None:
            raise InputError(
                "F-ViT trains on classes: DATASETS.TRAIN has to name detection data sets"
            )
        # All of them, whatever classes the weights that are fine-tuned had been trained on.
        seen = np.ones(len(vocabulary), dtype=bool)
        if isinstance(vocabulary, Vocabulary) and vocabulary.classes[0].seen is not None:
            seen = vocabulary.seen
            if not seen.any():
                raise InputError(
                    f'vocabulary "{vocabulary.name}" has no seen class, so there is nothing to train on'
                )
        names = class_names(vocabulary)
        self.set_vocabulary(vocabulary, seen)
        self.trained_names = tuple(synonyms for i, synonyms in enumerate(names) if seen[i])
        if self.preservation:
            self._start = frozen_copy(self)

    def optimizer_groups(self, solver: CfgNode) -> list[Group]:
        """Parameter groups: all with weight decay, norms and biases too, CLIP's tower with its own rate."""
        multipliers = [(self.clip, self.clip_multiplier)]
        return by_rate_and_kind(self, multipliers=multipliers, weight_decay=solver.WEIGHT_DECAY)

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, detections of each image in evaluation.

        Args:
            samples: for each image "image" (3, h, w) RGB in 0..255, h and w at most `side`. In training
                "boxes" (k, 4), "labels" (k,), for a model with masks "masks" (k, h, w), and "draw", the
                number that random choices follow from. In evaluation "height" and "width" of the original
                image, by default those of the image itself, and "classes" if those alone are to be found, indices
                in [0, K).

        Returns:
            Losses by name; or for each image "instances", Detectron2's: "pred_boxes", "scores",
            "pred_classes" and, with a mask head, "pred_masks", at the original size.
        """
        self.require_vocabulary()
        if self.training:
            return self.losses(samples)
        with torch.no_grad():
            return self._detect(samples)

    def features(self, images: Tensor, dense: bool) -> tuple[list[Tensor], Tensor | None]:
        """Levels P2 to P6 of normalised images (B, 3, side, side), and unit dense features (B, E, g, g)."""
        names = [*self.taps, DENSE] if dense else self.taps
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.clip_multiplier > 0):
            maps = self.clip.visual.features(images, names)
        levels = self.neck([maps[name] for name in self.taps], self.backbone)
        return levels, F.normalize(maps[DENSE].float(), dim=1) if dense else None

    def preprocess(self, samples: Sequence[Sample]) -> Tensor:
        """Normalised images, then padded at the right and bottom with 0, (B, 3, side, side).

        Raises:
            InputError: an image is larger than the square.
        """
        square = torch.zeros(len(samples), 3, self.side, self.side, device=self.device)
        for canvas, sample in zip(square, samples):
            image = sample["image"].to(self.device, non_blocking=QUEUES).float()
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
            levels, dense = self.features(images, dense=self._start is not None)
            logits, deltas = self.rpn_head(levels)
        objects = self._objects(samples)
        proposals = self._proposals(logits, deltas, samples)
        classes = self.text(), self.seen()
        losses = {
            **self.rpn_head.losses(logits, deltas, objects),
            **self.roi_head.losses(levels, proposals, objects, *classes, self.precision),
        }
        if self._start is not None:
            divergence = self._divergence(*self._start, images, samples, (levels, logits, dense))
            losses["loss_preserved"] = self.preservation * divergence
        return losses

    def _divergence(
        self, start: FViT, images: Tensor, samples: Sequence[Sample], outputs: Maps
    ) -> Tensor:
        """How far the model is from its start, scalar: divergence of objectness, where the start sees objects, and
        cosine distances of the embeddings of its best proposals and of CLIP's dense features.
        """
        levels, logits, dense = outputs
        start.train()  # batch norms as here
        count = max(1, self.roi_head.loss_settings.rois // 4)  # as positive RoIs, at most
        with torch.no_grad(), autocast(self.device, self.precision):
            kept_levels, kept_dense = start.features(images, dense=True)
            kept_logits, kept_deltas = start.rpn_head(kept_levels)
            boxes = [x[:count] for x in start._proposals(kept_logits, kept_deltas, samples)]
            kept_embeddings, _ = start.roi_head.embed(kept_levels, boxes)
        with autocast(self.device, self.precision):
            embeddings, _ = self.roi_head.embed(levels, boxes)
        own, kept = (torch.cat([x.flatten() for x in maps]) for maps in (logits, kept_logits))
        seen = kept.float().sigmoid()
        objectness = (seen * score_divergence(own, kept)).sum() / seen.sum()
        assert dense is not None and kept_dense is not None
        places = cosine_distance(dense.movedim(1, -1), kept_dense.movedim(1, -1))
        objects = cosine_distance(embeddings, kept_embeddings)
        if len(objects):  # the mean of none is no number
            objectness = objectness + objects.mean()
        return objectness + places.mean()

    def _proposals(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], samples: Sequence[Sample]
    ) -> list[Tensor]:
        """Proposals (m, 4) of each image, the best first."""
        sizes = (sizes_of(sample)[0] for sample in samples)
        return [self.rpn_head.propose(logits, deltas, i, size)[0] for i, size in enumerate(sizes)]

    def _objects(self, samples: Sequence[Sample]) -> list[Objects]:
        """The objects of each image, on the device."""
        boxes = [boxes.float() for boxes in on_device(samples, "boxes", self.device)]
        labels = on_device(samples, "labels", self.device)
        masks = on_device(samples, "masks", self.device) if self.has_masks else [None] * len(boxes)
        draws = [sample.get("draw", 0) for sample in samples]
        return [Objects(*of_image) for of_image in zip(boxes, labels, masks, draws)]

    def _detect(self, samples: Sequence[Sample]) -> list[dict[str, Instances]]:
        with autocast(self.device, self.test_precision):
            levels, dense = self.features(self.preprocess(samples), dense=True)
            logits, deltas = self.rpn_head(levels)
        assert dense is not None
        text, seen = self.text(), self.seen()
        outputs = []
        for index, sample in enumerate(samples):
            size, original = sizes_of(sample)
            boxes, _ = self.rpn_head.propose(logits, deltas, index, size)
            scale = _scale(size, original, boxes)
            maps = [level[index : index + 1] for level in levels], dense[index]
            chosen = chosen_classes(sample, self.device)
            classes = (text, seen)
            if chosen is not None:
                classes = (torch.cat([text[chosen], text[-1:]]), seen[chosen])
            detected, masks = self.roi_head.detect(
                *maps, boxes, size, scale, *classes, self.test_precision
            )
            if chosen is not None:
                detected = detected._replace(labels=chosen[detected.labels])
            instances = _as_instances(detected, original)
            if masks is not None:
                instances.pred_masks = paste_masks(masks, detected.boxes, original)
            outputs.append({"instances": instances})
        return outputs

    @torch.no_grad()
    def propose(self, samples: Sequence[Sample]) -> list[tuple[Tensor, Tensor]]:
        """Proposals of the RPN, in evaluation mode; they know no classes, so no vocabulary is needed.

        Args:
            samples: as for `forward`.

        Returns:
            For each image boxes (m, 4) in pixels of the original image, the best first, and their scores (m,)
            in [0, 1].
        """
        with autocast(self.device, self.test_precision):
            levels, _ = self.features(self.preprocess(samples), dense=False)
            logits, deltas = self.rpn_head(levels)
        proposals = []
        for index, sample in enumerate(samples):
            size, original = sizes_of(sample)
            boxes, scores = self.rpn_head.propose(logits, deltas, index, size)
            # Rounding may lead out of the image.
            limits = constant([original[1], original[0]] * 2, boxes)
            boxes = torch.minimum(boxes / _scale(size, original, boxes), limits)
            proposals.append((boxes, scores))
        return proposals

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Loads ``MODEL.WEIGHTS``, a checkpoint of this project or a released one, and logs a report.

        Raises:
            InputError: missing, unexpected or misshapen tensors; a checkpoint of another model or tower; a
                released checkpoint, and MODEL.CLIP.WEIGHTS gives no text tower.
        """
        given = dict(tensors)
        if not any(name.startswith("rpn_head.") for name in given):
            raise InputError(
                f"{source} is no F-ViT checkpoint: it has no region proposal network; a CLIP belongs in "
                "MODEL.CLIP.WEIGHTS"
            )
        names = given.pop(NAMES, None)
        clip_hash = given.pop(CLIP_HASH, None)
        ignored = [n for n in given if n.startswith(IGNORED)]
        for name in ignored:
            del given[name]
        clip = {
            name.removeprefix(BACKBONE): given.pop(name)
            for name in list(given)
            if name.startswith(BACKBONE) and not name.startswith(RESIZERS)
        }
        _load_detector(self, given, source)
        if clip_hash is None:
            _load_clip(self, clip, source)
        else:
            _check_clip(self, clip_hash, source)
        if names is not None:
            self.trained_names = _read_names(names, source)
        logger.info(
            "FViT <- %s: %d tensors of the detector and %d of CLIP loaded, 0 missing, 0 unexpected, %d ignored",
            source,
            len(given),
            len(clip),
            len(ignored),
        )

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes all weights under the official names, with both towers of CLIP, atomically."""
        own = on_host(self.state_dict())
        clip = {n.removeprefix(CLIP): t for n, t in own.items() if n.startswith(CLIP)}
        official = to_layout(clip, self.clip.architecture.kind)
        state = {f"{BACKBONE}{name}": tensor for name, tensor in official.items()}
        state |= {n: t for n, t in own.items() if not n.startswith(CLIP)}
        state[NAMES] = as_bytes(json.dumps([list(names) for names in self.trained_names]))
        dense = self.clip.visual.dense_feature.entries_but_of_token()
        save_atomically(path, {"state_dict": state, **dense})

    def original_hash(self) -> str:
        """Hash of the weights that do not train, which have to be the same when a run is resumed."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return hash_tensors(
            {n: t for n, t in self.clip.state_dict().items() if f"clip.{n}" not in trained}
        )


def _vit(cfg: CfgNode) -> DenseCLIP:
    """The CLIP of ``MODEL.CLIP``, whose image tower has to be a ViT that fits ``INPUT.DETECTION.SIDE``.

    Raises:
        InputError: it is none, its patch does not divide the side, or ``MODEL.FVIT.BLOCKS`` are not four.
    """
    clip, side, blocks = build_clip(cfg), cfg.INPUT.DETECTION.SIDE, cfg.MODEL.FVIT.BLOCKS
    if not clip.visual.plain:
        raise InputError(f"F-ViT needs a ViT, whose blocks have one grid, and {clip.name} is none")
    if len(blocks) != 4:
        raise InputError(f"MODEL.FVIT.BLOCKS is {tuple(blocks)}: give four blocks")
    clip.check_side(side, "INPUT.DETECTION.SIDE")
    return clip


def _pixels(cfg: CfgNode, clip: DenseCLIP) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB values in 0..255.

    Raises:
        InputError: other ones than a tower wants that was not trained with CLIP's, for which ImageNet's are official;
            names the key and the values that go with the tower.
    """
    if cfg.MODEL.CLIP.BACKBONE != CLIP_BACKBONE:
        mean, std = (tuple(255 * value for value in values) for values in (clip.mean, clip.std))
        return mean, std
    pixels = tuple(cfg.MODEL.FVIT.PIXEL_MEAN), tuple(cfg.MODEL.FVIT.PIXEL_STD)
    if clip.architecture.kind.mean == CLIP_MEAN:
        return pixels
    for key, given, wanted in other_pixels(cfg.MODEL.FVIT, clip):
        raise InputError(
            f"MODEL.FVIT.{key} is {given}, and {clip.name} was trained with {wanted}: give that"
        )
    return pixels


def _pyramid_parts(cfg: CfgNode, clip: DenseCLIP) -> tuple[TapResizers, FeaturePyramid]:
    """Builds the resizers of the taps, and the feature pyramid.

    Raises:
        InputError: the CLIP lacks a block, or they have several widths.
    """
    keys, shapes = cfg.MODEL.FVIT, clip.visual.feature_shapes()
    taps = clip.visual.check_names(f"block{index}" for index in keys.BLOCKS)
    width = shapes[taps[0]].channels
    if any(shapes[tap].channels != width for tap in taps):
        raise InputError(f"F-ViT reads blocks of one width, those of {clip.name} have several")
    return TapResizers(width), PYRAMIDS[keys.PYRAMID](width, keys.CHANNELS)


def rpn(cfg: CfgNode, strides: Sequence[float]) -> RPN:
    """Builds the region proposal network for levels of these strides."""
    keys = cfg.MODEL.FVIT
    rule = ProposalRule(keys.PROPOSALS_BEFORE, keys.PROPOSALS_AFTER)
    return RPN(strides, rule, channels=keys.CHANNELS, norm=keys.RPN_NORM, seed=cfg.SEED)


def roi_heads(cfg: CfgNode, strides: Sequence[float], embed_dim: int) -> RoIHeads:
    """Builds box head and mask head for levels of these strides and CLIP's embeddings of a width."""
    keys, fusion = cfg.MODEL.FVIT, cfg.MODEL.FUSION
    exponents = fusion_of(fusion.MODE, fusion.ALPHA, fusion.BETA)
    return RoIHeads(
        embed_dim,
        strides,
        TrainingSettings(
            keys.BACKGROUND_WEIGHT, ROI_RULES[keys.LOW_QUALITY], cfg.SEED, keys.ROIS_PER_IMAGE
        ),
        DetectionSettings(
            alpha=exponents.alpha,
            beta=exponents.beta,
            temperature=TEMPERATURE if keys.FIXED_TEMPERATURE else None,
            clip_temperature=keys.CLIP_TEMPERATURE,
            rule=DetectionRule(keys.SCORE_THRESHOLD, keys.NMS_IOU, cfg.TEST.DETECTIONS_PER_IMAGE),
        ),
        channels=keys.CHANNELS,
        masks=keys.MASKS,
    )


def _scale(size: tuple[int, int], original: tuple[int, int], boxes: Tensor) -> Tensor:
    """Pixels of the image that the model sees for each pixel of the original, (4,), as boxes (n, 4) are divided by."""
    return constant([size[1] / original[1], size[0] / original[0]] * 2, boxes)


def _as_instances(detected: Detected, image_size: tuple[int, int]) -> Instances:
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


def _load_detector(model: FViT, given: Mapping[str, Tensor], source: str) -> None:
    own = {n: t for n, t in model.state_dict().items() if not n.startswith(CLIP)}
    counters = {n: t for n, t in own.items() if n.endswith(COUNTER) and n not in given}
    read = {**counters, **given}
    if problem := name_problem(own, read):
        raise InputError(
            f"{source} {problem.what}: {problem.names}; MODEL.FVIT.MASKS and RPN_NORM say which parts there "
            "are (OV-LVIS has both, OV-COCO neither)"
        )
    for name, target in own.items():
        if read[name].shape != target.shape:
            raise InputError(
                f"{source} has {name} of shape {tuple(read[name].shape)}, the model needs "
                f"{tuple(target.shape)}: MODEL.CLIP.NAME and MODEL.FVIT.CHANNELS give the sizes"
            )
    model.load_state_dict(read, strict=False)


def _load_clip(model: FViT, given: Mapping[str, Tensor], source: str) -> None:
    """The tower of the checkpoint, with the text tower that is there if it has none."""
    if isinstance(model.clip.visual, BackboneTower):
        return load_state(model.clip, given, source)
    state = dict(given)
    if not any(name.startswith(("text.", "transformer.", "token_embedding")) for name in state):
        if model.clip.report is None:
            raise InputError(
                f"{source} has no text tower: name the CLIP that it was trained on in MODEL.CLIP.WEIGHTS"
            )
        own = to_layout(model.clip.state_dict(), model.clip.architecture.kind)
        state |= {n: t for n, t in own.items() if not n.startswith("visual.")}
    checkpoint = Checkpoint(Path(source), state, "F-ViT checkpoint")
    device = model.device
    load_strictly(model.clip, model.clip.architecture, checkpoint)
    model.clip.requires_grad_(False)
    if model.clip_multiplier:
        model.train_tower()
    model.clip.to(device)


def _check_clip(model: FViT, stored: Tensor, source: str) -> None:
    """Refuse another CLIP than a checkpoint without one was trained on."""
    own = model.clip.weights_hash()
    if not torch.equal(stored, as_bytes(own)):
        raise InputError(
            f"{source} was trained on another CLIP than the one of MODEL.CLIP.WEIGHTS, {own}: give the former"
        )


def _read_names(stored: Tensor, source: str) -> tuple[tuple[str, ...], ...]:
    try:
        content = json.loads(bytes(stored.tolist()).decode())
        names = tuple(tuple(str(name) for name in synonyms) for synonyms in content)
    except (TypeError, ValueError, RecursionError):
        raise InputError(f"{source}: {NAMES} is no list of class names: export it again") from None
    return names
