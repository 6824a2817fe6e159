"""Open-vocabulary detection of a model on data sets, each with its own classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode

from clipself_seg.data.annotations import Record, require_files
from clipself_seg.data.datasets.records import (
    detection_records,
    find_dataset,
    train_vocabulary_name,
)
from clipself_seg.data.datasets.table import DetectionSet
from clipself_seg.data.loader import evaluation_batches
from clipself_seg.data.mappers.detection import DetectionTestMapper
from clipself_seg.data.mappers.samples import Configurable, Sample
from clipself_seg.data.vocabulary import NamedVocabulary, Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation import coco_ap, coco_objects, measuring_protocol, report
from clipself_seg.evaluation.evaluation_base import Evaluation, Pass, Results
from clipself_seg.evaluation.evaluator import ImageId
from clipself_seg.evaluation.measuring_protocol import MeasuringProtocol
from clipself_seg.models.model_protocols import DetectionModel, reading_of

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class DetectionEvaluator(coco_ap.ObjectEvaluator):
    """Compares boxes, and masks if those are asked for.

    The main process writes `detections_<data set>.json` in COCO's results format, and for each task
    `<task>_classes_<data set>.csv` into the folder.

    Attributes:
        tasks: kinds that are compared, out of `KINDS`.
        limits: limits of the detections that COCO's numbers count, out of `LIMITS`.
    """

    tasks: Sequence[str] = ("boxes",)
    limits: str = "detectron2"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.masks = "masks" in self.tasks

    def _numbers(
        self, images: Mapping[ImageId, coco_objects.ImageDetections]
    ) -> dict[str, dict[str, float]]:
        """ "bbox" for the task "boxes" and "segm" for "masks" -> "images" and the numbers of `coco_numbers`, or of
        `lvis_numbers` for a federated data set, and of `split_numbers`.

        Raises:
            InputError: masks have another size than the file states.
        """
        if self.output_dir is not None:
            path = self.output_dir / f"detections_{self.dataset_name}.json"
            coco_objects.write_coco_results(path, images.items(), self.ground_truth.category_ids)
            logger.info("detections in COCO's results format in %s", path)
        return {coco_objects.KINDS[task]: self._of_task(task, images) for task in self.tasks}

    def _of_task(
        self, task: str, images: Mapping[ImageId, coco_objects.ImageDetections]
    ) -> dict[str, float]:
        truth = self.ground_truth
        logger.info('comparing %s of %d images of "%s"', task, len(truth.sizes), self.dataset_name)
        quality = coco_ap.object_quality(
            truth, images, coco_objects.KINDS[task], coco_ap.LIMITS[self.limits]
        )
        results = {"images": float(len(truth.sizes))}
        if truth.federated is None:
            results |= coco_ap.coco_numbers(quality)
        else:
            frequencies = [entry.frequency for entry in self.vocabulary.classes]
            results |= coco_ap.lvis_numbers(quality, frequencies)
        if self.output_dir is not None:
            path = self.output_dir / f"{task}_classes_{self.dataset_name}.csv"
            ap, ap50 = coco_ap.class_precision(quality)
            columns = {
                "frequency": [entry.frequency or "" for entry in self.vocabulary.classes],
                "seen": report.seen_cells(self.seen, len(self.vocabulary)),
                "ap": report.percents(ap),
                "ap50": report.percents(ap50),
                "objects": quality.objects.tolist(),
                "detections": quality.detections.tolist(),
            }
            report.write_class_csv(
                path, [entry.names[0] for entry in self.vocabulary.classes], columns
            )
        return results | coco_ap.split_numbers(quality, self.seen)


# What the numbers of a data set count, for the files of a run.
LIMIT_TEXTS = {
    "detectron2": "COCO: 100 detections of a class in an image",
    "mmdetection": "COCO: AP at 100 detections of a class in an image, all other numbers at 300",
}
LVIS_TEXT = "LVIS: the best 300 detections of an image, whatever their classes"
OWN_SPLIT = "of the vocabulary"


class DetectionEvaluation(Configurable, Evaluation[DetectionModel, "DetectionData"]):
    """Evaluates a detector, all processes together, one data set after the other.

    Attributes:
        mapper: maps a record to a sample, see `DetectionTestMapper`.
        tasks: kinds that are measured, "boxes" and "masks".
        limits: limits of the detections that COCO's numbers count, out of `coco_ap.LIMITS`.
        train_vocabulary: class list, or name or file of it, that was trained on; the classes that share a
            name with its seen ones count as seen. "" splits nothing.
        own_split: a data set whose vocabulary says itself which classes are seen, as OV-COCO's, is
            split by that.
    """

    mapper: Callable[[Record], Sample]
    tasks: Sequence[str]
    limits: str
    train_vocabulary: NamedVocabulary
    own_split: bool

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Reads ``DATASETS``, ``TEST.{DETECTION, TRAIN_VOCABULARY}`` and ``INPUT`` too."""
        given = cfg.TEST.TRAIN_VOCABULARY
        return super().from_config(cfg) | {
            "mapper": DetectionTestMapper(cfg),
            "tasks": cfg.TEST.DETECTION.TASKS,
            "limits": cfg.TEST.DETECTION.LIMITS,
            "train_vocabulary": train_vocabulary_name(cfg, DetectionSet),
            # Of a fine-tuning the training vocabulary alone says it.
            "own_split": not (given or cfg.DATASETS.DATA or cfg.SOLVER.MIX_WITH_START),
        }

    def check(self, model: DetectionModel) -> None:
        """Refuses early what would fail late: tasks that the model does not have, missing files."""
        if "masks" in self.tasks and not model.has_masks:
            raise InputError(
                'the model has no masks, which TEST.DETECTION.TASKS asks for: set it to ("boxes",), or take '
                "a model with masks"
            )
        super().check(model)

    def metadata(self) -> dict[str, object]:
        """Settings that decide the numbers beside weights and configuration, known after `check`."""
        return {
            "evaluator rule": {name: self._rule(data) for name, data in self._known.items()},
            "train vocabulary": str(self.train_vocabulary),
            "seen classes": {name: data.split for name, data in self._known.items()},
            "names of a class": self.synonyms,
        }

    def _rule(self, data: DetectionData) -> str:
        return LIMIT_TEXTS[self.limits] if data.truth.federated is None else LVIS_TEXT

    def _protocol(self, name: str, model: DetectionModel) -> MeasuringProtocol:
        data = self.data(name)
        reading = reading_of(model)
        return MeasuringProtocol.of_model(
            reading,
            words=measuring_protocol.words_text(data.vocabulary.name, len(data.vocabulary)),
            size=measuring_protocol.size_text(self.mapper, reading.size),
            seen=measuring_protocol.seen_text(data.seen, data.split),
            rule=self._rule(data),
        )

    def _passes(self, name: str, model: DetectionModel) -> Iterator[Pass]:
        data = self.data(name)
        model.set_vocabulary(data.vocabulary, seen=data.seen)
        evaluator = DetectionEvaluator(
            dataset_name=name,
            vocabulary=data.vocabulary,
            ground_truth=data.truth,
            tasks=self.tasks,
            limits=self.limits,
            seen=data.seen,
            output_dir=self.output_dir,
        )
        yield Pass(evaluation_batches(data.records, self.mapper, self.workers), evaluator, model)

    def _numbers(self, name: str, outputs: list[Results]) -> Results:
        """ "bbox" and "segm" -> numbers in percent, as `DetectionEvaluator` gives them."""
        (numbers,) = outputs
        return numbers

    def tables(self, results: Results) -> dict[str, str]:
        """All precisions of each data set."""
        return {"All data sets in percent": report.run_table("detection", results)}

    def _read(self, name: str) -> DetectionData:
        files = find_dataset(name, DetectionSet)
        if files.evaluator is None:
            raise InputError(f'"{name}" is only trained on: name one with all classes to test on')
        vocabulary = Vocabulary.load(files.vocabulary)
        # Their objects are in the ground truth, and the loader's workers need none.
        records = [
            {key: value for key, value in record.items() if key != "annotations"}
            for record in detection_records(name)
        ]
        require_files(name, records, files.root.advice)
        truth = coco_objects.read_true_objects(
            files.path(files.annotations),
            vocabulary,
            [record["image_id"] for record in records],
            masks="masks" in self.tasks,
            federated=files.evaluator == "lvis",
            by_order=files.by_order,
        )
        if self.own_split and None not in (entry.seen for entry in vocabulary.classes):
            seen, split = vocabulary.seen, OWN_SPLIT
        elif self.train_vocabulary:
            seen = vocabulary.seen_in(Vocabulary.load(self.train_vocabulary))
            split = f"those that share a name with a seen class of {self.train_vocabulary}"
        else:
            seen, split = None, "not known"
        return DetectionData(vocabulary, records, truth, seen, split)


class DetectionData(NamedTuple):
    """A data set as its evaluation needs it.

    Attributes:
        vocabulary: its K classes.
        records: a record for each image.
        truth: its objects.
        seen: (K,) bool, classes that training shows; None if that is not known.
        split: source of the seen classes.
    """

    vocabulary: Vocabulary
    records: list[Record]
    truth: coco_objects.TrueObjects
    seen: np.ndarray | None
    split: str
