"""Panoptic quality (PQ): predicted segments and panoptic PNGs in, recognition (RQ) x segmentation (SQ) out.

The names of the results are those of Detectron2's `COCOPanopticEvaluator`, the numbers those of panopticapi to the last
digit. Predictions are compared in memory: they are neither encoded nor written. A true and a predicted segment match if
they have the same class and an IoU above 1/2. Void pixels of the ground truth count for no prediction, the area of a
true segment is what its file states, crowds match nothing, and a prediction that lies for more than half on void or on
a crowd of its class is forgiven.

Legend: n true and m predicted segments of an image, C classes, H W rows and columns of the image.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from clipself_seg.data.images import truth_pixels
from clipself_seg.data.masks import read_segments
from clipself_seg.errors import InputError, require_unique
from clipself_seg.evaluation.evaluator import ImageEvaluator, ImageId, Outputs, Samples, equal_runs
from clipself_seg.evaluation.report import class_keys, percents, seen_cells, write_class_csv


class PanopticMap(NamedTuple):
    """The segments of an image, true or predicted.

    Attributes:
        ids: (H, W) integers, the segment of each pixel; 0 is void.
        segment_ids: (n,) int64, id of each segment, in the order of the file.
        classes: (n,) int64 in [0, C), class of each segment.
        areas: (n,) float64, pixels of each segment as the file states them, -1 where it does not;
            only the ground truth's are used.
        crowd: (n,) bool, which segments are crowds; only the ground truth's are used.
        source: the map and its list of segments, for errors.
    """

    ids: np.ndarray
    segment_ids: np.ndarray
    classes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    source: str


class ImageMatches(NamedTuple):
    """Matched and unmatched segments of an image.

    Attributes:
        matched: class of each matched pair, by rising id of the true segment.
        ious: IoU of each matched pair, float64 in (1/2, 1].
        missed: class of each true segment without a match, crowds aside.
        false: class of each predicted segment without a match that is not forgiven.
    """

    matched: np.ndarray
    ious: np.ndarray
    missed: np.ndarray
    false: np.ndarray


class ClassQuality(NamedTuple):
    """Panoptic quality of each class, arrays (C,).

    Attributes:
        pq: panoptic quality in [0, 1]; NaN for a class that is nowhere.
        sq: mean IoU of the matched pairs, 0 without any; NaN for a class that is nowhere.
        rq: recognition quality in [0, 1]; NaN for a class that is nowhere.
        tp: number of matched pairs.
        fp: number of false segments.
        fn: number of missed segments.
        iou_sum: sum of the IoUs of the matched pairs.
    """

    pq: np.ndarray
    sq: np.ndarray
    rq: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    iou_sum: np.ndarray


def panoptic_map(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], index_of: Mapping[int, int], source: str
) -> PanopticMap:
    """Joins a map of ids and its list of segments.

    Args:
        ids: (H, W) integers, the segment of each pixel; 0 is void.
        segments: each with "id", "category_id" and, in the ground truth, "area" and "iscrowd".
        index_of: category id -> class in [0, C).
        source: the map and its list of segments, for errors.

    Raises:
        InputError: a segment is there twice.
    """
    listed = [info["id"] for info in segments]
    require_unique(listed, "segment id", source)
    return PanopticMap(
        ids=ids,
        segment_ids=np.array(listed, dtype=np.int64),
        classes=np.array([index_of[info["category_id"]] for info in segments], dtype=np.int64),
        areas=np.array([info.get("area", -1) for info in segments], dtype=np.float64),
        crowd=np.array([info.get("iscrowd", 0) == 1 for info in segments], dtype=bool),
        source=source,
    )


def match_segments(truth: PanopticMap, predicted: PanopticMap) -> ImageMatches:
    """Matches the segments of one image.

    A true segment that is listed but has no pixel is missed: in ADE20K's files things may cover it.

    Raises:
        InputError: sizes differ; a map has ids that its list lacks; a predicted segment without
            a pixel; a true segment, not a crowd, with more pixels than its stated area.
    """
    if truth.ids.shape != predicted.ids.shape:
        sizes = ["{1} x {0}".format(*side.ids.shape) for side in (truth, predicted)]
        raise InputError(
            f"{predicted.source}: {sizes[1]} pixels (width x height), but {sizes[0]} in "
            f"{truth.source}: give predictions of the images' own size"
        )
    pixels = _common_pixels(truth, predicted)
    void_m = pixels[0, 1:]
    common_nm = pixels[1:, 1:]
    predicted_m = pixels.sum(axis=0)[1:]
    absent = predicted.segment_ids[predicted_m == 0]
    _require_none(predicted, absent, "only in the list, without a pixel in the map")
    # With an area below its number of pixels a segment could have an IoU above 1.
    larger = (pixels.sum(axis=1)[1:] > truth.areas) & ~truth.crowd
    _require_none(truth, truth.segment_ids[larger], 'with more pixels than their "area" (-1: none)')
    # Pixels of a prediction on void do not count, and a true segment is as large as its file states.
    union_nm = predicted_m + truth.areas[:, None] - common_nm - void_m
    counted_nm = ~truth.crowd[:, None] & (common_nm > 0)
    ious_nm = np.divide(common_nm, union_nm, out=np.zeros(common_nm.shape), where=counted_nm)
    fits_nm = truth.classes[:, None] == predicted.classes
    # Segments do not overlap, so that above 1/2 each of them has at most one partner.
    rows, columns = np.nonzero(fits_nm & (ious_nm > 0.5))
    order = np.argsort(truth.segment_ids[rows])
    missed_n = ~truth.crowd
    missed_n[rows] = False
    # Forgiven is what lies for more than half on void or on a crowd of its class.
    forgiving_m = void_m.copy()
    # Of several crowds of a class the last counts, as in panopticapi.
    last_crowd = {truth.classes[row]: row for row in np.flatnonzero(truth.crowd)}
    for index, row in last_crowd.items():
        forgiving_m += common_nm[row] * (predicted.classes == index)
    false_m = ~(forgiving_m / predicted_m > 0.5)
    false_m[columns] = False
    return ImageMatches(
        truth.classes[rows[order]],
        ious_nm[rows[order], columns[order]],
        truth.classes[missed_n],
        predicted.classes[false_m],
    )


def _common_pixels(truth: PanopticMap, predicted: PanopticMap) -> np.ndarray:
    """Pixels of each pair of segments, (1 + n, 1 + m) int64; the first row and column are void."""
    true_ids = truth.ids.ravel()
    predicted_ids = predicted.ids.ravel()
    starts, lengths = equal_runs(true_ids, predicted_ids)
    rows = _positions(truth, true_ids[starts])
    columns = _positions(predicted, predicted_ids[starts])
    shape = (1 + len(truth.segment_ids), 1 + len(predicted.segment_ids))
    cells = np.bincount(rows * shape[1] + columns, lengths, shape[0] * shape[1])
    return cells.astype(np.int64).reshape(shape)


def _positions(side: PanopticMap, ids: np.ndarray) -> np.ndarray:
    """Position of each id in the list of segments, counted from 1; 0 for void.

    Args:
        side: segments.
        ids: (N,) ids of pixels.

    Raises:
        InputError: an id that the list lacks.
    """
    known = np.concatenate([[0], side.segment_ids])
    order = np.argsort(known)
    # An id that is not listed gets the position of another one, which the comparison below reveals.
    positions = order.take(np.searchsorted(known[order], ids), mode="clip")
    _require_none(side, ids[known[positions] != ids], "only in the map, not in the list")
    return positions


def _require_none(side: PanopticMap, segment_ids: np.ndarray, problem: str) -> None:
    """Refuses a map and its list of segments if some segments have a problem."""
    if len(segment_ids):
        raise InputError(
            f"{side.source} disagree: segments {np.unique(segment_ids)[:5].tolist()} {problem}; "
            "take both from one release or run"
        )


def panoptic_quality(images: Iterable[ImageMatches], num_classes: int) -> ClassQuality:
    """Quality of every class over all images.

    Args:
        images: matches of each image, in the order of the ground truth; another order may change a
            last digit of the sums.
        num_classes: number of classes, C.
    """
    none = ImageMatches(*(np.zeros(0, dtype=np.int64),) * 4)
    matched, ious, missed, false = map(np.concatenate, zip(none, *images))
    tp, fn, fp = (
        np.bincount(classes, minlength=num_classes) for classes in (matched, missed, false)
    )
    return class_quality(tp, fp, fn, np.bincount(matched, ious, num_classes))


def class_quality(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike, iou_sum: ArrayLike) -> ClassQuality:
    """Quality of every class by what was counted, each (C,) as in `ClassQuality`."""
    tp, fp, fn, iou_sum = map(np.asarray, (tp, fp, fn, iou_sum))
    weight = tp + 0.5 * fp + 0.5 * fn
    counted = weight > 0
    pq, rq = (_divide(part, weight, counted) for part in (iou_sum, tp))
    sq = _divide(iou_sum, np.maximum(tp, 1), counted)
    return ClassQuality(pq, sq, rq, tp, fp, fn, iou_sum)


def _divide(part: np.ndarray, whole: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=where)


def panoptic_results(
    quality: ClassQuality,
    class_names: Sequence[str],
    isthing: np.ndarray,
    seen: np.ndarray | None = None,
) -> dict[str, float]:
    """Means in percent over the classes that are somewhere, and their number.

    Args:
        quality: numbers of the C classes.
        class_names: names of the C classes.
        isthing: (C,) bool, which classes are things.
        seen: (C,) bool, classes of the training vocabulary; None splits nothing.

    Returns:
        "PQ", "SQ", "RQ", "classes", all with the suffixes "_th", "_st", "_seen" and "_unseen" too
        (no means of a group without a class), and "PQ-<class>" ..., NaN for a class that is
        nowhere.
    """
    numbers = {"PQ": quality.pq, "SQ": quality.sq, "RQ": quality.rq}
    somewhere = ~np.isnan(quality.pq)
    groups = {"": somewhere, "_th": somewhere & isthing, "_st": somewhere & ~isthing}
    if seen is not None:
        groups |= {"_seen": somewhere & seen, "_unseen": somewhere & ~seen}
    results: dict[str, float] = {}
    for suffix, group in groups.items():
        count = int(group.sum())
        if count:
            # One after the other, since that is how panopticapi adds.
            means = {key: np.cumsum(values[group])[-1] / count for key, values in numbers.items()}
            results |= {f"{key}{suffix}": 100 * float(mean) for key, mean in means.items()}
        results[f"classes{suffix}"] = float(count)
    for index, name in enumerate(class_keys(class_names)):
        results |= {f"{key}-{name}": 100 * float(values[index]) for key, values in numbers.items()}
    return results


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
        """Matches the segments of a batch.

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

    def _numbers(self, images: Mapping[ImageId, ImageMatches]) -> dict[str, dict[str, float]]:
        """{"panoptic_seg": numbers of `panoptic_results` and "images"}.

        Raises:
            InputError: there is no segment at all.
        """
        words = self.vocabulary
        quality = panoptic_quality(images.values(), len(words))
        if np.isnan(quality.pq).all():
            raise InputError(
                f'"{self.dataset_name}" has no segment, true or predicted, in {len(images)} images: '
                "its panoptic ground truth is blank"
            )
        results = {"images": float(len(images))}
        results |= panoptic_results(quality, words.first_names, words.thing, self.seen)
        if self.output_dir is not None:
            path = self.output_dir / f"panoptic_classes_{self.dataset_name}.csv"
            columns = {
                "isthing": words.thing.astype(int).tolist(),
                "seen": seen_cells(self.seen, len(words)),
                "pq": percents(quality.pq),
                "sq": percents(quality.sq),
                "rq": percents(quality.rq),
                "tp": quality.tp.tolist(),
                "fp": quality.fp.tolist(),
                "fn": quality.fn.tolist(),
                "iou_sum": quality.iou_sum.tolist(),
            }
            write_class_csv(path, words.first_names, columns)
        return {"panoptic_seg": results}
