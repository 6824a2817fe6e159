"""Evaluates instance masks: predicted and true instances in, average precision (AP) out.

The numbers and their names are those of Detectron2's `COCOEvaluator` for the task "segm". Unlike
that one it takes vocabularies whose things are not the first classes, as ADE20K's, and returns the
same numbers in every process.

Legend: K classes, n instances, H W rows and columns of the original image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from detectron2.structures import Instances
from tabulate import tabulate

from clipself_seg.data.masks import encode_masks
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.evaluation.evaluator import ImageEvaluator, check_predicted_classes
from clipself_seg.evaluation.instances.ground_truth import InstanceGroundTruth
from clipself_seg.evaluation.instances.numbers import (
    ImageInstances,
    instance_quality,
    instance_results,
    write_instance_csv,
)

logger = logging.getLogger(__name__)


class InstanceAPEvaluator(ImageEvaluator[ImageInstances]):
    """Encodes masks image by image; the main process compares those of all processes."""

    def __init__(
        self,
        *,
        dataset_name: str,
        vocabulary: Vocabulary,
        ground_truth: InstanceGroundTruth,
        seen: np.ndarray | None = None,
        output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """
        Args:
            dataset_name: name of the data set for messages and the file.
            vocabulary: K classes of the data set; it says which are things.
            ground_truth: instances of the data set; each of its images has to be evaluated.
            seen: (K,) bool, classes of the training vocabulary; None splits nothing.
            output_dir: folder where the main process writes `instance_classes_<data set>.csv`;
                None writes nothing.

        Raises:
            InputError: `seen` has another number of classes.
        """
        super().__init__(
            dataset_name=dataset_name,
            vocabulary=vocabulary,
            image_ids=ground_truth.image_ids,
            seen=seen,
            output_dir=output_dir,
        )
        self.ground_truth = ground_truth

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
    ) -> None:
        """Encode the masks of a batch.

        Args:
            inputs: samples with "file_name" and "image_id".
            outputs: for each sample "instances" with "pred_masks" (n, H, W) bool, "scores" (n,) and
                "pred_classes" (n,) in [0, K), as `panoptic_merge.merge_instances` gives them.

        Raises:
            ValueError: a predicted class that the vocabulary does not have.
            FloatingPointError: a score is not finite.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            instances: Instances = output["instances"]
            classes = instances.pred_classes.tolist()
            scores = instances.scores.tolist()
            check_predicted_classes(
                np.asarray(classes),
                len(self.vocabulary),
                file_name=sample["file_name"],
                dataset_name=self.dataset_name,
            )
            if not np.isfinite(scores).all():
                raise FloatingPointError(
                    f"the scores of {sample['file_name']} are not finite: the weights or the "
                    "precision are at fault"
                )
            masks = encode_masks(instances.pred_masks.cpu().numpy())
            self._images[sample["image_id"]] = ImageInstances(masks, scores, classes)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Merge all processes and compare.

        Returns:
            {"segm": numbers of `instance_results` and "images"}, the same in every process.

        Raises:
            InputError: images are missing, or masks have another size than the file states (in
                every process, so that none waits).
        """
        return {"segm": self._compare_in_one_process(self._compare)}

    def _compare(self, predicted: Mapping[Any, ImageInstances]) -> dict[str, float]:
        count = len(predicted)
        logger.info('comparing the instances of %d images of "%s"', count, self.dataset_name)
        quality = instance_quality(self.ground_truth, predicted, self.vocabulary)
        results = {"images": float(count)} | instance_results(quality, self.seen)
        shown = {key: f"{value:.1f}" for key, value in results.items() if key.startswith("AP")}
        table = tabulate([shown.values()], list(shown), disable_numparse=True)
        logger.info('Instance masks of "%s" in percent:\n%s', self.dataset_name, table)
        if self.output_dir is not None:
            path = self.output_dir / f"instance_classes_{self.dataset_name}.csv"
            write_instance_csv(path, self.vocabulary.names, quality, self.seen)
            logger.info("numbers of each class in %s", path)
        return results
