"""Numbers of region recognition -> tables, and the curve over input sizes.

Results are what `RegionAccuracyEvaluator` returns under "regions": {"boxes.thing.top1": percent,
...}.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from clipself_seg.config import WHOLE
from clipself_seg.evaluation.report import best_marked, cell_text, format_table
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
MASKED = "masked attention"
# Shown only if a row has them.
ATTENTION_COLUMNS = {
    f"Boxes ({MASKED})": "attention_boxes.thing",
    f"Thing Masks ({MASKED})": "attention_masks.thing",
    f"Stuff Masks ({MASKED})": "attention_masks.stuff",
}
# Styles for programs, in which each number has a column of its own.
FLAT = ("csv", "latex_booktabs")
TERMINAL = ("simple", "terminal")
WIDTH = 80  # characters of a line on a terminal


def region_table(rows: Mapping[str, Results], first: str = "model", style: str = "simple") -> str:
    """The paper's Tables 1 and 2: top-1 and top-5 mean accuracy in percent, one row a model.

    Both numbers share a cell, "71.6 / 96.5", and the best ones of several rows are bold in Markdown and in style
    "terminal". A table for the terminal is no wider than `WIDTH`: long names are wrapped, and masked attention
    has a table of its own. LaTeX and CSV have a column for each number.

    Args:
        rows: name of the row -> results; a number that a row lacks is shown as "-".
        first: heading of the first column.
        style: see `format_table`.
    """
    columns = _columns(rows.values())
    if style in FLAT:
        return _flat_table(rows, columns, first, style)
    if style not in TERMINAL:
        return _pair_table(rows, columns, first, style)
    tables = [_pair_table(rows, _columns(rows.values(), {}), first, style)]
    if masked := _present(ATTENTION_COLUMNS, rows.values()):
        short = {title.removesuffix(f" ({MASKED})"): key for title, key in masked.items()}
        tables.append(_pair_table(rows, short, MASKED, style))
    return "\n\n".join(tables)


def _flat_table(
    rows: Mapping[str, Results], columns: Mapping[str, str], first: str, style: str
) -> str:
    headings = [f"{column} Top{k}" for column in columns for k in (1, 5)]
    keys = [f"{key}.top{k}" for key in columns.values() for k in (1, 5)]
    body = [
        [name, *(cell_text(results.get(key)) for key in keys)] for name, results in rows.items()
    ]
    return format_table([first, *headings], body, style)


def _pair_table(
    rows: Mapping[str, Results], columns: Mapping[str, str], first: str, style: str
) -> str:
    pairs = [_pairs(rows.values(), key, style) for key in columns.values()]
    headings, names = [*columns], [*rows]
    if style in TERMINAL:
        headings = [heading.replace(" ", "\n") for heading in headings]
        widths = [_width([heading, *cells]) for heading, cells in zip(headings, pairs)]
        left = WIDTH - sum(2 + width for width in widths)
        names = [textwrap.fill(name, left) for name in names]
        first = textwrap.fill(first, left)
    return format_table([first, *headings], list(zip(names, *pairs)), style)


def _pairs(rows: Collection[Results], key: str, style: str) -> list[str]:
    """Top-1 and top-5 accuracy of each row in one cell."""
    between = "/" if style in TERMINAL else " / "
    numbers = [best_marked([row.get(f"{key}.top{k}") for row in rows], style) for k in (1, 5)]
    return ["-" if {*pair} == {"-"} else between.join(pair) for pair in zip(*numbers)]


def _width(cells: Sequence[str]) -> int:
    """Characters of the longest line, without those that make it bold."""
    lines = [line for cell in cells for line in cell.splitlines()]
    return max(len(re.sub("\033\\[[0-9]*m", "", line)) for line in lines)


def _columns(
    rows: Collection[Results], further: Mapping[str, str] = ATTENTION_COLUMNS
) -> dict[str, str]:
    """The columns of regions, of whole images where a row has those alone or as well, and further ones."""
    whole = _present(WHOLE_IMAGES, rows)
    return (_present(COLUMNS, rows) if whole else COLUMNS) | whole | _present(further, rows)


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


def size_table(results_by_size: Mapping[int, Results], style: str = "simple") -> str:
    """`region_table` with one row for each input size (Fig. 3 and A1 as numbers).

    Args:
        results_by_size: side S of the student's input in pixels -> results.
        style: see `format_table`.
    """
    rows = {str(size): results_by_size[size] for size in sorted(results_by_size)}
    return region_table(rows, first="input size", style=style)


def mixture_table(results: Results, prefixes: Sequence[str], style: str = "simple") -> str:
    """`region_table` of other fractions of the student, below the configured one.

    Args:
        results: numbers of a data set, with those of mixtures.
        prefixes: beginnings of the names of each mixture's numbers.
        style: see `format_table`.
    """
    rows: dict[str, Results] = {"as configured": results}
    for prefix in prefixes:
        own = {k.removeprefix(prefix): v for k, v in results.items() if k.startswith(prefix)}
        rows[prefix.rstrip("-").replace("_", " ")] = own
    return region_table(rows, first="mixture", style=style)


def plot_size_curve(
    curves: Mapping[str, Mapping[int, Results]], path: str | os.PathLike[str]
) -> None:
    """Write Fig. 3 / A1 as a PNG: top-1 mean accuracy over the input size, a panel a column.

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
