"""Open mIoU by hand, and its two ends: no class like another is the IoU, all alike is 1."""

from __future__ import annotations

import numpy as np
import pytest

from clipself_seg.evaluation.sem_seg.numbers import class_numbers
from clipself_seg.evaluation.sem_seg.open_iou import open_iou

# Ten pixels of a sofa, four of them called an armchair, two a sky; an armchair and eight of sky.
MATRIX = np.array([[4, 4, 2], [0, 1, 0], [0, 0, 8]])
LIKE = np.array([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1.0]])


def test_by_hand():
    # Sofa: 4 + 0.5 * 4 hits of 10, nothing false. Armchair: 1 hit of 1, half of 4 pixels false. Sky: 2 false.
    assert open_iou(MATRIX, LIKE) == pytest.approx([6 / 10, 1 / 3, 8 / 10])


def test_no_class_like_another_is_the_iou_and_all_alike_is_1():
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 9, (6, 6))
    matrix[2] = 0  # not in the ground truth
    for rule in ("present", "union"):
        plain = class_numbers(matrix, rule).iou
        np.testing.assert_array_equal(open_iou(matrix, np.eye(6), rule), plain)
        alike = open_iou(matrix, np.ones((6, 6)), rule)
        assert alike[np.isfinite(plain) & (matrix.sum(1) > 0)] == pytest.approx(1)


def test_pixel_by_pixel_and_growing_with_the_similarity():
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, 4, (2, 200))
    similarity = rng.random((4, 4))
    np.fill_diagonal(similarity, 1)
    hits, missed, false = np.zeros((3, 4))
    matrix = np.zeros((4, 4), dtype=np.int64)
    for t, p in zip(truth, predicted):
        matrix[t, p] += 1
        hits[t] += similarity[t, p]
        missed[t] += 1 - similarity[t, p]
        false[p] += 1 - similarity[t, p]
    assert open_iou(matrix, similarity) == pytest.approx(hits / (hits + missed + false))
    more = np.minimum(similarity + 0.1, 1)
    assert (open_iou(matrix, more) >= open_iou(matrix, similarity)).all()


def test_a_class_that_is_nowhere_has_none():
    assert np.isnan(open_iou(np.zeros((2, 2), dtype=np.int64), np.eye(2), "union")).all()


@pytest.mark.parametrize(
    ("similarity", "message"),
    [
        (np.eye(2), r"shape \(2, 2\) for 3 classes"),
        (np.eye(3) * 0.5, "1 between a class and itself"),
        (np.eye(3) - np.eye(3, k=1), r"in \[0, 1\]"),
    ],
)
def test_what_is_no_similarity_is_refused(similarity, message):
    with pytest.raises(ValueError, match=message):
        open_iou(MATRIX, similarity)
