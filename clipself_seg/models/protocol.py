"""What training and evaluation need of a model: one Protocol a purpose, which a model of anyone's may follow.

A class that is registered in Detectron2's ``META_ARCH_REGISTRY`` and has these members is trained and evaluated
by ``train_net.py`` as the models of this package are; nothing asks for its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from detectron2.config import CfgNode
from torch import Tensor, nn

from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Vocabulary


class Classes(NamedTuple):
    """The classes that `set_vocabulary` has given to a model.

    Attributes:
        names: names that go into the prompts of each class, its synonyms.
        things: indices of the classes that are things, for panoptic models.
        seen: (K,) bool, classes of the training vocabulary; None is all of them.
    """

    names: tuple[tuple[str, ...], ...] = ()
    things: tuple[int, ...] = ()
    seen: np.ndarray | None = None


@runtime_checkable
class Model(Protocol):
    """An open-vocabulary model: an nn.Module that is built from a configuration and given its classes."""

    @classmethod
    def task(cls) -> str:
        """Name of its task, a key of `training.tasks.TASKS`: "regions", "sem_seg" or "panoptic"."""

    @classmethod
    def require_trained(cls, cfg: CfgNode) -> None:
        """Refuse to evaluate a configuration whose model would be random.

        Raises:
            InputError: no trained weights are given; says how.
        """

    def set_vocabulary(self, words: Vocabulary | Sequence[str]) -> None:
        """Give the classes; outputs number them in this order."""

    def load_checkpoint(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take the tensors of MODEL.WEIGHTS.

        Args:
            tensors: name -> tensor, as the file has them.
            source: the file, or the tag of shipped weights, for messages.

        Raises:
            InputError: they are not those of such a model.
        """

    def weights_hash(self) -> str:
        """Identity of the weights that are evaluated."""

    def original_hash(self) -> str:
        """Identity of what does not train, which a resumed run has to share."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of nn.Module."""

    def to(self, device: str) -> Any:
        """That of nn.Module."""


@runtime_checkable
class TrainableModel(Model, Protocol):
    """A model whose ``forward`` gives a dict of losses for a list of samples, in training mode."""

    @classmethod
    def training_config(cls, cfg: CfgNode) -> CfgNode:
        """The configuration with the initial weights that training takes where the keys name none.

        Raises:
            InputError: something would be random that has to be trained before.
        """

    def setup_training(self, vocabulary: Vocabulary | Sequence[str] | None) -> None:
        """Give the training vocabulary; None where training needs no classes.

        Raises:
            InputError: the model cannot be trained, or not on these classes.
        """

    def optimizer_groups(self, solver: CfgNode) -> list[dict[str, Any]]:
        """What trains, as parameter groups with "weight_decay" and, if it is not 1, "lr_multiplier".

        Args:
            solver: the section ``SOLVER``.
        """

    def after_optimizer_step(self) -> None:
        """Called after every step of the optimiser, to put right what weight decay must not change."""

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the result of a training, atomically."""


class RegionModel(Model, Protocol):
    """A model that scores regions."""

    @property
    def image_size(self) -> int:
        """Side in pixels of the crops that it is given."""

    @property
    def patch_size(self) -> int:
        """Stride in pixels of its dense features."""

    def check_readouts(self, sizes: Sequence[int], readouts: Sequence[str]) -> None:
        """Refuse input sizes and readouts that the model does not have.

        Raises:
            InputError: names the first of them.
        """

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """For each image "scores": readout -> (n, K)."""


class SemSegModel(Model, Protocol):
    """A model that labels pixels.

    Attributes:
        classes: what `set_vocabulary` gave.
        ignore_label: label of pixels without a class in training.
    """

    classes: Classes
    ignore_label: int

    def __call__(self, samples: Sequence[Sample], *, output: str) -> list[dict[str, Tensor]]:
        """For each image "sem_seg" (K, H, W) if `output` is "scores", or "sem_seg_labels" (H, W) if it is "labels"."""


class PanopticModel(Model, Protocol):
    """A model that fuses the scores of a mask generator and of CLIP.

    Attributes:
        classes: what `set_vocabulary` gave.
    """

    classes: Classes

    @property
    def needs_captions(self) -> bool:
        """Whether training needs the noun phrases of captions."""

    def set_vocabulary(
        self, words: Vocabulary | Sequence[str], seen: np.ndarray | None = None
    ) -> None:
        """Give the classes, and which of them belong to the training vocabulary; None is all."""

    def evaluation_metadata(
        self, records: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> dict[str, Any]:
        """What decides the numbers beside weights and configuration, for the files of a run.

        Args:
            records: data set -> its records.

        Raises:
            InputError: something that the records need is not there.
        """

    def __call__(
        self, samples: Sequence[Sample], *, fusions: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """For each image "fusions": name of a fusion -> outputs."""
