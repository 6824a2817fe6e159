"""Targets of CLIPSelf's training: the losses of a training step, and the keys that choose them.

This file has, in this order:

* `Step`: one training step, with the features of student and teacher that several losses read, each computed once.
* The targets, which compute losses from a `Step`: `WeightedObjectives` (a sum of objectives, of crops in CLIPSelf, some
  of which compare correlations with those of a frozen teacher), `RegionText` (nouns) and `CaptionContrast`
  (captions).
* The functions that build a target from a configuration.

To add a target, write a class with the members of `Target`, and add a line to `TARGETS` and a value to
``MODEL.CLIPSELF.TARGET``; `training.tasks.RegionTask` chooses the mapper that makes its samples. To add an objective of
the target "crops", write a function and decorate it with `enter_objective`, and add its weight to ``config/keys.py``. A
module outside of the package calls `extend.register_objective`, which does both.

Shapes: B images, R regions of all images, n regions of one image, E embedding, h x w cells of the
    dense features, N = h w of them, D width of the tower, S0 side of the CLIP's own images.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor

from clipself_seg.clip import TextBank, VisionLanguageBackbone
from clipself_seg.clip.precision import autocast
from clipself_seg.clip.region_pooling import box_weights, pool
from clipself_seg.clip.runtime import QUEUES, on_device, send
from clipself_seg.clip.templates import NOUN_TEMPLATES
from clipself_seg.clip.tower import DENSE, KEYS, QUERIES
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.heads import distillation_losses as losses
from clipself_seg.heads.maps import mean_over_processes
from clipself_seg.models.timm_backbone import TimmBackbone
from clipself_seg.registry import Registry

Result = TypeVar("Result")

CONTEXTS = {"q": (QUERIES,), "qk": (QUERIES, KEYS)}
IMAGE = "image"
# Outputs of the student that a target may read: features (dense, queries, keys), which one pass over the images of
# the step computes, and image embeddings, which a second pass with attention in all blocks computes.
READS = (DENSE, QUERIES, KEYS, IMAGE)


@dataclass(kw_only=True, eq=False)
class Step:
    """Samples of one training step, and what several losses read of them, each computed when it is first asked for.

    A loss shares what it computes with others by `once`. Towers run in the precision of the run. Losses are computed
    outside of autocast.

    Attributes:
        samples: samples of this process, at least one, with the keys that the mapper of the target gives them.
        images: (B, 3, S', S') the student's input, normalised.
        student: CLIP whose image tower learns.
        teacher: the original CLIP, frozen.
        precision: dtype of autocast, or None.
        average: "regions" or "images", over which losses of regions are averaged, see `region_mean`.
        synchronised: True if the loss is that of the samples of all processes; else every process trains by itself.
        region_count: divisor of losses of regions, see `count_over_processes`; None for their number here.
        reads: outputs of the student that the target reads, out of `READS`.
    """

    samples: Sequence[Sample]
    images: Tensor
    student: VisionLanguageBackbone
    teacher: VisionLanguageBackbone
    precision: torch.dtype | None
    average: losses.Average
    synchronised: bool
    region_count: Tensor | None = None
    reads: Sequence[str] = (DENSE,)
    _results: dict[Callable[[Step], Any], Any] = field(default_factory=dict, init=False)

    def once(self, compute: Callable[[Step], Result]) -> Result:
        """The result of `compute(step)`, which is called for the first loss that asks."""
        if compute not in self._results:
            self._results[compute] = compute(self)
        return self._results[compute]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.images.device

    def in_precision(self) -> contextlib.AbstractContextManager:
        """Context in which frozen and learning networks compute: autocast, if the run has it."""
        return autocast(self.device, self.precision)

    @functools.cached_property
    def maps(self) -> dict[str, Tensor]:
        """The student's features (B, E or D, h, w) that the target reads, by name; one pass computes them."""
        with self.in_precision():
            names = [name for name in self.reads if name != IMAGE]
            return self.student.features(self.images, names)

    @functools.cached_property
    def dense_BEhw(self) -> Tensor:
        """The student's dense features, unit length per location, float32."""
        with self.in_precision():
            return F.normalize(self.maps[DENSE].float(), dim=1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the student's features."""
        height, width = next(iter(self.maps.values())).shape[2:]
        return height, width

    @functools.cached_property
    def original_BEhw(self) -> Tensor:
        """The original's dense features of the same images, without gradient and of any length, float32."""
        with torch.no_grad(), self.in_precision():
            return self.teacher.dense(self.images).float()

    @functools.cached_property
    def student_RE(self) -> Tensor:
        """Means (R, E) of the student's dense features over "boxes", see `pooled`."""
        return self.pooled([sample["boxes"] for sample in self.samples])

    def pooled(self, boxes: Sequence[Tensor]) -> Tensor:
        """Means (R, E) of the dense features over boxes, by RoIAlign; float32, not of unit length.

        Args:
            boxes: for each image (n, 4) XYXY in [0, 1] of the padded square.
        """
        with self.in_precision():
            # The weights are made where the boxes are: on the CPU, without waiting for the GPU.
            weights = [box_weights(boxes_n4, self.grid) for boxes_n4 in boxes]
        rows = [
            pool(features_Ehw, send(weights_nhw, self.device))
            for features_Ehw, weights_nhw in zip(self.dense_BEhw, weights, strict=True)
        ]
        return torch.cat(rows)

    @functools.cached_property
    def crops(self) -> Tensor:
        """All "crops" (R, 3, S0, S0), normalised."""
        return self.teacher.preprocess(torch.cat(on_device(self.samples, "crops", self.device)))

    @functools.cached_property
    def teacher_RE(self) -> Tensor:
        """The teacher's embeddings of all "crops" in one call, without gradient and not normalised."""
        with torch.no_grad(), self.in_precision():
            return self.teacher.embed_images(self.crops)

    @functools.cached_property
    def pixels(self) -> Tensor:
        """RGB pixels (B, 3, S, S) of "image" in [0, 1]."""
        return torch.stack(on_device(self.samples, "image", self.device)).float() / 255

    def region_mean(self, values_R: Tensor) -> Tensor:
        """Mean of a value of each region as ``MODEL.CLIPSELF.LOSS_AVERAGE`` says, over all processes."""
        counts = [len(sample["boxes"]) for sample in self.samples]
        return losses.region_mean(values_R, counts, self.average, self.region_count)


def count_over_processes(
    samples: Sequence[Sample], average: losses.Average, device: torch.device
) -> Tensor | None:
    """Mean over the processes of `loss_count`, so that the mean of their losses is the whole batch's.

    Every process has to call it. None for one process, and for samples without regions.
    """
    if comm.get_world_size() == 1 or "boxes" not in samples[0]:
        return None
    count = losses.loss_count([len(sample["boxes"]) for sample in samples], average)
    mean = mean_over_processes(torch.full((), float(count), device=device))
    return mean.clamp(min=1 / comm.get_world_size())  # 0 regions have a loss of 0


def valid_cells(step: Step) -> Tensor:
    """Cells (B, N) bool of the student's grid into which "whole" (1, 4), the box of the image, reaches.

    The box is XYXY in [0, 1] of the padded square and begins at its top left corner. A cell counts if
    the box overlaps it by more than rounding error; the first row and column always count.
    """
    height, width = step.grid
    cells = []
    for sample in step.samples:
        _, _, right, bottom = sample["whole"][0]
        rows = torch.arange(height) < (bottom * height - 1e-4).clamp(min=0.5)
        columns = torch.arange(width) < (right * width - 1e-4).clamp(min=0.5)
        cells.append((rows[:, None] & columns).flatten())
    return send(torch.stack(cells), step.device)


class Target(Protocol):
    """The interface of targets, which have no trainable weights.

    Attributes:
        reads: outputs of the student that it reads, out of `READS`. Weights on which none of them depends do not train,
            such as query and key of the last block where dense features alone are read.
    """

    reads: tuple[str, ...]

    def setup_training(
        self, teacher: VisionLanguageBackbone, vocabulary: Vocabulary | Sequence[str] | None
    ) -> None:
        """Prepares the target before the first step, such as by embedding the classes; by default does nothing.

        Args:
            teacher: the original CLIP.
            vocabulary: the classes of the training; None for a target without classes.
        """
        return None

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Losses of the samples of one process by name, scalars in float32 with their gradients.

        Their mean over the processes is the loss of the whole batch (`count_over_processes`).
        """


class Original:
    """The original CLIP, the teacher of crops, by its dense features."""

    def setup(self, device: torch.device) -> None:
        """Does nothing, since the model has the original CLIP already."""

    def features(self, step: Step) -> Tensor:
        """Dense features of the original CLIP, see `Step.original_BEhw`."""
        return step.original_BEhw


def correlation_teacher(name: str) -> Original | TimmBackbone | None:
    """The teacher that ``MODEL.CLIPSELF.CORRELATION.TEACHER`` names: "none", "original", or timm's.

    Raises:
        InputError: as `TimmBackbone`.
    """
    if name == "none":
        return None
    return Original() if name == "original" else TimmBackbone(name)


class Objective(NamedTuple):
    """A loss that `WeightedObjectives` adds to others.

    Attributes:
        loss: name under which it is logged.
        reads: outputs of the student that it reads, out of `READS`; () for those of `WeightedObjectives.context`.
        value: function that computes the loss, a scalar without its weight, for the samples of this process.
    """

    loss: str
    reads: tuple[str, ...]
    value: Callable[[Step, WeightedObjectives], Tensor]


# Name of a key below MODEL.CLIPSELF.OBJECTIVES -> its objective.
OBJECTIVES = Registry[Objective]()
Value = TypeVar("Value", bound=Callable[..., Tensor])


def enter_objective(
    name: str, reads: Sequence[str] = (DENSE,), *, loss: str = ""
) -> Callable[[Value], Value]:
    """Decorates a function (step, objectives) that is an objective; the arguments are those of `Objective`.

    Args:
        name: last part of the key of its weight.
        reads: outputs of the student that it reads.
        loss: name under which it is logged; "" is "loss_" and its name.
    """

    def enter(value: Value) -> Value:
        OBJECTIVES.enter(name, Objective(loss or f"loss_{name.lower()}", tuple(reads), value))
        return value

    return enter


def _tokens(maps_BDhw: Tensor) -> Tensor:
    return maps_BDhw.flatten(2).mT


@enter_objective("CROPS", loss="loss_clipself")
def _crops_of_teacher(step: Step, objectives: WeightedObjectives) -> Tensor:
    """Mean cosine distance of regions and crops over regions or images, in [0, 2] (CLIPSelf, equation 1)."""
    return step.region_mean(losses.cosine_distance(step.student_RE, step.teacher_RE))


@enter_objective("CONTEXT", ())
def _context(step: Step, objectives: WeightedObjectives) -> Tensor:
    similarities = [
        losses.cosine_similarities(_tokens(step.maps[name])) for name in objectives.context
    ]
    mean_BNN = sum(similarities[1:], similarities[0]) / len(similarities)
    return losses.context_loss(
        mean_BNN, step.once(objectives.similarities), step.once(valid_cells)
    ).mean()


@enter_objective("COHERENCE")
def _coherence(step: Step, objectives: WeightedObjectives) -> Tensor:
    own_BNN = losses.cosine_similarities(_tokens(step.dense_BEhw))
    return losses.coherence_loss(
        own_BNN, step.once(objectives.similarities), step.once(valid_cells)
    ).mean()


@enter_objective("SPATIAL")
def _spatial(step: Step, objectives: WeightedObjectives) -> Tensor:
    own_BNE = _tokens(step.dense_BEhw)
    target_BNE = step.once(objectives.tokens)
    return losses.spatial_correlation_loss(own_BNE, target_BNE, step.once(valid_cells)).mean()


@enter_objective("WHOLE_IMAGES", (IMAGE,))
def _whole_images(step: Step, objectives: WeightedObjectives) -> Tensor:
    """Mean cosine distance of the image embeddings of the padded images at the CLIP's own size."""
    side = step.teacher.image_size
    sized = F.interpolate(step.pixels, (side, side), mode="bilinear", antialias=True)
    images = step.teacher.normalise(sized)
    with step.in_precision():
        own_BE = step.student.embed_images(images)
        with torch.no_grad():
            teacher_BE = step.teacher.embed_images(images)
    return losses.cosine_distance(own_BE, teacher_BE).mean()


@enter_objective("OWN_CROPS", (IMAGE,))
def _own_crops(step: Step, objectives: WeightedObjectives) -> Tensor:
    """Mean cosine distance of the student's and of the teacher's image embeddings of crops."""
    with step.in_precision():
        own_RE = step.student.embed_images(step.crops)
    return step.region_mean(losses.cosine_distance(own_RE, step.teacher_RE))


class WeightedObjectives:
    """A sum of the `OBJECTIVES` whose weight is not 0.

    Of samples it reads "image"; for those of crops "boxes" (n, 4) XYXY in [0, 1] of the padded square and "crops"
    uint8 (n, 3, S0, S0); and for correlations "whole" (1, 4), the box of the image.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        teacher: Original | TimmBackbone | None = None,
        context: Sequence[str] = (QUERIES,),
    ) -> None:
        """
        Args:
            weights: names of `OBJECTIVES` -> weights, 0 or more, one of them greater.
            teacher: network whose correlations the student learns; None if no objective compares them.
            context: names of the student's features whose similarities are averaged for CONTEXT.
        """
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.teacher = teacher
        self.context = context
        reads = [read for name in self.weights for read in OBJECTIVES[name].reads or context]
        self.reads = tuple(dict.fromkeys(reads))

    def setup_training(
        self, teacher: VisionLanguageBackbone, vocabulary: Vocabulary | Sequence[str] | None
    ) -> None:
        """Loads the teacher of correlations; it needs no classes."""
        if self.teacher is not None:
            self.teacher.setup(teacher.device)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The weighted objectives, each under its own name."""
        return {
            OBJECTIVES[name].loss: weight * OBJECTIVES[name].value(step, self)
            for name, weight in self.weights.items()
        }

    def tokens(self, step: Step) -> Tensor:
        """Tokens (B, N, E) of the teacher of correlations."""
        assert self.teacher is not None, "correlations need a teacher"
        return _tokens(self.teacher.features(step))

    def similarities(self, step: Step) -> Tensor:
        """Cosine similarities (B, N, N) of the teacher's tokens."""
        return losses.cosine_similarities(step.once(self.tokens))


TextLoss = Literal["bce", "softmax", "regionclip"]


@dataclass(kw_only=True, eq=False)
class RegionText:
    """Classify regions by their nouns. The frozen text tower embeds the nouns once.

    Of samples it reads "image", "boxes" (n, 4) XYXY in [0, 1] of the padded square and "labels" int64 (n,);
    "iteration" for the official loss; for RegionCLIP's "crops" uint8 (n, 3, S0, S0), "caption", and "whole"
    (1, 4), the box of the whole image.
    The temperature is the CLIP's own, exp(logit_scale), which does not train.

    Attributes:
        loss: "bce", the official code's: sigmoids over the nouns of the process's regions, topped up at
            random to `negatives`; "softmax" over all nouns; "regionclip": RegionCLIP's three losses.
        negatives: number of nouns that "bce" compares with.
        templates: prompts around a noun, a name in `templates.TEMPLATES`.
        seed: seed of the nouns that are drawn, together with the iteration.
    """

    reads: tuple[str, ...] = field(default=(DENSE,), init=False)
    nouns_KE: Tensor | None = field(default=None, init=False)
    loss: TextLoss = "bce"
    negatives: int = 100
    templates: str = NOUN_TEMPLATES
    seed: int = 0

    def setup_training(
        self, teacher: VisionLanguageBackbone, vocabulary: Vocabulary | Sequence[str] | None
    ) -> None:
        """Embeds the nouns; labels of samples number them in this order."""
        assert vocabulary is not None, "region-text training needs its nouns"
        self.nouns_KE = TextBank(teacher, self.templates).embed(vocabulary)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """{"loss_texts": scalar}, or RegionCLIP's {"loss_concepts", "loss_teacher", "loss_image_text"}."""
        assert self.nouns_KE is not None, "call setup_training before the first step"
        labels_R = torch.cat([sample["labels"] for sample in step.samples])
        on_device_R = labels_R.to(step.device, non_blocking=QUEUES)
        if self.loss == "regionclip":
            return self._regionclip(step, on_device_R)
        if self.loss == "softmax":
            each_R = losses.noun_cross_entropy(self._logits(step, step.student_RE), on_device_R)
        else:
            # Copied before the forward pass of the student, which the copy would wait for on a GPU.
            nouns_F = self._compared(labels_R, step).to(step.device, non_blocking=QUEUES)
            each_R = losses.federated_bce(self._logits(step, step.student_RE), on_device_R, nouns_F)
        return {"loss_texts": step.region_mean(each_R)}

    def _compared(self, labels_R: Tensor, step: Step) -> Tensor:
        """Nouns (F,) that the regions of this process are compared with in this step."""
        assert self.nouns_KE is not None
        rng = np.random.default_rng((self.seed, step.samples[0]["iteration"]))
        count = len(self.nouns_KE)
        return torch.from_numpy(
            losses.federated_nouns(labels_R.numpy(), count, self.negatives, rng)
        )

    def _regionclip(self, step: Step, labels_R: Tensor) -> dict[str, Tensor]:
        logits_RK = self._logits(step, step.student_RE)
        teacher_RK = self._logits(step, step.teacher_RE)
        whole_BE = step.pooled([sample["whole"] for sample in step.samples])
        return {
            "loss_concepts": step.region_mean(losses.concept_contrast(logits_RK, labels_R)),
            "loss_teacher": step.region_mean(losses.teacher_divergence(logits_RK, teacher_RK)),
            "loss_image_text": caption_contrast(step, whole_BE),
        }

    def _logits(self, step: Step, regions_RE: Tensor) -> Tensor:
        assert self.nouns_KE is not None
        return losses.noun_logits(regions_RE, self.nouns_KE, step.teacher.logit_scale.exp())


def caption_contrast(step: Step, images_BE: Tensor) -> Tensor:
    """InfoNCE of image embeddings, of any length, and the texts of "caption" of the samples, over all processes."""
    teacher = step.teacher
    captions = [sample["caption"] for sample in step.samples]
    with torch.no_grad(), step.in_precision():
        texts_BE = teacher.encode_text(captions)
    scale = teacher.logit_scale.exp()
    tokens_BL = teacher.tokenize(captions)
    return losses.info_nce_loss(images_BE, texts_BE, tokens_BL, scale, gather=step.synchronised)


class CaptionContrast(Target):
    """InfoNCE of whole images at the student's size and their captions (CLIPSelf, Table 1c, #5*).

    The image embedding is the ordinary one, with attention in the last block, so that all of that block
    learns. Text tower and temperature are the original's, frozen. Of samples it reads "image" and
    "caption", a text.
    """

    reads: tuple[str, ...] = (IMAGE,)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """{"loss_captions": `info_nce_loss` of all processes' images, or of this one's if they train alone}."""
        with step.in_precision():
            images_BE = step.student.embed_images(step.images)
        return {"loss_captions": caption_contrast(step, images_BE)}


def _crops(cfg: CfgNode) -> WeightedObjectives:
    keys = cfg.MODEL.CLIPSELF
    weights = {name: keys.OBJECTIVES.get(name, 0.0) for name in OBJECTIVES}
    teacher = correlation_teacher(keys.CORRELATION.TEACHER)
    return WeightedObjectives(weights, teacher, CONTEXTS[keys.CORRELATION.CONTEXT])


def _texts(cfg: CfgNode) -> RegionText:
    return RegionText(loss=cfg.MODEL.CLIPSELF.TEXTS.LOSS, seed=cfg.SEED)


# What MODEL.CLIPSELF.TARGET may be -> how it is made of a configuration.
TARGETS: dict[str, Callable[[CfgNode], Target]] = {
    "crops": _crops,
    "texts": _texts,
    "captions": lambda cfg: CaptionContrast(),
}


def build_target(cfg: CfgNode) -> Target:
    """The target that ``MODEL.CLIPSELF.TARGET`` names.

    Raises:
        InputError: as `TimmBackbone`.
    """
    return TARGETS[cfg.MODEL.CLIPSELF.TARGET](cfg)
