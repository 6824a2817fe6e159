"""mIoU and its like from a confusion matrix by hand, and boundary IoU beside the published one."""

import math

import cv2
import numpy as np
import pytest

from clipself_seg.evaluation.mean_iou import (
    boundary_counts,
    boundary_iou,
    boundary_results,
    boundary_width,
    class_numbers,
    confusion_matrix,
    sem_seg_results,
)

# Rows are the truth: 8 pixels of a, 4 of b, none of c and d; c is predicted twice, d never.
TOY = np.array([[6, 1, 1, 0], [0, 3, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
NAMES = ("a", "b", "c", "d")


def test_the_current_rule_averages_over_classes_of_the_ground_truth():
    results = sem_seg_results(class_numbers(TOY), NAMES)
    a, b = 6 / 8, 3 / 5  # intersection over union
    assert results["mIoU"] == pytest.approx(100 * (a + b) / 2)
    assert results["mACC"] == pytest.approx(100 * (6 / 8 + 3 / 4) / 2)
    assert results["fwIoU"] == pytest.approx(100 * (8 * a + 4 * b) / 12)
    assert results["pACC"] == pytest.approx(100 * 9 / 12)
    assert results["IoU-a"] == pytest.approx(75) and results["ACC-b"] == pytest.approx(75)
    assert results["classes"] == 2
    assert all(math.isnan(results[f"{kind}-{name}"]) for kind in ("IoU", "ACC") for name in "cd")


def test_the_old_rule_counts_a_class_that_is_only_predicted_as_0():
    old, new = (sem_seg_results(class_numbers(TOY, rule), NAMES) for rule in ("union", "present"))
    assert old["mIoU"] == pytest.approx(100 * (6 / 8 + 3 / 5 + 0) / 3)
    assert old["IoU-c"] == 0 and math.isnan(old["IoU-d"])
    assert all(old[key] == new[key] for key in ("mACC", "fwIoU", "pACC", "classes"))


def test_seen_and_unseen_classes_have_means_of_their_own_if_one_is_there():
    seen = np.array([True, False, False, False])
    results = sem_seg_results(class_numbers(TOY, "union"), NAMES, seen)
    assert results["mIoU-seen"] == pytest.approx(75)
    assert results["mIoU-unseen"] == pytest.approx(100 * (3 / 5 + 0) / 2)
    assert results["mACC-unseen"] == pytest.approx(75)
    assert (results["classes-seen"], results["classes-unseen"]) == (1, 1)
    results = sem_seg_results(class_numbers(TOY), NAMES, np.array([True, True, False, False]))
    assert "mIoU-unseen" not in results and "mACC-unseen" not in results
    assert results["classes-unseen"] == 0
    # Classes beyond the mask are in no group.
    results = sem_seg_results(class_numbers(TOY), NAMES, np.array([True]))
    assert results["classes-seen"] == 1 and results["classes-unseen"] == 0


def test_of_equal_names_none_is_lost():
    results = sem_seg_results(class_numbers(TOY), ("door", "door", "c", "d"))
    assert results["IoU-door (0)"] == pytest.approx(75)
    assert results["IoU-door"] == pytest.approx(60)  # as Detectron2: the last one


def test_narrow_types_do_not_overflow():
    predicted, truth = np.array([[250]], dtype=np.uint8), np.array([[251]], dtype=np.uint8)
    assert confusion_matrix(predicted, truth, 254, 255)[251, 250] == 1


def published_boundary(mask, dilation=None):
    """The paper's published `mask_to_boundary`: a mask without its erosion, by a fraction of the diagonal."""
    height, width = mask.shape
    dilation = dilation or max(1, int(round(0.02 * np.sqrt(height**2 + width**2))))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), dtype=np.uint8), iterations=dilation)
    return mask - eroded[1 : height + 1, 1 : width + 1]


def test_the_numbers_are_those_of_the_published_boundaries_class_by_class():
    rng = np.random.default_rng(7)
    common, union, counts = np.zeros(4), np.zeros(4), np.zeros((3, 4), dtype=np.int64)
    for size in ((60, 80), (300, 200), (17, 9)):
        blocks = rng.integers(0, 4, (9, 9))
        truth = cv2.resize(blocks, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        predicted = np.where(rng.random(size) < 0.01, 1, np.roll(truth, 2, (0, 1)))
        void = np.zeros(size, dtype=bool)
        void[: size[0] // 5, : size[1] // 3] = True
        for label in range(4):
            masks = [((side == label) & ~void).astype(np.uint8) for side in (truth, predicted)]
            true_band, band = map(published_boundary, masks)
            common[label] += (true_band & band).sum()
            union[label] += (true_band | band).sum()
        counts += boundary_counts(predicted, np.where(void, 255, truth), 4, 255)
    np.testing.assert_array_equal(boundary_iou(counts), common / union)
    seen = np.array([True, False])
    results = boundary_results(boundary_iou(counts), seen)
    assert results["Boundary-mIoU"] == pytest.approx(100 * (common / union).mean())
    assert results["Boundary-mIoU-unseen"] == pytest.approx(100 * common[1] / union[1])


def test_a_right_prediction_is_1_and_pixels_without_truth_count_nowhere():
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 3, (3, 3)), np.ones((9, 9), dtype=np.uint8)).astype(np.uint8)
    truth[:9, 5:9] = 255
    anything = np.where(truth == 255, rng.integers(0, 3, truth.shape), truth)
    values = boundary_iou(boundary_counts(anything, truth, 3, 255))
    assert values[np.unique(truth[truth < 255])] == pytest.approx(1)
    nothing = boundary_counts(anything, np.full_like(truth, 255), 3, 255)
    assert not nothing.any() and np.isnan(boundary_iou(nothing)).all()


def test_the_width_is_a_fraction_of_the_diagonal():
    assert boundary_width(480, 640) == 16 and boundary_width(3, 4) == 1
