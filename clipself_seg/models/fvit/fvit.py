"""F-ViT: a two-stage detector on the taps of a CLIP ViT, whose classes are texts (CLIPSelf, 4.2).

Shapes: B images, g x g cells of CLIP's grid, E embedding, K classes, n boxes. Boxes are XYXY in pixels of
the padded square, but for detections, which are in pixels of the original image.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.zoo import untrained
from clipself_seg.clip import TextBank, VisionLanguageBackbone
from clipself_seg.clip.precision import autocast
from clipself_seg.clip.runtime import QUEUES, constant, on_device
from clipself_seg.clip.templates import templates_text
from clipself_seg.clip.text_bank import check_lengths
from clipself_seg.clip.tower import DENSE, train_last_blocks
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.masks import MASK_BYTES, EncodedMasks, encode_masks
from clipself_seg.data.vocabulary import Vocabulary, Words
from clipself_seg.errors import InputError
from clipself_seg.heads.distillation_losses import cosine_distance
from clipself_seg.heads.fvit.boxes import Objects
from clipself_seg.heads.fvit.pyramid import FeaturePyramid, TapResizers
from clipself_seg.heads.fvit.roi_heads import DetectionSettings, RoIHeads
from clipself_seg.heads.fvit.rpn import RPN
from clipself_seg.models.fvit import fvit_checkpoint
from clipself_seg.models.fvit.fvit_config import FViTTraining, InputSettings, parts_from_config
from clipself_seg.models.model_base import ModelBase, chosen_classes, save_atomically, sizes_of
from clipself_seg.models.model_protocols import FIRST_NAME, Classes, Group, Memory, Reading
from clipself_seg.models.optimizer_groups import by_rate_and_kind
from clipself_seg.models.preservation import frozen_copy, score_divergence

Maps = tuple[list[Tensor], list[Tensor], Tensor | None]  # levels, objectness, dense features
BACKGROUND = "background"


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
        clip: VisionLanguageBackbone,
        backbone: TapResizers,
        neck: FeaturePyramid,
        rpn_head: RPN,
        roi_head: RoIHeads,
        inputs: InputSettings,
        training: FViTTraining | None = None,
        test_precision: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            clip: CLIP with a ViT and both towers.
            backbone: resizers of the taps.
            neck: feature pyramid.
            rpn_head: region proposal network.
            roi_head: box head, and mask head or None.
            inputs: settings of images, and of the tower's features that are read.
            training: settings of training, those by default if None.
            test_precision: dtype of autocast in evaluation, or None.
        """
        super().__init__()
        self.neck = neck
        self.rpn_head = rpn_head
        self.roi_head = roi_head
        self.clip = clip.eval().requires_grad_(False)
        self.taps = clip.visual.check_names(f"block{index}" for index in inputs.blocks)
        self.backbone = backbone
        self.side = inputs.side
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (inputs.mean, inputs.std))
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)
        self.tower_features = tuple(self.taps)
        self.training_settings = training or FViTTraining()
        self.test_precision = test_precision
        self._start: tuple[FViT] | None = None
        self.bank = TextBank(clip, "vild63")
        self.train_tower()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Builds the parts from configuration keys, see `parts_from_config`."""
        return parts_from_config(cfg)

    @classmethod
    def task(cls) -> str:
        """Returns "detection"."""
        return "detection"

    @classmethod
    def require_trained(cls, cfg: CfgNode) -> None:
        """Refuses a random detector."""
        if not cfg.MODEL.WEIGHTS:
            raise untrained(
                "detector", folder="detection/", shipped="mini-fvit", clip=cfg.MODEL.CLIP.NAME
            )

    def train_tower(self) -> None:
        """Lets the image tower learn, if its rate is not 0, but for parameters that no tap depends on."""
        tower, training = self.clip.visual, self.training_settings
        if not training.clip_multiplier:
            return
        train_last_blocks(tower, training.trainable_blocks, self.taps)
        if training.trainable_blocks == -1:
            groups = tower.layer_groups()
            for parameter in (*groups["stem"], *groups["positions"]):
                parameter.requires_grad_(True)

    @property
    def settings(self) -> DetectionSettings:
        """Exponents, temperatures and thresholds of detection."""
        return self.roi_head.settings

    @property
    def has_masks(self) -> bool:
        """True if there is a mask head, which trains on masks."""
        return self.roi_head.mask_head is not None

    def stays_frozen(self) -> Iterable[nn.Module]:
        """CLIP, also where its weights learn."""
        return (self.clip,)

    def reading(self) -> Reading:
        """Describes the way from names and images to scores, for the protocol of the numbers."""
        return Reading(
            FIRST_NAME,
            templates_text(self.bank.templates),
            background=f'the word "{BACKGROUND}"',
            features=self.clip.visual.description(),
            scale=f"{self.settings.clip_temperature:g}",
            size=f"padded to {self.side} x {self.side} px",
            precision=self.test_precision,
        )

    def classes_of(
        self, words: Words, seen: np.ndarray | None = None, all_synonyms: bool = False
    ) -> Classes:
        """Reads and checks class names, see `ModelBase.classes_of`.

        Args:
            words: class names; labels are positions in them.
            seen: (K,) bool, classes of the training vocabulary. None: those that share a name with the
                vocabulary that the weights were trained on; all of them if that is not known.
            all_synonyms: whether the mean of all names of a class is its text, or the first alone (official).

        Raises:
            InputError: as there, or classes with examples.
        """
        words = Vocabulary.of(words)
        if words.examples:
            raise InputError(
                "F-ViT finds words alone, for examples make its boxes worse (docs/detection.md): give the words "
                "without examples"
            )
        names = words.names(all_synonyms=all_synonyms)
        check_lengths(self.bank.clip, names, self.bank.templates)
        if seen is None and self.trained_names:
            seen = words.seen_in(Vocabulary.of(self.trained_names, repeats=True))
        return Classes(names, seen=seen)

    def text(self, classes: Classes) -> Tensor:
        """Unit text embeddings (K + 1, E) of classes, and of the word "background"."""
        names, background = classes.names, ((BACKGROUND,),)
        return torch.cat([self.bank.embed_names(own) for own in (names, background)])

    def setup_training(self, vocabulary: Vocabulary | Sequence[str] | None) -> None:
        """Gives the training vocabulary; classes that it does not mark as seen leave the softmax.

        Raises:
            InputError: there are no classes, or none is seen.
        """
        words = self.training_vocabulary(vocabulary)
        # All of them, whatever classes the weights that are fine-tuned had been trained on.
        unmarked = words.classes[0].seen is None
        seen = np.ones(len(words), dtype=bool) if unmarked else words.seen
        if not seen.any():
            raise InputError(
                f'vocabulary "{words.name}" has no seen class, so there is nothing to train on'
            )
        self.set_vocabulary(words, seen)
        self.trained_names = tuple(itertools.compress(words.names(), seen))
        self._start = None  # which a copy would keep
        if self.training_settings.preservation:
            self._start = frozen_copy(self)

    def optimizer_groups(self, solver: CfgNode) -> list[Group]:
        """Parameter groups: all with weight decay, norms and biases too, CLIP's tower with its own rate."""
        multipliers = [(self.clip, self.training_settings.clip_multiplier)]
        return by_rate_and_kind(self, solver, multipliers, kinds=False)

    def forward(
        self, samples: Sequence[Sample], *, classes: Classes | None = None
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, detections of each image in evaluation.

        Args:
            samples: for each image "image" (3, h, w) RGB in 0..255, h and w at most `side`. In training
                "boxes" (k, 4), "labels" (k,), for a model with masks "masks" (k, h, w), and "draw", the
                number that random choices follow from. In evaluation "height" and "width" of the original
                image, by default those of the image itself, and "classes" if those alone are to be found, indices
                in [0, K).
            classes: in evaluation, the result of `classes_of`; None for those that `set_vocabulary` gave.

        Returns:
            Losses by name; or for each image "instances", Detectron2's: "pred_boxes", "scores",
            "pred_classes" and, with a mask head, "pred_masks", at the original size.
        """
        classes = self.given_classes(classes)
        if self.training:
            return self.losses(samples)
        with torch.no_grad():
            with autocast(self.device, self.test_precision):
                levels, dense = self.features(self.preprocess(samples), dense=True)
                logits, deltas = self.rpn_head(levels)
            assert dense is not None
            text, seen = self.text(classes), classes.seen_on(self.device)
            outputs = []
            for index, sample in enumerate(samples):
                size, original = sizes_of(sample)
                boxes, _ = self.rpn_head.propose(logits, deltas, index, size)
                scale = _scale(size, original, boxes)
                maps = [level[index : index + 1] for level in levels], dense[index]
                chosen = chosen_classes(sample, self.device)
                own = (text, seen)
                if chosen is not None:
                    own = (torch.cat([text[chosen], text[-1:]]), seen[chosen])
                detected, masks = self.roi_head.detect(
                    *maps, boxes, size, scale, *own, self.test_precision
                )
                instances = Instances(original)
                instances.pred_boxes = Boxes(detected.boxes)
                instances.scores = detected.scores
                labels = detected.labels
                instances.pred_classes = labels if chosen is None else chosen[labels]
                if masks is not None:
                    instances.pred_masks = _pasted(masks, detected.boxes, original)
                outputs.append({"instances": instances})
            return outputs

    def features(self, images: Tensor, dense: bool) -> tuple[list[Tensor], Tensor | None]:
        """Levels P2 to P6 of normalised images (B, 3, side, side), and unit dense features (B, E, g, g)."""
        names = [*self.taps, DENSE] if dense else self.taps
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and self.training_settings.clip_multiplier > 0
        ):
            maps = self.clip.features(images, names)
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
        images, precision = self.preprocess(samples), self.training_settings.precision
        with autocast(self.device, precision):
            levels, dense = self.features(images, dense=self._start is not None)
            logits, deltas = self.rpn_head(levels)
        objects = self._objects(samples)
        proposals = self._proposals(logits, deltas, samples)
        text, seen = self.text(self.classes), self.classes.seen_on(self.device)
        losses = {
            **self.rpn_head.losses(logits, deltas, objects),
            **self.roi_head.losses(levels, proposals, objects, text, seen, precision),
        }
        if self._start is not None:
            divergence = self._divergence(*self._start, images, samples, (levels, logits, dense))
            losses["loss_preserved"] = self.training_settings.preservation * divergence
        return losses

    def _divergence(
        self, start: FViT, images: Tensor, samples: Sequence[Sample], outputs: Maps
    ) -> Tensor:
        """Distance of the model from its start, scalar: divergence of objectness, where the start sees objects, and
        cosine distances of the embeddings of its best proposals and of CLIP's dense features.
        """
        levels, logits, dense = outputs
        precision = self.training_settings.precision
        start.train()  # batch norms as here
        count = max(1, self.roi_head.loss_settings.rois // 4)  # as positive RoIs, at most
        with torch.no_grad(), autocast(self.device, precision):
            kept_levels, kept_dense = start.features(images, dense=True)
            kept_logits, kept_deltas = start.rpn_head(kept_levels)
            boxes = [x[:count] for x in start._proposals(kept_logits, kept_deltas, samples)]
            kept_embeddings, _ = start.roi_head.embed(kept_levels, boxes)
        with autocast(self.device, precision):
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
        """Loads ``MODEL.WEIGHTS``, see `fvit_checkpoint.read`."""
        fvit_checkpoint.read(self, tensors, source)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes all weights under the official names, with both towers of CLIP, atomically."""
        save_atomically(path, fvit_checkpoint.write(self))

    def original_hash(self) -> str:
        """Hash of the weights that do not train, which have to be the same when a run is resumed."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return hash_tensors(
            {n: t for n, t in self.clip.state_dict().items() if f"clip.{n}" not in trained}
        )


def _scale(size: tuple[int, int], original: tuple[int, int], boxes: Tensor) -> Tensor:
    """Pixels of the image that the model sees for each pixel of the original, (4,), as boxes (n, 4) are divided by."""
    return constant([size[1] / original[1], size[0] / original[0]] * 2, boxes)


def _pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor | EncodedMasks:
    """Masks (n, H, W) bool of an image from those (n, 28, 28) in [0, 1] of its boxes (n, 4)."""
    if len(masks) * math.prod(size) <= MASK_BYTES:
        return paste_masks_in_image(masks, boxes, size).bool()
    parts = (paste_masks_in_image(*one, size) for one in zip(masks.split(1), boxes.split(1)))
    return EncodedMasks(encode_masks(part[0].cpu().numpy() for part in parts))
