"""The fusions that panoptic segmentation is evaluated with: those of the paper's Table 6, and the grid of a sweep of
both exponents, with its table and plot.

A sweep's results are {"alpha": [...], "beta": [...], "PQ": [[...]], ...}: alpha is CLIP's exponent for seen classes,
beta for all other classes, and numbers in percent have a row for each alpha and a column for each beta, None where no
class counts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipself_seg.evaluation.report import cell_text, format_table
from clipself_seg.files import atomic_path
from clipself_seg.heads.fusion import Fusion, fusion_of

SWEEP_TITLES = {"PQ": "PQ", "PQ_seen": "PQ of seen classes", "PQ_unseen": "PQ of unseen classes"}

Grid = Sequence[Sequence[float | None]]
Sweep = dict[str, Any]


def named_fusions(
    names: Sequence[str],
    alpha: float,
    beta: float,
    tasks: Sequence[str],
    void_discount: float = 0.0,
    void_sweep: Sequence[float] = (),
) -> dict[str, Fusion]:
    """The fusions of Table 6, and "fused" with other weights by which CLIP lowers void.

    Args:
        names: names of fusions, out of `report.FUSION_TITLES`.
        alpha: exponent of CLIP's scores of seen classes in "fused", in [0, 1].
        beta: exponent of CLIP's scores of all other classes in "fused", in [0, 1].
        tasks: what is measured, out of `TASKS`.
        void_discount: weight by which CLIP's best class lowers void, but for "generator", in [0, 1].
        void_sweep: further such weights, each with a name of its own, see `void_name`.
    """
    own = tuple(tasks)
    named = {name: fusion_of(name, alpha, beta, own, void_discount) for name in names}
    return named | {void_name(one): Fusion(alpha, beta, own, one) for one in void_sweep}


def void_name(void_discount: float) -> str:
    """Name of the fusion with a weight by which CLIP lowers void, such as "void_0.5"."""
    return f"void_{void_discount:g}"


def sweep_fusions(
    values: Sequence[float], seen: np.ndarray | None, void_discount: float = 0.0
) -> dict[str, Fusion]:
    """A fusion for each cell of the grid of alpha and beta that differs from the others.

    Args:
        values: exponents in [0, 1] that both alpha and beta take.
        seen: (K,) bool, classes of the training vocabulary; None: all of them.
        void_discount: weight by which CLIP's best class lowers void in all of them.
    """
    cells = [(alpha, beta) for alpha in values for beta in values]
    return {
        sweep_name(alpha, beta, seen): Fusion(alpha, beta, ("panoptic",), void_discount)
        for alpha, beta in cells
    }


def sweep_name(alpha: float, beta: float, seen: np.ndarray | None) -> str:
    """Name of a cell's fusion, with "-" for an exponent that no class has.

    Cells that differ only in such an exponent have the same name, so that they are evaluated once.
    """
    seen_exponent = "-" if seen is not None and not seen.any() else repr(float(alpha))
    unseen_exponent = "-" if seen is None or seen.all() else repr(float(beta))
    return f"sweep {seen_exponent} {unseen_exponent}"


def sweep_results(
    values: Sequence[float], seen: np.ndarray | None, numbers: Mapping[str, Mapping[str, float]]
) -> Sweep:
    """The grid of each of `SWEEP_TITLES`, see the docstring of this module.

    Args:
        values: exponents in [0, 1] that both alpha and beta take.
        seen: (K,) bool, classes of the training vocabulary; None: all of them.
        numbers: name of a fusion -> name of a number -> the number.
    """
    sweep: Sweep = {"alpha": list(values), "beta": list(values)}
    for key in SWEEP_TITLES:
        grid = [
            [numbers[sweep_name(alpha, beta, seen)].get(key) for beta in values] for alpha in values
        ]
        if any(value is not None for line in grid for value in line):
            sweep[key] = grid
    return sweep


def sweep_table(sweep: Sweep, style: str = "simple") -> str:
    """PQ in percent: a line for each alpha, a column for each beta, * at the best.

    Args:
        sweep: grids of numbers, see the docstring of this module.
        style: a format of `tabulate`.
    """
    best = best_cell(sweep["PQ"])
    body = [
        [f"{alpha:.7g}"]
        + [
            cell_text(value) + ("*" if (row, column) == best else "")
            for column, value in enumerate(values)
        ]
        for row, (alpha, values) in enumerate(zip(sweep["alpha"], sweep["PQ"]))
    ]
    return format_table(["alpha \\ beta", *(f"{beta:.7g}" for beta in sweep["beta"])], body, style)


def best_cell(grid: Grid) -> tuple[int, int] | None:
    """Row and column of the highest number, of equal ones the first; None if there is no number."""
    values = _as_array(grid)
    if np.isnan(values).all():
        return None
    row, column = np.unravel_index(np.nanargmax(values), values.shape)
    return int(row), int(column)


def _as_array(grid: Grid) -> np.ndarray:
    """Numbers (alpha, beta), NaN for None."""
    return np.array(grid, dtype=float)


def plot_sweep(path: str | os.PathLike[str], sweep: Sweep, title: str) -> None:
    """Write a sweep as a PNG: a heat map of each of `SWEEP_TITLES`, a frame around the best cell.

    Args:
        path: the PNG to write.
        sweep: grids of numbers, see the docstring of this module.
        title: heading above all panels.
    """
    from matplotlib.figure import Figure

    shown = [key for key in SWEEP_TITLES if key in sweep]
    width = max(4.0, 1.2 + 0.46 * len(sweep["beta"]))
    height = max(3.0, 1.2 + 0.36 * len(sweep["alpha"]))
    figure = Figure(figsize=(width * len(shown), height), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    for panel, key in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        _draw_grid(panel, sweep, key)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_grid(panel: Any, sweep: Sweep, key: str) -> None:
    from matplotlib.patches import Rectangle

    grid = _as_array(sweep[key])
    # Alpha grows upwards, as on any axis.
    image = panel.imshow(grid, cmap="viridis", aspect="auto", origin="lower")
    panel.set_title(SWEEP_TITLES[key], fontsize="small")
    panel.set_xlabel("beta (unseen classes)")
    panel.set_ylabel("alpha (seen classes)")
    panel.set_xticks(range(len(sweep["beta"])), [f"{beta:.7g}" for beta in sweep["beta"]])
    panel.set_yticks(range(len(sweep["alpha"])), [f"{alpha:.7g}" for alpha in sweep["alpha"]])
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            # White on the dark half of the colours, black on the bright one.
            colour = "white" if image.norm(value) < 0.6 else "black"
            text = cell_text(sweep[key][row][column])
            panel.text(column, row, text, color=colour, ha="center", va="center", fontsize=7)
    best = best_cell(sweep[key])
    if best is not None:
        corner = (best[1] - 0.5, best[0] - 0.5)
        frame = Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2, clip_on=False)
        panel.add_patch(frame)
