"""Diagnoses where panoptic quality is lost: to wrong classes, to the merge, or to masks that no query has.

After the oracle split of arXiv 2508.04211, as notes of it describe it. Four numbers, each a PQ:

* PQ of what a model predicts;
* with true names: its segments, of which those that match a true segment whatever their classes have its name;
* of the best queries: for each true segment that of all masks, before any is thrown away, which fits it best, with its
  name, and nothing besides;
* of true masks: the true segments under the names that the model gives to them.

"naming" is what true names add to PQ, "thrown away" is what the best queries add to that, "masks" what then lacks to
100: these three and PQ sum to 100. "true masks" stands beside them, since it needs no mask of the model.

Legend: n true segments, Q masks, H W rows and columns of the image.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from clipself_seg.evaluation.panoptic.numbers import (
    ImageMatches,
    PanopticMap,
    match_segments,
    segment_overlaps,
    segment_positions,
)


def match_with_true_names(truth: PanopticMap, predicted: PanopticMap) -> ImageMatches:
    """Matches of an image once each predicted segment has the name of the true one that it matches.

    Segments that match none keep their names.

    Raises:
        InputError: as `numbers.match_segments`.
    """
    rows, columns = np.nonzero(segment_overlaps(truth, predicted).ious > 0.5)
    classes = predicted.classes.copy()
    classes[columns] = truth.classes[rows]
    return match_segments(truth, predicted._replace(classes=classes))


def match_best_masks(truth: PanopticMap, masks: np.ndarray) -> ImageMatches:
    """Matches of an image with the best choice of masks: each true segment has one at most, and each mask one segment.

    The choice has the largest sum of IoUs above 1/2. Pixels without ground truth do not count, and no mask is false.

    Args:
        truth: true segments, n.
        masks: (Q, H, W) bool, which may overlap.
    """
    # Counted from 1; 0 has no ground truth, and counts for no mask.
    places = segment_positions(truth, truth.ids.ravel())
    count = 1 + len(truth.segment_ids)
    pixels = np.array([np.bincount(places[mask.ravel()], minlength=count) for mask in masks])
    common = pixels.reshape(len(masks), count)[:, 1:].T
    union = truth.areas[:, None] + common.sum(axis=0) - common
    counted = ~truth.crowd[:, None] & (common > 0)
    ious = np.divide(common, union, out=np.zeros(common.shape), where=counted)
    ious[ious <= 0.5] = 0
    rows, columns = linear_sum_assignment(ious, maximize=True)
    fits = ious[rows, columns] > 0
    rows, columns = rows[fits], columns[fits]
    order = np.argsort(truth.segment_ids[rows])
    rows, columns = rows[order], columns[order]
    missed = ~truth.crowd
    missed[rows] = False
    nothing = np.zeros(0, dtype=np.int64)
    return ImageMatches(truth.classes[rows], ious[rows, columns], truth.classes[missed], nothing)


def match_named_truth(truth: PanopticMap, names: np.ndarray) -> ImageMatches:
    """Matches of an image whose prediction are the true segments under given names.

    Args:
        truth: true segments, n. Crowds, and segments without a pixel, are not predicted.
        names: (n,) class that each of them is given.
    """
    kept = ~truth.crowd & np.isin(truth.segment_ids, np.unique(truth.ids))
    predicted = PanopticMap(
        ids=np.where(np.isin(truth.ids, truth.segment_ids[kept]), truth.ids, 0),
        segment_ids=truth.segment_ids[kept],
        classes=np.asarray(names)[kept],
        areas=truth.areas[kept],
        crowd=np.zeros(int(kept.sum()), dtype=bool),
        source=f"{truth.source} under other names",
    )
    return match_segments(truth, predicted)


def gap_results(pq: float, true_names: float, best_queries: float) -> dict[str, float]:
    """The parts of the gap between PQ and 100, all in percent, see the docstring of this module.

    Args:
        pq: PQ of a model.
        true_names: PQ with true names.
        best_queries: PQ of the best queries.

    Returns:
        "gap-naming", "gap-thrown-away" and "gap-masks"; with `pq` they sum to 100. One is negative where the next
        number is the lower one, as the PQ of the best queries may be, which are one a segment.
    """
    return {
        "gap-naming": true_names - pq,
        "gap-thrown-away": best_queries - true_names,
        "gap-masks": 100 - best_queries,
    }
