"""What the tables and CSVs of all evaluations have in common: how numbers read, and how columns are aligned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tabulate import tabulate


def format_table(
    headings: Sequence[str], body: Sequence[Sequence[str]], style: str = "simple", left: int = 1
) -> str:
    """A table whose first columns are aligned at the left, and all others at the right.

    Args:
        headings: headings of the columns.
        body: cells of each row.
        style: a format of `tabulate`, such as "simple" or "github".
        left: number of columns that are aligned at the left.
    """
    align = [*["left"] * left, *["right"] * (len(headings) - left)]
    return tabulate(body, headings, style, colalign=align if body else None, disable_numparse=True)


def percent_text(results: Mapping[str, float], key: str) -> str:
    """A number of the results, which is in percent, with one digit after the point; "-" if it is not there."""
    return cell_text(results.get(key))


def cell_text(value: float | None) -> str:
    """A number with one digit after the point; "-" for None."""
    return "-" if value is None else f"{value:.1f}"


def percent_digits(fraction: float) -> str:
    """A fraction in percent with all digits; empty for NaN."""
    return "" if np.isnan(fraction) else repr(100 * float(fraction))
