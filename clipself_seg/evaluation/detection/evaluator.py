"""Evaluates detections: boxes, scores, classes and masks in, average precision (AP) out.

Legend: K classes, n detections, H W rows and columns of the original image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.detection.detections import (
    KINDS,
    ImageDetections,
    image_detections,
    write_coco_results,
)
from clipself_seg.evaluation.detection.ground_truth import DetectionGroundTruth
from clipself_seg.evaluation.detection.numbers import (
    FREQUENCIES,
    LIMITS,
    LVIS_LIMIT,
    coco_numbers,
    detection_quality,
    lvis_numbers,
    split_numbers,
)
from clipself_seg.evaluation.detection.open_images import detection_images
from clipself_seg.evaluation.detection.report import run_table, write_class_csv
from clipself_seg.evaluation.evaluator import ImageEvaluator, check_predicted_classes
from clipself_seg.evaluation.open_ap import open_ap_results, open_precision

logger = logging.getLogger(__name__)


class DetectionEvaluator(ImageEvaluator[ImageDetections]):
    """Keeps detections image by image; the main process compares those of all processes."""

    def __init__(
        self,
        *,
        dataset_name: str,
        vocabulary: Vocabulary,
        ground_truth: DetectionGroundTruth,
        tasks: Sequence[str] = ("boxes",),
        limits: str = "detectron2",
        seen: np.ndarray | None = None,
        similarity: np.ndarray | None = None,
        output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """
        Args:
            dataset_name: name of the data set for messages and the files.
            vocabulary: K classes of the data set.
            ground_truth: objects of the data set; each of its images has to be evaluated.
            tasks: what is compared, out of `KINDS`.
            limits: how many detections COCO's numbers count, out of `LIMITS`.
            seen: (K,) bool, classes that training shows; None splits nothing.
            similarity: (K, K) in [0, 1] for Open AP; None measures none.
            output_dir: folder where the main process writes `detections_<data set>.json` in COCO's
                results format, and for each task `<task>_classes_<data set>.csv`; None writes nothing.

        Raises:
            InputError: `seen` has another number of classes, or unknown tasks or limits.
        """
        super().__init__(
            dataset_name=dataset_name,
            vocabulary=vocabulary,
            image_ids=ground_truth.image_ids,
            seen=seen,
            output_dir=output_dir,
        )
        check_choices(tasks, limits)
        self.ground_truth = ground_truth
        self.tasks = tuple(tasks)
        self.limits = limits
        self.similarity = similarity

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
    ) -> None:
        """Keep the detections of a batch.

        Args:
            inputs: samples with "file_name" and "image_id".
            outputs: for each sample "instances" with "pred_boxes" (XYXY in pixels of the original image),
                "scores" (n,), "pred_classes" (n,) in [0, K), and for the task "masks" "pred_masks"
                (n, H, W) bool.

        Raises:
            InputError: masks are wanted that the model does not have.
            ValueError: a predicted class that the vocabulary does not have.
            FloatingPointError: a score or a box is not finite.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            detections = image_detections(
                output["instances"], masks="masks" in self.tasks, source=sample["file_name"]
            )
            check_predicted_classes(
                detections.classes,
                len(self.vocabulary),
                file_name=sample["file_name"],
                dataset_name=self.dataset_name,
            )
            self._images[sample["image_id"]] = detections

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Merge all processes and compare.

        Returns:
            "bbox" for the task "boxes" and "segm" for "masks" -> "images" and the numbers of `coco_numbers`,
            or of `lvis_numbers` for a federated data set, of `split_numbers`, and if a similarity is given of
            `open_ap_results`. The same in every process.

        Raises:
            InputError: images are missing, or masks have another size than the file states (in every
                process, so that none waits).
        """
        return self._compare_in_one_process(self._compare)

    def _compare(self, predicted: Mapping[Any, ImageDetections]) -> dict[str, dict[str, float]]:
        if self.output_dir is not None:
            path = self.output_dir / f"detections_{self.dataset_name}.json"
            write_coco_results(path, predicted.items(), self.ground_truth.category_ids)
            logger.info("detections in COCO's results format in %s", path)
        results = {KINDS[task]: self._numbers(task, predicted) for task in self.tasks}
        table = run_table({self.dataset_name: results})
        logger.info('Detections of "%s" in percent:\n%s', self.dataset_name, table)
        return results

    def _numbers(self, task: str, predicted: Mapping[Any, ImageDetections]) -> dict[str, float]:
        truth = self.ground_truth
        logger.info('comparing %s of %d images of "%s"', task, len(truth.sizes), self.dataset_name)
        quality = detection_quality(truth, predicted, KINDS[task], LIMITS[self.limits])
        results = {"images": float(len(truth.sizes))}
        if truth.federated is None:
            results |= coco_numbers(quality)
        else:
            frequencies = [entry.frequency for entry in self.vocabulary.classes]
            results |= lvis_numbers(quality, frequencies)
        if self.output_dir is not None:
            path = self.output_dir / f"{task}_classes_{self.dataset_name}.csv"
            write_class_csv(path, self.vocabulary, quality, self.seen)
            logger.info("numbers of each class in %s", path)
        results |= split_numbers(quality, self.seen)
        return results | self._open_ap(task, predicted)

    def _open_ap(self, task: str, predicted: Mapping[Any, ImageDetections]) -> dict[str, float]:
        if self.similarity is None:
            return {}
        truth = self.ground_truth
        limits = LIMITS[self.limits] if truth.federated is None else (LVIS_LIMIT,)
        limit = 100 if 100 in limits else limits[-1]  # that of AP
        images = detection_images(truth, predicted, KINDS[task])
        groups = {} if self.seen is None else {"-seen": self.seen, "-unseen": ~self.seen}
        if truth.federated is not None:
            frequencies = np.array([entry.frequency for entry in self.vocabulary.classes])
            groups |= {one: frequencies == one for one in FREQUENCIES}
        return open_ap_results(open_precision(images, self.similarity, limit), groups)


def check_choices(tasks: Sequence[str], limits: str) -> None:
    """Refuse unknown values of ``TEST.DETECTION``.

    Raises:
        InputError: no task or an unknown one, or unknown limits.
    """
    wrong = [task for task in tasks if task not in KINDS]
    if wrong or not tasks:
        raise InputError(
            f"TEST.DETECTION.TASKS is {tuple(tasks)}: name at least one of {', '.join(KINDS)}"
        )
    if limits not in LIMITS:
        raise InputError(f'TEST.DETECTION.LIMITS is "{limits}": it is one of {", ".join(LIMITS)}')
