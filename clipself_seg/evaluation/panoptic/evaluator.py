"""Evaluates panoptic segmentation: predicted segments and panoptic PNGs in, PQ, SQ and RQ out.

The names of the results are those of Detectron2's `COCOPanopticEvaluator`, the numbers
panopticapi's. Predictions are compared in memory: they are neither encoded nor written.

Legend: C classes, H W rows and columns of the original image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.utils import comm

from clipself_seg.data.images import truth_pixels
from clipself_seg.data.masks import read_segments
from clipself_seg.errors import InputError
from clipself_seg.evaluation.evaluator import ImageEvaluator, Outputs, Samples
from clipself_seg.evaluation.panoptic.numbers import (
    ClassQuality,
    ImageMatches,
    match_segments,
    panoptic_map,
    panoptic_quality,
    panoptic_results,
)
from clipself_seg.evaluation.report import percents, quality_table, seen_cells, write_class_csv

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class PanopticQualityEvaluator(ImageEvaluator[ImageMatches]):
    """Matches segments image by image, and averages those of all processes.

    The main process writes `panoptic_classes_<data set>.csv` into the folder.

    Attributes:
        panoptic_json: file of the ground truth, for messages.

    Raises:
        InputError: the vocabulary has no thing, no stuff or marks neither.
    """

    panoptic_json: str | os.PathLike[str] = "the panoptic JSON"

    def __post_init__(self) -> None:
        super().__post_init__()
        things = self.vocabulary.thing
        for kind, missing in (("thing", not things.any()), ("stuff", things.all())):
            if missing:
                raise InputError(
                    f'vocabulary "{self.vocabulary.name}": none of the {len(things)} classes is {kind}: set "isthing" '
                    "of each; without both kinds it is not a panoptic data set"
                )

    def process(self, inputs: Samples, outputs: Outputs) -> None:
        """Match the segments of a batch.

        Args:
            inputs: samples with "file_name", "image_id", "pan_seg_file_name" and "segments_info"
                as `annotations.panoptic_records` gives them, with category ids of the data set. A
                caller that compares several predictions of an image reads its PNG once, and gives
                it as "pan_seg" (H, W).
            outputs: for each sample "panoptic_seg": ids (H, W), 0 where nothing is, and the segments
                with "id" and "category_id" in [0, C), as `panoptic_merge.merge_panoptic` gives them.

        Raises:
            InputError: a PNG is missing or broken; PNG and JSON, map and list, or their sizes
                disagree; a category that is not among the classes.
        """
        own_index = {index: index for index in range(len(self.vocabulary))}
        for sample, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            predicted = panoptic_map(
                ids.cpu().numpy(),
                segments,
                own_index,
                f"the predicted map of {sample['file_name']} and its list of segments",
            )
            png = sample["pan_seg_file_name"]
            read = sample.get("pan_seg")
            truth = panoptic_map(
                read_segments(sample, truth_pixels(sample)) if read is None else read,
                sample["segments_info"],
                self.vocabulary.dataset_id_to_index,
                f"{png} and the entry of image {sample['image_id']} in {self.panoptic_json}",
            )
            self._images[sample["image_id"]] = match_segments(truth, predicted)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Merge all processes and average.

        Returns:
            {"panoptic_seg": numbers of `panoptic_results` and "images"}, the same in every process.

        Raises:
            InputError: images are missing, or there is no segment at all (in every process, so
                that none waits).
        """
        quality, results = self._merge()
        if comm.is_main_process():
            table = quality_table(results)
            logger.info('Panoptic quality of "%s" in percent:\n%s', self.dataset_name, table)
            if self.output_dir is not None:
                path = self.output_dir / f"panoptic_classes_{self.dataset_name}.csv"
                write_quality_csv(
                    path, self.vocabulary.first_names, self.vocabulary.thing, quality, self.seen
                )
        return {"panoptic_seg": results}

    def results(self) -> dict[str, float]:
        """Results that `evaluate` returns under "panoptic_seg", without table and file."""
        return self._merge()[1]

    def _merge(self) -> tuple[ClassQuality, dict[str, float]]:
        matches = self._merged()
        quality = panoptic_quality(matches, len(self.vocabulary))
        if np.isnan(quality.pq).all():
            raise InputError(
                f'"{self.dataset_name}" has no segment in {len(matches)} images, neither true nor '
                "predicted: its panoptic ground truth is blank"
            )
        results = {"images": float(len(matches))}
        results |= panoptic_results(
            quality, self.vocabulary.first_names, self.vocabulary.thing, self.seen
        )
        return quality, results


def write_quality_csv(
    path: str | os.PathLike[str],
    class_names: Sequence[str],
    isthing: np.ndarray,
    quality: ClassQuality,
    seen: np.ndarray | None = None,
) -> None:
    """Write the numbers of each class, atomically, see `report.write_class_csv`.

    PQ, SQ and RQ are percent in full precision, empty for a class that is nowhere.

    Args:
        path: the CSV to write.
        class_names: names of the C classes.
        isthing: (C,) bool, which classes are things.
        quality: numbers of the C classes.
        seen: (C,) bool, classes of the training vocabulary; None if that is not known.
    """
    columns = {
        "isthing": isthing.astype(int).tolist(),
        "seen": seen_cells(seen, len(class_names)),
        "pq": percents(quality.pq),
        "sq": percents(quality.sq),
        "rq": percents(quality.rq),
        "tp": quality.tp.tolist(),
        "fp": quality.fp.tolist(),
        "fn": quality.fn.tolist(),
        "iou_sum": quality.iou_sum.tolist(),
    }
    write_class_csv(path, class_names, columns)
