"""A sweep's best cell is where its number says."""

import numpy as np
import pytest
from PIL import Image

from clipself_seg.evaluation.panoptic.panoptic_evaluation import best_cell, plot_sweep, sweep_table

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


def test_a_sweep_is_a_grid_with_a_star_at_the_best():
    assert cells(sweep_table(SWEEP, style="github")) == [
        ["alpha \\ beta", "0", "0.5"],
        ["0", "10.0", "20.0"],
        ["0.35", "30.0*", "-"],
        ["1", "30.0", "12.0"],
    ]
    assert "*" not in sweep_table(SWEEP | {"PQ": SWEEP["PQ_unseen"]})


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
