"""Average precision by Cityscapes' rules, by hand; random images gave cityscapesscripts' numbers to 1e-12."""

from __future__ import annotations

import numpy as np
import pytest

from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.evaluation.panoptic.instances import cityscapes_precision, image_overlaps

VOCABULARY = load_vocabulary("openseg_cityscapes_19")
PERSON, CAR = 11, 13
# Two persons, a small one, a group of persons, a car; below them road, unlabelled and a caravan, which is no class.
VALUES = np.full((60, 100), 7)
VALUES[0:20, 0:20] = 24000
VALUES[0:20, 30:50] = 24001
VALUES[0:9, 60:69] = 24002
VALUES[20:40, 60:90] = 24
VALUES[40:60, 0:20] = 26000
VALUES[40:60, 30:50] = 0
VALUES[40:60, 60:80] = 29000


def box(rows, columns):
    mask = np.zeros(VALUES.shape, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


FIRST, SECOND, SMALL = box((0, 20), (0, 20)), box((0, 20), (30, 50)), box((0, 9), (60, 69))
GROUP, CAR_MASK, VOID = box((20, 40), (60, 75)), box((40, 60), (0, 20)), box((40, 60), (30, 50))
CARAVAN = box((40, 60), (60, 80))


def precision(*predictions, label=PERSON, images=1):
    """Of [(mask, score)] of one class, in each of some images."""
    masks = np.array([mask for mask, _ in predictions]).reshape(-1, *VALUES.shape)
    scores = np.array([score for _, score in predictions])
    classes = np.full(len(masks), label)
    overlaps = image_overlaps(VALUES, VOCABULARY, masks, classes, scores)
    return cityscapes_precision([overlaps] * images, len(VOCABULARY))[label]


def test_overlaps_by_hand():
    masks = np.array([box((10, 30), (0, 20)), CARAVAN, VOID, np.zeros_like(VOID)])
    overlaps = image_overlaps(
        VALUES, VOCABULARY, masks, np.array([PERSON, CAR, CAR, CAR]), np.arange(4)
    )
    assert overlaps.truth_classes.tolist() == [PERSON, PERSON, PERSON, PERSON, CAR]
    assert overlaps.truth_areas.tolist() == [600, 400, 400, 81, 400]
    assert overlaps.truth_groups.tolist() == [True, False, False, False, False]
    # A mask without a pixel is left out; the caravan is no void, as what has an instance's number is none.
    assert overlaps.scores.tolist() == [0, 1, 2] and overlaps.areas.tolist() == [400] * 3
    assert overlaps.void.tolist() == [0, 0, 400]
    assert overlaps.both.tolist() == [[0, 200, 0, 0, 0], [0] * 5, [0] * 5]


def test_the_truth_is_1_and_classes_without_a_true_instance_are_none():
    assert precision((FIRST, 0.9), (SECOND, 0.8)).tolist() == [1] * 10
    assert np.isnan(precision((FIRST, 0.9), label=PERSON + 1)).all()
    assert precision(label=CAR).tolist() == [0] * 10
    assert precision((FIRST, 0.9), (SECOND, 0.8), images=3).tolist() == [1] * 10


def test_the_area_is_that_of_trapezia():
    """True at 0.9, false at 0.8, true at 0.7: recalls 1/2, 1/2, 1 with precisions 1, 1/2, 2/3, and (0, 1)."""
    found = precision((FIRST, 0.9), (CAR_MASK, 0.8), (SECOND, 0.7))
    # Each precision by half of the difference of the recalls beside it.
    assert found.tolist() == pytest.approx([2 / 3 / 4 + 1 / 8 + 1 / 4 + 1 / 4] * 10)
    # One of two true ones is missed.
    assert precision((FIRST, 0.9)).tolist() == pytest.approx([0.5] * 10)


def test_overlap_has_to_be_above_the_threshold():
    # 20 x 15 of 20 x 20: 0.75, so up to 0.7.
    found = precision((box((0, 20), (0, 15)), 0.9), (SECOND, 0.8))
    assert found[:5].tolist() == [1] * 5 and (found[5:] < 1).all()


@pytest.mark.parametrize("mask", [VOID, GROUP, SMALL])
def test_void_groups_and_small_instances_are_not_false(mask):
    assert precision((FIRST, 0.9), (SECOND, 0.8), (mask, 0.95)).tolist() == [1] * 10


@pytest.mark.parametrize("mask", [CARAVAN, CAR_MASK, box((21, 39), (0, 20))])
def test_whatever_else_is_false(mask):
    assert (precision((FIRST, 0.9), (SECOND, 0.8), (mask, 0.95)) < 1).all()


def test_of_two_on_one_instance_the_surer_is_true_and_the_other_false():
    both = precision((FIRST, 0.5), (FIRST, 0.9), (SECOND, 0.8))
    # The false one comes last, at full recall, and costs nothing.
    assert both.tolist() == pytest.approx([1] * 10)
    assert precision((FIRST, 0.9), (FIRST, 0.8), (SECOND, 0.7))[0] == pytest.approx(19 / 24)


def test_all_predictions_ignored_and_no_instance_met():
    assert precision((VOID, 0.9)).tolist() == [0] * 10
