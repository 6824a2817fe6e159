"""Oracle vocabularies: for each image the model is given only the classes that occur in it.

Some published figures are of this kind (those of OpenWorldSAM, as its code was read) and compare with no
other. Here it is an option, under a name of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.models.protocol import SemSegModel


class OracleWords:
    """Runs a model on one image after the other, each with the classes of that image alone."""

    def __init__(
        self,
        model: SemSegModel,
        words: Vocabulary | Sequence[str],
        present: Callable[[Sample], np.ndarray],
    ) -> None:
        """
        Args:
            model: is given the classes of each image, and keeps those of the last one.
            words: the K classes of the data set.
            present: indices (k,) in [0, K) of the classes of a sample's ground truth, rising.
        """
        self.model = model
        self.words = words
        self.present = present

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Labels in [0, K) of each image, as the model gives them with all classes."""
        return [self._labels(sample) for sample in samples]

    def _labels(self, sample: Sample) -> dict[str, Any]:
        # In an image without ground truth no pixel counts, whatever it is called.
        classes = self.present(sample) if len(self.present(sample)) else np.zeros(1, dtype=np.int64)
        self.model.set_vocabulary(some_classes(self.words, classes))
        (output,) = self.model([sample], output="labels")
        labels = output["sem_seg_labels"]
        return {**output, "sem_seg_labels": torch.from_numpy(classes).to(labels.device)[labels]}


def some_classes(words: Vocabulary | Sequence[str], classes: np.ndarray) -> Vocabulary | list[str]:
    """The vocabulary of some of the classes, in their order.

    Args:
        words: the K classes.
        classes: indices (k,) in [0, K).
    """
    if isinstance(words, Vocabulary):
        return dataclasses.replace(words, classes=tuple(words.classes[i] for i in classes))
    return [words[i] for i in classes]


def present_classes(
    truth: np.ndarray, num_given: int, ignore_label: int, background: int | None = None
) -> np.ndarray:
    """Indices (k,) int64 of the classes of a label map, rising.

    Args:
        truth: labels (H, W).
        num_given: number of the classes that a model is given, K.
        ignore_label: label of pixels without a class.
        background: the label for which all classes from it on stand, if there is one.
    """
    labels = np.unique(truth[truth != ignore_label]).astype(np.int64)
    if background is not None and background in labels:
        labels = np.concatenate([labels[labels < background], np.arange(background, num_given)])
    return labels
