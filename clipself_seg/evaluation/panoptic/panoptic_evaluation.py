"""Panoptic, instance and semantic segmentation of a model, for several fusions in one pass.

The fusions are those of the paper's Table 6, and "fused" with other weights by which CLIP lowers void.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

from clipself_seg.data.annotations import Record
from clipself_seg.data.datasets.records import train_vocabulary_name
from clipself_seg.data.datasets.table import PanopticSet
from clipself_seg.data.images import truth_pixels
from clipself_seg.data.loader import evaluation_batches
from clipself_seg.data.mappers.panoptic import PanopticTestMapper
from clipself_seg.data.mappers.samples import Configurable, Sample
from clipself_seg.data.masks import read_segments
from clipself_seg.data.vocabulary import NamedVocabulary
from clipself_seg.evaluation import measuring_protocol
from clipself_seg.evaluation.drawn_examples import DrawnExamples
from clipself_seg.evaluation.evaluation_base import Evaluation, Pass, Results
from clipself_seg.evaluation.evaluator import Outputs, Samples
from clipself_seg.evaluation.mean_iou import MeanIoUEvaluator, MiouRule
from clipself_seg.evaluation.measuring_protocol import MeasuringProtocol
from clipself_seg.evaluation.panoptic import ground_truth
from clipself_seg.evaluation.panoptic.ground_truth import PanopticGroundTruth
from clipself_seg.evaluation.panoptic.instance_ap import CityscapesAPEvaluator, InstanceAPEvaluator
from clipself_seg.evaluation.panoptic.quality import PanopticQualityEvaluator
from clipself_seg.evaluation.report import run_table
from clipself_seg.heads.fusion import Fusion, fusion_of
from clipself_seg.models.model_protocols import PanopticModel, reading_of

logger = logging.getLogger(__name__)


def void_name(void_discount: float) -> str:
    """Name of the fusion with a weight by which CLIP lowers void, such as "void_0.5"."""
    return f"void_{void_discount:g}"


# Keys of numbers of a single class begin with these; only the CSVs have them.
CLASS_PREFIXES = ("PQ-", "SQ-", "RQ-", "IoU-", "ACC-")
CITYSCAPES_INSTANCES = "instances by Cityscapes' rules"


class PanopticEvaluation(Configurable, Evaluation[PanopticModel, PanopticGroundTruth]):
    """Evaluates a model that fuses scores, all processes together, one data set after the other.

    Attributes:
        mapper: maps a record to a sample, see `PanopticTestMapper`.
        fusions: names of fusions, out of `report.FUSION_TITLES`; "fused" has the exponents of the model.
        tasks: tasks that are measured, out of `TASKS`; a task for which a data set has no files is left
            out.
        void_sweep: weights by which CLIP lowers void, with each of which "fused" is evaluated too.
        rule: classes that the mean IoU is taken over, see `MiouRule`.
        train_vocabulary: class list, or its name, that was trained on, whose classes count as
            seen; "" splits nothing, and the model takes all classes for seen.
        label_files: name of a data set -> file of other names for its classes, or "".
    """

    mapper: Callable[[Record], Sample]
    fusions: Sequence[str]
    tasks: Sequence[str]
    void_sweep: Sequence[float] = ()
    rule: MiouRule
    train_vocabulary: NamedVocabulary
    label_files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    examples: DrawnExamples = DrawnExamples()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.void_sweep = tuple(dict.fromkeys(float(value) for value in self.void_sweep))
        self._named: dict[str, Fusion] = {}
        self._metadata: dict[str, object] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Reads ``DATASETS``, ``TEST.{PANOPTIC, MIOU_RULE, TRAIN_VOCABULARY}`` and ``INPUT`` too."""
        return super().from_config(cfg) | {
            "mapper": PanopticTestMapper(cfg),
            "fusions": cfg.TEST.PANOPTIC.ROWS,
            "tasks": cfg.TEST.PANOPTIC.TASKS,
            "void_sweep": cfg.TEST.PANOPTIC.VOID_SWEEP,
            "rule": cfg.TEST.MIOU_RULE,
            "train_vocabulary": train_vocabulary_name(cfg, PanopticSet),
            "examples": DrawnExamples.from_config(cfg),
            "label_files": dict(zip(cfg.DATASETS.TEST, cfg.TEST.LABEL_FILES)),
        }

    def check(self, model: PanopticModel) -> None:
        """Refuses early what would fail late: missing files, a vocabulary without things or stuff."""
        super().check(model)
        truths = {name: self.data(name) for name in self.datasets}
        for name, truth in truths.items():
            self._evaluator(name, truth)
        records = {name: truth.records for name, truth in truths.items()}
        self._metadata = {"names of a class": self.synonyms, **model.evaluation_metadata(records)}
        if areas := {name: truth.areas for name, truth in truths.items() if truth.areas}:
            self._metadata["areas"] = areas

    def metadata(self) -> dict[str, object]:
        """Settings that decide the numbers beside weights and configuration, known after `check`."""
        return self._metadata

    def _protocol(self, name: str, model: PanopticModel) -> MeasuringProtocol:
        truth = self.data(name)
        reading = reading_of(model)
        seen = f"a name as {self.train_vocabulary} spells it"
        if ground_truth.counts_all(name, self.train_vocabulary):
            seen = f"all, since {self.train_vocabulary} has them in its words"
        return MeasuringProtocol.of_model(
            reading,
            words=measuring_protocol.words_text(truth.vocabulary.name, len(truth.vocabulary))
            + self.examples.text(name),
            size=measuring_protocol.size_text(self.mapper, reading.size),
            seen=measuring_protocol.seen_text(truth.seen, seen),
            rule=f"mIoU over classes by rule {self.rule}" if "semantic" in truth.tasks else "",
        )

    def _passes(self, name: str, model: PanopticModel) -> Iterator[Pass]:
        truth = self.data(name)
        batches = evaluation_batches(truth.records, self.mapper, self.workers)
        model.set_vocabulary(truth.vocabulary, seen=truth.seen)
        (alpha, beta), tasks = model.exponents, truth.tasks
        self._named = {
            fusion: fusion_of(fusion, alpha, beta, tasks, model.void_discount)
            for fusion in self.fusions
        }
        # "fused" with other weights by which CLIP lowers void.
        self._named |= {void_name(v): Fusion(alpha, beta, tasks, v) for v in self.void_sweep}
        ask = functools.partial(model, fusions=self._named)
        yield Pass(batches, self._evaluator(name, truth), ask)

    def _numbers(self, name: str, outputs: list[Results]) -> Results:
        """Name of each fusion -> means in percent (those of `panoptic_results`, "AP..." of `instance_results`, those
        of `mean_iou_results`), "alpha", "beta" and "images", and "void_discount" where a fusion has one.
        """
        (numbers,) = outputs
        results: Results = {}
        discounted = any(fusion.void_discount for fusion in self._named.values())
        for fusion, (alpha, beta, _, void_discount) in self._named.items():
            own = numbers[fusion] | {"alpha": alpha, "beta": beta}
            if discounted:
                own["void_discount"] = void_discount
            results[fusion] = own
        return results

    def _evaluator(self, name: str, truth: PanopticGroundTruth) -> FusionsEvaluator:
        """Evaluators of every fusion of a data set."""
        return FusionsEvaluator(
            {
                fusion: {
                    task: self._task_evaluator(name, truth, task, self.output_dir / fusion)
                    for task in (*truth.tasks, *_further_tasks(truth))
                }
                for fusion in (*self.fusions, *map(void_name, self.void_sweep))
            }
        )

    def _task_evaluator(
        self, name: str, truth: PanopticGroundTruth, task: str, folder: Path
    ) -> DatasetEvaluator:
        settings: dict[str, Any] = dict(dataset_name=name, seen=truth.seen, output_dir=folder)
        if task == "semantic":
            return MeanIoUEvaluator(
                class_names=truth.vocabulary.first_names,
                ignore_label=truth.ignore_label,
                rule=self.rule,
                **settings,
            )
        settings["vocabulary"] = truth.vocabulary
        if task == "panoptic":
            assert truth.files is not None
            file = truth.files.path(truth.files.annotations)
            return PanopticQualityEvaluator(
                image_ids=truth.image_ids, panoptic_json=file, **settings
            )
        if task == CITYSCAPES_INSTANCES:
            return CityscapesAPEvaluator(image_ids=truth.image_ids, **settings)
        assert truth.instances is not None
        return InstanceAPEvaluator(ground_truth=truth.instances, **settings)

    def _read(self, name: str) -> PanopticGroundTruth:
        how = self.tasks, self.train_vocabulary, self.label_files.get(name, "")
        alone = ground_truth.is_semantic_only(name)
        read = ground_truth.read_semantic_only if alone else ground_truth.read_panoptic_ground_truth
        truth = read(name, *how)
        return truth._replace(vocabulary=self.examples.added(name, truth.vocabulary, truth.seen))

    def tables(self, results: Results) -> dict[str, str]:
        """All means of each data set and fusion."""
        return {"All data sets in percent": run_table("panoptic", results)}


def _further_tasks(truth: PanopticGroundTruth) -> tuple[str, ...]:
    """Measurements by rules of the data set's own, beside its tasks."""
    files = truth.files
    cityscapes = files is not None and files.evaluator == "cityscapes_panoptic_seg"
    return (CITYSCAPES_INSTANCES,) if cityscapes and "instances" in truth.tasks else ()


class FusionsEvaluator(DatasetEvaluator):
    """Passes the outputs of each fusion to that fusion's own evaluators."""

    def __init__(self, fusions: Mapping[str, Mapping[str, DatasetEvaluator]]) -> None:
        """
        Args:
            fusions: name of a fusion -> task of `TASKS` -> evaluator.
        """
        self.fusions = fusions
        self._segments = any("panoptic" in by_task for by_task in fusions.values())

    def reset(self) -> None:
        """Forgets all images."""
        for by_task in self.fusions.values():
            for evaluator in by_task.values():
                evaluator.reset()

    def process(self, inputs: Samples, outputs: Outputs) -> None:
        """Compares the outputs of every fusion with the ground truth, which is read once.

        Args:
            inputs: samples as the evaluators of the fusions take them.
            outputs: for each sample "fusions": name of a fusion -> outputs as those evaluators take
                them.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            if self._segments:
                sample = {**sample, "pan_seg": read_segments(sample, truth_pixels(sample))}
            for name, by_task in self.fusions.items():
                for evaluator in by_task.values():
                    evaluator.process([sample], [output["fusions"][name]])

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Means in percent of every fusion, the same in every process; NaN is left out.

        Raises:
            InputError: an evaluator has nothing to compare, or not all images.
        """
        return {name: self._numbers(name, by_task) for name, by_task in self.fusions.items()}

    def _numbers(self, name: str, by_task: Mapping[str, DatasetEvaluator]) -> dict[str, float]:
        logger.info("fusion %s:", name)
        numbers: dict[str, float] = {}
        for task, evaluator in by_task.items():
            (results,) = evaluator.evaluate().values()
            numbers |= _means(results, task)
        return numbers


def _means(results: Mapping[str, float], task: str) -> dict[str, float]:
    """Means of a task, without numbers of single classes and without NaN.

    Counts of classes stay only for panoptic quality: the tasks have the same keys for them.
    """
    return {
        key: value
        for key, value in results.items()
        if not key.startswith(CLASS_PREFIXES)
        and not math.isnan(value)
        and (task == "panoptic" or not key.startswith("classes"))
    }
