"""Detections are kept as Detectron2's evaluators take them, and written as COCO's results."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from clipself_seg.errors import InputError
from clipself_seg.evaluation.coco_objects import image_detections, write_coco_results
from tests.detection_worlds import SIZE, annotation, detected, kept, write_objects

BOXES = [[4, 4.25, 20.5, 20], [40, 4, 20, 20], [4, 30, 20, 20]]


def test_the_best_keep_their_order_among_equals():
    detections = kept({1: detected(BOXES, [0.5, 0.9, 0.5], [0, 1, 2])})[1]
    assert detections.best(3) is detections
    best = detections.best(2)
    assert best.classes.tolist() == [1, 0] and best.scores.tolist() == pytest.approx([0.9, 0.5])
    assert best.masks == [detections.masks[1], detections.masks[0]]
    np.testing.assert_array_equal(best.boxes, detections.boxes[[1, 0]])


def test_results_are_cocos(tmp_path, capsys):
    scores = [0.1, 0.9, 1 / 3]
    outputs = {
        "a": detected(BOXES, scores, [2, 0, 0]), "b": detected([], [], []),
        "c": detected(BOXES[:1], [0.5], [1]),
    }  # fmt: skip
    path = tmp_path / "results.json"
    write_coco_results(path, kept(outputs).items(), [30, 9, 7])
    entries = json.loads(path.read_text())
    assert [entry["image_id"] for entry in entries] == ["a", "a", "a", "c"]
    assert [entry["category_id"] for entry in entries] == [7, 30, 30, 9]
    assert entries[0]["bbox"] == BOXES[0]
    assert [np.float32(entry["score"]) for entry in entries[:3]] == np.float32(scores).tolist()
    truth = COCO(write_objects(tmp_path, [annotation(1, "a", 9, BOXES[1])], ["a", "b", "c"]))
    read = truth.loadRes(str(path))
    mask = read.annToMask(read.loadAnns([2])[0])
    assert mask.shape == SIZE and mask.sum() == 400 and mask[4:24, 40:60].all()


def test_boxes_alone_and_no_detection_at_all(tmp_path):
    path = tmp_path / "results.json"
    outputs = {1: detected(BOXES, [0.1, 0.2, 0.3], [0, 0, 0])["instances"]}
    boxes = {k: image_detections(v, masks=False, source="1.png") for k, v in outputs.items()}
    write_coco_results(path, boxes.items(), [30])
    entries = json.loads(path.read_text())
    assert len(entries) == 3 and "segmentation" not in entries[0]
    write_coco_results(path, [], [30])
    assert json.loads(path.read_text()) == []


def test_outputs_that_cannot_be_compared_are_refused():
    instances = detected(BOXES, [0.5, float("nan"), 0.5], [0, 0, 0])["instances"]
    with pytest.raises(FloatingPointError, match="x.png are not finite"):
        image_detections(instances, masks=False, source="x.png")
    instances = detected(BOXES, [0.5] * 3, [0] * 3)["instances"]
    instances.remove("pred_masks")
    with pytest.raises(InputError, match='x.png have no masks.*TASKS .*"boxes"'):
        image_detections(instances, masks=True, source="x.png")
