"""Open PQ by hand, and its two ends: no class like another is PQ, all alike is the quality of masks alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clipself_seg.data.masks import read_panoptic_png
from clipself_seg.evaluation.panoptic.numbers import (
    match_segments,
    panoptic_map,
    panoptic_quality,
)
from clipself_seg.evaluation.panoptic.open_quality import match_any_class, open_quality
from tests.panoptic_worlds import CATEGORIES, random_sides, small_map

INDEX_OF = {entry["id"]: index for index, entry in enumerate(CATEGORIES)}
SOFA, CHAIR, SKY = range(3)


def read_maps(truth, predicted):
    """True and predicted maps of all images of two folders."""
    sides = [json.loads(side.json.read_text())["annotations"] for side in (truth, predicted)]
    for own, given in zip(*sides, strict=True):
        yield tuple(
            panoptic_map(
                read_panoptic_png(side.folder / entry["file_name"]),
                entry["segments_info"],
                INDEX_OF,
                "a test",
            )
            for side, entry in ((truth, own), (predicted, given))
        )


@pytest.mark.parametrize("seed", range(3))
def test_no_class_like_another_is_pq(tmp_path, seed):
    maps = list(read_maps(*random_sides(tmp_path, seed)))
    plain = panoptic_quality([match_segments(*pair) for pair in maps], len(CATEGORIES))
    matches = [match_any_class(*pair) for pair in maps]
    assert sum((one.truth != one.predicted).sum() for one in matches) > 0
    np.testing.assert_array_equal(open_quality(matches, np.eye(len(CATEGORIES))), plain.pq)


def test_by_hand():
    # A sofa of 8 pixels is called a chair, 6 of them right: IoU 6 / 8. The sky of 8 has an IoU of 8 / 10.
    truth = small_map(np.repeat([[1, 2]], 8, axis=0), {1: SOFA, 2: SKY})
    ids = truth.ids.copy()
    ids[:2, 0] = 2
    predicted = small_map(np.where(ids == 1, 7, 9), {7: CHAIR, 9: SKY})
    match = match_any_class(truth, predicted)
    assert match.truth.tolist() == [SOFA, SKY] and match.predicted.tolist() == [CHAIR, SKY]
    assert match.ious == pytest.approx([6 / 8, 8 / 10])
    like = np.eye(3)
    like[SOFA, CHAIR] = 0.4
    # Sofa: 0.4 of a match, 0.6 missed. Chair: 0.6 false, no match.
    pq = open_quality([match], like)
    assert pq == pytest.approx([0.4 * 0.75 / (0.4 + 0.3), 0, 0.8])
    assert open_quality([match], np.ones((3, 3)))[[SOFA, SKY]] == pytest.approx([0.75, 0.8])


def test_a_prediction_that_is_forgiven_is_not_false_under_another_name_either():
    # Six of its ten pixels are void; the other four are the whole sofa.
    ids = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0]])
    truth = small_map(ids, {1: SOFA})
    predicted = small_map(np.full_like(ids, 5), {5: CHAIR})
    match = match_any_class(truth, predicted)
    assert match.ious.tolist() == [1] and match.excused.tolist() == [True]
    pq = open_quality([match], np.eye(3))
    assert pq[SOFA] == 0 and np.isnan(pq[CHAIR])
    # Crowds match nothing.
    crowd = match_any_class(small_map(ids, {1: SOFA}, crowds=[1]), predicted)
    assert len(crowd.truth) == len(crowd.missed) == 0


def test_no_image_has_no_number():
    assert np.isnan(open_quality([], np.eye(2))).all()
