"""panoptic_quality: the table, the files and the status."""

from __future__ import annotations

import csv
import json

import pytest

from clipself_seg.commands import panoptic_quality


@pytest.fixture
def run(data_dir):
    coco = data_dir / "coco"
    truth = (coco / "annotations/panoptic_val2017.json", coco / "panoptic_val2017")

    def call(*words):
        given = ("--truth", *truth, "--processes", 1, *words)
        return panoptic_quality.main([str(word) for word in given])

    return call


def test_table_json_and_csv_of_a_spoilt_prediction(run, data_dir, tmp_path, capsys):
    words = "openseg_coco_panoptic_133"
    files = ("--json", tmp_path / "pq.json", "--csv", tmp_path / "pq.csv")
    case = data_dir / "pq_case"
    status = run(
        "--prediction",
        case / "pred.json",
        case / "pred",
        "--split",
        words,
        words,
        *files,
    )
    lines = capsys.readouterr().out.splitlines()
    assert status == 0 and lines[-1] == "50 images"
    rows = [line.split() for line in lines]
    assert ["all", "38.8", "59.0", "48.6", "112"] in rows
    assert ["unseen", "-", "-", "-", "0"] in rows
    results = json.loads((tmp_path / "pq.json").read_text())["results"]["panoptic_seg"]
    assert results["PQ"] == results["PQ_seen"] == pytest.approx(38.84986988946844)
    assert results["PQ-person"] > 0 and "PQ-airplane" not in results
    with open(tmp_path / "pq.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 133


def test_missing_predictions_are_one_line_and_status_2(run, data_dir, tmp_path, capsys):
    content = json.loads((data_dir / "pq_case/pred.json").read_text())
    short = tmp_path / "short.json"
    short.write_text(json.dumps({"annotations": content["annotations"][1:]}))
    assert run("--prediction", short, data_dir / "pq_case/pred") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "no prediction for 1 of 50 images" in said
