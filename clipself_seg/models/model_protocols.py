"""Members that training and evaluation need of a model: one Protocol a purpose, open to other projects' models.

A class that is registered in Detectron2's ``META_ARCH_REGISTRY`` and has these members is trained and evaluated
by ``train_net.py`` as the models of this package are, whatever its name.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from clipself_seg.clip.runtime import QUEUES
from clipself_seg.data.annotations import Record
from clipself_seg.data.examples import ClassExamples
from clipself_seg.data.mappers.regions import WholeImageMapper
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Names, Vocabulary
from clipself_seg.heads.fusion import Fusion

# Which names of a class go into its text, in words.
FIRST_NAME = "the first alone"
MEAN_OF_NAMES = "all, the mean of their embeddings"
BEST_OF_NAMES = "all, the best score of each"
# Value of a model's key SYNONYMS -> the same in words.
SYNONYM_TEXTS = {"first": FIRST_NAME, "mean": MEAN_OF_NAMES, "max": "all, the best score of them"}


Group = dict[str, Any]
"""A group of the optimiser: "params", "weight_decay" and, if it is not 1, "lr_multiplier"."""


class Memory(NamedTuple):
    """GiB that a training needs with CLIPs whose image towers have the parameters of a ViT-B/16 or a ViT-L/14.

    Attributes:
        weights: of the weights with their gradients and moments.
        step: of a step for each image.
        recomputed: of such a step with MODEL.CLIP.CHECKPOINTING.
    """

    weights: tuple[float, float]
    step: tuple[float, float]
    recomputed: tuple[float, float]


Outputs = dict[str, Any]
"""The outputs for an image, by Detectron2's names where it has some: tensors, instances, segments."""


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes that a model tells apart, checked against what the model reads (`classes_of`).

    Attributes:
        names: for each class the names (synonyms) that go into its prompts.
        things: indices of the classes that are things, for panoptic models.
        seen: (K,) bool, classes of the training vocabulary; None stands for all of them.
        examples: of the classes that have some.
    """

    names: Names = ()
    things: tuple[int, ...] = ()
    seen: np.ndarray | None = None
    examples: tuple[ClassExamples, ...] = ()

    def __post_init__(self) -> None:
        if self.seen is not None and len(self.seen) != len(self.names):
            raise ValueError(f"seen has {len(self.seen)} classes, there are {len(self.names)}")

    @functools.cached_property
    def synonyms(self) -> list[int]:
        """Number of names of each class."""
        return [len(names) for names in self.names]

    def seen_on(self, device: torch.device) -> Tensor:
        """Classes of the training vocabulary, (K,) bool, on a device."""
        known = np.ones(len(self.names), bool) if self.seen is None else np.asarray(self.seen)
        return torch.from_numpy(known).to(device, non_blocking=QUEUES).bool()


MIRRORED = "the image and its mirrored version, averaged"


class Reading(NamedTuple):
    """A description of the way from class names and images to scores, in words, for the protocol line of its tables.

    Attributes:
        synonyms: which names of a class count, and how.
        templates: sentences around a name.
        windows: windows and their stride; "none" where an image is read as a whole.
        background: words for pixels or boxes without a class.
        features: description of CLIP's embedding of a place or of a region, see `ImageTower.description`.
        scale: factor of the cosines before a softmax; "" where none stands before the scores.
        size: what becomes of the size that the mapper gives to images; "" if it stays.
        precision: lower precision that it computes in; None for float32.
    """

    synonyms: str
    templates: str
    windows: str = "none"
    background: str = "none"
    features: str = "not stated by the model"
    scale: str = ""
    size: str = ""
    precision: torch.dtype | None = None


@runtime_checkable
class DescribedModel(Protocol):
    """A model that says how it reads names and images."""

    def reading(self) -> Reading:
        """Describes the present settings."""


def reading_of(model: object) -> Reading:
    """The description of a model; a registered model of another project may not say."""
    unstated = "not stated by the model"
    if isinstance(model, DescribedModel):
        return model.reading()
    return Reading(unstated, unstated, unstated, unstated)


@runtime_checkable
class Model(Protocol):
    """An open-vocabulary model: an nn.Module that is built from a configuration and given its classes."""

    @classmethod
    def task(cls) -> str:
        """Name of the model's task, a key of `training.tasks.TASKS`: "regions", "whole_images", "semantic",
        "panoptic" or "detection"."""

    @classmethod
    def require_trained(cls, cfg: CfgNode) -> None:
        """Refuses to evaluate a configuration whose model would be random.

        Raises:
            InputError: no trained weights are given; the message says how to give them.
        """

    def set_vocabulary(self, words: Vocabulary | Sequence[str]) -> None:
        """Gives the model its classes; outputs number them in this order."""

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Loads the tensors of ``MODEL.WEIGHTS``.

        Args:
            tensors: name -> tensor, under the names of the file.
            source: the file, or the tag of shipped weights, for messages.

        Raises:
            InputError: the tensors are not those of such a model.
        """

    def weights_hash(self) -> str:
        """Hash of the weights that are evaluated."""

    def original_hash(self) -> str:
        """Hash of the weights that do not train, which have to be the same when a run is resumed."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Gives names and parameters, as nn.Module does."""

    def to(self, device: str) -> Model:
        """Moves the model to a device, as nn.Module does."""

    def eval(self) -> Model:
        """Switches to evaluation mode, as nn.Module does."""


@runtime_checkable
class TrainableModel(Model, Protocol):
    """A model whose ``forward`` gives a dict of losses for a list of samples, in training mode."""

    @classmethod
    def training_config(cls, cfg: CfgNode) -> CfgNode:
        """The configuration with the initial weights that training takes where the keys name none.

        Raises:
            InputError: a part would be random that has to be trained before.
        """

    def setup_training(self, vocabulary: Vocabulary | Sequence[str] | None) -> None:
        """Gives the model the training vocabulary; None where training needs no classes.

        Raises:
            InputError: the model cannot be trained, or not on these classes.
        """

    def optimizer_groups(self, solver: CfgNode) -> list[Group]:
        """Parameters that train, in groups with "weight_decay" and, if it is not 1, "lr_multiplier".

        Args:
            solver: the section ``SOLVER`` of the configuration.
        """

    def after_optimizer_step(self) -> None:
        """Restores weights that weight decay must not change; called after every step of the optimiser."""

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the result of a training to a file, atomically."""


@runtime_checkable
class SteppedModel(Protocol):
    """A model of which something depends on how far its training is, such as a probability that is annealed."""

    def before_optimizer_step(self, step: int, steps: int) -> None:
        """Says how far it is; called before the forward passes of every step of the optimiser, a resumed run's too.

        Args:
            step: number of steps that are done.
            steps: number of steps of the whole training.
        """


class RegionModel(Model, Protocol):
    """A model that scores regions of images against its classes."""

    @property
    def image_size(self) -> int:
        """Side in pixels of the square crops that the model is given."""

    @property
    def patch_size(self) -> int:
        """Stride in pixels of the model's dense features."""

    def image_mapper(self, size: int, max_pixels: int) -> WholeImageMapper:
        """Gives the mapper of whole images to squares of `size` pixels, of at most `max_pixels` each."""

    def check_readouts(self, sizes: Sequence[int], readouts: Sequence[str]) -> None:
        """Refuses input sizes and readouts that the model does not have.

        Args:
            sizes: sides in pixels of the square input.
            readouts: ways from regions to embeddings, out of `clipself_seg.config.READOUTS`.

        Raises:
            InputError: a size or readout does not fit; names the first one.
        """

    def __call__(
        self, samples: Sequence[Sample], *, read: Sequence[str], dense: bool = False
    ) -> list[Outputs]:
        """Returns for each image "scores": readout -> (n, K), of the readouts `read`.

        With `dense`, which is asked for only under ``TEST.REGIONS.GROUPING``, "dense" (E, h, w) as well.
        """


class MixedRegionModel(RegionModel, Protocol):
    """A model that mixes trained weights with the original's, whenever it is switched to evaluation.

    Attributes:
        alpha: fraction of the trained weights.
    """

    alpha: float


class SemanticModel(Model, Protocol):
    """A model that labels pixels.

    Attributes:
        classes: the classes that `set_vocabulary` gave.
        ignore_label: label of pixels without a class in training.
    """

    classes: Classes
    ignore_label: int

    def __call__(self, samples: Sequence[Sample], *, output: str) -> list[dict[str, Tensor]]:
        """Returns for each image "sem_seg" (K, H, W) if `output` is "scores", "sem_seg_labels" (H, W) if it is
        "labels"."""


class PanopticModel(Model, Protocol):
    """A model that fuses the scores of a mask generator and of CLIP.

    Attributes:
        classes: the classes that `set_vocabulary` gave.
    """

    classes: Classes

    @property
    def exponents(self) -> tuple[float, float]:
        """CLIP's exponents of seen and of all other classes where both scores are fused, in [0, 1]."""

    @property
    def void_discount(self) -> float:
        """Weight by which CLIP's best class lowers void where both scores are fused, in [0, 1]."""

    @property
    def needs_captions(self) -> bool:
        """True if training needs the noun phrases of captions."""

    def set_vocabulary(
        self, words: Vocabulary | Sequence[str], seen: np.ndarray | None = None
    ) -> None:
        """Gives the model its classes, and which of them belong to the training vocabulary (None: all)."""

    def evaluation_metadata(self, records: Mapping[str, Sequence[Record]]) -> dict[str, object]:
        """Settings that decide the numbers beside weights and configuration, for the files of a run.

        Args:
            records: name of a data set -> its records.

        Raises:
            InputError: a file that the records need is missing.
        """

    def __call__(
        self, samples: Sequence[Sample], *, fusions: Mapping[str, Fusion]
    ) -> list[Outputs]:
        """Returns for each image "fusions": name of a fusion -> outputs."""


class DetectionModel(Model, Protocol):
    """A model that detects objects.

    Attributes:
        classes: the classes that `set_vocabulary` gave.
    """

    classes: Classes

    @property
    def has_masks(self) -> bool:
        """True if detections have masks."""

    def set_vocabulary(
        self, words: Vocabulary | Sequence[str], seen: np.ndarray | None = None
    ) -> None:
        """Gives the model its classes, and which of them belong to the training vocabulary."""

    def __call__(self, samples: Sequence[Sample]) -> list[Outputs]:
        """Returns for each image "instances", Detectron2's, in pixels of the original image: "pred_boxes",
        "scores", "pred_classes", and "pred_masks" where the model has masks."""
