"""Numbers of several fusions -> the paper's Table 6 and a table of one run; a sweep -> table and plot.

Results are what `PanopticEvaluation` returns: {data set: {fusion: {"PQ": percent, ...}}}. A sweep is
{"alpha": [...], "beta": [...], "PQ": [[...]], ...}: alpha is CLIP's exponent for seen classes, beta
for all other classes, and numbers in percent have a row for each alpha and a column for each beta,
None where no class counts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from clipself_seg.evaluation.sem_seg.report import TITLES as SEMANTIC_TITLES
from clipself_seg.evaluation.tables import cell_text, format_table, mark_best, percent_text
from clipself_seg.files import atomic_path

Numbers = Mapping[str, float]
# Name of a fusion -> its numbers on one data set.
FusionNumbers = Mapping[str, Numbers]
Grid = Sequence[Sequence[float | None]]

# Data sets as papers call them; the first two are the columns of the CLIPSelf paper's Table 6.
TITLES = {
    "coco_2017_val_panoptic_with_sem_seg": "COCO",
    "ade20k_panoptic_val": "ADE20K",
    "cityscapes_fine_panoptic_val": "Cityscapes",
    "mapillary_vistas_panoptic_val": "Mapillary Vistas",
    "mini_val_panoptic_with_sem_seg": "mini",
    "mini2_val_panoptic_with_sem_seg": "mini2",
    # The mini worlds' keep their names, since there are panoptic ones beside them.
    **{name: title for name, title in SEMANTIC_TITLES.items() if not title.startswith("mini")},
}
FUSION_TITLES = {"clip": "CLIP only", "generator": "generator only", "fused": "fused"}
# Heading of a column -> key of the number.
PAPER_COLUMNS = {"PQ": "PQ", "mAP": "AP", "mIoU": "mIoU"}
SPLIT_COLUMNS = {"PQ": "PQ", "seen": "PQ_seen", "unseen": "PQ_unseen"}
# A column is left out if no data set has its number.
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
    "Cityscapes' mAP": "Cityscapes-AP",
    "mIoU": "mIoU",
    "seen mIoU": "mIoU-seen",
    "unseen mIoU": "mIoU-unseen",
    "boundary mIoU": "Boundary-mIoU",
    "oracle PQ": "oracle-PQ",
    "oracle mIoU": "oracle-mIoU",
}
SWEEP_TITLES = {"PQ": "PQ", "PQ_seen": "PQ of seen classes", "PQ_unseen": "PQ of unseen classes"}


def paper_table(
    models: Mapping[str, Mapping[str, FusionNumbers]], first: str = "model", style: str = "simple"
) -> str:
    """The paper's Table 6: a line for each model and fusion; PQ, mAP and mIoU in percent.

    Args:
        models: name of a model -> data set -> fusion -> numbers. Data sets come in the paper's
            order, others after them in the given order; a number that a line lacks is shown as "-".
        first: heading of the first column.
        style: a format of `tabulate`, such as "simple" or "github".
    """
    met = dict.fromkeys(name for results in models.values() for name in results)
    datasets = [name for name in TITLES if name in met] + [n for n in met if n not in TITLES]
    columns = [(name, *column) for name in datasets for column in PAPER_COLUMNS.items()]
    body = []
    for model, results in models.items():
        names = (name for fusions in results.values() for name in _fusion_names(fusions))
        for fusion in dict.fromkeys(names):
            cells = [
                percent_text(results.get(dataset, {}).get(fusion, {}), key)
                for dataset, _, key in columns
            ]
            body.append([model, FUSION_TITLES.get(fusion, fusion), *cells])
    headings = [f"{TITLES.get(name, name)} {title}" for name, title, _ in columns]
    return format_table([first, "scores", *headings], mark_best(body, style, 2), style, left=2)


def split_table(
    models: Mapping[str, Mapping[str, FusionNumbers]], first: str = "scores", style: str = "simple"
) -> str:
    """CLIPs that classify the masks of one generator: PQ in percent of all, seen and unseen classes.

    Args:
        models: name of a CLIP -> data set -> fusion -> numbers. The fusion "generator" does not
            depend on CLIP and is shown once.
        first: heading of the first column.
        style: a format of `tabulate`.
    """
    lines: dict[str, dict[str, Numbers]] = {}
    for fusion, title in FUSION_TITLES.items():
        for model, results in models.items():
            name = title if fusion == "generator" else f"{model}, {title}"
            line = {
                dataset: fusions[fusion]
                for dataset, fusions in results.items()
                if fusion in fusions
            }
            if line:
                lines.setdefault(name, line)
    datasets = dict.fromkeys(dataset for line in lines.values() for dataset in line)
    columns = [(name, *column) for name in datasets for column in SPLIT_COLUMNS.items()]
    body = [
        [title, *(percent_text(line.get(name, {}), key) for name, _, key in columns)]
        for title, line in lines.items()
    ]
    headings = [f"{TITLES.get(name, name)} {title}" for name, title, _ in columns]
    return format_table([first, *headings], mark_best(body, style), style)


def run_table(results: Mapping[str, FusionNumbers], style: str = "simple") -> str:
    """All means of one run in percent: a line for each data set and fusion.

    Args:
        results: data set -> fusion -> numbers; "alpha", "beta" and "images" are shown as well, and
            "void_discount" where there is one.
        style: a format of `tabulate`.
    """
    lines = [
        (dataset, fusion, fusions[fusion])
        for dataset, fusions in results.items()
        for fusion in _fusion_names(fusions)
    ]
    columns = {
        title: key
        for title, key in RUN_COLUMNS.items()
        if any(key in numbers for _, _, numbers in lines)
    }
    settings = {"alpha": "alpha", "beta": "beta"}
    if any("void_discount" in numbers for _, _, numbers in lines):
        settings["void less"] = "void_discount"
    body = [
        [
            TITLES.get(dataset, dataset),
            FUSION_TITLES.get(fusion, fusion),
            *(_short(numbers, key) for key in settings.values()),
            *(percent_text(numbers, key) for key in columns.values()),
            _short(numbers, "images"),
        ]
        for dataset, fusion, numbers in lines
    ]
    headings = ["data set", "scores", *settings, *columns, "images"]
    return format_table(headings, body, style, left=2)


def sweep_table(sweep: Mapping[str, Any], key: str = "PQ", style: str = "simple") -> str:
    """One number in percent: a line for each alpha, a column for each beta, * at the best.

    Args:
        sweep: grids of numbers, see the docstring of this module.
        key: which number, one of `SWEEP_TITLES`.
        style: a format of `tabulate`.
    """
    best = best_cell(sweep[key])
    body = [
        [f"{alpha:.7g}"]
        + [
            cell_text(value) + ("*" if (row, column) == best else "")
            for column, value in enumerate(values)
        ]
        for row, (alpha, values) in enumerate(zip(sweep["alpha"], sweep[key]))
    ]
    return format_table(["alpha \\ beta", *(f"{beta:.7g}" for beta in sweep["beta"])], body, style)


def best_cell(grid: Grid) -> tuple[int, int] | None:
    """Row and column of the highest number, of equal ones the first; None if there is no number."""
    # Negated positions: max takes the smallest row, then the smallest column, of equal numbers.
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
        path: the PNG to write.
        sweep: grids of numbers, see the docstring of this module.
        title: heading above all panels.
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
            text = cell_text(sweep[key][row][column])
            panel.text(column, row, text, color=colour, ha="center", va="center", fontsize=7)
    best = best_cell(sweep[key])
    if best is not None:
        corner = (best[1] - 0.5, best[0] - 0.5)
        panel.add_patch(_frame(corner))


def _frame(corner: tuple[float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2, clip_on=False)


def _fusion_names(results: Mapping[str, Any]) -> list[str]:
    """Names of the fusions of a data set, whose results also have its "sweep"."""
    return [name for name in results if name != "sweep"]


def _short(numbers: Numbers, key: str) -> str:
    return f"{numbers[key]:g}" if key in numbers else "-"
