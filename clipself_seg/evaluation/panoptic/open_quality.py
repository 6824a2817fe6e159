"""Open PQ: panoptic quality in which matched segments of different classes count by their similarity.

The idea is that of Open PQ in arXiv 2311.03352, of which the notes say that a similarity of classes "turns errors into
partial true positives". The definition here is this project's own; its values are not the paper's.

Legend: C classes, S their similarity, p matched pairs of an image.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from clipself_seg.evaluation.panoptic.numbers import (
    PanopticMap,
    forgiven,
    segment_overlaps,
)
from clipself_seg.evaluation.sem_seg.open_iou import check_similarity


class OpenMatches(NamedTuple):
    """Segments of an image that match whatever their classes, and those that do not.

    Attributes:
        truth: (p,) class of the true segment of each pair, by rising id.
        predicted: (p,) class of the predicted one.
        ious: (p,) their IoU, float64 in (1/2, 1].
        excused: (p,) bool, predictions that would be forgiven if they matched nothing.
        missed: class of each true segment without a match, crowds aside.
        false: class of each predicted segment without a match that is not forgiven.
    """

    truth: np.ndarray
    predicted: np.ndarray
    ious: np.ndarray
    excused: np.ndarray
    missed: np.ndarray
    false: np.ndarray


def match_any_class(truth: PanopticMap, predicted: PanopticMap) -> OpenMatches:
    """Match the segments of one image by an IoU above 1/2 alone.

    Raises:
        InputError: as `numbers.match_segments`.
    """
    overlaps = segment_overlaps(truth, predicted)
    rows, columns = np.nonzero(overlaps.ious > 0.5)
    order = np.argsort(truth.segment_ids[rows])
    rows, columns = rows[order], columns[order]
    excused = forgiven(truth, predicted, overlaps)
    missed = ~truth.crowd
    missed[rows] = False
    false = ~excused
    false[columns] = False
    return OpenMatches(
        truth.classes[rows],
        predicted.classes[columns],
        overlaps.ious[rows, columns],
        excused[columns],
        truth.classes[missed],
        predicted.classes[false],
    )


def open_quality(images: Iterable[OpenMatches], similarity: np.ndarray) -> np.ndarray:
    """Open PQ of each class, float64 (C,) in [0, 1]; NaN for a class that is nowhere.

    A pair of a true segment of class i and a predicted one of class j is S_ij of a match: it adds S_ij to the true
    positives of class i and S_ij times its IoU to their sum, 1 - S_ij to the false negatives of class i, and 1 - S_ij
    to the false positives of class j (nothing where the prediction is excused). Then, as in PQ,

        Open PQ_i = sum of IoU_i / (TP_i + FP_i / 2 + FN_i / 2)

    With S the identity it is PQ, and with S = 1 everywhere each class has the quality of its masks alone.

    Args:
        images: matches of each image, in the order of the ground truth.
        similarity: (C, C) in [0, 1], 1 on the diagonal.

    Raises:
        ValueError: the similarity is none.
    """
    count = len(similarity)
    check_similarity(similarity, count)
    none = OpenMatches(*(np.zeros(0, dtype=np.int64),) * 6)
    truth, predicted, ious, excused, missed, false = map(np.concatenate, zip(none, *images))
    credit = similarity[truth, predicted]
    blame = 1 - credit
    tp, iou_sum, fn = (np.bincount(truth, x, count) for x in (credit, credit * ious, blame))
    fp = np.bincount(predicted, blame * (excused == 0), count)
    fn += np.bincount(missed, minlength=count)
    fp += np.bincount(false, minlength=count)
    weight = tp + 0.5 * fp + 0.5 * fn
    return np.divide(iou_sum, weight, out=np.full(count, np.nan), where=weight > 0)
