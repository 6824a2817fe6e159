"""Tables have the columns of the paper and say what is missing; the CSV is written whole."""

from __future__ import annotations

import csv

import numpy as np

from clipself_seg.evaluation.sem_seg.numbers import ClassNumbers
from clipself_seg.evaluation.sem_seg.report import paper_table, run_table, write_class_csv

RESULTS = {
    "mIoU": 27.24,
    "mACC": 41.2,
    "fwIoU": 50.0,
    "pACC": 66.66,
    "classes": 150.0,
    "images": 2000.0,
}
ADE, CONTEXT = "ade20k_150_test_sem_seg", "context_59_test_sem_seg"


def cells(table):
    lines = table.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_papers_table_has_two_columns_a_data_set_in_the_papers_order():
    rows = {"CAT-Seg": {"mine": {"mIoU": 1.0}, CONTEXT: RESULTS}, "+ CLIPSelf": {ADE: RESULTS}}
    head, _, first, second = cells(paper_table(rows, style="github"))
    assert head == [
        "model",
        "ADE-150 mIoU",
        "ADE-150 mAcc",
        "PC-59 mIoU",
        "PC-59 mAcc",
        "mine mIoU",
        "mine mAcc",
    ]
    assert first == ["CAT-Seg", "-", "-", "27.2", "41.2", "1.0", "-"]
    assert second == ["+ CLIPSelf", "27.2", "41.2", "-", "-", "-", "-"]


def test_the_table_of_a_run_shows_the_split_only_if_there_is_one():
    head, _, row = cells(run_table({ADE: RESULTS}, style="github"))
    assert head == ["data set", "mIoU", "mAcc", "fwIoU", "pAcc", "classes", "images"]
    assert row == ["ADE-150", "27.2", "41.2", "50.0", "66.7", "150", "2000"]
    split = RESULTS | {"mIoU-seen": 40.0, "mIoU-unseen": 20.0}
    head, _, first, second = cells(run_table({ADE: RESULTS, CONTEXT: split}, style="github"))
    assert head[5:7] == ["seen mIoU", "unseen mIoU"]
    assert first[5:7] == ["-", "-"] and second[5:7] == ["40.0", "20.0"]


def test_tables_of_nothing_are_their_headings():
    assert len(paper_table({}, style="github").splitlines()) == 2
    assert len(run_table({}, style="github").splitlines()) == 2


def test_the_csv_quotes_names_keeps_digits_and_leaves_the_unknown_empty(tmp_path):
    numbers = ClassNumbers(
        iou=np.array([1 / 3, np.nan]),
        accuracy=np.array([0.5, np.nan]),
        hits=np.array([6, 0]),
        truth=np.array([12, 0]),
        predicted=np.array([7, 0]),
    )
    path = tmp_path / "new" / "a.csv"
    write_class_csv(path, ["rock, stone", "sky"], numbers, np.array([True]))
    with open(path, newline="") as file:
        _, first, second = csv.reader(file)
    assert (
        first[:2] == ["0", "rock, stone"] and float(first[2]) == 100 * (1 / 3) and first[6] == "1"
    )
    assert second == ["1", "sky", "", "", "0", "0", ""]
    assert [file.name for file in path.parent.iterdir()] == ["a.csv"]
