"""CAT-Seg: the cosines between CLIP's dense features and class names, refined to a segmentation.

The method is that of CAT-Seg (arXiv 2303.11797), in the versions of the configurations in configs/semseg.

Shapes: B images, T classes, P prompts of a class, E embedding, S side of a window in pixels.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from torch import Tensor, nn

from clipself_seg.checkpoints.hashes import hash_tensors
from clipself_seg.checkpoints.zoo import untrained
from clipself_seg.clip import VisionLanguageBackbone
from clipself_seg.clip.layers import split_attention
from clipself_seg.clip.precision import autocast
from clipself_seg.clip.runtime import QUEUES, chunk_size, constant, on_device
from clipself_seg.clip.templates import templates_text
from clipself_seg.clip.text_bank import ClassTexts, check_lengths
from clipself_seg.clip.tower import DENSE
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Names, Vocabulary, Words
from clipself_seg.errors import InputError
from clipself_seg.heads.cat_seg import cost_aggregator
from clipself_seg.heads.cat_seg.attention import COPIES
from clipself_seg.heads.windows import WindowLayout, resize, segmentation
from clipself_seg.models import model_protocols
from clipself_seg.models.cat_seg import cat_seg_checkpoint
from clipself_seg.models.cat_seg.cat_seg_config import (
    GUIDES,
    CATSegEvaluation,
    CATSegTraining,
    clip_parameters,
    parts_from_config,
    training_config,
)
from clipself_seg.models.model_base import ModelBase, chosen_classes, save_atomically, sizes_of
from clipself_seg.models.optimizer_groups import by_rate_and_kind
from clipself_seg.models.preservation import draw_words, frozen_copy, other_words, score_divergence

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@META_ARCH_REGISTRY.register()
class CATSeg(ModelBase):
    """Open-vocabulary semantic segmentation; `set_vocabulary` gives the classes.

    Attributes:
        clip_size: side in pixels of the square images that CLIP is given.
    """

    purpose = "open-vocabulary semantic segmentation (CAT-Seg)"
    memory = model_protocols.Memory(weights=(0.9, 2.4), step=(2.4, 3.3), recomputed=(2.0, 2.0))

    @configurable
    def __init__(
        self,
        *,
        clip: VisionLanguageBackbone,
        aggregator: cost_aggregator.CostAggregator,
        guidance_blocks: Sequence[int] = (),
        backbone: Backbone | None = None,
        all_synonyms: bool = False,
        templates: str = "cat_seg",
        training: CATSegTraining | None = None,
        evaluation: CATSegEvaluation | None = None,
    ) -> None:
        """
        Args:
            clip: CLIP with both towers, whose blocks that guide have the grid of its dense features.
            aggregator: cost aggregation whose sizes fit the CLIP and the guidance.
            guidance_blocks: indices of two blocks of the image tower that guide the decoder, unless
                there is a `backbone`.
            backbone: guides in CLIP's place, with features res4, res3 and res2 (version 1).
            all_synonyms: whether all names of a class go into its prompts, or the first alone.
            templates: prompts around a class name, a name in `templates.TEMPLATES`.
            training: settings of training, those by default if None; other parameters of CLIP get no gradients.
            evaluation: settings of evaluation, those by default if None.
        """
        super().__init__()
        training = training or CATSegTraining()
        self.clip = clip
        self.aggregator = aggregator
        self.clip_size = aggregator.sizes.grid[0] * clip.patch_size
        self.backbone = backbone
        self.guidance_blocks = tuple(f"block{i}" for i in guidance_blocks)
        if backbone is None:
            shapes = clip.visual.feature_shapes()
            widths = [shapes[name].channels for name in self.guidance_blocks]
            first, second = aggregator.sizes.decoder_guidance
            self.upsample1 = nn.ConvTranspose2d(widths[0], first, 2, stride=2)
            self.upsample2 = nn.ConvTranspose2d(widths[1], second, 4, stride=4)
        self.tower_features = (DENSE, *self.guidance_blocks)
        if training.finetune == "attention":
            split_attention(clip)
        clip.requires_grad_(False)
        for parameter in clip_parameters(clip, training.finetune, training.trainable_blocks):
            parameter.requires_grad_(True)
        self.all_synonyms = all_synonyms
        self.layout = WindowLayout()
        self.training_settings = training
        self.evaluation = evaluation or CATSegEvaluation()
        self.ignore_label = training.ignore_label
        self._start: tuple[CATSeg, Names] | None = None
        self.texts = ClassTexts(clip, templates, aggregator.checkpointing)
        # Detectron2's checkpointer reads CAT-Seg's files by it.
        self.register_load_state_dict_pre_hook(cat_seg_checkpoint.rename)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Builds the parts from configuration keys, see `parts_from_config`."""
        return parts_from_config(cfg)

    @classmethod
    def task(cls) -> str:
        """Returns "semantic"."""
        return "semantic"

    @classmethod
    def require_trained(cls, cfg: CfgNode) -> None:
        """Refuses a random cost aggregation, which is evaluated as slowly as a trained one."""
        if not cfg.MODEL.WEIGHTS:
            raise untrained(
                "cost aggregation",
                folder="semseg/",
                shipped="mini-cat-seg",
                clip=cfg.MODEL.CLIP.NAME,
            )

    @classmethod
    def training_config(cls, cfg: CfgNode) -> CfgNode:
        """The configuration with the weights that training starts from, see `cat_seg_config.training_config`."""
        return training_config(cfg)

    def stays_frozen(self) -> Iterable[nn.Module]:
        """Batch norms of a guidance backbone that does not learn: they would go on counting. Swin still drops paths."""
        if self.backbone is None or any(p.requires_grad for p in self.backbone.parameters()):
            return ()
        return (one for one in self.backbone.modules() if isinstance(one, nn.BatchNorm2d))

    def classes_of(
        self, words: Words, seen: np.ndarray | None = None, all_synonyms: bool | None = None
    ) -> model_protocols.Classes:
        """Reads and checks class names, see `ModelBase.classes_of`.

        Args:
            words: class names; scores have one map for each, in this order.
            seen: as there; scores do not depend on it.
            all_synonyms: True if all names of a class count, False if the first alone does; None takes the value
                that the model was built with.
        """
        if all_synonyms is None:
            all_synonyms = self.all_synonyms
        words = Vocabulary.of(words)
        names = words.names(all_synonyms=all_synonyms, catseg_names=True)
        check_lengths(self.clip, names, self.texts.templates)
        # CLIP's tokens are the same where case and spaces alone differ.
        read = (", ".join(" ".join(n.casefold().split()) for n in synonyms) for synonyms in names)
        twice = sorted(name for name, count in Counter(read).items() if count > 1)
        if twice:
            logger.warning(
                "classes of the same name cannot be told apart, the first one wins: %s%s",
                "; ".join(twice),
                "" if all_synonyms else ". MODEL.CAT_SEG.SYNONYMS mean reads all synonyms",
            )
        return model_protocols.Classes(names, seen=seen, examples=words.examples)

    def reading(self) -> model_protocols.Reading:
        """Describes the way from names and images to scores, for the protocol of the numbers."""
        layout = self.layout
        windows = f"{layout.size} px, stride {layout.stride} px, of a canvas of {layout.canvas} px, and the whole image"
        mean, first = model_protocols.MEAN_OF_NAMES, model_protocols.FIRST_NAME
        return model_protocols.Reading(
            f"{mean if self.all_synonyms else first} (of CAT-Seg's entry, where there is one)",
            templates_text(self.texts.templates),
            windows if self.evaluation.sliding else "none",
            features=self.clip.visual.description(),
            size=f"read at {self.clip_size} x {self.clip_size} px"
            + (f"; {model_protocols.MIRRORED}" if self.evaluation.flip else ""),
            precision=self.evaluation.precision,
        )

    def setup_training(self, vocabulary: Vocabulary | Sequence[str] | None) -> None:
        """Gives the training vocabulary.

        Raises:
            InputError: there is no vocabulary, or it has with the preserved words as many classes as the aggregator
                pads to; as `other_words`.
        """
        words, settings = self.training_vocabulary(vocabulary), self.training_settings
        others: Names = ()
        if settings.preservation:
            others = other_words(settings.preserved_words[0], words)
            check_lengths(self.clip, others, self.texts.templates)
        pad_len = self.aggregator.sizes.pad_len
        sample = min(settings.preserved_words[1], len(others))
        if 0 < pad_len <= len(words) + sample:
            # No padding is left to learn from, and classes that a window leaves out have no gradient.
            further = f" and MODEL.PRESERVATION.SAMPLE adds {sample}" if sample else ""
            raise InputError(
                f"MODEL.CAT_SEG.PAD_LEN is {pad_len}, DATASETS.TRAIN has {len(words)} classes{further}: raise "
                "PAD_LEN above the number of classes or set it to 0"
            )
        self.set_vocabulary(words)
        self._start = None  # which a copy would keep
        if others:
            self._start = *frozen_copy(self), others

    def optimizer_groups(self, solver: CfgNode) -> list[model_protocols.Group]:
        """Parameter groups: CLIP and backbone learn at their multiples of ``SOLVER.BASE_LR``; norms and
        embeddings have weight decays of their own, all others, biases and padding tokens too, the common one.
        """
        parts = (self.clip, solver.CLIP_MULTIPLIER), (self.backbone, solver.BACKBONE_MULTIPLIER)
        return by_rate_and_kind(self, solver, parts)

    def forward(
        self,
        samples: Sequence[Sample],
        *,
        classes: model_protocols.Classes | None = None,
        output: str = "scores",
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, a segmentation for each image in evaluation.

        Args:
            samples: for each image "image" (3, h, w) RGB in 0..255; in training "sem_seg" (S, S)
                labels; in evaluation "height" and "width" of the result, by default the image's, and "classes" if
                those alone are to be told apart, indices in [0, T).
            classes: in evaluation, the result of `classes_of`; None for those that `set_vocabulary` gave.
            output: in evaluation, "scores" for (T, height, width) probabilities, or "labels" for the
                best class of every pixel alone, in memory that does not grow with the classes.

        Returns:
            {"loss_sem_seg": scalar}, or for each image {"sem_seg": (T, height, width)}
            probabilities, or if `output` is "labels" {"sem_seg_labels": (height, width) int64,
            "sem_seg_best": their probabilities}.
        """
        classes = self.given_classes(classes)
        if self.training:
            return self.losses(samples)
        results = list[dict[str, Tensor]]()
        with torch.no_grad():
            alone = any("classes" in sample for sample in samples)
            # Memory of an image: the tokens of all its views in a block of CLIP, and their logits.
            views = len(self.layout.corners) + 1 if self.evaluation.sliding else 1
            count, sizes = len(classes.names), self.aggregator.sizes
            kept = min(sizes.pad_len or count, count)
            width: int = self.clip.visual.width  # type: ignore[assignment]
            numbers = views * math.prod(sizes.grid) * (COPIES * width + 16 * kept)
            together = 1 if alone else chunk_size(self.device, 1, numbers)
            for start in range(0, len(samples), together):
                results += self._segment(samples[start : start + together], classes, output)
        return results

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The losses of a batch of crops of one size, scalars by name; see `sigmoid_loss` and `score_divergence`."""
        settings, classes, count = self.training_settings, self.classes, len(self.names)
        for sample in samples:
            cost_aggregator.check_labels(sample["sem_seg"], count, settings.ignore_label)
        windows = torch.stack(on_device(samples, "image", self.device))
        labels = torch.stack(on_device(samples, "sem_seg", self.device))
        if self._start is not None:
            start, words = self._start
            drawn = draw_words(words, settings.preserved_words[1])
            classes = dataclasses.replace(classes, names=(*classes.names, *drawn), seen=None)
        all_logits = self.window_logits(windows, classes)
        logits = resize(all_logits[:, :count], (labels.shape[1], labels.shape[2]))
        losses = {
            "loss_sem_seg": cost_aggregator.sigmoid_loss(
                logits, labels, settings.ignore_label, settings.mask_ignored
            )
        }
        if self._start is not None:
            with torch.no_grad():
                kept = start.window_logits(windows, classes)
            divergence = score_divergence(all_logits[:, count:], kept[:, count:]).mean()
            losses["loss_preserved"] = settings.preservation * divergence
        return losses

    def window_logits(
        self, windows: Tensor, classes: model_protocols.Classes | None = None
    ) -> Tensor:
        """Logits (B, T, 4 h, 4 w) of RGB windows (B, 3, S, S) in 0..255, before the sigmoid, in training's precision.

        Classes that a window leaves out have -100.

        Args:
            windows: RGB.
            classes: the T classes; None for those that `set_vocabulary` gave.
        """
        classes = self.given_classes(classes)
        inputs = self._inputs(windows.to(self.device, non_blocking=QUEUES).float())
        with autocast(self.device, self.training_settings.precision):
            text_TPE = self.texts.embed(classes.names, classes.examples)
            logits = self._window_logits(inputs, text_TPE)
        return torch.stack([one.all_classes(len(classes.names)) for one in logits])

    def _inputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """RGB images (B, 3, H, W) in 0..255, normalised for CLIP, and normalised for the backbone."""
        mean, std = (constant(v, images)[:, None, None] for v in (self.clip.mean, self.clip.std))
        normalised = (images - 255 * mean) / (255 * std)
        if self.backbone is None:
            return normalised, normalised
        shift, scale = (constant(v, images)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        return normalised, (images - shift) / scale

    def _window_logits(
        self, inputs: tuple[Tensor, Tensor], text_TPE: Tensor
    ) -> list[cost_aggregator.ClassLogits]:
        """Logits of windows (B, 3, S, S), which `_inputs` has normalised for CLIP and for the backbone."""
        windows, for_backbone = inputs
        resized = resize(windows, self.clip_size)
        features = self.clip.features(resized, self.tower_features)
        guidance = self._guidance(for_backbone, features)
        return self.aggregator(features["dense"], guidance, text_TPE)

    @property
    def _backbone_size(self) -> tuple[int, int]:
        """Rows and columns that the backbone is given.

        Its strides are 16, 8 and 4, whatever the side of CLIP's patches: an input of 16 pixels a cell gives
        a res4 of CLIP's grid.
        """
        height, width = self.aggregator.sizes.grid
        return 16 * height, 16 * width

    def _guidance(
        self, for_backbone: Tensor, features: Mapping[str, Tensor]
    ) -> list[cost_aggregator.Guidance]:
        if self.backbone is None:
            first, second = (features[name] for name in self.guidance_blocks)
            maps = (features["dense"], self.upsample1(first), self.upsample2(second))
        else:
            named = self.backbone(resize(for_backbone, self._backbone_size))
            maps = tuple(named[name] for name in GUIDES)
        return [
            cost_aggregator.Guidance(appearance, (first, second))
            for appearance, first, second in zip(*maps)
        ]

    def _segment(
        self, samples: Sequence[Sample], classes: model_protocols.Classes, output: str
    ) -> list[dict[str, Tensor]]:
        """Results of images whose views pass CLIP together; a sample with classes of its own comes alone."""
        images = on_device(samples, "image", self.device)
        chosen = chosen_classes(samples[0], self.device)
        with autocast(self.device, self.evaluation.precision):
            text_TPE = self.texts.embed(classes.names, classes.examples)
            text_TPE = text_TPE if chosen is None else text_TPE[chosen]
            passes = []
            for mirrored in (False, True) if self.evaluation.flip else (False,):
                inputs, counts = self._views([i.flip(-1) if mirrored else i for i in images])
                logits = iter(self._window_logits(inputs, text_TPE))
                passes.append([list(itertools.islice(logits, count)) for count in counts])
        results = []
        for sample, *of_passes in zip(samples, *passes, strict=True):
            image_size, size = sizes_of(sample)
            kept = cost_aggregator.kept_classes(
                [view for views in of_passes for view in views], len(text_TPE)
            )
            if self.evaluation.sliding:
                parts = [
                    cost_aggregator.sliding_probabilities(v, kept, self.layout, size)
                    for v in of_passes
                ]
            else:
                parts = [
                    cost_aggregator.plain_probabilities(v[0], kept, image_size, size)
                    for v in of_passes
                ]
            results.append(segmentation(parts, size, len(classes.names), output, chosen))
        return results

    def _views(self, images: Sequence[Tensor]) -> tuple[tuple[Tensor, Tensor], list[int]]:
        """Views of all images, normalised as by `_inputs`, and how many each image has.

        They are the windows of an image and the whole, or the whole one alone, with padding.
        """
        divisor = max(1, self.evaluation.size_divisibility)
        inputs = list[tuple[Tensor, Tensor]]()
        for image in images:
            if self.evaluation.sliding:
                inputs.append(self._inputs(self.layout.views(image)))
                continue
            height, width = image.shape[1:]
            padding = (0, -width % divisor, 0, -height % divisor)
            # Padded after the normalisation, so that the border is the mean colour.
            views, for_backbone = self._inputs(image.float()[None])
            inputs.append((F.pad(views, padding), F.pad(for_backbone, padding)))
        counts = [len(views) for views, _ in inputs]
        if len(inputs) == 1:
            return inputs[0], counts
        # Views of whole images have sizes of their own.
        windows = torch.cat([resize(views, self.clip_size) for views, _ in inputs])
        for_backbone = windows
        if self.backbone is not None:
            for_backbone = torch.cat([resize(views, self._backbone_size) for _, views in inputs])
        return (windows, for_backbone), counts

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Loads ``MODEL.WEIGHTS``, see `cat_seg_checkpoint.read`."""
        cat_seg_checkpoint.read(self, tensors, source)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the weights under CAT-Seg's own names, as its code loads them, atomically."""
        save_atomically(path, cat_seg_checkpoint.write(self))

    def original_hash(self) -> str:
        """Hash of the weights that do not train, which have to be the same when a run is resumed."""
        frozen = {name: p for name, p in self.named_parameters() if not p.requires_grad}
        return hash_tensors(frozen)
