"""Evaluates semantic segmentation: predicted classes and label maps in, mean IoU and accuracy out.

Legend: K classes, H W rows and columns of the original image.

The numbers and their names are those of Detectron2's `SemSegEvaluator`, to the last digit. Left out
is what no number here needs: that one's run-length encoding of every predicted class of every image,
and its boundary IoU, in place of which there is the one of each class.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from clipself_seg.data.masks import read_labels_of
from clipself_seg.errors import InputError
from clipself_seg.evaluation.evaluator import Output, Outputs, Samples, check_predicted_classes
from clipself_seg.evaluation.report import percents, seen_cells, semantic_run_table, write_class_csv
from clipself_seg.evaluation.sem_seg.numbers import (
    ClassNumbers,
    MiouRule,
    boundary_counts,
    boundary_iou,
    boundary_results,
    class_numbers,
    confusion_matrix,
    sem_seg_results,
)

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class SemSegAccuracyEvaluator(DatasetEvaluator):
    """Counts pixels, and adds up the counts of all processes before anything is divided.

    Attributes:
        dataset_name: name of the data set for messages and the file.
        class_names: names of the K classes.
        ignore_label: label of pixels of the label maps that do not count.
        background: every prediction from this one on becomes this one, which is then the last
            of the K classes (VOC-20b: 20); None merges nothing.
        seen: bool (K or fewer,), which of the first classes belong to the training vocabulary;
            None splits nothing.
        rule: classes that the mean IoU is taken over, see `MiouRule`.
        boundary: whether Boundary IoU is measured, too.
        output_dir: folder where the main process writes `sem_seg_classes_<data set>.csv`; None
            writes nothing.
        threshold: score below which a pixel is background, where there is one; 0 is never.
        confusion: pixels of all processes, see `confusion_matrix`; after `evaluate`.
    """

    dataset_name: str
    class_names: Sequence[str]
    ignore_label: int
    background: int | None = None
    seen: np.ndarray | None = None
    rule: MiouRule = "present"
    boundary: bool = False
    output_dir: Path | None = None
    threshold: float = 0.0
    confusion: np.ndarray | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.background is None:
            self.threshold = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        num_classes = len(self.class_names)
        self._matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
        self._boundary = np.zeros((3, num_classes), dtype=np.int64)
        self._images = 0

    def process(self, inputs: Samples, outputs: Outputs) -> None:
        """Count the pixels of a batch.

        Args:
            inputs: samples with "file_name", "sem_seg_file_name", and the original "height" and
                "width" in pixels.
            outputs: for each sample "sem_seg_labels" (H, W) integers, and their scores (H, W) as
                "sem_seg_best" if they are known; or "sem_seg", scores (C, H, W), of which the highest
                counts, the first of equal ones. C is K, or more if there is a background.

        Raises:
            InputError: the label map is missing, broken or not of this vocabulary.
            ValueError: a prediction of another size, or of a class that the data set does not have.
            FloatingPointError: the best score of a pixel is not finite.
        """
        num_classes = len(self.class_names)
        for sample, output in zip(inputs, outputs, strict=True):
            height, width = int(sample["height"]), int(sample["width"])
            predicted = self._labels(sample["file_name"], output)
            if predicted.shape != (height, width):
                raise ValueError(
                    f"{sample['file_name']} is {width}x{height} pixels (width x height), "
                    f"its prediction has shape {predicted.shape}"
                )
            truth = read_labels_of(sample, num_classes=num_classes, ignore_label=self.ignore_label)
            self._matrix += confusion_matrix(predicted, truth, num_classes, self.ignore_label)
            if self.boundary:
                self._boundary += boundary_counts(predicted, truth, num_classes, self.ignore_label)
            self._images += 1

    def _labels(self, file_name: str, output: Output) -> np.ndarray:
        """Predicted classes (H, W), merged and checked."""
        if "sem_seg_labels" in output:
            labels = output["sem_seg_labels"]
            best = output.get("sem_seg_best")
        else:
            best, labels = output["sem_seg"].max(dim=0)
        if best is not None and not torch.isfinite(best).all():
            raise FloatingPointError(
                f"the scores of {file_name} are not finite: the weights or the precision are at fault"
            )
        predicted = labels.cpu().numpy()
        if self.background is not None:
            predicted = np.minimum(predicted, self.background)
        if self.threshold:
            if best is None:
                raise ValueError("a threshold of the background needs the scores of the labels")
            predicted[(best < self.threshold).cpu().numpy()] = self.background
        extremes = np.array([predicted.min(initial=0), predicted.max(initial=0)])
        check_predicted_classes(extremes, len(self.class_names), file_name, self.dataset_name)
        return predicted

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Add up the counts of all processes and divide.

        Returns:
            {"sem_seg": numbers of `sem_seg_results`, and of `boundary_results` if those are measured, and
            "images"}, the same in every process.

        Raises:
            InputError: no pixel of the data set is valid (in every process, so that none waits).
        """
        counted = comm.all_gather((self._matrix, self._images, self._boundary))
        matrix = np.sum([part for part, _, _ in counted], axis=0)
        self.confusion = matrix
        images = sum(number for _, number, _ in counted)
        if not matrix.any():
            raise InputError(
                f'"{self.dataset_name}" has no labelled pixel in {images} images: its label maps '
                f"hold nothing but the ignore label {self.ignore_label}"
            )
        numbers = class_numbers(matrix, self.rule)
        results = {"images": float(images)}
        results |= sem_seg_results(numbers, self.class_names, self.seen)
        if self.boundary:
            counts = np.sum([part for _, _, part in counted], axis=0)
            results |= boundary_results(boundary_iou(counts), self.seen)
        if comm.is_main_process():
            self._report(results, numbers)
        return {"sem_seg": results}

    def _report(self, results: dict[str, float], numbers: ClassNumbers) -> None:
        table = semantic_run_table({self.dataset_name: results})
        logger.info('Semantic segmentation in percent, rule "%s":\n%s', self.rule, table)
        if self.output_dir is not None:
            path = self.output_dir / f"sem_seg_classes_{self.dataset_name}.csv"
            columns = {
                "iou": percents(numbers.iou),
                "accuracy": percents(numbers.accuracy),
                "gt_pixels": numbers.truth.tolist(),
                "predicted_pixels": numbers.predicted.tolist(),
                "seen": seen_cells(self.seen, len(self.class_names)),
            }
            write_class_csv(path, self.class_names, columns)
