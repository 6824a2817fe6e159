"""What a training forgets: which numbers stand for trained and other classes, their means, the knee, table and JSON."""

import numpy as np
import pytest

from clipself_seg.evaluation.mean_iou import class_numbers, mean_iou_results
from clipself_seg.training.mixing import as_json, forgetting_table, knee_of, means_of, split_of
from tests.tables import cells


def split(trained, others, classes=(2, 3)):
    both = {"trained": trained, "classes trained": classes[0]}
    if others is not None:
        both |= {"not trained": others, "classes not trained": classes[1]}
    return {"number": "mIoU"} | both


# Means 40 and 60, 60 and 45, 70 and 20, whose harmonic means are 48, 51.4 and 31.1.
ROWS = {
    0.0: {"a": split(30.0, 60.0), "b": split(50.0, 60.0)},
    0.5: {"a": split(50.0, 50.0), "b": split(70.0, 40.0)},
    1.0: {"a": split(60.0, 10.0), "b": split(80.0, 30.0)},
}


def test_numbers_of_both_groups_are_those_of_the_evaluators():
    # Rows are the truth: IoUs 1/2, 1 and 2/3 of present classes; the last one has no ground truth.
    matrix = np.array([[2, 0, 0, 1], [0, 3, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]])
    seen = np.array([True, False, False, True])
    numbers = mean_iou_results(class_numbers(matrix), ["cat", "dog", "sky", "sea"], seen)
    assert split_of(numbers) == {
        "number": "mIoU",
        "trained": pytest.approx(50),
        "classes trained": 1,
        "not trained": pytest.approx(100 * (1 + 2 / 3) / 2),
        "classes not trained": 2,
    }
    alone = mean_iou_results(class_numbers(matrix), ["cat", "dog", "sky", "sea"], np.ones(4, bool))
    assert "not trained" not in split_of(alone) and split_of({"mIoU": 5.0}) == {"number": "mIoU"}
    boxes = {"bbox": {"AP": 9.0, "AP-seen": 10.0, "AP-unseen": 2.0}, "segm": {"AP-seen": 1.0}}
    assert split_of(boxes) == {"number": "AP", "trained": 10.0, "not trained": 2.0}
    fusions = {"clip": {"PQ": 1.0}, "fused": {"PQ": 3.0, "PQ_seen": 4.0, "mIoU-seen": 5.0}}
    assert split_of(fusions) == {"number": "PQ", "trained": 4.0}


def test_the_knee_has_the_best_harmonic_mean_of_means_over_data_sets():
    assert means_of(ROWS[0.0]) == {"trained": 40, "not trained": 60, "harmonic mean": 48}
    assert means_of(ROWS[0.5])["harmonic mean"] == pytest.approx(2 * 60 * 45 / 105)
    assert knee_of(ROWS) == 0.5
    one_group = {"a": split(60.0, None), "b": split(0.0, 0.0)}
    assert means_of(one_group) == {"trained": 30, "not trained": 0, "harmonic mean": 0}
    assert knee_of({0.0: {"a": split(60.0, None)}}) is None
    equal = {fraction: {"a": split(50.0, 50.0)} for fraction in (1.0, 0.25, 0.75)}
    assert knee_of(equal) == 0.25


def test_the_table_has_a_line_for_each_mixture_and_counts_of_classes():
    lines = cells(forgetting_table(ROWS))
    assert lines[0] == [
        "weights",
        *("a mIoU, 2 trained", "a mIoU, 3 not trained", "b mIoU, 2 trained"),
        *("b mIoU, 3 not trained", "mean, trained", "mean, not trained", "harmonic mean"),
    ]
    assert lines[1:] == [
        ["0 before", "30.0", "60.0", "50.0", "60.0", "40.0", "60.0", "48.0"],
        ["0.5 *", "50.0", "50.0", "70.0", "40.0", "60.0", "45.0", "51.4"],
        ["1 after", "60.0", "10.0", "80.0", "30.0", "70.0", "20.0", "31.1"],
    ]
    own = forgetting_table({f: {"a": split(40.0 + f, None)} for f in (1.0, 0.0)})
    assert cells(own) == [
        ["weights", "a mIoU, 2 trained"],
        ["0 before", "40.0"],
        ["1 after", "41.0"],
    ]


def test_the_json_has_the_rows_and_the_knee():
    content = as_json(ROWS)
    assert content["knee"] == 0.5 and [row["fraction"] for row in content["rows"]] == [0, 0.5, 1]
    assert content["rows"][0] == {"fraction": 0.0, "data sets": ROWS[0.0], **means_of(ROWS[0.0])}
