"""The parts of the gap in PQ, by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from clipself_seg.evaluation.panoptic.gap import (
    gap_results,
    match_best_masks,
    match_named_truth,
    match_with_true_names,
)
from clipself_seg.evaluation.panoptic.numbers import match_segments
from tests.panoptic_worlds import small_map

SOFA, CHAIR, SKY = range(3)

IDS = np.repeat([[1, 1, 2, 2, 0]], 2, axis=0)
TRUTH = small_map(IDS, {1: SOFA, 2: SKY})


def test_true_names_are_those_of_matching_segments():
    # The first segment fits the sofa; the second fits nothing and keeps its name.
    predicted = small_map(np.repeat([[6, 6, 7, 0, 0]], 2, axis=0), {6: CHAIR, 7: SKY})
    assert match_segments(TRUTH, predicted).matched.tolist() == []
    renamed = match_with_true_names(TRUTH, predicted)
    assert renamed.matched.tolist() == [SOFA] and renamed.ious.tolist() == [1]
    assert renamed.missed.tolist() == renamed.false.tolist() == [SKY]


def test_the_best_masks_are_one_for_each_segment():
    masks = np.zeros((4, *IDS.shape), dtype=bool)
    masks[0, :, :4] = True  # half of both
    masks[1, :, :2] = True  # the sofa
    masks[2, :, 0] = True  # half of it
    masks[3, :, 2:] = True  # the sky, with void, which does not count
    best = match_best_masks(TRUTH, masks)
    assert best.matched.tolist() == [SOFA, SKY] and best.ious.tolist() == [1, 1]
    assert len(best.missed) == len(best.false) == 0
    # Without the last mask the sky has none; IoUs of 1/2 do not match.
    lacking = match_best_masks(TRUTH, masks[:3])
    assert lacking.matched.tolist() == [SOFA] and lacking.missed.tolist() == [SKY]
    assert match_best_masks(TRUTH, masks[:0]).missed.tolist() == [SOFA, SKY]
    nothing = match_best_masks(small_map(IDS * 0, {}), masks)
    assert [len(part) for part in nothing] == [0, 0, 0, 0]


def test_no_other_choice_of_masks_has_a_larger_sum():
    rng = np.random.default_rng(0)
    ids = np.kron(rng.integers(0, 4, (3, 3)), np.ones((4, 4), dtype=np.int64))
    truth = small_map(ids, {int(i): SOFA for i in np.unique(ids[ids > 0])})
    masks = np.stack([(ids == 1 + q % 3) ^ (rng.random(ids.shape) < 0.1) for q in range(5)])
    valid = ids > 0
    ious = np.array(
        [
            [(m & (ids == i)).sum() / ((m & valid) | (ids == i)).sum() for m in masks]
            for i in truth.segment_ids
        ]
    )
    ious = np.where(ious > 0.5, ious, 0)
    choices = itertools.permutations(range(5), len(ious))
    best = max(sum(ious[i, q] for i, q in enumerate(choice)) for choice in choices)
    assert match_best_masks(truth, masks).ious.sum() == pytest.approx(best)


def test_true_masks_under_given_names():
    match = match_named_truth(TRUTH, np.array([SOFA, CHAIR]))
    assert match.matched.tolist() == [SOFA] and match.ious.tolist() == [1]
    assert match.missed.tolist() == [SKY] and match.false.tolist() == [CHAIR]
    crowd = small_map(IDS, {1: SOFA, 2: SKY}, crowds=[2])
    match = match_named_truth(crowd, np.array([SOFA, SOFA]))
    assert match.matched.tolist() == [SOFA] and len(match.missed) == len(match.false) == 0


def test_the_parts_sum_up():
    parts = gap_results(30, 45, 70)
    assert parts == {"gap-naming": 15, "gap-thrown-away": 25, "gap-masks": 30}
    assert 30 + sum(parts.values()) == 100
