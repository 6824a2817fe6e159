"""Evaluates instance masks: average precision (AP) by COCO's rules, and beside it by Cityscapes'.

By COCO's rules the numbers and their names are those of Detectron2's `COCOEvaluator` for the task "segm". Unlike that
one it takes vocabularies whose things are not the first classes, as ADE20K's, and returns the same numbers in every
process.

Cityscapes' rules differ in what counts (instances of at least 100 pixels; a prediction mostly on void, on a group or on
a small instance is not false) and in the curve, whose area is taken by trapezia over the recalls that occur.

Shapes: t true instances and n predicted ones of an image, K classes, T thresholds of the overlap, H W rows and columns
of the original image.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from clipself_seg.data.images import truth_pixels
from clipself_seg.data.masks import mask_arrays, read_indices
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.evaluation import coco_ap
from clipself_seg.evaluation.coco_objects import ImageDetections
from clipself_seg.evaluation.evaluator import ImageEvaluator, ImageId, Outputs, Samples
from clipself_seg.evaluation.report import percents, seen_cells, write_class_csv

logger = logging.getLogger(__name__)


class InstanceAPEvaluator(coco_ap.ObjectEvaluator):
    """Compares masks of things, as `panoptic_merge.merge_instances` gives them.

    The main process writes `instance_classes_<data set>.csv` into the folder.
    """

    boxes = False
    masks = True

    def _numbers(self, images: Mapping[ImageId, ImageDetections]) -> dict[str, dict[str, float]]:
        """{"segm": numbers of `instance_results` and "images"}.

        Raises:
            InputError: masks have another size than the file states.
        """
        count = len(images)
        logger.info('comparing the instances of %d images of "%s"', count, self.dataset_name)
        quality = coco_ap.object_quality(
            self.ground_truth, images, "segm", coco_ap.LIMITS["detectron2"]
        )
        results = {"images": float(count)} | instance_results(quality, self.seen)
        if self.output_dir is not None:
            path = self.output_dir / f"instance_classes_{self.dataset_name}.csv"
            ap, ap50 = coco_ap.class_precision(quality)
            columns = {
                "seen": seen_cells(self.seen, len(self.vocabulary)),
                "ap": percents(ap),
                "ap50": percents(ap50),
                "instances": quality.objects.tolist(),
                "predictions": quality.detections.tolist(),
            }
            write_class_csv(path, self.vocabulary.first_names, columns)
        return {"segm": results}


def instance_results(
    quality: coco_ap.ObjectQuality, seen: np.ndarray | None = None
) -> dict[str, float]:
    """Means in percent over the classes with an instance, and their number.

    Args:
        quality: numbers of the K classes.
        seen: (K,) bool, classes of the training vocabulary; None splits nothing.

    Returns:
        The keys of `COCO_NUMBERS`, and "classes", the number of classes with an instance; with `seen`
        also "AP-seen", "classes-seen" and the same of unseen classes. A mean over no class is left
        out.
    """
    numbers = coco_ap.coco_numbers(quality)
    results = {key: numbers[key] for key in coco_ap.COCO_NUMBERS if key in numbers}
    results["classes"] = float(quality.known.sum())
    if seen is not None:
        precision_TRK = np.ascontiguousarray(quality.precision[..., 0, -1])
        for group, members in (("seen", quality.known & seen), ("unseen", quality.known & ~seen)):
            results[f"classes-{group}"] = float(members.sum())
            if members.any():
                results[f"AP-{group}"] = 100 * float(precision_TRK[..., members].mean())
    return results


THRESHOLDS = np.arange(0.5, 1.0, 0.05)
SMALLEST = 100  # pixels of a true instance that counts
FIRST_INSTANCE = 1000
NO_CLASS = -1


class ImageOverlaps(NamedTuple):
    """Numbers of pixels of the instances of an image.

    Attributes:
        truth_classes: (t,) class indices.
        truth_areas: (t,) pixels.
        truth_groups: (t,) bool, True for several instances that nobody told apart.
        classes: (n,) class indices.
        scores: (n,) of any scale.
        areas: (n,) pixels, none of them 0.
        void: (n,) pixels on what is not evaluated.
        both: (n, t) pixels that both have, 0 for instances of two classes.
    """

    truth_classes: np.ndarray
    truth_areas: np.ndarray
    truth_groups: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    areas: np.ndarray
    void: np.ndarray
    both: np.ndarray


def image_overlaps(
    values: np.ndarray,
    vocabulary: Vocabulary,
    masks: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
) -> ImageOverlaps:
    """Overlaps of the predicted instances of an image with the true ones.

    Args:
        values: (H, W) map of instance ids as Cityscapes has it: 1000 times the label id and a number, or the label id
            alone of stuff and groups. Void are label ids alone that the vocabulary lacks: an instance of such a class
            is not, as in cityscapesscripts.
        vocabulary: classes, whose dataset ids are the label ids.
        masks: (n, H, W) bool; those without a pixel are left out.
        classes: (n,) class indices.
        scores: (n,).
    """
    listed, positions = np.unique(values, return_inverse=True)
    positions = positions.reshape(values.shape)
    alone = listed < FIRST_INSTANCE
    label_ids = np.where(alone, listed, listed // FIRST_INSTANCE).tolist()
    index_of = vocabulary.dataset_id_to_index
    labels = np.array([index_of.get(label, NO_CLASS) for label in label_ids])
    truth = (labels != NO_CLASS) & vocabulary.thing[labels]
    counts = np.array(
        [np.bincount(positions[mask.astype(bool)], minlength=len(listed)) for mask in masks],
        dtype=np.int64,
    ).reshape(len(masks), len(listed))
    some = counts.any(axis=1)
    classes, scores, counts = classes[some], scores[some], counts[some]
    return ImageOverlaps(
        labels[truth],
        np.bincount(positions.ravel())[truth],
        alone[truth],
        classes,
        scores,
        counts.sum(axis=1),
        counts[:, alone & (labels == NO_CLASS)].sum(axis=1),
        counts[:, truth] * (classes[:, None] == labels[truth]),
    )


def cityscapes_precision(images: Sequence[ImageOverlaps], classes: int) -> np.ndarray:
    """Average precision (K, T) in [0, 1]; NaN for a class without an instance that counts.

    Args:
        images: overlaps of every image.
        classes: K.
    """
    values = np.full((classes, len(THRESHOLDS)), np.nan)
    for label in range(classes):
        own = [_of_class(image, label) for image in images]
        own = [image for image in own if len(image.truth_areas) or len(image.areas)]
        for position, threshold in enumerate(THRESHOLDS):
            values[label, position] = _average_precision(own, threshold)
    return values


def _of_class(image: ImageOverlaps, label: int) -> ImageOverlaps:
    truth = image.truth_classes == label
    predicted = image.classes == label
    parts = [values[truth] for values in image[:3]]
    parts += [values[predicted] for values in image[3:7]]
    parts.append(image.both[predicted][:, truth])
    return ImageOverlaps(*parts)


def _average_precision(images: Sequence[ImageOverlaps], threshold: float) -> float:
    """Area below the curve of one class."""
    truths: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    missed = counted = predicted = 0
    for image in images:
        small = image.truth_areas < SMALLEST
        counts = ~small & ~image.truth_groups
        union = image.areas[:, None] + image.truth_areas[None] - image.both
        hits = image.both / union > threshold
        counted += int(counts.sum())
        predicted += len(image.areas)
        missed += int((counts & ~hits.any(axis=0)).sum())
        for column in np.flatnonzero(counts & hits.any(axis=0)):
            # The surest of several is the true one, the others are false.
            matched = np.sort(image.scores[hits[:, column]])[::-1]
            scores.append(matched)
            truths.append(np.arange(len(matched)) == 0)
        # Officially pixels of a small group are ignored twice.
        ignored = image.void + image.both @ (small.astype(np.int64) + image.truth_groups)
        false = ~hits.any(axis=1) & (ignored / image.areas <= threshold)
        scores.append(image.scores[false])
        truths.append(np.zeros(int(false.sum()), bool))
    if not counted:
        return np.nan
    if not predicted:
        return 0.0
    return _area(np.concatenate(truths), np.concatenate(scores), missed)


def _area(true: np.ndarray, scores: np.ndarray, missed: int) -> float:
    """Area below precision over recall, with a point for each score and one at recall 0 and precision 1.

    Args:
        true: (m,) bool, which predictions are true.
        scores: (m,).
        missed: number of true instances without a prediction.
    """
    order = np.argsort(scores)
    firsts = np.unique(scores[order], return_index=True)[1]
    # True predictions of at least the score of each point, and all of them.
    below = np.concatenate([[0], np.cumsum(true[order])])
    right = below[-1] - below[firsts]
    precision = np.append(right / (len(scores) - firsts), 1.0)
    recall = np.append(right / max(below[-1] + missed, 1), 0.0)
    padded = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ ((padded[:-2] - padded[2:]) / 2))


class CityscapesAPEvaluator(ImageEvaluator[ImageOverlaps]):
    """Counts overlaps image by image; the main process compares those of all processes."""

    def process(self, inputs: Samples, outputs: Outputs) -> None:
        """Counts the overlaps of a batch.

        Args:
            inputs: samples with "image_id" and "instance_map_file_name".
            outputs: for each sample "instances", as `InstanceAPEvaluator` takes them.

        Raises:
            InputError: an instance map cannot be read.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            values = read_indices(sample["instance_map_file_name"], truth_pixels(sample))
            self._images[sample["image_id"]] = image_overlaps(
                values.astype(np.int64),
                self.vocabulary,
                mask_arrays(instances.pred_masks),
                instances.pred_classes.cpu().numpy(),
                instances.scores.cpu().numpy(),
            )

    def _numbers(self, images: Mapping[ImageId, ImageOverlaps]) -> dict[str, dict[str, float]]:
        """{"cityscapes": "Cityscapes-AP" and "Cityscapes-AP50" in percent, the former also of seen and unseen
        classes}."""
        precision = 100 * cityscapes_precision([*images.values()], len(self.vocabulary))
        counts = ~np.isnan(precision[:, 0])
        groups = {"": counts}
        if self.seen is not None:
            groups |= {"-seen": counts & self.seen, "-unseen": counts & ~self.seen}
        results = {
            f"Cityscapes-AP{suffix}": float(precision[chosen].mean()) if chosen.any() else np.nan
            for suffix, chosen in groups.items()
        }
        half = float(precision[counts, 0].mean()) if counts.any() else np.nan
        return {"cityscapes": results | {"Cityscapes-AP50": half}}
