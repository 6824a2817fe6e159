"""Numbers of detection -> the paper's Tables 3 and 4, a table of one run, and a CSV by class.

Results are what `DetectionEvaluator` returns, by data set: {data set: {"bbox": {"AP": percent, ...}}}.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping

import numpy as np

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.evaluation.detection.detections import KINDS
from clipself_seg.evaluation.detection.numbers import DetectionQuality, class_precision
from clipself_seg.evaluation.tables import format_table, mark_best, percent_digits, percent_text
from clipself_seg.files import atomic_path

# Kind ("bbox" or "segm") -> its numbers on one data set.
Results = Mapping[str, Mapping[str, float]]

# Data sets as the paper calls them.
TITLES = {
    "ov_coco_val": "OV-COCO",
    "ov_lvis_val": "OV-LVIS",
    "transfer_coco_val": "COCO",
    "transfer_objects365_val": "Objects365",
    "mini_val_boxes": "mini",
    "mini2_val_boxes": "mini2",
}
# Heading of a column -> key of the number, which is in percent. Seen classes are the base ones, unseen
# ones the novel ones.
NOVEL_COLUMNS = {"novel": "AP50-unseen", "base": "AP50-seen", "all": "AP50"}
LVIS_COLUMNS = {"mAP_r": "APr", "mAP_c": "APc", "mAP_f": "APf", "mAP": "AP"}
TRANSFER_COLUMNS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "APs",
    "APm": "APm",
    "APl": "APl",
}
# A column is left out if no data set has its number.
RUN_COLUMNS = TRANSFER_COLUMNS | {
    "APr": "APr",
    "APc": "APc",
    "APf": "APf",
    "base AP50": "AP50-seen",
    "novel AP50": "AP50-unseen",
}
CSV_COLUMNS = ("index", "name", "frequency", "seen", "ap", "ap50", "objects", "detections")


def novel_table(
    rows: Mapping[str, Mapping[str, Results]], first: str = "model", style: str = "simple"
) -> str:
    """The paper's Table 3a: AP50 of boxes of novel, base and all classes of each data set.

    Args:
        rows: name of the row -> data set -> results. A number that a row lacks is shown as "-".
        first: heading of the first column.
        style: a format of `tabulate`, such as "simple" or "github".
    """
    return _paper_table(rows, "bbox", NOVEL_COLUMNS, first, style)


def lvis_table(
    rows: Mapping[str, Mapping[str, Results]],
    first: str = "model",
    style: str = "simple",
    kind: str = "segm",
) -> str:
    """The paper's Table 3b: AP of masks of rare, common, frequent and all classes of each data set.

    Args:
        rows: see `novel_table`.
        first: heading of the first column.
        style: a format of `tabulate`.
        kind: "segm" for masks, as in the paper, or "bbox" for boxes.
    """
    return _paper_table(rows, kind, LVIS_COLUMNS, first, style)


def transfer_table(
    rows: Mapping[str, Mapping[str, Results]], first: str = "model", style: str = "simple"
) -> str:
    """The paper's Table 4: AP, AP50, AP75 and AP of small, medium and large objects, of boxes.

    Args:
        rows: see `novel_table`.
        first: heading of the first column.
        style: a format of `tabulate`.
    """
    return _paper_table(rows, "bbox", TRANSFER_COLUMNS, first, style)


def _paper_table(
    rows: Mapping[str, Mapping[str, Results]],
    kind: str,
    columns: Mapping[str, str],
    first: str,
    style: str,
) -> str:
    met = dict.fromkeys(name for results in rows.values() for name in results)
    datasets = [name for name in TITLES if name in met] + [n for n in met if n not in TITLES]
    headings = [f"{TITLES.get(name, name)} {title}" for name in datasets for title in columns]
    body = [
        [
            row,
            *(
                percent_text(by.get(name, {}).get(kind, {}), key)
                for name in datasets
                for key in columns.values()
            ),
        ]
        for row, by in rows.items()
    ]
    return format_table([first, *headings], mark_best(body, style), style)


def paper_tables(results: Mapping[str, Results], row: str, style: str = "simple") -> dict[str, str]:
    """The paper's tables that the data sets of a run have numbers for: title -> table.

    Args:
        results: data set -> its results. One of LVIS's rules goes into Table 3b; of the others all go into
            Table 4, and those with novel classes into Table 3a too.
        row: name of the row.
        style: a format of `tabulate`.
    """
    tables = {}
    for title, kind, columns in (
        ("Table 3a", "bbox", NOVEL_COLUMNS),
        ("Table 3b", "segm", LVIS_COLUMNS),
        ("Table 3b, of boxes", "bbox", LVIS_COLUMNS),
        ("Table 4", "bbox", TRANSFER_COLUMNS),
    ):
        chosen = {
            name: by_kind
            for name, by_kind in results.items()
            if kind in by_kind and columns in _paper_columns(by_kind[kind])
        }
        if chosen:
            tables[title] = _paper_table({row: chosen}, kind, columns, "model", style)
    return tables


def _paper_columns(numbers: Mapping[str, float]) -> list[Mapping[str, str]]:
    """Columns of the paper's tables that a data set belongs to."""
    if {"APr", "APc", "APf"} & numbers.keys():
        return [LVIS_COLUMNS]
    return [NOVEL_COLUMNS, TRANSFER_COLUMNS] if "AP50-unseen" in numbers else [TRANSFER_COLUMNS]


def run_table(results: Mapping[str, Results], style: str = "simple") -> str:
    """A line for each data set and task: all precisions in percent, and the numbers of classes and images.

    Args:
        results: data set -> its results.
        style: a format of `tabulate`.
    """
    lines = [
        (name, task, results[name][kind])
        for name in results
        for task, kind in KINDS.items()
        if kind in results[name]
    ]
    columns = {
        title: key
        for title, key in RUN_COLUMNS.items()
        if any(key in numbers for _, _, numbers in lines)
    }
    body = [
        [
            TITLES.get(name, name),
            task,
            *(percent_text(numbers, key) for key in columns.values()),
            f"{numbers['classes']:.0f}",
            f"{numbers['images']:.0f}",
        ]
        for name, task, numbers in lines
    ]
    return format_table(["data set", "", *columns, "classes", "images"], body, style, left=2)


def write_class_csv(
    path: str | os.PathLike[str],
    vocabulary: Vocabulary,
    quality: DetectionQuality,
    seen: np.ndarray | None = None,
) -> None:
    """Write `CSV_COLUMNS` of each class, atomically.

    AP and AP50 are percent in full precision, empty for a class without an object; "frequency" is LVIS's;
    "seen" is 0 or 1, empty where no split is known.

    Args:
        path: the CSV to write.
        vocabulary: the K classes.
        quality: numbers of the K classes.
        seen: (K,) bool, classes that training shows; None if that is not known.
    """
    ap, ap50 = class_precision(quality)
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for index, entry in enumerate(vocabulary.classes):
            known = "" if seen is None else int(seen[index])
            percent = (percent_digits(ap[index]), percent_digits(ap50[index]))
            counts = (int(quality.objects[index]), int(quality.detections[index]))
            writer.writerow(
                (index, entry.names[0], entry.frequency or "", known, *percent, *counts)
            )
