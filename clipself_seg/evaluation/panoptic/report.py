"""Panoptic quality -> a table of the groups of classes, and a CSV by class.

Results are those of `numbers.panoptic_results`: {"PQ": percent, ...}.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence

import numpy as np

from clipself_seg.evaluation.panoptic.numbers import GROUPS, ClassQuality
from clipself_seg.evaluation.tables import format_table, percent_digits, percent_text
from clipself_seg.files import atomic_path

CSV_COLUMNS = (
    "index",
    "name",
    "isthing",
    "seen",
    "pq",
    "sq",
    "rq",
    "tp",
    "fp",
    "fn",
    "iou_sum",
)


def quality_table(results: Mapping[str, float], style: str = "simple") -> str:
    """PQ, SQ and RQ in percent of each group of classes, and how many classes are in it.

    Args:
        results: name of a number -> the number. A group that is not in them has no row, a mean that
            is not in them is shown as "-".
        style: a format of `tabulate`.
    """
    body = [
        [
            group,
            *(percent_text(results, f"{key}{suffix}") for key in ("PQ", "SQ", "RQ")),
            f"{results[f'classes{suffix}']:.0f}",
        ]
        for suffix, group in GROUPS.items()
        if f"classes{suffix}" in results
    ]
    headings = ["", "PQ", "SQ", "RQ", "classes"]
    return format_table(headings, body, style)


def write_quality_csv(
    path: str | os.PathLike[str],
    class_names: Sequence[str],
    isthing: np.ndarray,
    quality: ClassQuality,
    seen: np.ndarray | None = None,
) -> None:
    """Write `CSV_COLUMNS` of each class, atomically.

    PQ, SQ and RQ are percent in full precision, empty for a class that is nowhere; "seen" is 0 or
    1, empty where the training vocabulary is not known.

    Args:
        path: the CSV to write.
        class_names: names of the C classes.
        isthing: (C,) bool, which classes are things.
        quality: numbers of the C classes.
        seen: (C,) bool, classes of the training vocabulary; None if that is not known.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for index, name in enumerate(class_names):
            known = "" if seen is None else int(seen[index])
            percent = [percent_digits(values[index]) for values in quality[:3]]
            counts = [int(values[index]) for values in (quality.tp, quality.fp, quality.fn)]
            total = float(quality.iou_sum[index])
            writer.writerow((index, name, int(isthing[index]), known, *percent, *counts, total))
