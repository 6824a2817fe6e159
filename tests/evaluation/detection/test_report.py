"""Tables are laid out as the paper's Tables 3 and 4."""

from __future__ import annotations

import numpy as np

from clipself_seg.evaluation.detection.report import (
    lvis_table,
    novel_table,
    paper_tables,
    run_table,
    transfer_table,
)

COUNTS = {"classes": 3.0, "images": 2.0}
NOVEL = {"bbox": COUNTS | {"AP": 20.0, "AP50": 50.44, "AP50-seen": 54.94, "AP50-unseen": 37.6}}
LVIS = {
    "bbox": COUNTS | {"AP": 27.0, "APr": 26.0, "APc": 25.0, "APf": 30.0, "AP50-unseen": 40.0},
    "segm": COUNTS | {"AP": 25.2, "APr": 25.3, "APc": 21.8, "APf": 29.1},
}
TRANSFER = {
    "bbox": COUNTS
    | dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), (40.5, 63.8, 44.3, 26.8, 44.6, 53.8)))
}


def cells(table):
    """Cells of each line of a "github" table, but for the rule below the headings."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return [lines[0], *lines[2:]]


def test_the_papers_tables():
    novel = novel_table({"ours": {"ov_coco_val": NOVEL}, "none": {}}, style="github")
    assert cells(novel) == [
        ["model", "OV-COCO novel", "OV-COCO base", "OV-COCO all"],
        ["ours", "37.6", "54.9", "50.4"],
        ["none", "-", "-", "-"],
    ]
    lvis = lvis_table({"ours": {"ov_lvis_val": LVIS}}, style="github")
    assert cells(lvis)[0][1:] == [f"OV-LVIS mAP{group}" for group in ("_r", "_c", "_f", "")]
    assert cells(lvis)[1] == ["ours", "25.3", "21.8", "29.1", "25.2"]
    both = {"transfer_objects365_val": {"bbox": {"AP": 19.5}}, "transfer_coco_val": TRANSFER}
    transfer = cells(transfer_table({"ours": both}, first="row", style="github"))
    assert transfer[0][:3] == ["row", "COCO AP", "COCO AP50"]
    assert transfer[0][7:9] == ["Objects365 AP", "Objects365 AP50"]
    assert transfer[1][1:9] == ["40.5", "63.8", "44.3", "26.8", "44.6", "53.8", "19.5", "-"]


def test_each_data_set_has_its_table():
    results = {"ov_coco_val": NOVEL, "ov_lvis_val": LVIS, "transfer_coco_val": TRANSFER}
    tables = paper_tables(results, "ours")
    assert list(tables) == ["Table 3a", "Table 3b", "Table 3b, of boxes", "Table 4"]
    assert "OV-LVIS" not in tables["Table 3a"] and "27.0" in tables["Table 3b, of boxes"]
    assert "OV-COCO AP75" in tables["Table 4"] and "OV-LVIS" not in tables["Table 4"]
    assert list(paper_tables({"own": TRANSFER}, "ours")) == ["Table 4"]


def test_the_table_of_a_run_has_the_columns_that_are_known():
    results = {"transfer_coco_val": TRANSFER, "ov_lvis_val": LVIS}
    headings, *lines = cells(run_table(results, style="github"))
    assert headings[:4] == ["data set", "", "AP", "AP50"]
    assert headings[8:] == ["APr", "APc", "APf", "novel AP50", "classes", "images"]
    assert [line[:3] for line in lines] == [
        ["COCO", "boxes", "40.5"], ["OV-LVIS", "boxes", "27.0"], ["OV-LVIS", "masks", "25.2"],
    ]  # fmt: skip
    assert lines[0][8:] == ["-", "-", "-", "-", "3", "2"] and lines[2][11] == "-"
    assert "base AP50" not in headings and np.shape(lines) == (3, len(headings))
