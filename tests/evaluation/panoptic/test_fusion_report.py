"""Table 6 has the paper's layout; a sweep's best cell is where its number says."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clipself_seg.evaluation.panoptic.fusion_report import (
    best_cell,
    paper_table,
    plot_sweep,
    run_table,
    split_table,
    sweep_table,
)

ADE, COCO = "ade20k_panoptic_val", "coco_2017_val_panoptic_with_sem_seg"
RESULTS = {
    ADE: {
        "clip": {"PQ": 15.31, "AP": 9.8, "mIoU": 17.3, "alpha": 1.0, "beta": 1.0, "images": 2000.0},
        "fused": {"PQ": 22.9, "PQ_unseen": 12.04, "alpha": 0.35, "beta": 0.65, "images": 2000.0},
        "sweep": {"alpha": [0.0], "beta": [0.0], "PQ": [[1.0]]},
    },
    COCO: {"clip": {"PQ": 27.6, "AP": 26.2, "mIoU": 23.7}},
}
SWEEP = {
    "alpha": [0.0, 0.35, 1.0],
    "beta": [0.0, 0.5],
    "PQ": [[10.0, 20.0], [30.04, None], [30.04, 12.0]],
    "PQ_unseen": [[None, None]] * 3,
}


def cells(table):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if not line.startswith(("|:", "|-"))
    ]


def test_table_6_has_a_line_for_each_model_and_fusion_and_the_papers_columns():
    models = {"ODISE": RESULTS, "CLIPSelf": {COCO: {"fused": {"PQ": 45.7}}}}
    rows = cells(paper_table(models, style="github"))
    assert rows[0] == [
        "model", "scores", "COCO PQ", "COCO mAP", "COCO mIoU", "ADE20K PQ", "ADE20K mAP", "ADE20K mIoU",
    ]  # fmt: skip
    assert rows[1:] == [
        ["ODISE", "CLIP only", "27.6", "26.2", "23.7", "15.3", "9.8", "17.3"],
        ["ODISE", "fused", "-", "-", "-", "**22.9**", "-", "-"],
        ["CLIPSelf", "fused", "**45.7**", "-", "-", "-", "-", "-"],
    ]


def test_the_table_of_a_run_has_the_columns_that_some_fusion_has():
    rows = cells(run_table(RESULTS, "github"))
    assert rows[0] == [
        "data set", "scores", "alpha", "beta", "PQ", "unseen PQ", "mAP", "mIoU", "images",
    ]  # fmt: skip
    assert rows[1:] == [
        ["ADE20K", "CLIP only", "1", "1", "15.3", "-", "9.8", "17.3", "2000"],
        ["ADE20K", "fused", "0.35", "0.65", "22.9", "12.0", "-", "-", "2000"],
        ["COCO", "CLIP only", "-", "-", "27.6", "-", "26.2", "23.7", "-"],
    ]


def test_unknown_data_sets_come_last_under_their_own_names():
    results = {"mine": {"fused": {"PQ": 1.0}}, "mini_val_panoptic_with_sem_seg": {}}
    assert cells(paper_table({"x": results}, style="github"))[0][2::3] == ["mini PQ", "mine PQ"]


def test_a_sweep_is_a_grid_with_a_star_at_the_best():
    assert cells(sweep_table(SWEEP, style="github")) == [
        ["alpha \\ beta", "0", "0.5"],
        ["0", "10.0", "20.0"],
        ["0.35", "30.0*", "-"],
        ["1", "30.0", "12.0"],
    ]
    assert "*" not in sweep_table(SWEEP, "PQ_unseen")


@pytest.mark.parametrize(
    "grid, best",
    [([[1, 3], [3, 2]], (0, 1)), ([[None, None]], None), ([], None), ([[None, -1.0]], (0, 1))],
)
def test_the_best_cell_is_the_first_of_the_highest(grid, best):
    assert best_cell(grid) == best


def test_a_plot_frames_the_best_cell_of_each_panel(tmp_path):
    plot_sweep(tmp_path / "one.png", {key: SWEEP[key] for key in ("alpha", "beta", "PQ")}, "mini")
    plot_sweep(tmp_path / "two.png", SWEEP, "mini")
    one, two = (
        np.asarray(Image.open(tmp_path / f"{n}.png").convert("RGB")) for n in ("one", "two")
    )
    assert two.shape[1] == 2 * one.shape[1] and two.shape[0] == one.shape[0]
    red = (one == (255, 0, 0)).all(axis=2)
    rows, columns = np.nonzero(red)
    # Alpha 0.35 is the middle line of three, beta 0 the left column of two.
    assert one.shape[0] * 0.25 < rows.min() < rows.max() < one.shape[0] * 0.7
    assert columns.max() < one.shape[1] * 0.65
    # The other panel has no number, so no frame.
    assert (two == (255, 0, 0)).all(axis=2).sum() == pytest.approx(red.sum(), rel=0.05)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_the_split_table_shows_the_generator_once_and_every_clip_beside_it():
    def fusions(value):
        numbers = {"PQ": value, "PQ_seen": value + 1}
        return {"mini": {"clip": numbers, "generator": {"PQ": 7.0}, "fused": {"PQ": value + 2}}}

    table = split_table({"original": fusions(10.0), "CLIPSelf": fusions(20.0)}, style="github")
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]
    assert lines == [
        ["original, CLIP only", "10.0", "11.0", "-"],
        ["CLIPSelf, CLIP only", "20.0", "**21.0**", "-"],
        ["generator only", "7.0", "-", "-"],
        ["original, fused", "12.0", "-", "-"],
        ["CLIPSelf, fused", "**22.0**", "-", "-"],
    ]
