"""Rows of fusion -> the paper's Table 6, a table of one run; a sweep -> tables and a picture.

Results are what `PanopticEvaluation` returns: {data set: {row: {"PQ": percent, ...}}}. A sweep is
{"alpha": [...], "beta": [...], "PQ": [[...]], ...}: alpha is CLIP's exponent for seen classes, beta
for the others, and numbers in percent have a row for each alpha and a column for each beta, None
where there is nothing to say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from clipself_seg.files import atomic_path

Numbers = Mapping[str, float]
# Row -> its numbers, of one data set.
Rows = Mapping[str, Numbers]
Grid = Sequence[Sequence[float | None]]

# Data sets as papers call them; the first two are the columns of the CLIPSelf paper's Table 6.
TITLES = {
    "coco_2017_val_panoptic_with_sem_seg": "COCO",
    "ade20k_panoptic_val": "ADE20K",
    "mini_val_panoptic_with_sem_seg": "mini",
    "mini2_val_panoptic_with_sem_seg": "mini2",
}
ROW_TITLES = {"clip": "CLIP only", "generator": "generator only", "fused": "fused"}
# Heading -> key.
PAPER_COLUMNS = {"PQ": "PQ", "mAP": "AP", "mIoU": "mIoU"}
SPLIT_COLUMNS = {"PQ": "PQ", "seen": "PQ_seen", "unseen": "PQ_unseen"}
# Those of a row that no data set has are left out.
RUN_COLUMNS = {
    "PQ": "PQ",
    "SQ": "SQ",
    "RQ": "RQ",
    "things PQ": "PQ_th",
    "stuff PQ": "PQ_st",
    "seen PQ": "PQ_seen",
    "unseen PQ": "PQ_unseen",
    "mAP": "AP",
    "seen mAP": "AP-seen",
    "unseen mAP": "AP-unseen",
    "mIoU": "mIoU",
    "seen mIoU": "mIoU-seen",
    "unseen mIoU": "mIoU-unseen",
}
SWEEP_TITLES = {"PQ": "PQ", "PQ_seen": "PQ of seen classes", "PQ_unseen": "PQ of unseen classes"}


def fusion_table(
    models: Mapping[str, Mapping[str, Rows]], first: str = "model", style: str = "simple"
) -> str:
    """The paper's Table 6: a line for each model and row; PQ, mAP and mIoU in percent.

    Args:
        models: name -> data set -> row -> numbers. Columns come in the paper's order, then as they
            are met; a number that a line lacks is shown as "-".
        first: heading of the first column.
        style: a format of `tabulate`, such as "simple" or "github".
    """
    met = dict.fromkeys(name for results in models.values() for name in results)
    datasets = [name for name in TITLES if name in met] + [n for n in met if n not in TITLES]
    columns = [(name, *column) for name in datasets for column in PAPER_COLUMNS.items()]
    body = []
    for model, results in models.items():
        for row in dict.fromkeys(row for rows in results.values() for row in _only_rows(rows)):
            found = [results.get(name, {}).get(row, {}) for name, _, _ in columns]
            cells = [_percent(numbers, key) for numbers, (_, _, key) in zip(found, columns)]
            body.append([model, ROW_TITLES.get(row, row), *cells])
    headings = [f"{TITLES.get(name, name)} {title}" for name, title, _ in columns]
    return _table([first, "scores", *headings], body, style, left=2)


def split_table(
    models: Mapping[str, Mapping[str, Rows]], first: str = "scores", style: str = "simple"
) -> str:
    """Who names the masks of one generator: PQ in percent of all, of seen and of unseen classes.

    Args:
        models: name of a CLIP -> data set -> row -> numbers. The row "generator" does not depend on
            CLIP and is shown once.
        first: heading of the first column.
        style: a format of `tabulate`.
    """
    lines: dict[str, dict[str, Numbers]] = {}
    for row in ROW_TITLES:
        for model, results in models.items():
            name = ROW_TITLES[row] if row == "generator" else f"{model}, {ROW_TITLES[row]}"
            found = {dataset: rows[row] for dataset, rows in results.items() if row in rows}
            if found:
                lines.setdefault(name, found)
    datasets = dict.fromkeys(dataset for found in lines.values() for dataset in found)
    columns = [(name, *column) for name in datasets for column in SPLIT_COLUMNS.items()]
    body = [
        [line, *(_percent(found.get(name, {}), key) for name, _, key in columns)]
        for line, found in lines.items()
    ]
    return _table([first, *(f"{TITLES.get(n, n)} {t}" for n, t, _ in columns)], body, style, left=1)


def fusions_table(results: Mapping[str, Rows], style: str = "simple") -> str:
    """All means of one run in percent: a line for each data set and row.

    Args:
        results: data set -> row -> numbers; "alpha", "beta" and "images" are shown as well.
        style: a format of `tabulate`.
    """
    lines = [(name, row, rows[row]) for name, rows in results.items() for row in _only_rows(rows)]
    columns = {
        title: key
        for title, key in RUN_COLUMNS.items()
        if any(key in numbers for _, _, numbers in lines)
    }
    body = [
        [
            TITLES.get(name, name),
            ROW_TITLES.get(row, row),
            *(_short(numbers, key) for key in ("alpha", "beta")),
            *(_percent(numbers, key) for key in columns.values()),
            _short(numbers, "images"),
        ]
        for name, row, numbers in lines
    ]
    headings = ["data set", "scores", "alpha", "beta", *columns, "images"]
    return _table(headings, body, style, left=2)


def sweep_table(sweep: Mapping[str, Any], key: str = "PQ", style: str = "simple") -> str:
    """One number in percent: a line for each alpha, a column for each beta, * at the best.

    Args:
        sweep: see the module.
        key: which number.
        style: a format of `tabulate`.
    """
    best = best_cell(sweep[key])
    body = [
        [f"{alpha:.7g}"]
        + [
            _cell(value) + ("*" if (row, column) == best else "")
            for column, value in enumerate(values)
        ]
        for row, (alpha, values) in enumerate(zip(sweep["alpha"], sweep[key]))
    ]
    return _table(["alpha \\ beta", *(f"{beta:.7g}" for beta in sweep["beta"])], body, style)


def best_cell(grid: Grid) -> tuple[int, int] | None:
    """Row and column of the highest number, of equal ones the first; None if there is none."""
    cells = [
        (value, -row, -column)
        for row, values in enumerate(grid)
        for column, value in enumerate(values)
        if value is not None
    ]
    if not cells:
        return None
    _, row, column = max(cells)
    return -row, -column


def plot_sweep(path: str | os.PathLike[str], sweep: Mapping[str, Any], title: str) -> None:
    """Write a sweep as a PNG: a heat map of each of `SWEEP_TITLES`, a frame around the best cell.

    Args:
        path: of the PNG.
        sweep: see the module.
        title: above all panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [key for key in SWEEP_TITLES if key in sweep]
    width = max(4.0, 1.2 + 0.46 * len(sweep["beta"]))
    height = max(3.0, 1.2 + 0.36 * len(sweep["alpha"]))
    figure = Figure(figsize=(width * len(shown), height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium")
    for panel, key in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        _draw_grid(panel, sweep, key)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_grid(panel: Any, sweep: Mapping[str, Any], key: str) -> None:
    nan = float("nan")
    grid = [[nan if value is None else value for value in values] for values in sweep[key]]
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
            text = _cell(sweep[key][row][column])
            panel.text(column, row, text, color=colour, ha="center", va="center", fontsize=7)
    best = best_cell(sweep[key])
    if best is not None:
        corner = (best[1] - 0.5, best[0] - 0.5)
        panel.add_patch(_frame(corner))


def _frame(corner: tuple[float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2, clip_on=False)


def _only_rows(rows: Mapping[str, Any]) -> list[str]:
    """Names of the rows: a data set's sweep stands beside them."""
    return [row for row in rows if row != "sweep"]


def _table(headings: list[str], body: list[list[str]], style: str, left: int = 1) -> str:
    align = [*["left"] * left, *["right"] * (len(headings) - left)]
    return tabulate(body, headings, style, colalign=align if body else None, disable_numparse=True)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percent(numbers: Numbers, key: str) -> str:
    return _cell(numbers.get(key))


def _short(numbers: Numbers, key: str) -> str:
    return f"{numbers[key]:g}" if key in numbers else "-"
