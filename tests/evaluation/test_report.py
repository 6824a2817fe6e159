"""Tables as text and in files, with the columns of each task; CSVs by class are written whole."""

import csv

import numpy as np
import pytest

from clipself_seg.evaluation.report import (
    FILES,
    best_marked,
    comparison_table,
    format_table,
    percents,
    run_table,
    seen_cells,
    write_class_csv,
    write_tables,
)
from tests.tables import cells

HEADINGS = ["data set", "50 % & more"]
BODY = [["ade_150 {a}\\b", "1.0 ± 0.1"], ["a, b", "-"]]


def written(folder, name):
    style, file = FILES[name]
    table = format_table(HEADINGS, BODY, style)
    write_tables(folder / file, {"First\none": table, "100 %, second": table}, style)
    return (folder / file).read_text()


def test_latex_is_booktabs_with_everything_escaped(tmp_path):
    text = written(tmp_path, "latex")
    assert text.count("\\toprule") == text.count("\\bottomrule") == 2
    assert "% First one\n\\begin{tabular}{lr}" in text and "\n\n% 100 %, second\n" in text
    assert "50 \\% \\& more" in text and "1.0 $\\pm$ 0.1" in text
    assert "ade\\_150 \\{a\\}\\textbackslash{}b" in text
    # A row that begins with a bracket is no option of the line above it.
    table = format_table(["", "mIoU"], [["[a]", "1.0"], ["*", "2.0"]], "latex_booktabs")
    assert " {[}a]" in table and " {*} " in table


def test_csv_has_the_cells_as_they_are(tmp_path):
    written(tmp_path, "csv")
    with open(tmp_path / "tables.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["First one"], HEADINGS, *BODY, [], ["100 %, second"], HEADINGS, *BODY]


def test_the_best_number_of_a_column_is_marked_where_there_is_a_choice():
    assert best_marked([1.0, 2.04, None, 2.0], "github") == ["1.0", "**2.0**", "-", "**2.0**"]
    assert best_marked([1.0, None], "github") == ["1.0", "-"]
    assert best_marked([], "github") == []


def test_the_best_of_each_column_is_bold_on_a_page():
    rows = {("a", "x"): {"set": {"AP": 1.0}}, ("b", "x"): {"set": {"AP": 2.0}}}
    html, plain = (
        comparison_table(rows, {"AP": "AP", "PQ": "PQ"}, ["name", ""], style)
        for style in ("html", "csv")
    )
    assert "<b>2.0</b>" in html and "<b>1.0" not in html and "<b>x" not in html
    assert plain.splitlines() == ["name,,set AP,set PQ", "a,x,1.0,-", "b,x,2.0,-"]


def test_notes_stand_below_each_table(tmp_path):
    tables = {"one": format_table(HEADINGS, BODY, "csv"), "two": "a"}
    write_tables(tmp_path / "x.csv", tables, "csv", ["words: pets | size: 8, 9"])
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines.count('"words: pets | size: 8, 9"') == 2 and lines[-1] == lines[len(BODY) + 2]
    write_tables(tmp_path / "x.tex", {"one": "a"}, "latex_booktabs", ["size {8}", "b"])
    assert (tmp_path / "x.tex").read_text() == "% one\na\n% size {8}\n% b\n"
    write_tables(tmp_path / "x.md", {"one": "a"}, "github", ["{} b"])
    assert (tmp_path / "x.md").read_text() == "## one\n\na\n\n{} b\n"


def markdown(table):
    """Cells of each line of a "github" table, but for the rule below the headings."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return [lines[0], *lines[2:]]


def test_data_sets_without_a_title_stand_in_the_order_of_the_rows():
    names = ["zebra", "one", "two", "three", "four", "five", "ant"]
    rows = {("first",): {name: {"mIoU": 1.0} for name in names[:4]}}
    rows["second",] = {name: {"mIoU": 2.0} for name in names[2:]}
    head = markdown(comparison_table(rows, {"": "mIoU"}, ["model"], "github"))[0]
    assert head == ["model", *names]


SEMANTIC = {"mIoU": 27.24, "mACC": 41.2, "fwIoU": 50.0, "pACC": 66.66, "classes": 150.0}
SEMANTIC |= {"images": 2000.0}
ADE_150, CONTEXT = "ade20k_150_test_sem_seg", "context_59_test_sem_seg"


def test_a_comparison_has_the_columns_of_each_data_set_in_the_papers_order():
    rows = {
        ("CAT-Seg",): {"mine": {"mIoU": 1.0}, CONTEXT: SEMANTIC},
        ("+ CLIPSelf",): {ADE_150: SEMANTIC},
    }
    columns = {"mIoU": "mIoU", "mAcc": "mACC"}
    head, first, second = markdown(comparison_table(rows, columns, ["model"], "github"))
    columns = [f"{name} {key}" for name in ("ADE-150", "PC-59", "mine") for key in ("mIoU", "mAcc")]
    assert head == ["model", *columns]
    assert first == ["CAT-Seg", "-", "-", "27.2", "41.2", "1.0", "-"]
    assert second == ["+ CLIPSelf", "27.2", "41.2", "-", "-", "-", "-"]


def test_the_semantic_table_of_a_run_has_all_means():
    head, row = cells(run_table("semantic", {ADE_150: SEMANTIC}))
    assert head == ["data set", "mIoU", "mAcc", "fwIoU", "pAcc", "classes", "images"]
    assert row == ["ADE-150", "27.2", "41.2", "50.0", "66.7", "150", "2000"]


ADE, COCO = "ade20k_panoptic_val", "coco_2017_val_panoptic_with_sem_seg"
PANOPTIC = {
    ADE: {
        "clip": {"PQ": 15.31, "AP": 9.8, "mIoU": 17.3, "alpha": 1.0, "beta": 1.0, "images": 2000.0},
        "fused": {"PQ": 22.9, "PQ_unseen": 12.04, "alpha": 0.35, "beta": 0.65, "images": 2000.0},
    },
    COCO: {"clip": {"PQ": 27.6, "AP": 26.2, "mIoU": 23.7}},
}


def test_the_panoptic_table_of_a_run_has_the_columns_that_some_fusion_has():
    rows = cells(run_table("panoptic", PANOPTIC))
    assert rows[0] == [
        "data set", "", "alpha", "beta", "PQ", "unseen PQ", "mAP", "mIoU", "images",
    ]  # fmt: skip
    assert rows[1:] == [
        ["ADE20K", "CLIP only", "1", "1", "15.3", "-", "9.8", "17.3", "2000"],
        ["ADE20K", "fused", "0.35", "0.65", "22.9", "12.0", "-", "-", "2000"],
        ["COCO", "CLIP only", "-", "-", "27.6", "-", "26.2", "23.7", "-"],
    ]


def test_data_sets_whose_titles_are_equal_keep_their_names():
    both = "mini_val_panoptic_with_sem_seg", "mini_val_sem_seg"
    results = {name: {"fused": {"PQ": 1.0}} for name in both}
    lines = cells(run_table("panoptic", results))[1:]
    assert [line[0] for line in lines] == [*both]
    assert cells(run_table("panoptic", {both[0]: results[both[0]]}))[1][0] == "mini"


COUNTS = {"classes": 3.0, "images": 2.0}
OF_LVIS = {
    "bbox": COUNTS | {"AP": 27.0, "APr": 26.0, "APc": 25.0, "APf": 30.0, "AP50-unseen": 40.0},
    "segm": COUNTS | {"AP": 25.2, "APr": 25.3, "APc": 21.8, "APf": 29.1},
}
TRANSFER = {
    "bbox": COUNTS
    | dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), (40.5, 63.8, 44.3, 26.8, 44.6, 53.8)))
}


def test_the_detection_table_of_a_run_has_the_columns_that_are_known():
    results = {"transfer_coco_val": TRANSFER, "ov_lvis_val": OF_LVIS}
    headings, *lines = cells(run_table("detection", results))
    assert headings[:4] == ["data set", "", "AP", "AP50"]
    assert headings[8:] == ["APr", "APc", "APf", "novel AP50", "classes", "images"]
    assert [line[:3] for line in lines] == [
        ["COCO", "boxes", "40.5"], ["OV-LVIS", "boxes", "27.0"], ["OV-LVIS", "masks", "25.2"],
    ]  # fmt: skip
    assert lines[0][8:] == ["-", "-", "-", "-", "3", "2"] and lines[2][11] == "-"
    assert "base AP50" not in headings and np.shape(lines) == (3, len(headings))


@pytest.mark.parametrize("task", ["semantic", "panoptic", "detection"])
def test_tables_of_nothing_are_their_headings(task):
    assert len(run_table(task, {}).splitlines()) == 2


def test_the_csv_quotes_names_keeps_digits_and_leaves_the_unknown_empty(tmp_path):
    columns = {
        "iou": percents(np.array([1 / 3, np.nan])),
        "pixels": [12, 0],
        "seen": seen_cells(np.array([True]), 2),
    }
    path = tmp_path / "new" / "a.csv"
    write_class_csv(path, ["rock, stone", "sky"], columns)
    with open(path, newline="") as file:
        head, first, second = csv.reader(file)
    assert head == ["index", "name", "iou", "pixels", "seen"]
    assert first[:2] == ["0", "rock, stone"] and float(first[2]) == 100 * (1 / 3)
    assert first[3:] == ["12", "1"] and second == ["1", "sky", "", "0", ""]
    assert [file.name for file in path.parent.iterdir()] == ["a.csv"]
    assert seen_cells(None, 2) == ["", ""] and seen_cells(np.array([False, True]), 2) == ["0", "1"]
