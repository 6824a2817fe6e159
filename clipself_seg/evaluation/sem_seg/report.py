"""Numbers of semantic segmentation -> the paper's table, a table of one run, and a CSV by class.

Results are what `SemSegAccuracyEvaluator` returns under "sem_seg": {"mIoU": percent, ...}.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence

import numpy as np

from clipself_seg.evaluation.sem_seg.numbers import ClassNumbers
from clipself_seg.evaluation.tables import format_table, mark_best, percent_digits, percent_text
from clipself_seg.files import atomic_path

Results = Mapping[str, float]

# Data sets as papers call them; the first three are the columns of the CLIPSelf paper's Table 5.
TITLES = {
    "ade20k_150_test_sem_seg": "ADE-150",
    "ade20k_full_sem_seg_freq_val_all": "ADE-847",
    "context_59_test_sem_seg": "PC-59",
    "context_459_test_sem_seg": "PC-459",
    "voc_2012_test_sem_seg": "VOC-20",
    "voc_2012_test_background_sem_seg": "VOC-20b",
    "coco_2017_test_stuff_all_sem_seg": "COCO-Stuff",
    "mini_val_sem_seg": "mini",
    "mini2_val_sem_seg": "mini2",
}
# Heading of a column -> key of the number, which is in percent.
PAPER_COLUMNS = {"mIoU": "mIoU", "mAcc": "mACC"}
# Columns that are there without numbers, too.
ALWAYS = ("mIoU", "mAcc", "fwIoU", "pAcc")
RUN_COLUMNS = {
    "mIoU": "mIoU",
    "mAcc": "mACC",
    "fwIoU": "fwIoU",
    "pAcc": "pACC",
    "seen mIoU": "mIoU-seen",
    "unseen mIoU": "mIoU-unseen",
    "boundary mIoU": "Boundary-mIoU",
    "oracle mIoU": "oracle-mIoU",
}
CSV_COLUMNS = ("index", "name", "iou", "accuracy", "gt_pixels", "predicted_pixels", "seen")


def paper_table(
    rows: Mapping[str, Mapping[str, Results]], first: str = "model", style: str = "simple"
) -> str:
    """The paper's Table 5: one row a model; mIoU and mAcc in percent of each data set.

    Args:
        rows: name of the row -> data set -> results. Data sets come in the paper's order, others
            after them in the given order; a number that a row lacks is shown as "-".
        first: heading of the first column.
        style: a format of `tabulate`, such as "simple" or "github".
    """
    met = dict.fromkeys(name for results in rows.values() for name in results)
    datasets = [name for name in TITLES if name in met] + [n for n in met if n not in TITLES]
    headings = [f"{TITLES.get(name, name)} {title}" for name in datasets for title in PAPER_COLUMNS]
    body = [
        [
            row,
            *(
                percent_text(by.get(name, {}), k)
                for name in datasets
                for k in PAPER_COLUMNS.values()
            ),
        ]
        for row, by in rows.items()
    ]
    return format_table([first, *headings], mark_best(body, style), style)


def run_table(results: Mapping[str, Results], style: str = "simple") -> str:
    """One row a data set: all means in percent, and the number of images behind them.

    Args:
        results: data set -> its results. The columns beside `ALWAYS` are there only if
            some data set has these numbers.
        style: a format of `tabulate`.
    """
    columns = {
        title: key
        for title, key in RUN_COLUMNS.items()
        if title in ALWAYS or any(key in numbers for numbers in results.values())
    }
    body = [
        [
            TITLES.get(name, name),
            *(percent_text(numbers, key) for key in columns.values()),
            _count(numbers, "classes"),
            _count(numbers, "images"),
        ]
        for name, numbers in results.items()
    ]
    return format_table(["data set", *columns, "classes", "images"], body, style)


def split_table(
    rows: Mapping[str, Mapping[str, Results]], first: str = "model", style: str = "simple"
) -> str:
    """One row a model; mean IoU in percent of all, of seen and of unseen classes of each data set.

    Args:
        rows: name of the row -> data set -> results.
        first: heading of the first column.
        style: a format of `tabulate`.
    """
    datasets = dict.fromkeys(name for results in rows.values() for name in results)
    keys = {"mIoU": "mIoU", "seen": "mIoU-seen", "unseen": "mIoU-unseen"}
    headings = [f"{TITLES.get(name, name)} {title}" for name in datasets for title in keys]
    body = [
        [row, *(percent_text(by.get(name, {}), key) for name in datasets for key in keys.values())]
        for row, by in rows.items()
    ]
    return format_table([first, *headings], mark_best(body, style), style)


def write_class_csv(
    path: str | os.PathLike[str],
    class_names: Sequence[str],
    numbers: ClassNumbers,
    seen: np.ndarray | None = None,
) -> None:
    """Write `CSV_COLUMNS` of each class, atomically.

    IoU and accuracy are percent in full precision, empty where they are NaN; "seen" is 0 or 1,
    empty for classes that are neither seen nor unseen.

    Args:
        path: the CSV to write.
        class_names: names of the K classes.
        numbers: numbers of the K classes.
        seen: bool (K or fewer,), which of the first classes belong to the training vocabulary; None
            if that is not known.
    """
    known = [] if seen is None else [str(int(value)) for value in seen]
    known += [""] * (len(class_names) - len(known))
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for index, name in enumerate(class_names):
            percent = (percent_digits(numbers.iou[index]), percent_digits(numbers.accuracy[index]))
            pixels = (int(numbers.truth[index]), int(numbers.predicted[index]))
            writer.writerow((index, name, *percent, *pixels, known[index]))


def _count(results: Results, key: str) -> str:
    return f"{results[key]:.0f}" if key in results else "-"
