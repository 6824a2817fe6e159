"""One report for all tasks: formats of tables and files, and the columns that the tables of each task have.

Results are numbers in percent by name, {"mIoU": 31.2, ...}, of each data set, and of panoptic segmentation of each
fusion of a data set. A new column is a line of the columns below. Tables of region recognition, which have two numbers
in a cell, are in region_report.py.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from tabulate import tabulate

from clipself_seg.evaluation.coco_objects import KINDS
from clipself_seg.files import atomic_path, write_text
from clipself_seg.pages import render

logger = logging.getLogger(__name__)

T = TypeVar("T")
Numbers = Mapping[str, float]  # name of a number -> the number
ByDataset = Mapping[str, Numbers]
ByFusion = Mapping[str, Numbers]  # name of a fusion -> its numbers
ByKind = Mapping[str, Numbers]  # "bbox" or "segm" -> its numbers

# What a table may be written as -> its style, see `format_table`, and its file.
FILES = {"latex": ("latex_booktabs", "tables.tex"), "csv": ("csv", "tables.csv")}
# Around the best number of a column, in the styles that mark it.
BEST = {"github": "**{}**", "html": "**{}**", "terminal": "\033[1m{}\033[0m"}

# Data sets as papers call them, in the order of the CLIPSelf paper's tables.
SEMANTIC_TITLES = {
    "ade20k_150_test_sem_seg": "ADE-150",
    "ade20k_full_sem_seg_freq_val_all": "ADE-847",
    "context_59_test_sem_seg": "PC-59",
    "context_459_test_sem_seg": "PC-459",
    "voc_2012_test_sem_seg": "VOC-20",
    "voc_2012_test_background_sem_seg": "VOC-20b",
    "coco_2017_test_stuff_all_sem_seg": "COCO-Stuff",
    "mini_val_sem_seg": "mini",
    "mini2_val_sem_seg": "mini2",
    "mini_val_large_sem_seg": "mini-253",
    "mini_val_small_sem_seg": "mini-14",
    "mini_val_background_sem_seg": "mini-6b",
}
PANOPTIC_TITLES = {
    "coco_2017_val_panoptic_with_sem_seg": "COCO",
    "ade20k_panoptic_val": "ADE20K",
    "cityscapes_fine_panoptic_val": "Cityscapes",
    "mapillary_vistas_panoptic_val": "Mapillary Vistas",
    "mini_val_panoptic_with_sem_seg": "mini",
    "mini2_val_panoptic_with_sem_seg": "mini2",
    # The mini worlds' label maps keep their names, since there are panoptic ones beside them.
    **{name: title for name, title in SEMANTIC_TITLES.items() if not title.startswith("mini")},
}
DETECTION_TITLES = {
    "ov_coco_val": "OV-COCO",
    "ov_lvis_val": "OV-LVIS",
    "transfer_coco_val": "COCO",
    "transfer_objects365_val": "Objects365",
    "mini_val_boxes": "mini",
    "mini2_val_boxes": "mini2",
}
FUSION_TITLES = {"clip": "CLIP only", "generator": "generator only", "fused": "fused"}

# Columns of the paper's tables: heading -> key of the number. Seen classes are the base ones, unseen the novel ones.
TABLE_3A = {"novel": "AP50-unseen", "base": "AP50-seen", "all": "AP50"}
TABLE_3B = {"mAP_r": "APr", "mAP_c": "APc", "mAP_f": "APf", "mAP": "AP"}
TABLE_4 = {key: key for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
TABLE_5 = {"mIoU": "mIoU", "mAcc": "mACC"}
TABLE_6 = {"PQ": "PQ", "mAP": "AP", "mIoU": "mIoU"}
# Tables of the paper: their data sets, and the vocabularies that their models were trained on. The detectors of Table 4
# were trained on OV-LVIS, which their configurations do not name.
PAPER = {
    "Table 3a": (("ov_coco_val",), ("ov_coco_65",)),
    "Table 3b": (("ov_lvis_val",), ("lvis_v1_1203",)),
    "Table 4": (("transfer_coco_val", "transfer_objects365_val"), ("lvis_v1_1203", "")),
    "Table 5": (
        ("ade20k_150_test_sem_seg", "ade20k_full_sem_seg_freq_val_all", "context_59_test_sem_seg"),
        ("coco_stuff_171",),
    ),
    "Table 6": (
        ("coco_2017_val_panoptic_with_sem_seg", "ade20k_panoptic_val"),
        ("openseg_coco_panoptic_133",),
    ),
}

# Columns of the tables of one run. Those beside the settings and counts are left out if no line has their number, but
# for `ALWAYS` of semantic segmentation.
SEMANTIC_COLUMNS = {
    "mIoU": "mIoU",
    "mAcc": "mACC",
    "fwIoU": "fwIoU",
    "pAcc": "pACC",
    "seen mIoU": "mIoU-seen",
    "unseen mIoU": "mIoU-unseen",
    "boundary mIoU": "Boundary-mIoU",
}
ALWAYS = ("mIoU", "mAcc", "fwIoU", "pAcc")
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
    "boundary mIoU": "Boundary-mIoU",
}
DETECTION_COLUMNS = TABLE_4 | {
    "APr": "APr",
    "APc": "APc",
    "APf": "APf",
    "base AP50": "AP50-seen",
    "novel AP50": "AP50-unseen",
}
# Suffix of a key of panoptic quality -> classes that the mean is taken over.
GROUPS = {"": "all", "_th": "things", "_st": "stuff", "_seen": "seen", "_unseen": "unseen"}
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
    style: str,
    *,
    titles: Mapping[str, str],
    sort: bool = True,
) -> str:
    """The same columns of each data set, a line a row; the best number of each column is marked.

    Args:
        rows: the cells at the left -> data set -> numbers; one that a row lacks is shown as "-".
        columns: heading -> key of the number.
        first: headings of the cells at the left.
        style: see `format_table`.
        titles: data set -> what it is called.
        sort: whether data sets stand in the order of the titles, others after them; else as they come.
    """
    datasets = dict.fromkeys(name for results in rows.values() for name in results)
    if sort:
        datasets = dict.fromkeys([name for name in titles if name in datasets] + [*datasets])
    headings = [
        f"{titles.get(name, name)} {title}".strip() for name in datasets for title in columns
    ]
    numbers = [
        best_marked([by_dataset.get(name, {}).get(key) for by_dataset in rows.values()], style)
        for name in datasets
        for key in columns.values()
    ]
    body = [[*left, *(cells[line] for cells in numbers)] for line, left in enumerate(rows)]
    return format_table([*first, *headings], body, style, left=len(first))


def lines_table(
    lines: Sequence[tuple[tuple[str, ...], Numbers]],
    columns: Mapping[str, str],
    first: Sequence[str],
    style: str,
) -> str:
    """A line for each name, with its numbers, as `FORMATS` has them.

    Args:
        lines: the cells at the left, and numbers; one that a line lacks is shown as "-".
        columns: heading -> key of the number.
        first: headings of the cells at the left.
        style: see `format_table`.
    """
    body = [
        [*left, *(cell_text(numbers.get(key), FORMATS.get(key, ".1f")) for key in columns.values())]
        for left, numbers in lines
    ]
    return format_table([*first, *columns], body, style, left=len(first))


def with_numbers(
    columns: Mapping[str, str], every: Iterable[Numbers], always: Sequence[str] = ()
) -> dict[str, str]:
    """The columns of which something has a number, and those that are always shown."""
    keys = {key for numbers in every for key in numbers}
    return {title: key for title, key in columns.items() if title in always or key in keys}


COUNTS = {"classes": "classes", "images": "images"}


def of_paper(table: str, results: Mapping[str, T], trained: str) -> dict[str, T]:
    """The results of a run that are of a table of the paper: its data sets, by a model that was trained as its models.

    Args:
        table: name in `PAPER`.
        results: data set -> its results.
        trained: vocabulary that the model was trained on; "" if nothing says it.
    """
    datasets, vocabularies = PAPER[table]
    return {n: own for n, own in results.items() if n in datasets and trained in vocabularies}


def semantic_run_table(results: ByDataset, style: str = "simple") -> str:
    """One row a data set: all means in percent, and the number of images behind them."""
    columns = with_numbers(SEMANTIC_COLUMNS, results.values(), ALWAYS) | COUNTS
    lines = [((SEMANTIC_TITLES.get(name, name),), numbers) for name, numbers in results.items()]
    return lines_table(lines, columns, ["data set"], style)


def semantic_paper_table(rows: Mapping[str, ByDataset], style: str = "simple") -> str:
    """The paper's Table 5: one row a model; mIoU and mAcc in percent of each data set.

    Args:
        rows: name of the row -> data set -> results.
        style: see `format_table`.
    """
    return comparison_table(_one_cell(rows), TABLE_5, ["model"], style, titles=SEMANTIC_TITLES)


def _one_cell(rows: Mapping[str, ByDataset]) -> dict[tuple[str, ...], ByDataset]:
    return {(name,): results for name, results in rows.items()}


def quality_table(results: Numbers, style: str = "simple") -> str:
    """PQ, SQ and RQ in percent of each group of classes, and how many classes are in it.

    Args:
        results: as of `panoptic_results`. A group that is not in them has no row, a mean that is not in them is
            shown as "-".
        style: see `format_table`.
    """
    columns = {key: key for key in ("PQ", "SQ", "RQ", "classes")}
    lines = [
        (
            (group,),
            {key: results[f"{key}{suffix}"] for key in columns if f"{key}{suffix}" in results},
        )
        for suffix, group in GROUPS.items()
        if f"classes{suffix}" in results
    ]
    return lines_table(lines, columns, [""], style)


def panoptic_run_table(results: Mapping[str, ByFusion], style: str = "simple") -> str:
    """A line for each data set and fusion: its exponents, all means in percent, and the number of images.

    Args:
        results: data set -> fusion -> numbers.
        style: see `format_table`.
    """
    lines = [
        ((PANOPTIC_TITLES.get(name, name), FUSION_TITLES.get(fusion, fusion)), fusions[fusion])
        for name, fusions in results.items()
        for fusion in fusion_names(fusions)
    ]
    every = [numbers for _, numbers in lines]
    columns = {"alpha": "alpha", "beta": "beta"}
    columns |= with_numbers({"void less": "void_discount"} | PANOPTIC_COLUMNS, every)
    return lines_table(lines, columns | {"images": "images"}, ["data set", "scores"], style)


def panoptic_paper_table(
    models: Mapping[str, Mapping[str, ByFusion]], style: str = "simple"
) -> str:
    """The paper's Table 6: a line for each model and fusion; PQ, mAP and mIoU in percent.

    Args:
        models: name of a model -> data set -> fusion -> numbers.
        style: see `format_table`.
    """
    rows: dict[tuple[str, ...], dict[str, Numbers]] = {}
    for model, results in models.items():
        names = (name for fusions in results.values() for name in fusion_names(fusions))
        for fusion in dict.fromkeys(names):
            rows[model, FUSION_TITLES.get(fusion, fusion)] = {
                dataset: fusions.get(fusion, {}) for dataset, fusions in results.items()
            }
    return comparison_table(rows, TABLE_6, ["model", "scores"], style, titles=PANOPTIC_TITLES)


def fusion_names(fusions: Iterable[str]) -> list[str]:
    """Names of the fusions of a data set, whose results also have its "sweep"."""
    return [name for name in fusions if name != "sweep"]


def detection_run_table(results: Mapping[str, ByKind], style: str = "simple") -> str:
    """A line for each data set and task: all precisions in percent, and the numbers of classes and images.

    Args:
        results: data set -> kind -> numbers.
        style: see `format_table`.
    """
    lines = [
        ((DETECTION_TITLES.get(name, name), task), by_kind[kind])
        for name, by_kind in results.items()
        for task, kind in KINDS.items()
        if kind in by_kind
    ]
    columns = with_numbers(DETECTION_COLUMNS, [numbers for _, numbers in lines]) | COUNTS
    return lines_table(lines, columns, ["data set", ""], style)


def detection_paper_tables(
    results: Mapping[str, ByKind], row: str, trained: str, style: str = "simple"
) -> dict[str, str]:
    """The paper's tables that a run has numbers of: title -> table.

    Args:
        results: data set -> its results.
        row: name of the row.
        trained: see `of_paper`.
        style: see `format_table`.
    """
    tables = {}
    for title, kind, columns in (
        ("Table 3a", "bbox", TABLE_3A),
        ("Table 3b", "segm", TABLE_3B),
        ("Table 3b, of boxes", "bbox", TABLE_3B),
        ("Table 4", "bbox", TABLE_4),
    ):
        own = of_paper(title.partition(",")[0], results, trained)
        chosen = {name: by_kind for name, by_kind in own.items() if kind in by_kind}
        if chosen:
            tables[title] = _detection_table({row: chosen}, kind, columns, "model", style)
    return tables


def _detection_table(
    rows: Mapping[str, Mapping[str, ByKind]],
    kind: str,
    columns: Mapping[str, str],
    first: str,
    style: str,
) -> str:
    numbers: dict[tuple[str, ...], ByDataset] = {
        (row,): {name: by_kind.get(kind, {}) for name, by_kind in results.items()}
        for row, results in rows.items()
    }
    return comparison_table(numbers, columns, [first], style, titles=DETECTION_TITLES)


def write_class_csv(
    path: str | os.PathLike[str],
    class_names: Sequence[str],
    columns: Mapping[str, Sequence[object]],
) -> None:
    """Write a line for each class, atomically: its index, its name, and its numbers.

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
    """Which classes are seen, "1" or "0", for a CSV.

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
