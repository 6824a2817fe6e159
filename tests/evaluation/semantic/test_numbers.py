"""mIoU and its like from a confusion matrix by hand."""

import math

import numpy as np
import pytest

from clipself_seg.evaluation.mean_iou import class_numbers, confusion_matrix, mean_iou_results

# Rows are the truth: 8 pixels of a, 4 of b, none of c and d; c is predicted twice, d never.
TOY = np.array([[6, 1, 1, 0], [0, 3, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
NAMES = ("a", "b", "c", "d")


def test_the_current_rule_averages_over_classes_of_the_ground_truth():
    results = mean_iou_results(class_numbers(TOY), NAMES)
    a, b = 6 / 8, 3 / 5  # intersection over union
    assert results["mIoU"] == pytest.approx(100 * (a + b) / 2)
    assert results["mACC"] == pytest.approx(100 * (6 / 8 + 3 / 4) / 2)
    assert results["fwIoU"] == pytest.approx(100 * (8 * a + 4 * b) / 12)
    assert results["pACC"] == pytest.approx(100 * 9 / 12)
    assert results["IoU-a"] == pytest.approx(75) and results["ACC-b"] == pytest.approx(75)
    assert results["classes"] == 2
    assert all(math.isnan(results[f"{kind}-{name}"]) for kind in ("IoU", "ACC") for name in "cd")


def test_the_old_rule_counts_a_class_that_is_only_predicted_as_0():
    old, new = (mean_iou_results(class_numbers(TOY, rule), NAMES) for rule in ("union", "present"))
    assert old["mIoU"] == pytest.approx(100 * (6 / 8 + 3 / 5 + 0) / 3)
    assert old["IoU-c"] == 0 and math.isnan(old["IoU-d"])
    assert all(old[key] == new[key] for key in ("mACC", "fwIoU", "pACC", "classes"))


def test_seen_and_unseen_classes_have_means_of_their_own_if_one_is_there():
    seen = np.array([True, False, False, False])
    results = mean_iou_results(class_numbers(TOY, "union"), NAMES, seen)
    assert results["mIoU-seen"] == pytest.approx(75)
    assert results["mIoU-unseen"] == pytest.approx(100 * (3 / 5 + 0) / 2)
    assert results["mACC-unseen"] == pytest.approx(75)
    assert (results["classes-seen"], results["classes-unseen"]) == (1, 1)
    results = mean_iou_results(class_numbers(TOY), NAMES, np.array([True, True, False, False]))
    assert "mIoU-unseen" not in results and "mACC-unseen" not in results
    assert results["classes-unseen"] == 0
    # Classes beyond the mask are in no group.
    results = mean_iou_results(class_numbers(TOY), NAMES, np.array([True]))
    assert results["classes-seen"] == 1 and results["classes-unseen"] == 0


def test_of_equal_names_none_is_lost():
    results = mean_iou_results(class_numbers(TOY), ("door", "door", "c", "d"))
    assert results["IoU-door (0)"] == pytest.approx(75)
    assert results["IoU-door"] == pytest.approx(60)  # as Detectron2: the last one


def test_narrow_types_do_not_overflow():
    predicted, truth = np.array([[250]], dtype=np.uint8), np.array([[251]], dtype=np.uint8)
    assert confusion_matrix(predicted, truth, 254, 255)[251, 250] == 1
