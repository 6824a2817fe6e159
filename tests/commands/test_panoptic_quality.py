"""panoptic_quality: the table, the files and the status."""

from __future__ import annotations

import csv
import json

import panopticapi.evaluation
import pytest

from clipself_seg.commands.compare import panoptic_quality
from clipself_seg.evaluation.panoptic import numbers
from tests.panoptic_worlds import random_sides


@pytest.fixture
def run(data_dir):
    coco = data_dir / "coco"
    truth = (coco / "annotations/panoptic_val2017.json", coco / "panoptic_val2017")

    def call(*words):
        given = ("--truth", *truth, "--processes", 1, *words)
        return panoptic_quality([str(word) for word in given])

    return call


def test_table_json_and_csv_of_a_spoilt_prediction(run, data_dir, tmp_path, capsys):
    words = "openseg_coco_panoptic_133"
    files = ("--json", tmp_path / "pq.json", "--csv", tmp_path / "pq.csv")
    case = data_dir / "pq_case"
    status = run(
        "--check",
        "--prediction",
        case / "pred.json",
        case / "pred",
        "--split",
        words,
        words,
        *files,
    )
    lines = capsys.readouterr().out.splitlines()
    assert status == 0 and lines[-2] == "50 images"
    assert lines[-1].startswith("panopticapi gives the same")
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


def compare(sides):
    truth, predicted = sides
    words = ("--truth", *truth, "--prediction", *predicted, "--processes", "1", "--check")
    return panoptic_quality([str(word) for word in words])


def test_a_check_has_panopticapi_evaluate_the_files(tmp_path, monkeypatch, capsys):
    sides = random_sides(tmp_path, 0)
    asked = []
    whole = panopticapi.evaluation.pq_compute_single_core

    def theirs(number, pairs, *rest):
        asked.extend(pairs)
        return whole(number, pairs, *rest)

    monkeypatch.setattr(panopticapi.evaluation, "pq_compute_single_core", theirs)
    assert compare(sides) == 0 and len(asked) == 12
    # 6 classes and 3 groups, PQ, SQ and RQ of each, and the number of classes of a group.
    assert capsys.readouterr().out.splitlines()[-1] == "panopticapi gives the same 30 numbers"


def test_a_number_that_is_not_panopticapis_is_named_and_status_1(tmp_path, monkeypatch, capsys):
    sides = random_sides(tmp_path, 0)
    exact = numbers.panoptic_results

    def wrong(*given):
        results = exact(*given)
        return {**results, "PQ_st": results["PQ_st"] + 1e-6}

    monkeypatch.setattr(numbers, "panoptic_results", wrong)
    assert compare(sides) == 1
    title, line = capsys.readouterr().out.splitlines()[-2:]
    assert title == "1 of 30 numbers differ:" and line.startswith("PQ_st: ")


def test_a_check_of_classes_that_are_nowhere_compares_the_others(tmp_path, capsys):
    truth, predicted = random_sides(tmp_path, 0, images=1)
    for side in (truth, predicted):
        content = json.loads(side.json.read_text())
        for info in content["annotations"][0]["segments_info"]:
            info |= {"category_id": content["categories"][0]["id"], "iscrowd": 0}
        side.json.write_text(json.dumps(content))
    assert compare((truth, predicted)) == 0
    # A class, all and things; of stuff that there is none.
    assert capsys.readouterr().out.splitlines()[-1] == "panopticapi gives the same 12 numbers"


def test_files_that_only_panopticapi_refuses_are_status_2(tmp_path, capsys):
    truth, predicted = random_sides(tmp_path, 0)
    content = json.loads(truth.json.read_text())
    for info in content["annotations"][0]["segments_info"]:
        del info["iscrowd"]
    truth.json.write_text(json.dumps(content))
    assert compare((truth, predicted)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: panopticapi refuses image image_0") and "iscrowd" in said
