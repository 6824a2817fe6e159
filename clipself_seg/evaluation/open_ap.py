"""Open AP: average precision in which a match of two different classes counts by their similarity.

The idea is that of Open AP in arXiv 2311.03352, of which the notes say that a similarity of classes "turns errors into
partial true positives". The definition here is this project's own; its values are not the paper's.

An image is matched twice, at every threshold of IoU. First by COCO's rule, each class for itself. Then what is left:
each prediction without an object, by falling score, takes among the objects of other classes that nothing has taken
and that it overlaps the one of the class most like its own, S > 0. Such a prediction of class j and object of class i
is S_ij of a hit in the list of class i, at its score, and 1 - S_ij of a false positive in that of class j. Precision
and recall are then COCO's, at 101 recalls. With S the identity it is AP to the last digit; it is never less.

Legend: K classes, S their similarity, d predictions and g objects of an image, T thresholds of IoU, R recalls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval

from clipself_seg.evaluation.sem_seg.open_iou import check_similarity

PARAMS = COCOeval(iouType="bbox").params
THRESHOLDS: np.ndarray = PARAMS.iouThrs
RECALLS: np.ndarray = PARAMS.recThrs
NOT_COUNTED = -1.0  # precision of a class without an object


class OpenImage(NamedTuple):
    """Predictions and true objects of an image.

    Attributes:
        classes: (d,) class of each prediction, in [0, K).
        scores: (d,) of any scale.
        blamed: (d,) bool, predictions that are false where they match nothing.
        truth: (g,) class of each object.
        ignored: (g,) bool, objects that need not be found, nor are false if they are.
        crowds: (g,) bool, of these those that any number of predictions may match.
        ious: (d, g), with a crowd as pycocotools has it.
    """

    classes: np.ndarray
    scores: np.ndarray
    blamed: np.ndarray
    truth: np.ndarray
    ignored: np.ndarray
    crowds: np.ndarray
    ious: np.ndarray


class ImageMatches(NamedTuple):
    """Matches of an image's predictions, sorted by falling score; in few bytes each, for LVIS has six million.

    Attributes:
        classes: (d,) class of each prediction.
        scores: (d,).
        hits: (T, d) bool, those with an object of their class that counts.
        blamed: (T, d) bool, those that match no object of their class, and are false if they match no other.
        owners: (T, d) int32, class of the object that one matches under another name, -1 for none.
    """

    classes: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    blamed: np.ndarray
    owners: np.ndarray


def overlaps(predicted: Sequence[Any], objects: Sequence[Any], crowds: Sequence[int]) -> np.ndarray:
    """IoUs (d, g) of boxes XYWH, or of run-length encodings, as pycocotools has them.

    Args:
        predicted: d of them.
        objects: g of them.
        crowds: of each object 1 if it is a crowd, with which the IoU is what of the prediction it covers.
    """
    if not len(predicted) or not len(objects):
        return np.zeros((len(predicted), len(objects)))
    return np.asarray(rle.iou(predicted, objects, crowds))


def best_of_each_class(image: OpenImage, limit: int) -> OpenImage:
    """An image with the predictions by falling score, of each class `limit` at most; the first of equal ones."""
    order = np.argsort(-image.scores, kind="stable")
    classes = image.classes[order]
    by_class = np.argsort(classes, kind="stable")
    _, starts, counts = np.unique(classes[by_class], return_index=True, return_counts=True)
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[by_class] = np.arange(len(order)) - np.repeat(starts, counts)
    kept = order[ranks < limit]
    own = {name: getattr(image, name)[kept] for name in ("classes", "scores", "blamed", "ious")}
    return image._replace(**own)


def match_image(
    image: OpenImage, similarity: np.ndarray, thresholds: np.ndarray = THRESHOLDS
) -> ImageMatches:
    """Match an image by COCO's rule, and what is left under other names.

    Args:
        image: its predictions by falling score, see `best_of_each_class`.
        similarity: (K, K) in [0, 1], 1 on the diagonal.
        thresholds: (T,) IoUs that a match has at least.
    """
    shape = (len(thresholds), len(image.classes))
    taken_Tg = np.zeros((len(thresholds), len(image.truth)), dtype=bool)
    matched, excused = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    close_Tdg = image.ious >= np.minimum(thresholds, 1 - 1e-10)[:, None, None]
    touching = close_Tdg.any(axis=(0, 2))
    own_dg = image.classes[:, None] == image.truth
    for index in np.flatnonzero(touching & (own_dg & (image.ious > 0)).any(axis=1)):
        free_Tg = close_Tdg[:, index] & own_dg[index] & (~taken_Tg | image.crowds)
        counting_Tg = free_Tg & ~image.ignored
        # An object that counts before one that does not; the last of equal ones, as pycocotools takes it.
        free_Tg = np.where(counting_Tg.any(axis=1)[:, None], counting_Tg, free_Tg)
        ious_Tg = np.where(free_Tg, image.ious[index], -1)
        best = ious_Tg.shape[1] - 1 - ious_Tg[:, ::-1].argmax(axis=1)
        rows = np.flatnonzero(free_Tg.any(axis=1))
        taken_Tg[rows, best[rows]] = True
        matched[rows, index] = True
        excused[rows, index] = image.ignored[best[rows]]
    owners = _under_other_names(image, similarity, close_Tdg, taken_Tg, matched)
    blamed = ~matched & image.blamed
    return ImageMatches(image.classes, image.scores, matched & ~excused, blamed, owners)


def _under_other_names(
    image: OpenImage,
    similarity: np.ndarray,
    close_Tdg: np.ndarray,
    taken_Tg: np.ndarray,
    matched: np.ndarray,
) -> np.ndarray:
    """Owners (T, d), see `ImageMatches`; marks the objects that are taken."""
    owners = np.full(matched.shape, -1, dtype=np.int32)
    alike_dg = similarity[image.truth][:, image.classes].T
    possible_dg = (alike_dg > 0) & ~image.ignored & close_Tdg.any(axis=0)
    for index in np.flatnonzero(possible_dg.any(axis=1)):
        free_Tg = close_Tdg[:, index] & possible_dg[index] & ~taken_Tg & ~matched[:, index, None]
        order = np.lexsort((-image.ious[index], -alike_dg[index]))
        best = order[free_Tg[:, order].argmax(axis=1)]
        rows = np.flatnonzero(free_Tg.any(axis=1))
        taken_Tg[rows, best[rows]] = True
        owners[rows, index] = image.truth[best[rows]]
    return owners


def open_precision(images: Iterable[OpenImage], similarity: np.ndarray, limit: int) -> np.ndarray:
    """Precision (T, R, K) in [0, 1] at each recall, -1 for a class without an object.

    Args:
        images: of a data set, in pycocotools' order.
        similarity: (K, K) in [0, 1], 1 on the diagonal: of a true class (row) and a predicted one.
        limit: predictions of a class that count in an image.

    Raises:
        ValueError: the similarity is none.
    """
    count = len(similarity)
    check_similarity(similarity, count)
    objects = np.zeros(count, dtype=np.int64)
    every = []
    for image in images:
        objects += np.bincount(image.truth[~image.ignored], minlength=count)
        every.append(match_image(best_of_each_class(image, limit), similarity))
    precision = np.full((len(THRESHOLDS), len(RECALLS), count), NOT_COUNTED)
    if not every:
        return precision
    matches = ImageMatches(*(np.concatenate(parts, axis=-1) for parts in zip(*every)))
    own = _Rows(matches.classes, np.arange(len(matches.classes)), count)
    rows, columns = np.nonzero(matches.owners >= 0)
    labels, columns = np.unique(np.stack([matches.owners[rows, columns], columns]), axis=1)
    foreign = _Rows(labels, columns, count)
    for label in np.flatnonzero(objects).tolist():
        lists = (own.of(label), foreign.of(label))
        precision[..., label] = _class_precision(
            matches, similarity, label, lists, int(objects[label])
        )
    return precision


class _Rows:
    """Rows of a table by class."""

    def __init__(self, classes: np.ndarray, rows: np.ndarray, count: int) -> None:
        order = np.argsort(classes, kind="stable")
        self.rows = rows[order]
        self.starts = np.searchsorted(classes[order], np.arange(count + 1))

    def of(self, label: int) -> np.ndarray:
        return self.rows[self.starts[label] : self.starts[label + 1]]


def _class_precision(
    matches: ImageMatches,
    similarity: np.ndarray,
    label: int,
    lists: tuple[np.ndarray, np.ndarray],
    objects: int,
) -> np.ndarray:
    """Precision (T, R) of a class, whose list has its own predictions and those that match its objects besides."""
    own, foreign = lists
    owners_Tn = matches.owners[:, own]
    excused_Tn = np.where(owners_Tn >= 0, similarity[owners_Tn, label], 0.0)
    credit_Tn = similarity[label, matches.classes[foreign]] * (matches.owners[:, foreign] == label)
    # Its own first, so that equal scores stand as pycocotools has them.
    hits = np.concatenate([matches.hits[:, own], credit_Tn], axis=1)
    false = np.pad(matches.blamed[:, own] * (1 - excused_Tn), ((0, 0), (0, len(foreign))))
    return _at_recalls(matches.scores[np.concatenate(lists)], hits, false, objects)


def _at_recalls(
    scores: np.ndarray, hits_Tn: np.ndarray, false_Tn: np.ndarray, objects: int
) -> np.ndarray:
    """Precision (T, R) of a list of n predictions, by pycocotools' arithmetic."""
    order = np.argsort(-scores, kind="mergesort")
    right = np.cumsum(hits_Tn[:, order], axis=1)
    wrong = np.cumsum(false_Tn[:, order], axis=1)
    precision_Tn = right / (wrong + right + np.spacing(1))
    precision_Tn = np.maximum.accumulate(precision_Tn[:, ::-1], axis=1)[:, ::-1]
    result = np.zeros((len(hits_Tn), len(RECALLS)))
    for row, recalls, values in zip(result, right / objects, precision_Tn):
        places = np.searchsorted(recalls, RECALLS, side="left")
        reached = places < len(values)
        row[reached] = values[places[reached]]
    return result


def open_ap_results(
    precision: np.ndarray, groups: Mapping[str, np.ndarray | Sequence[bool]]
) -> dict[str, float]:
    """Means in percent over the classes with an object.

    Args:
        precision: (T, R, K) of `open_precision`.
        groups: suffix of a number -> (K,) bool, the classes that it is of.

    Returns:
        "Open-AP" and "Open-AP50", and "Open-AP" with each suffix. A mean over no class is left out.
    """
    results = {"Open-AP": _mean(precision), "Open-AP50": _mean(precision[THRESHOLDS == 0.5])}
    for suffix, members in groups.items():
        results[f"Open-AP{suffix}"] = _mean(precision[..., np.asarray(members, dtype=bool)])
    return {key: 100 * value for key, value in results.items() if value >= 0}


def _mean(values: np.ndarray) -> float:
    counted = values[values > NOT_COUNTED]
    return float(counted.mean()) if counted.size else NOT_COUNTED
