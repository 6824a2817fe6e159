"""The figure of a table: the paper's numbers and those measured here, a colour for each row.

Bars, curves, or lines in a plane of two columns.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from clipself_seg.files import atomic_path
from clipself_seg.tables.sections import Section

# Okabe and Ito's colours, which differ for colour-blind readers too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":")


def write_figure(section: Section, folder: Path) -> bool:
    """Write NAME.png; whether there was anything to draw.

    Args:
        section: a table with its numbers.
        folder: for the picture.
    """
    one_column = section.table.figure == "bars" and len(section.table.columns) == 1
    bars = _bars_of_one_column if one_column else _bars
    draw = {"bars": bars, "curve": _curve, "plane": _plane}.get(section.table.figure)
    if draw is None or not section.cells:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A paper's curve of which no numbers are printed has no panel.
    sides = [side for side in ("paper", "here") if _has_numbers(section, side)]
    # The legend of a plane, whose rows are many, is as tall as another figure.
    size = (7, 6.5) if section.table.figure == "plane" else (1 + 4 * len(sides), 3.6)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(sides), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for panel, side in zip(panels, sides):
        draw(panel, section, side)
        panel.set_title(side)
        if section.table.figure != "plane":
            (panel.set_xlim if one_column else panel.set_ylim)(0)
        handles |= {text: handle for handle, text in zip(*panel.get_legend_handles_labels())}
    if handles:
        figure.legend(
            [*handles.values()],
            [*handles],
            loc="outside lower center",
            ncols=2,
            fontsize="small",
        )
    with atomic_path(folder / f"{section.table.name}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    return True


def _has_numbers(section: Section, side: str) -> bool:
    rows, columns = section.table.rows, section.table.columns
    return any(_numbers(section, row, column, side) for row in rows for column in columns)


def _numbers(section: Section, row: str, column: str, side: str) -> list[float]:
    """The number of the paper, or those of all seeds; [] without."""
    if side == "paper":
        published = section.table.rows[row].paper.get(column)
        return [] if published is None else [published]
    return list(section.cells.get((row, column), {}).values())


def _columns(section: Section, side: str) -> dict[str, str]:
    """Columns with numbers -> their titles."""
    scale = "real" if side == "paper" else section.scale
    return {
        name: column.title(scale)
        for name, column in section.table.columns.items()
        if any(_numbers(section, row, name, side) for row in section.table.rows)
    }


def _series(section: Section, side: str) -> list[tuple[int, str, list[list[float]]]]:
    """Number, title and numbers in each column of the rows that have any."""
    rows = enumerate(section.table.rows.items())
    every = [
        (place, row.title, [_numbers(section, name, c, side) for c in _columns(section, side)])
        for place, (name, row) in rows
    ]
    return [one for one in every if any(one[2])]


def _bars(panel: Any, section: Section, side: str) -> None:
    """A bar for the mean of each number, with the standard deviation of several seeds."""
    series = _series(section, side)
    width = 0.8 / max(1, len(series))
    for place, (number, title, columns) in enumerate(series):
        shown = [index for index, values in enumerate(columns) if values]
        middles = [index + (place - (len(series) - 1) / 2) * width for index in shown]
        means = [statistics.fmean(columns[index]) for index in shown]
        spreads = [_spread(columns[index]) for index in shown]
        colour = COLOURS[number % len(COLOURS)]
        panel.bar(middles, means, width, yerr=spreads, color=colour, label=title)
    titles = _columns(section, side).values()
    slanted = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"}
    panel.set_xticks(range(len(titles)), titles, fontsize="small", **slanted)


def _bars_of_one_column(panel: Any, section: Section, side: str) -> None:
    """As `_bars`, each one beside the title of its row."""
    series = _series(section, side)
    for place, (number, _, (values,)) in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        panel.barh(place, statistics.fmean(values), 0.8, xerr=_spread(values), color=colour)
    panel.set_yticks(range(len(series)), [title for _, title, _ in series], fontsize="small")
    panel.set_xlabel(*_columns(section, side).values(), fontsize="small")
    panel.invert_yaxis()


def _curve(panel: Any, section: Section, side: str) -> None:
    titles = list(_columns(section, side).values())
    for number, title, columns in _series(section, side):
        shown = [index for index, values in enumerate(columns) if values]
        means = [statistics.fmean(columns[index]) for index in shown]
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        panel.plot([titles[index] for index in shown], means, label=title, **style)
    panel.grid(alpha=0.3)


def _plane(panel: Any, section: Section, side: str) -> None:
    """A line for each row through its pairs of columns, from the first one, which is filled, to the last."""
    table = section.table
    for number, (name, row) in enumerate(table.rows.items()):
        pairs = [
            [_numbers(section, name, column, side) for column in pair] for pair in table.points
        ]
        means = [[statistics.fmean(one) for one in pair] for pair in pairs if all(pair)]
        if not means:
            continue
        across, up = zip(*means)
        rounds = number // len(COLOURS)
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[rounds % len(LINES)]}
        marker = MARKERS[(number + rounds) % len(MARKERS)]
        panel.plot(across, up, marker=marker, markerfacecolor="white", label=row.title, **style)
        panel.plot(across[:1], up[:1], marker=marker, **style)
    across_title, up_title = (table.columns[name].title(section.scale) for name in table.points[0])
    panel.set_xlabel(across_title)
    panel.set_ylabel(up_title)
    panel.grid(alpha=0.3)


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
