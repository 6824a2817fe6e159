"""Examples of unseen classes, drawn from the label maps of a training set by a seed."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.config import CfgNode

from clipself_seg.data.datasets.records import find_dataset, sem_seg_records
from clipself_seg.data.datasets.table import SemSegSet
from clipself_seg.data.examples import Example, as_example
from clipself_seg.data.images import image_size
from clipself_seg.data.masks import read_labels_of
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError

logger = logging.getLogger(__name__)

LEAST_AREA = 1e-3  # of a region, as a fraction of its image


class DrawnExamples(NamedTuple):
    """The examples that an evaluation gives to the unseen classes.

    Attributes:
        sources: name of an evaluated data set -> that of the training set, which has label maps.
        number: examples of each class; 0 for none.
        weight: of the examples beside the word, see `clip.example_embeddings`.
        seed: of the order in which images are looked through.
    """

    sources: Mapping[str, str] = {}
    number: int = 0
    weight: float = 1.0
    seed: int = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> DrawnExamples:
        """Reads ``TEST.EXAMPLES``, ``DATASETS.TEST`` and ``SEED``."""
        keys = cfg.TEST.EXAMPLES
        sources = dict(zip(cfg.DATASETS.TEST, keys.DATASETS)) if keys.NUMBER else {}
        return cls(sources, keys.NUMBER, keys.WEIGHT, cfg.SEED)

    def text(self, name: str) -> str:
        """The end of the words' part in the protocol of a data set's numbers; "" without examples."""
        if not (source := self.sources.get(name)):
            return ""
        weight = f"weight {self.weight:g}" if self.weight < 1 else "without the word"
        return f", with {self.number} examples of each unseen class from {source} (seed {self.seed}, {weight})"

    def added(self, name: str, words: Vocabulary, seen: np.ndarray | None) -> Vocabulary:
        """The vocabulary of a data set with the examples of its unseen classes; without any, as it is.

        Args:
            name: of the data set.
            words: its classes.
            seen: bool, which of its first classes are seen; None for no such split.
        """
        source = self.sources.get(name)
        if not source:
            return words
        if seen is None:
            raise InputError(
                f"TEST.EXAMPLES need unseen classes of {name}: set TEST.TRAIN_VOCABULARY"
            )
        unseen = [entry.names[0] for entry, known in zip(words.classes, seen) if not known]
        return words.with_examples(self._draw(source, unseen), self.weight) if unseen else words

    def _draw(self, source: str, names: Sequence[str]) -> dict[str, list[Example]]:
        entry = find_dataset(source, SemSegSet)
        classes = Vocabulary.load(entry.vocabulary).first_names
        drawn = {k: list[Example]() for k, name in enumerate(classes) if name in names}
        records = sem_seg_records(source)
        random.Random(self.seed).shuffle(records)
        for record in records:
            wanted = {k for k, examples in drawn.items() if len(examples) < self.number}
            if not wanted:
                break
            size = image_size(record["file_name"])
            labels = read_labels_of(
                record, num_classes=len(classes), ignore_label=entry.ignore_label, size=size
            )
            for k in wanted.intersection(np.unique(labels).tolist()):
                region = _largest_region(labels == k)
                if region.mean() >= LEAST_AREA:
                    drawn[k].append(as_example((record["file_name"], region)))
        matches = {classes[k]: examples for k, examples in drawn.items() if examples}
        for name in names:
            if (count := len(matches.get(name, ()))) < self.number:
                logger.warning(
                    '%s has %d examples of "%s", not %d', source, count, name, self.number
                )
        return matches


def _largest_region(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask."""
    _, parts, numbers, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    largest: np.ndarray = parts == 1 + numbers[1:, cv2.CC_STAT_AREA].argmax()
    return largest
