"""Semantic segmentation of a model on data sets, each with its own classes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, cast

import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

from clipself_seg.data.annotations import Record
from clipself_seg.data.datasets.records import find_dataset, sem_seg_records, train_vocabulary_name
from clipself_seg.data.datasets.table import SemSegSet
from clipself_seg.data.loader import evaluation_batches
from clipself_seg.data.mappers.samples import Configurable, Sample
from clipself_seg.data.mappers.sem_seg import SemSegTestMapper
from clipself_seg.data.vocabulary import NamedVocabulary, Vocabulary, read_label_file
from clipself_seg.evaluation import measuring_protocol
from clipself_seg.evaluation.drawn_examples import DrawnExamples
from clipself_seg.evaluation.evaluation_base import Evaluation, Pass, Results
from clipself_seg.evaluation.mean_iou import MeanIoUEvaluator, MiouRule
from clipself_seg.evaluation.measuring_protocol import MeasuringProtocol
from clipself_seg.evaluation.report import run_table
from clipself_seg.models.model_protocols import SemanticModel, reading_of


class SemanticEvaluation(Configurable, Evaluation[SemanticModel, "SemanticData"]):
    """Evaluates a model that labels pixels, all processes together, one data set after the other.

    Attributes:
        mapper: maps a record to a sample, see `SemSegTestMapper`.
        rule: classes that the mean IoU is taken over, see `MiouRule`.
        train_vocabulary: class list that was trained on, or its name or file, whose classes count
            as seen; "" splits nothing.
        background_words: True if names of the background compete for pixels, in data sets that have some.
        threshold: score below which a pixel of these data sets is background; 0 is never.
        label_files: name of a data set -> file of other names for its classes, or "".
        examples: of unseen classes.
    """

    mapper: Callable[[Record], Sample]
    rule: MiouRule
    train_vocabulary: NamedVocabulary
    background_words: bool = True
    threshold: float = 0.0
    label_files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    examples: DrawnExamples = DrawnExamples()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Reads ``DATASETS``, ``TEST`` and ``INPUT`` too."""
        return super().from_config(cfg) | {
            "mapper": SemSegTestMapper(cfg),
            "rule": cfg.TEST.MIOU_RULE,
            "train_vocabulary": train_vocabulary_name(cfg, SemSegSet),
            "background_words": cfg.TEST.BACKGROUND.WORDS,
            "threshold": cfg.TEST.BACKGROUND.THRESHOLD,
            "label_files": dict(zip(cfg.DATASETS.TEST, cfg.TEST.LABEL_FILES)),
            "examples": DrawnExamples.from_config(cfg),
        }

    def metadata(self) -> dict[str, object]:
        """Settings that decide the numbers beside weights and data, known after `check`."""
        metadata: dict[str, object] = {
            "evaluator rule": self.rule,
            "train vocabulary": str(self.train_vocabulary),
            "names of a class": self.synonyms,
        }
        if self.threshold or not self.background_words:
            metadata["background"] = self._background  # of data sets that have one
        return metadata

    @property
    def _background(self) -> str:
        """The rule of the background in words, for data sets that have one."""
        named = "its names" if self.background_words else "no names"
        return f"{named}, and a score below {self.threshold}" if self.threshold else named

    def _protocol(self, name: str, model: SemanticModel) -> MeasuringProtocol:
        data = self.data(name)
        reading = reading_of(model)
        vocabulary = data.vocabulary
        background = reading.background
        if data.background is not None:
            background = f"{self._background}; classes from {data.background} on count as one"
        rule = f"a name in {self.train_vocabulary}"
        return MeasuringProtocol.of_model(
            reading,
            words=measuring_protocol.words_text(vocabulary.name, len(vocabulary))
            + self.examples.text(name),
            background=background,
            size=measuring_protocol.size_text(self.mapper, reading.size),
            seen=measuring_protocol.seen_text(data.seen, rule),
            rule=f"means over classes by rule {self.rule}",
        )

    def _passes(self, name: str, model: SemanticModel) -> Iterator[Pass]:
        data = self.data(name)
        model.set_vocabulary(data.vocabulary)
        evaluator = MeanIoUEvaluator(
            dataset_name=name,
            class_names=data.class_names,
            ignore_label=data.ignore_label,
            background=data.background,
            seen=data.seen,
            rule=self.rule,
            output_dir=self.output_dir,
            threshold=self.threshold,
        )
        batches = evaluation_batches(data.records, self.mapper, self.workers)
        # The best class of each pixel instead of all scores.
        yield Pass(batches, evaluator, functools.partial(model, output="labels"))

    def _numbers(self, name: str, outputs: list[Results]) -> dict[str, float]:
        """Means, counts and the numbers of each class that counts, see `mean_iou_results`."""
        (output,) = outputs
        # JSON has no NaN: a class that does not count has no number.
        return {key: v for key, v in output["sem_seg"].items() if not math.isnan(v)}

    def _confusion(self, evaluator: DatasetEvaluator) -> np.ndarray | None:
        return cast(MeanIoUEvaluator, evaluator).confusion

    def tables(self, results: Results) -> dict[str, str]:
        """All means of each data set."""
        return {f'All data sets in percent, rule "{self.rule}"': run_table("semantic", results)}

    def _read(self, name: str) -> SemanticData:
        files = find_dataset(name, SemSegSet)
        vocabulary = Vocabulary.load(files.vocabulary)
        if label_file := self.label_files.get(name):
            vocabulary = read_label_file(label_file, vocabulary)
        # Without a background (None) this keeps all; the background itself is neither seen nor unseen.
        foreground = slice(files.background)
        names = vocabulary.first_names[foreground]
        seen = None
        if self.train_vocabulary:
            seen = vocabulary.seen_in(Vocabulary.load(self.train_vocabulary))[foreground]
        words = vocabulary
        if files.background is not None and not self.background_words:
            words = dataclasses.replace(vocabulary, classes=vocabulary.classes[: files.background])
        return SemanticData(
            vocabulary=self.examples.added(name, words, seen),
            records=sem_seg_records(name),
            class_names=names if files.background is None else (*names, "background"),
            ignore_label=files.ignore_label,
            background=files.background,
            seen=seen,
        )


class SemanticData(NamedTuple):
    """A data set as its evaluation needs it.

    Attributes:
        vocabulary: classes that the model is given.
        records: a record for each image.
        class_names: names of the classes that are counted, a background last.
        ignore_label: label of pixels that do not count.
        background: class in [0, K) from which on all classes are the background; None for no such
            class.
        seen: bool, which of the foreground classes belong to the training vocabulary; None if that is
            not known.
    """

    vocabulary: Vocabulary
    records: list[Record]
    class_names: tuple[str, ...]
    ignore_label: int
    background: int | None
    seen: np.ndarray | None
