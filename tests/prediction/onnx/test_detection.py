"""F-ViT as one file of ONNX: the graph detects what the model does, and its script needs no torch."""

import json
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch

import clipself_seg
from clipself_seg.choice import ModelChoice
from clipself_seg.commands.predict import SCORE_THRESHOLD
from clipself_seg.heads.fvit.roi_heads import SIDE, pool_boxes
from clipself_seg.prediction.load import prediction_config
from clipself_seg.prediction.onnx import detection_graph
from clipself_seg.prediction.onnx.detection_graph import graph_of, paired
from clipself_seg.prediction.task_predictors import DetectionPredictor
from tests.models.fvit.test_model import WORDS, tiny
from tests.prediction.onnx.exported import (
    Session,
    require_packages,
    run_without_torch,
    scene,
    script_of,
    texts_of,
)

VOCABULARIES = ("red star, blue circle|azure disc", "green square, yellow ring, red heart, cross")


@pytest.fixture(scope="module")
def predictor() -> DetectionPredictor:
    return clipself_seg.load("mini", task="detection", device="cpu")


@torch.no_grad()
def test_the_graph_detects_what_the_model_does(predictor):
    image, count = predictor.mapper.resized(scene(0))["image"], 0
    for words, cut in zip(VOCABULARIES, (image[:, :75], image[:, :, :90])):
        predictor.set_vocabulary(words)
        boxes, scores, classes = graph_of(predictor).graph.module(cut[None].float())
        expected = predictor.model([{"image": cut}])[0]["instances"]
        torch.testing.assert_close(boxes, expected.pred_boxes.tensor, atol=1e-3, rtol=0)
        torch.testing.assert_close(scores, expected.scores, atol=1e-5, rtol=0)
        assert classes.tolist() == expected.pred_classes.tolist()
        count += len(boxes)
    assert count > 5


@torch.no_grad()
def test_no_box_is_pooled_as_a_point_of_which_openvino_takes_no_samples(predictor, monkeypatch):
    predictor.set_vocabulary(VOCABULARIES[0])
    graph, strides = graph_of(predictor).graph.module.scorer, predictor.model.roi_head.strides
    levels = [torch.rand(1, 4, *[int(160 / stride)] * 2) for stride in strides]
    boxes = torch.tensor([[0.0, 0, 9, 12], [0, 0, 160, 160], [20, 30, 90, 110]])
    torch.testing.assert_close(
        graph.pool(levels, boxes, SIDE), pool_boxes(levels, strides, [boxes], SIDE)
    )
    given, roi_align = [], detection_graph.roi_align
    monkeypatch.setattr(
        detection_graph, "roi_align", lambda *a, **k: given.append(a[1]) or roi_align(*a, **k)
    )
    graph.pool(levels, boxes, SIDE)
    assert all((pooled[:, 3:] > pooled[:, 1:3]).all() for pooled in given) and len(given) == 4


def test_the_script_detects_and_pastes_what_the_predictor_does(tmp_path, monkeypatch):
    model = tiny(MASKS=True, RPN_NORM=True, SCORE_THRESHOLD=0.0)
    model.set_vocabulary(WORDS)
    opts = ["MODEL.DEVICE", "cpu", "INPUT.FORMAT", "RGB", "INPUT.DETECTION.SIDE", "64"]
    cfg = prediction_config(
        ModelChoice("detection", "mini/detection", "random"), [*opts, "MODEL.FVIT.MASKS", "True"]
    )
    predictor = DetectionPredictor(**DetectionPredictor.from_config(cfg, model=model))
    predictor.set_vocabulary("ball, box")
    image = scene(0)
    expected = predictor(image)
    export = graph_of(predictor)
    script = script_of(export, tmp_path)
    boxes, scores, classes, masks = script["detect"](Session(export.graph.module), image)
    np.testing.assert_allclose(boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
    np.testing.assert_array_equal(classes, expected.labels)
    for height, width in ((97, 64), (5, 9), (30, 20), (128, 120)):
        own = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
        small = script["resized"](own)
        assert (small == cv2.resize(own, small.shape[1::-1], interpolation=cv2.INTER_LINEAR)).all()
    assert script["THRESHOLD"] == SCORE_THRESHOLD
    for arguments, reason in (
        ([], "give one image"),
        (["none.jpg"], "cannot read an image.*none.jpg"),
    ):
        monkeypatch.setattr(sys, "argv", ["model.py", *arguments])
        with pytest.raises(SystemExit, match=reason):
            runpy.run_path(str(tmp_path / "model.py"), run_name="__main__")
    pasted = [script["paste"](*own, *image.shape[:2]) for own in zip(masks, boxes)]
    assert len(boxes) > 5 and np.mean(np.stack(pasted) != expected.masks) < 1e-3


def test_names_given_later_are_detected_as_by_torch(predictor, tmp_path, monkeypatch):
    words = ["red star", "blue_circle|azure disc|grass", "Green-Square"]
    export = graph_of(predictor, text_tower=True)
    script, texts = script_of(export, tmp_path), texts_of(export, tmp_path, words, monkeypatch)
    expected = predictor(scene(1), words)
    assert (texts["seen"] == predictor.given.seen).all() and not texts["seen"].all()
    boxes, scores, classes = script["detect"](Session(export.graph.module), scene(1), **texts)
    np.testing.assert_allclose(boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
    assert classes.tolist() == expected.labels.tolist() and len(classes) > 5


def test_detections_are_compared_in_pairs_where_rounding_decides_their_order():
    boxes = np.array([[0, 0, 9, 9], [20, 20, 40, 40], [0, 0, 9, 9]], np.float32)
    wanted = [boxes, np.array([0.8, 0.5, 0.5]), np.array([0, 1, 1])]
    moved = [array[[0, 2, 1]] for array in wanted]
    for one, other in zip(*paired(wanted, moved, 64)):
        np.testing.assert_array_equal(one, other)
    first = [array[:1] for array in wanted]
    assert [len(array) for array in paired(wanted, first, 64)[0]] == [1, 1, 1], "at the limit"
    without_first = [array[1:] for array in wanted]
    assert [len(array) for array in paired(wanted, without_first, 64)[0]] == [3, 3, 3]
    nothing = [array[:0] for array in wanted]
    assert [len(array) for array in paired(nothing, nothing, 64)[0]] == [0, 0, 0]


@pytest.mark.heavy
@pytest.mark.parametrize("later", [True, False])
def test_onnxruntime_detects_what_the_predictor_does(predictor, later, tmp_path):
    require_packages()
    words = VOCABULARIES[not later]
    predictor.set_vocabulary(words)
    files = clipself_seg.export(predictor, tmp_path / "model.onnx", text_tower=later)
    for differences in files.values():
        assert len(differences) == 3 and all(d <= 1e-5 for d in differences.values())
    names = json.loads((tmp_path / "model.json").read_text())["names"]
    assert names == ([] if later else list(predictor.names))
    expected = predictor(scene(1))
    given = words.split(", ") if later else []
    printed = run_without_torch(tmp_path / "model.py", scene(1), *given)
    boxes = [[float(word) for word in line[-4:]] for line in printed]
    certain = expected.scores > SCORE_THRESHOLD
    np.testing.assert_allclose(boxes, expected.boxes[certain], atol=0.051)
    names = [" ".join(line[:-5]).split("|")[0] for line in printed]
    assert names == [predictor.names[label] for label in expected.labels[certain]] and names
