"""Open AP: AP to the last digit where no classes are alike, by hand and by plain loops where some are."""

from __future__ import annotations

import numpy as np
import pytest

from clipself_seg.evaluation.detection.detections import KINDS
from clipself_seg.evaluation.detection.evaluation import detection_images
from clipself_seg.evaluation.detection.ground_truth import read_detection_ground_truth
from clipself_seg.evaluation.detection.numbers import detection_quality
from clipself_seg.evaluation.open_ap import (
    THRESHOLDS,
    OpenImage,
    best_of_each_class,
    match_image,
    open_ap_results,
    open_precision,
)
from tests.detection_worlds import WORDS, kept, random_world

ALIKE = np.array([[1, 0.5], [0.5, 1]])


def image(classes, scores, truth, ious, blamed=True, ignored=False, crowds=False):
    d, g = len(classes), len(truth)
    return OpenImage(
        np.array(classes, dtype=np.int64),
        np.array(scores, dtype=np.float64),
        np.broadcast_to(blamed, d),
        np.array(truth, dtype=np.int64),
        np.broadcast_to(ignored, g),
        np.broadcast_to(crowds, g),
        np.array(ious, dtype=np.float64).reshape(d, g),
    )


def test_a_near_miss_is_a_fraction_of_a_hit_and_of_a_false_positive():
    # A sofa that is called a chair, a sofa where nothing is, and a chair that is found.
    one = image([1, 0, 1], [0.9, 0.8, 0.7], [0, 1], [[1, 0], [0, 0], [0, 1]])
    plain = open_precision([one], np.eye(2), 100)
    assert (plain[..., 0] == 0).all() and plain[..., 1] == pytest.approx(1 / 2)
    precision = open_precision([one], ALIKE, 100)
    # Half of the one sofa is found at precision 1: recalls 0, 0.01 ... 0.5.
    assert precision[:, :51, 0] == pytest.approx(1) and (precision[:, 51:, 0] == 0).all()
    assert precision[..., 1] == pytest.approx(1 / 1.5)
    results = open_ap_results(precision, {"-seen": [True, False], "-unseen": [False, False]})
    assert results == {
        "Open-AP": pytest.approx(50 * (51 / 101 + 2 / 3)),
        "Open-AP50": pytest.approx(50 * (51 / 101 + 2 / 3)),
        "Open-AP-seen": pytest.approx(100 * 51 / 101),
    }


def test_an_object_belongs_to_its_own_class_first_and_to_one_prediction():
    one = image([1, 1, 0], [0.9, 0.8, 0.1], [0], [[0.9], [0.9], [0.6]])
    matches = match_image(one, ALIKE)
    # Up to an IoU of 0.6 the least sure one has it; beyond, the surest under another name.
    own = THRESHOLDS <= 0.6
    assert (matches.hits[:, 2] == own).all() and not matches.hits[:, :2].any()
    assert (matches.owners[:, 0] == np.where(own | (THRESHOLDS > 0.9), -1, 0)).all()
    assert (matches.owners[:, 1] == -1).all() and matches.blamed[:, :2].all()


def test_the_most_alike_object_is_taken_and_none_that_is_not_alike():
    similarity = np.array([[1, 0.2, 0], [0.3, 1, 0], [0, 0, 1]])
    one = image([2, 1, 1], [0.9, 0.8, 0.7], [0, 0, 2], [[1, 1, 0], [0.6, 0.8, 1], [0.6, 0.8, 1]])
    owners = match_image(one, similarity).owners
    assert owners[:, 0].tolist() == [-1] * 10
    assert owners[:5, 1].tolist() == [0] * 5 and owners[0, 2] == 0  # the better mask first
    assert owners[5, 2] == -1


def test_what_does_not_count_neither_helps_nor_hurts():
    options = {"ignored": True, "crowds": True}
    crowd = image([0, 0, 1], [0.9, 0.8, 0.7], [0], [[1], [1], [1]], **options)
    matches = match_image(crowd, ALIKE)
    assert not matches.hits.any() and (matches.owners == -1).all()
    assert not matches.blamed[:, :2].any() and matches.blamed[:, 2].all()
    excused = match_image(image([0], [0.9], [], [], blamed=False), ALIKE)
    assert not excused.blamed.any()


def test_without_predictions_objects_or_images_there_is_no_number_or_0():
    nothing = image([], [], [], [])
    assert (open_precision([], ALIKE, 9) == -1).all()
    assert (open_precision([nothing, image([0], [1], [], [])], ALIKE, 9) == -1).all()
    assert open_ap_results(open_precision([nothing], ALIKE, 9), {}) == {}
    missed = open_precision([image([], [], [0], [])], ALIKE, 9)
    assert (missed[..., 0] == 0).all() and (missed[..., 1] == -1).all()
    with pytest.raises(ValueError, match="similarit"):
        open_precision([nothing], np.zeros((2, 2)), 9)


def test_the_best_of_each_class_count_the_first_of_equal_ones():
    ious = np.arange(5)[:, None] / 10
    kept_ones = best_of_each_class(image([1, 0, 1, 1, 0], [1, 3, 2, 2, 9], [0], ious), 2)
    assert kept_ones.classes.tolist() == [0, 0, 1, 1]
    assert kept_ones.scores.tolist() == [9, 3, 2, 2]
    assert kept_ones.ious.ravel().tolist() == [0.4, 0.1, 0.2, 0.3]


@pytest.mark.parametrize("federated", [False, True])
@pytest.mark.parametrize("task", KINDS)
def test_where_no_classes_are_alike_it_is_ap_to_the_last_digit(tmp_path, task, federated):
    json_file, outputs = random_world(tmp_path, 3, list(range(8)), per_image=30)
    truth = read_detection_ground_truth(json_file, WORDS, masks=True, federated=federated)
    quality = detection_quality(truth, kept(outputs), KINDS[task], (1, 10, 100))
    images = list(detection_images(truth, kept(outputs), KINDS[task]))
    precision = open_precision(images, np.eye(4), 100)
    assert np.array_equal(precision, quality.precision[..., 0, -1]) and precision.max() > 0.5
    alike = np.full((4, 4), 0.3)
    np.fill_diagonal(alike, 1)
    more = open_precision(images, alike, 100)
    assert (more >= precision - 1e-12).all() and more.mean() > precision.mean()


def plain_match(one, similarity, threshold):
    """Hits, blamed and owners of an image, a prediction and an object at a time."""
    taken, hits, blamed, owners = set(), [], [], []
    pairs = [(i, j) for i in range(len(one.classes)) for j in range(len(one.truth))]
    close = {(i, j) for i, j in pairs if one.ious[i, j] >= threshold}
    matched = set()
    for i, label in enumerate(one.classes):
        free = [
            j for j in range(len(one.truth))
            if (i, j) in close and one.truth[j] == label and (j not in taken or one.crowds[j])
        ]  # fmt: skip
        counting = [j for j in free if not one.ignored[j]]
        best = max(counting or free, key=lambda j: (one.ious[i, j], j), default=None)
        hits.append(bool(counting))
        if best is not None:
            taken.add(best)
            matched.add(i)
        blamed.append(bool(best is None and one.blamed[i]))
    for i, label in enumerate(one.classes):
        free = [
            j for j in range(len(one.truth))
            if i not in matched and (i, j) in close and j not in taken and not one.ignored[j]
            and similarity[one.truth[j], label] > 0
        ]  # fmt: skip
        best = max(
            free, key=lambda j: (similarity[one.truth[j], label], one.ious[i, j]), default=None
        )
        owners.append(-1 if best is None else one.truth[best])
        taken.add(best)
    return hits, blamed, owners


@pytest.mark.parametrize("seed", range(4))
def test_images_are_matched_as_plain_loops_do(seed):
    rng = np.random.default_rng(seed)
    similarity = rng.random((3, 3)) * (rng.random((3, 3)) < 0.7)
    np.fill_diagonal(similarity, 1)
    crowds = rng.random(7) < 0.3
    one = image(
        rng.integers(0, 3, 12),
        np.sort(rng.random(12))[::-1],
        rng.integers(0, 3, 7),
        rng.random((12, 7)),
        blamed=rng.random(12) < 0.7,
        ignored=crowds | (rng.random(7) < 0.2),
        crowds=crowds,
    )
    matches = match_image(one, similarity)
    for row, threshold in enumerate(THRESHOLDS):
        hits, blamed, owners = plain_match(one, similarity, threshold)
        assert matches.hits[row].tolist() == hits and matches.owners[row].tolist() == owners
        assert matches.blamed[row].tolist() == blamed
