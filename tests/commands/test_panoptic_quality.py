"""panoptic-quality: the table, the file and the status; the numbers are panopticapi's."""

import json
import shutil

import numpy as np
import pytest

from clipself_seg.commands.panoptic_quality import evaluate_files, main, read_classes
from clipself_seg.errors import InputError
from tests.panoptic_worlds import (
    CATEGORIES,
    panopticapi_quality,
    random_sides,
    save_ids,
    write_side,
)

IDS = [entry["id"] for entry in CATEGORIES]


@pytest.fixture
def run(data_dir):
    coco = data_dir / "coco"
    truth = (coco / "annotations/panoptic_val2017.json", coco / "panoptic_val2017")

    def call(*words):
        given = ("--truth", *truth, *words)
        return main([str(word) for word in given])

    return call


def test_table_and_json_of_a_spoilt_prediction(run, data_dir, tmp_path, capsys):
    case = data_dir / "pq_case"
    prediction = (case / "pred.json", case / "pred")
    assert run("--prediction", *prediction, "--json", tmp_path / "pq.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split()[:4] == ["panoptic_val2017.json", "38.8", "59.0", "48.6"]
    assert lines[-1].split()[-1] == "50"  # images
    results = json.loads((tmp_path / "pq.json").read_text())["results"]["panoptic_seg"]
    assert results["PQ"] == pytest.approx(38.84986988946844)
    assert results["PQ-person"] > 0 and "PQ-airplane" not in results


def test_the_numbers_are_panopticapis(tmp_path):
    sides = random_sides(tmp_path, 3)
    quality, images = evaluate_files(*sides, IDS)
    stat, _ = panopticapi_quality(*sides)
    assert images == 12 and quality.tp.tolist() == [stat[number].tp for number in IDS]
    np.testing.assert_allclose(quality.iou_sum, [stat[number].iou for number in IDS], rtol=1e-14)


def test_missing_images_are_counted_and_further_ones_left_out(tmp_path):
    ids = np.full((4, 5), 1)
    segments = [{"id": 1, "category_id": 2, "area": 20, "iscrowd": 0}]
    both = write_side(tmp_path / "both", [("a", ids, segments), ("b", ids, segments)])
    short = write_side(tmp_path / "short", [("a", ids, segments)])
    with pytest.raises(InputError, match=r"short/side.json has no prediction for 1 of 2.* as 'b'"):
        evaluate_files(both, short, IDS)
    quality, images = evaluate_files(short, both, IDS)
    assert images == 1 and quality.pq[0] == 1


@pytest.mark.parametrize(
    "spoil, said", [("png", "No such file.*png/image_0.png"), ("list", "segment with ID 70001")]
)
def test_files_that_disagree_are_named(tmp_path, spoil, said):
    """What a map and its list have wrong is in tests/evaluation/panoptic/test_numbers.py."""
    truth, predicted = random_sides(tmp_path, 0, images=1)
    if spoil == "png":
        shutil.rmtree(predicted.folder)
    else:
        save_ids(predicted.folder / "image_0.png", np.full((24, 31), 70001))
    with pytest.raises(InputError, match=said):
        evaluate_files(truth, predicted, IDS)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"categories": [{"id": 1, "name": "x"}]}, r"categories\[0\].isthing is missing"),
        ({"categories": CATEGORIES + CATEGORIES[:1]}, "category id 2 is there twice"),
        ({"annotations": [{"image_id": 1}]}, r"annotations\[0\].file_name is missing"),
        ({"annotations": []}, 'its list "annotations" is empty'),
    ],
)
def test_a_json_that_is_no_panoptic_ground_truth_is_refused(tmp_path, change, said):
    truth, predicted = random_sides(tmp_path, 0, images=1)
    truth.json.write_text(json.dumps(json.loads(truth.json.read_text()) | change))
    with pytest.raises(InputError, match=said):
        evaluate_files(truth, predicted, [entry["id"] for entry in read_classes(truth.json)])
