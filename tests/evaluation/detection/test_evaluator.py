"""Detections in, numbers out: the same in any number of processes, with their files."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes

from clipself_seg.errors import InputError
from clipself_seg.evaluation.coco_objects import read_true_objects
from clipself_seg.evaluation.detection import DetectionEvaluator
from tests.detection_worlds import (
    SIZE,
    WORDS,
    annotation,
    detected,
    detectron2_results,
    random_world,
    write_objects,
)
from tests.two_processes import in_two_processes

CAT, DOG = [4, 4, 20, 20], [40, 4, 20, 20]
BOTH = ("boxes", "masks")


def sample(image):
    return {"file_name": f"{image}.png", "image_id": image}


def evaluator(json_file, image_ids=None, tasks=BOTH, federated=False, **how):
    truth = read_true_objects(
        json_file, WORDS, image_ids, masks="masks" in tasks, federated=federated
    )
    how = {"dataset_name": "tiny", "vocabulary": WORDS, "seen": WORDS.seen} | how
    return DetectionEvaluator(ground_truth=truth, tasks=tasks, **how)


def test_numbers_and_files(tmp_path):
    json_file, outputs = random_world(tmp_path, 0, ["a", "b", "c"])
    ours = evaluator(json_file, output_dir=tmp_path / "out")
    ours.process([sample(image) for image in outputs], outputs.values())
    results = ours.evaluate()
    theirs = detectron2_results(json_file, outputs, WORDS)
    for kind in ("bbox", "segm"):
        assert {key: results[kind][key] for key in theirs[kind]} == theirs[kind]
        assert (results[kind]["images"], results[kind]["classes"]) == (3, 3)
        mean = (2 * results[kind]["AP50-seen"] + results[kind]["AP50-unseen"]) / 3
        assert mean == pytest.approx(results[kind]["AP50"], abs=1e-10)
    json.dumps(results, allow_nan=False)
    with open(tmp_path / "out/masks_classes_tiny.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(WORDS.names)
    assert [row["seen"] for row in rows] == ["1", "0", "1", "1"]
    assert [row["frequency"] for row in rows] == ["f", "r", "c", "c"]
    assert float(rows[1]["ap50"]) == pytest.approx(results["segm"]["AP50-unseen"])
    assert rows[3]["ap"] == rows[3]["ap50"] == "" and rows[3]["objects"] == "0"
    assert sum(int(row["detections"]) for row in rows) == 27
    assert (tmp_path / "out/boxes_classes_tiny.csv").exists()
    entries = json.loads((tmp_path / "out/detections_tiny.json").read_text())
    assert len(entries) == 27 and {"bbox", "segmentation"} <= entries[0].keys()


def test_lvis_numbers_come_from_a_federated_file(tmp_path):
    json_file, outputs = random_world(tmp_path, 0, [1, 2, 3])
    ours = evaluator(json_file, tasks=("boxes",), federated=True)
    ours.process([sample(image) for image in outputs], outputs.values())
    results = ours.evaluate()
    assert results.keys() == {"bbox"}
    assert {"AP", "APr", "APc", "APf", "AP50-unseen"} < results["bbox"].keys()
    assert results["bbox"]["APr"] == pytest.approx(results["bbox"]["AP-unseen"])


def test_every_image_needs_its_detections(tmp_path):
    json_file = write_objects(tmp_path, [annotation(1, 1, 30, CAT)], [1, 2])
    ours = evaluator(json_file)
    ours.process([sample(1), sample(7)], [detected([CAT], [0.5], [0])] * 2)
    with pytest.raises(InputError, match=r'1 of 2 images of "tiny" have no prediction.*\[2\]'):
        ours.evaluate()
    ours.reset()
    with pytest.raises(InputError, match="2 of 2 images"):
        ours.evaluate()


def test_what_does_not_fit_is_refused(tmp_path):
    json_file = write_objects(tmp_path, [annotation(1, 1, 30, CAT)], [1])
    ours = evaluator(json_file, tasks=("boxes",))
    for wrong in (4, -1):
        with pytest.raises(
            ValueError, match=f'class {wrong} is predicted in 1.png, but "tiny" has 4'
        ):
            ours.process([sample(1)], [detected([CAT], [0.5], [wrong])])
    infinite = detected([CAT], [0.5], [0])
    infinite["instances"].pred_boxes = Boxes(torch.tensor([[0.0, 0, float("inf"), 1]]))
    with pytest.raises(FloatingPointError, match="1.png are not finite"):
        ours.process([sample(1)], [infinite])
    with pytest.raises(InputError, match="seen has 2 classes, there are 4"):
        evaluator(json_file, seen=np.ones(2, dtype=bool))


def test_two_processes_give_the_result_of_one(tmp_path):
    json_file, outputs = random_world(tmp_path, 5, ["a", "b", "c", "d", "e"])

    def work(rank, folder):
        part = evaluator(json_file, output_dir=folder / "two")
        pairs = list(outputs.items())
        # Image "a" comes twice, as a sampler's padding does.
        for image, output in pairs[3:] + pairs[:1] if rank else pairs[:3]:
            part.process([sample(image)], [output])
        results = part.evaluate()
        part.output_dir = None
        part.process([sample("a")], [detected([CAT], [0.5], [0], (SIZE[0], 91))])
        with pytest.raises(InputError, match="image a: masks have 91 x 60 pixels"):
            part.evaluate()
        return results

    first, second = in_two_processes(work, tmp_path)
    one = evaluator(json_file, output_dir=tmp_path / "one")
    for image, output in outputs.items():
        one.process([sample(image)], [output])
    assert first == second == one.evaluate()
    for name in ("boxes_classes_tiny.csv", "masks_classes_tiny.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
