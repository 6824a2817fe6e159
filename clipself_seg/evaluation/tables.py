"""Formatting that the tables and CSVs of all evaluations share: numbers, alignment of columns, and files."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from tabulate import tabulate

from clipself_seg.files import atomic_path
from clipself_seg.pages import render

# What a table may be written as -> its style, see `format_table`, and its file.
FILES = {"latex": ("latex_booktabs", "tables.tex"), "csv": ("csv", "tables.csv")}
# Around the best number of a column, in the styles that mark it.
BEST = {"github": "**{}**", "html": "**{}**", "terminal": "\033[1m{}\033[0m"}


def format_table(
    headings: Sequence[str], body: Sequence[Sequence[str]], style: str = "simple", left: int = 1
) -> str:
    """A table whose first columns are aligned at the left, and all others at the right.

    Args:
        headings: headings of the columns.
        body: cells of each row.
        style: a format of `tabulate`, such as "simple", "github" or "latex_booktabs", which escapes what LaTeX
            would not print; "terminal" is "simple" for cells that are marked, "csv" has lines of commas, and "html" is
            part of a page, in which what stands between two times "**" is bold.
        left: number of columns that are aligned at the left.
    """
    if style == "csv":
        return _csv_lines([headings, *body])
    if style == "html":
        return render("table.html", headings=headings, body=body, left=left)
    style = "simple" if style == "terminal" else style
    align = [*["left"] * left, *["right"] * (len(headings) - left)]
    table = tabulate(body, headings, style, colalign=align if body else None, disable_numparse=True)
    return _latex(table) if style.startswith("latex") else table


def write_tables(
    path: str | os.PathLike[str], tables: Mapping[str, str], style: str, notes: Sequence[str] = ()
) -> None:
    """Write tables one below the other, atomically.

    Args:
        path: the file.
        tables: title -> table, as `format_table` gives it in this style. The title stands above it, in LaTeX as a
            comment, in Markdown as a heading.
        style: "latex_booktabs", for a document that uses the package booktabs, "csv" or "github".
        notes: lines that stand below each table, in LaTeX as comments.
    """
    blocks = []
    for title, table in tables.items():
        heading = _line(title, style, "## {}\n")
        below = "".join(f"{_line(note, style, '{}')}\n" for note in notes)
        between = "\n" if below and style == "github" else ""
        blocks.append(f"{heading}\n{table}\n{between}{below}")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(blocks), encoding="utf-8")


def _line(text: str, style: str, markdown: str) -> str:
    """A line of text beside tables of a style."""
    line = " ".join(text.split())
    return {"csv": _csv_lines([[line]]), "github": markdown.format(line)}.get(style, f"% {line}")


def best_marked(values: Sequence[float | None], style: str) -> list[str]:
    """Cells of one column, as `cell_text` gives them, the highest marked as `BEST` says for the style.

    Numbers that read alike are equally good, and where all are, none is marked.
    """
    cells = [cell_text(value) for value in values]
    known = [value for value in values if value is not None]
    if style not in BEST or len({cell_text(value) for value in known}) < 2:
        return cells
    best = cell_text(max(known))
    return [BEST[style].format(cell) if cell == best else cell for cell in cells]


def mark_best(body: Sequence[Sequence[str]], style: str, left: int = 1) -> list[list[str]]:
    """Rows of a table with the highest number of each column marked, see `best_marked`.

    Args:
        body: cells of each row, as `cell_text` gives them.
        style: see `format_table`.
        left: number of columns at the left that have no numbers.
    """
    columns: list[Sequence[str]] = list(zip(*body))
    numbers = [[None if cell == "-" else float(cell) for cell in cells] for cells in columns[left:]]
    marked = [best_marked(values, style) for values in numbers]
    return [list(cells) for cells in zip(*columns[:left], *marked)]


def percent_text(results: Mapping[str, float], key: str) -> str:
    """A number of the results, which is in percent, with one digit after the point; "-" if it is not there."""
    return cell_text(results.get(key))


def cell_text(value: float | None) -> str:
    """A number with one digit after the point; "-" for None."""
    return "-" if value is None else f"{value:.1f}"


def percent_digits(fraction: float) -> str:
    """A fraction in percent with all digits; empty for NaN."""
    return "" if np.isnan(fraction) else repr(100 * float(fraction))


def _latex(table: str) -> str:
    """A table of tabulate's, which escapes each character, but not what rules and line ends take for an option."""
    return re.sub(r"^ *([\[*])", r" {\1}", table.replace("±", "$\\pm$"), flags=re.MULTILINE)


def _csv_lines(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().removesuffix("\n")
