"""One report for all tasks: formats of tables and files, and the columns that the tables of each task have.

Results are numbers in percent by name, {"mIoU": 31.2, ...}, of each data set; of panoptic segmentation of each fusion
of a data set, of detection of its "bbox" and "segm". A new column is a line of the columns below. Tables of region
recognition are in region_report.py.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from clipself_seg.evaluation.coco_objects import KINDS
from clipself_seg.files import atomic_path, write_text
from clipself_seg.pages import render

logger = logging.getLogger(__name__)

Numbers = Mapping[str, float]  # name of a number -> the number
ByDataset = Mapping[str, Numbers]

# What a table may be written as -> its style, see `format_table`, and its file.
FILES = {"latex": ("latex_booktabs", "tables.tex"), "csv": ("csv", "tables.csv")}
# Around the best number of a column, in the styles that mark it.
BEST = {"github": "**{}**", "html": "**{}**", "terminal": "\033[1m{}\033[0m"}

# Data sets as papers call them, in the order of the CLIPSelf paper's tables.
TITLES = {
    "ade20k_150_test_sem_seg": "ADE-150",
    "ade20k_full_sem_seg_freq_val_all": "ADE-847",
    "context_59_test_sem_seg": "PC-59",
    "context_459_test_sem_seg": "PC-459",
    "voc_2012_test_sem_seg": "VOC-20",
    "voc_2012_test_background_sem_seg": "VOC-20b",
    "coco_2017_test_stuff_all_sem_seg": "COCO-Stuff",
    "coco_2017_val_panoptic_with_sem_seg": "COCO",
    "ade20k_panoptic_val": "ADE20K",
    "cityscapes_fine_panoptic_val": "Cityscapes",
    "mapillary_vistas_panoptic_val": "Mapillary Vistas",
    "ov_coco_val": "OV-COCO",
    "ov_lvis_val": "OV-LVIS",
    "transfer_coco_val": "COCO",
    "transfer_objects365_val": "Objects365",
    "mini_val_sem_seg": "mini",
    "mini2_val_sem_seg": "mini2",
    "mini_val_large_sem_seg": "mini-253",
    "mini_val_small_sem_seg": "mini-14",
    "mini_val_background_sem_seg": "mini-6b",
    "mini_val_panoptic_with_sem_seg": "mini",
    "mini2_val_panoptic_with_sem_seg": "mini2",
    "mini_val_boxes": "mini",
    "mini2_val_boxes": "mini2",
}
FUSION_TITLES = {"clip": "CLIP only", "generator": "generator only", "fused": "fused"}
# What a line of a data set is called where it has several: fusions, and boxes and masks.
PARTS = FUSION_TITLES | {kind: task for task, kind in KINDS.items()}

# Columns of the tables of one run, of which those are left out that no line has a number of.
SEMANTIC_COLUMNS = {
    "mIoU": "mIoU",
    "mAcc": "mACC",
    "fwIoU": "fwIoU",
    "pAcc": "pACC",
    "seen mIoU": "mIoU-seen",
    "unseen mIoU": "mIoU-unseen",
}
PANOPTIC_COLUMNS = {
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
}
DETECTION_COLUMNS = {
    **{name: name for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")},
    "base AP50": "AP50-seen",
    "novel AP50": "AP50-unseen",
}
COUNTS = {"classes": "classes", "images": "images"}
RUN_COLUMNS = {
    "semantic": SEMANTIC_COLUMNS | COUNTS,
    "panoptic": {"alpha": "alpha", "beta": "beta", "void less": "void_discount"}
    | PANOPTIC_COLUMNS
    | {"images": "images"},
    "detection": DETECTION_COLUMNS | COUNTS,
}
# Keys that are no percent -> how they are written.
FORMATS = {"alpha": "g", "beta": "g", "void_discount": "g", "images": ".0f", "classes": ".0f"}


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
    """Writes tables one below the other, atomically.

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
        blocks.append(f"{heading}\n{table}\n" + "\n" * bool(below and style == "github") + below)
    write_text(path, "\n".join(blocks))


def _line(text: str, style: str, markdown: str) -> str:
    """A line of text beside tables of a style."""
    line = " ".join(text.split())
    return {"csv": _csv_lines([[line]]), "github": markdown.format(line)}.get(style, f"% {line}")


def _latex(table: str) -> str:
    """A table of tabulate's, which escapes each character, but not what rules and line ends take for an option."""
    return re.sub(r"^ *([\[*])", r" {\1}", table.replace("±", "$\\pm$"), flags=re.MULTILINE)


def _csv_lines(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().removesuffix("\n")


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


def cell_text(value: float | None, form: str = ".1f") -> str:
    """A number with one digit after the point, or in another format; "-" for None."""
    return "-" if value is None else f"{value:{form}}"


def comparison_table(
    rows: Mapping[tuple[str, ...], ByDataset],
    columns: Mapping[str, str],
    first: Sequence[str],
    style: str = "simple",
) -> str:
    """The same columns of each data set, a line a row; the best number of each column is marked.

    Args:
        rows: the cells at the left -> data set -> numbers; one that a row lacks is shown as "-". Data sets stand in the
            order of `TITLES`, others after them in that of the rows.
        columns: heading -> key of the number.
        first: headings of the cells at the left.
        style: see `format_table`.
    """
    datasets = dict.fromkeys(name for results in rows.values() for name in results)
    titles = titles_of(sorted(datasets, key=[*TITLES, *datasets].index))
    headings = [f"{title} {column}".strip() for title in titles.values() for column in columns]
    numbers = [
        best_marked([by_dataset.get(name, {}).get(key) for by_dataset in rows.values()], style)
        for name in titles
        for key in columns.values()
    ]
    body = [[*left, *(cells[line] for cells in numbers)] for line, left in enumerate(rows)]
    return format_table([*first, *headings], body, style, left=len(first))


def titles_of(names: Iterable[str]) -> dict[str, str]:
    """Titles of data sets, in their order; those that would read alike keep their names."""
    titles = {name: TITLES.get(name, name) for name in names}
    count = Counter(titles.values())
    return {name: title if count[title] == 1 else name for name, title in titles.items()}


def with_numbers(columns: Mapping[str, str], every: Iterable[Numbers]) -> dict[str, str]:
    """The columns of which something has a number."""
    keys = {key for numbers in every for key in numbers}
    return {title: key for title, key in columns.items() if key in keys}


def run_table(task: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each data set, and each fusion or kind of it: all means in percent, and numbers of images.

    Args:
        task: "semantic", "panoptic" or "detection".
        results: data set -> results.
    """
    # Data set, part and numbers: a fusion, "bbox" or "segm", or "" for a single line.
    every: list[tuple[str, str, Numbers]] = []
    for name, numbers in results.items():
        parts = {part: own for part, own in numbers.items() if isinstance(own, Mapping)}
        every += [(name, part, own) for part, own in (parts or {"": numbers}).items()]
    titles = titles_of(results)
    first = ["data set", ""] if any(part for _, part, _ in every) else ["data set"]
    lines = [
        ((titles[name], PARTS.get(part, part))[: len(first)], numbers)
        for name, part, numbers in every
    ]
    columns = with_numbers(RUN_COLUMNS[task], [numbers for _, numbers in lines])
    body = [
        [*left, *(cell_text(numbers.get(key), FORMATS.get(key, ".1f")) for key in columns.values())]
        for left, numbers in lines
    ]
    return format_table([*first, *columns], body, left=len(first))


def write_class_csv(
    path: str | os.PathLike[str],
    class_names: Sequence[str],
    columns: Mapping[str, Sequence[object]],
) -> None:
    """Writes a line for each class, atomically: its index, its name, and its numbers.

    Args:
        path: the CSV to write.
        class_names: names of the K classes.
        columns: heading -> the K numbers; see `percents` and `seen_cells`.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("index", "name", *columns))
        for index, name in enumerate(class_names):
            writer.writerow((index, name, *(values[index] for values in columns.values())))
    logger.info("numbers of each class in %s", path)


def percents(fractions: np.ndarray) -> list[str]:
    """Fractions in percent with all digits, for a CSV; empty for NaN."""
    return ["" if np.isnan(value) else repr(100 * float(value)) for value in fractions]


def seen_cells(seen: np.ndarray | None, count: int) -> list[str]:
    """Cells of a CSV, one for each class: "1" if it is seen, "0" if not.

    Args:
        seen: bool (count or fewer,); the rest of the classes is neither seen nor unseen, and their cells are empty.
            None: nothing is known.
        count: number of classes.
    """
    known = [] if seen is None else [str(int(value)) for value in seen]
    return known + [""] * (count - len(known))


def class_keys(class_names: Sequence[str]) -> list[str]:
    """Names of the classes as keys of results: of equal names all but the last also have the index."""
    last = {name: index for index, name in enumerate(class_names)}
    return [
        name if last[name] == index else f"{name} ({index})"
        for index, name in enumerate(class_names)
    ]
