"""Tables, JSON and a picture of what a training forgets: numbers of the classes that it trained and of all others.

Rows are mixtures of the weights before and after the training, start + f * (end - start), and f is the name of a row: 0
is before the training, 1 after it. The numbers are means that evaluators take over seen and unseen classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from clipself_seg.evaluation.report import (
    DETECTION_TITLES,
    PANOPTIC_TITLES,
    SEMANTIC_TITLES,
    cell_text,
    format_table,
)
from clipself_seg.files import atomic_path

TITLE = "Classes that were trained and classes that were not, before and after, in percent"
TRAINED, OTHERS = "trained", "not trained"
BALANCE = "harmonic mean"
# Number that stands for a line of results, the first that it has -> what is between its name and "seen" or "unseen".
NUMBERS = {"PQ": "_", "mIoU": "-", "AP": "-"}
TITLES = SEMANTIC_TITLES | PANOPTIC_TITLES | DETECTION_TITLES
NO_OTHERS = (
    "No class of DATASETS.TEST was not trained, so nothing is known of what is forgotten: name data sets with other "
    "classes under `others` of the data file, or in DATASETS.TEST."
)
NO_NUMBERS = (
    "No mixture was evaluated: DATASETS.TEST is empty, or nothing says which of its classes were trained, "
    "DATASETS.TRAIN or TEST.TRAIN_VOCABULARY."
)

Split = dict[str, Any]
Row = Mapping[str, Split]  # data set -> its numbers, as of `split_of`
Rows = Mapping[float, Row]  # fraction -> its row


def split_of(numbers: Mapping[str, Any]) -> Split:
    """The numbers of trained and of other classes of a data set.

    Args:
        numbers: what an evaluation has of the data set: of panoptic segmentation "fused" counts, or the first fusion;
            of detection boxes, or masks alone.

    Returns:
        "number" (PQ, mIoU or AP), `TRAINED` and `OTHERS` in percent, and "classes trained" and "classes not trained",
        how many have such a number; each only where it is known.
    """
    lines = {key: line for key, line in numbers.items() if isinstance(line, Mapping)}
    line = lines.get("fused", lines.get("bbox", next(iter(lines.values()), numbers)))
    number = next((number for number in NUMBERS if number in line), "")
    sign = NUMBERS.get(number, "")
    keys = {
        TRAINED: f"{number}{sign}seen",
        OTHERS: f"{number}{sign}unseen",
        f"classes {TRAINED}": f"classes{sign}seen",
        f"classes {OTHERS}": f"classes{sign}unseen",
    }
    return {"number": number} | {key: line[own] for key, own in keys.items() if own in line}


def means_of(row: Row) -> dict[str, float]:
    """Means over the data sets that have such classes, and the harmonic mean of both groups if there are both."""
    means = {}
    for group in (TRAINED, OTHERS):
        if values := [split[group] for split in row.values() if group in split]:
            means[group] = sum(values) / len(values)
    if len(means) == 2:
        total = sum(means.values())
        means[BALANCE] = 2 * means[TRAINED] * means[OTHERS] / total if total else 0.0
    return means


def knee_of(rows: Rows) -> float | None:
    """The fraction with the best harmonic mean, of equal ones the smallest; None without other classes."""
    means = {fraction: means_of(rows[fraction]).get(BALANCE) for fraction in sorted(rows)}
    known = {fraction: mean for fraction, mean in means.items() if mean is not None}
    return max(known, key=lambda fraction: known[fraction]) if known else None


def as_json(rows: Rows) -> dict[str, Any]:
    """What `results.json` has under "mixing", see docs/numbers.md."""
    lines = [{"fraction": f, **means_of(rows[f]), "data sets": rows[f]} for f in sorted(rows)]
    return {"knee": knee_of(rows), "rows": lines}


def forgetting_table(rows: Rows, style: str = "simple") -> str:
    """A line for each mixture: the number of trained and of other classes of each data set, and the means.

    Args:
        rows: the numbers of each mixture.
        style: see `evaluation.report.format_table`.
    """
    knee, last = knee_of(rows), rows[max(rows)]
    groups = [(name, group) for name in last for group in (TRAINED, OTHERS) if group in last[name]]
    headings = ["weights"]
    for name, group in groups:
        classes = cell_text(last[name].get(f"classes {group}"), ".0f")
        headings.append(f"{TITLES.get(name, name)} {last[name]['number']}, {classes} {group}")
    # Of one data set the means are its own numbers.
    means = [key for key in means_of(last) if key == BALANCE or len(last) > 1]
    headings += [key if key == BALANCE else f"mean, {key}" for key in means]
    body = []
    for fraction in sorted(rows):
        row, mean = rows[fraction], means_of(rows[fraction])
        word = {0.0: " before", 1.0: " after"}.get(fraction, "") + (
            " *" if fraction == knee else ""
        )
        cells = [row[name].get(group) for name, group in groups] + [mean.get(key) for key in means]
        body.append([f"{fraction:g}{word}", *map(cell_text, cells)])
    return format_table(headings, body, style)


def plot_forgetting(path: str | os.PathLike[str], rows: Rows) -> None:
    """Write a PNG: the means of trained and of other classes over the fraction, a line at the knee.

    Args:
        path: the PNG to write.
        rows: the numbers of each mixture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    panel = figure.subplots()
    means = {fraction: means_of(rows[fraction]) for fraction in sorted(rows)}
    for group, line in ((TRAINED, "o-"), (OTHERS, "s-"), (BALANCE, "--")):
        known = {fraction: mean[group] for fraction, mean in means.items() if group in mean}
        panel.plot([*known], [*known.values()], line, label=group)
    if (knee := knee_of(rows)) is not None:
        panel.axvline(knee, color="grey", linestyle=":", label=f"knee, {knee:g}")
    panel.set_xlabel("weights: 0 before, 1 after the training")
    panel.set_ylabel("mean over data sets, percent")
    figure.legend(loc="outside upper center", ncols=4, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
