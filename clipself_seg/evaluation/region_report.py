"""Numbers of region recognition -> tables, and the curve over input sizes.

Results are what `RegionAccuracyEvaluator` returns under "regions": {"boxes.thing.top1": percent,
...}.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from clipself_seg.config import WHOLE
from clipself_seg.evaluation.report import ByDataset, comparison_table
from clipself_seg.files import atomic_path

Results = Mapping[str, float]

ABOUT = "Region recognition, top-1 and top-5 mean class accuracy in percent"
ABOUT_WHOLE = "Whole images, top-1 and top-5 accuracy in percent"
WHOLE_IMAGES = {"Whole Images": WHOLE}
# Column of the paper's Tables 1 and 2 -> key without its ".top1" or ".top5".
COLUMNS = {
    "Boxes": "boxes.thing",
    "Thing Masks": "masks.thing",
    "Stuff Masks": "masks.stuff",
    "Image Crops": "crops.thing",
}
# Shown only if a row has them.
ATTENTION_COLUMNS = {
    "Boxes (masked attention)": "attention_boxes.thing",
    "Thing Masks (masked attention)": "attention_masks.thing",
    "Stuff Masks (masked attention)": "attention_masks.stuff",
}


def region_table(rows: Mapping[str, Results], first: str = "model", style: str = "simple") -> str:
    """The paper's Tables 1 and 2: top-1 and top-5 mean accuracy in percent, one row a model.

    Args:
        rows: name of the row -> results; a number that a row lacks is shown as "-".
        first: heading of the first column.
        style: see `format_table`. Headings of a table for the terminal have a line for each word.
    """
    columns = {
        f"{title} Top{k}": f"{key}.top{k}"
        for title, key in _columns(rows.values()).items()
        for k in (1, 5)
    }
    if any("grouping.purity" in results for results in rows.values()):
        columns |= {"Grouping": "grouping.purity", "at random": "grouping.chance"}
    if style in ("simple", "terminal"):
        columns = {title.replace(" ", "\n"): key for title, key in columns.items()}
    lines: dict[tuple[str, ...], ByDataset] = {
        (name,): {"": results} for name, results in rows.items()
    }
    return comparison_table(lines, columns, [first], style)


def _columns(rows: Collection[Results]) -> dict[str, str]:
    """The columns of regions, of whole images where a row has those alone or as well, and of masked attention."""
    whole = _present(WHOLE_IMAGES, rows)
    return (
        (_present(COLUMNS, rows) if whole else COLUMNS) | whole | _present(ATTENTION_COLUMNS, rows)
    )


def about(rows: Mapping[str, Results]) -> str:
    """Title of a table of regions, or of whole images where no row has anything else."""
    return ABOUT_WHOLE if _columns(rows.values()).keys() == WHOLE_IMAGES.keys() else ABOUT


def _present(columns: Mapping[str, str], rows: Collection[Results]) -> dict[str, str]:
    """The columns of which some row has a number."""
    return {
        column: key
        for column, key in columns.items()
        if any(f"{key}.top1" in results for results in rows)
    }


def plot_size_curve(
    curves: Mapping[str, Mapping[int, Results]], path: str | os.PathLike[str]
) -> None:
    """Writes Fig. 3 / A1 as a PNG: top-1 mean accuracy over the input size, a panel a column.

    Args:
        curves: name of a model -> input size in pixels -> results.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    results = [point for curve in curves.values() for point in curve.values()]
    columns = _present(COLUMNS | WHOLE_IMAGES | ATTENTION_COLUMNS, results)
    figure = Figure(figsize=(3.4 * max(1, len(columns)), 3.2), layout="constrained")
    # One scale: how much is lost from crops to boxes is seen, too.
    panels = figure.subplots(1, max(1, len(columns)), squeeze=False, sharey=True)[0]
    for panel, (name, key) in zip(panels, columns.items()):
        _draw_panel(panel, name, {model: _series(curve, key) for model, curve in curves.items()})
    # Not before all is drawn, for it ends the adjustment of the scale to what is drawn.
    panels[0].set_ylim(bottom=0)
    if len(curves) > 1:
        panels[0].legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _series(curve: Mapping[int, Results], key: str) -> list[tuple[int, float]]:
    """Pairs of size and top-1 accuracy in percent, by size; sizes without the number are left out."""
    return [(s, curve[s][f"{key}.top1"]) for s in sorted(curve) if f"{key}.top1" in curve[s]]


def _draw_panel(panel: Any, title: str, series: Mapping[str, list[tuple[int, float]]]) -> None:
    for model, points in series.items():
        panel.plot([size for size, _ in points], [value for _, value in points], "o-", label=model)
    panel.set_title(title)
    panel.set_xlabel("input size (pixels)")
    panel.set_ylabel("top-1 mean accuracy (%)")
    panel.grid(alpha=0.3)
