"""Class names that are given to a file later: scripts and graphs find what the predictor finds with the same names."""

import json
import runpy

import numpy as np
import pytest
from PIL import Image

import clipself_seg
from clipself_seg.commands.predict import SCORE_THRESHOLD
from clipself_seg.errors import InputError
from clipself_seg.prediction.onnx import detection_graph, panoptic_graph
from tests.models.panoptic.small import FCCLIP, NAMED_BY_VIT, PLAIN, model_of
from tests.prediction.onnx.exported import (
    Session,
    require_packages,
    run_without_torch,
    scene,
    script_of,
)
from tests.prediction.onnx.test_panoptic import of_model, same_segments

WORDS = ["red star", "blue_circle|azure disc|grass", "Green-Square", "sand|grass/lawn"]
GIVEN = ", ".join(WORDS)


@pytest.fixture(scope="module")
def panoptic():
    return clipself_seg.load("mini", task="panoptic", device="cpu")


@pytest.fixture
def texts_of(monkeypatch, tmp_path):
    """Makes of an export what its script makes of words, with torch in place of the text tower's file."""
    for package in ("onnxruntime", "tokenizers", "ftfy"):
        pytest.importorskip(package)

    def texts(export, words):
        tower = Session(export.further["_text.onnx"].module)
        monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_: tower)
        for ending, content in export.beside.items():
            (tmp_path / f"model{ending}").write_text(content)
        (tmp_path / "model.json").write_text(json.dumps(export.metadata))
        texts_script = runpy.run_path(str(tmp_path / "model_texts.py"))
        return texts_script["Texts"](tmp_path / "model").inputs(words)

    return texts


@pytest.mark.parametrize("kind", ["mini", "FC-CLIP", "one pass"])
def test_segments_are_those_of_the_predictor(panoptic, kind, texts_of, tmp_path):
    opts = {"FC-CLIP": FCCLIP, "one pass": PLAIN}
    predictor = of_model(model_of(*opts[kind]), panoptic) if kind in opts else panoptic
    export = panoptic_graph.graph_of(predictor, text_tower=True)
    texts, script = texts_of(export, WORDS), script_of(export, tmp_path)
    predictor.set_vocabulary(GIVEN, stuff="azure disc, sand")
    assert (texts["seen"] == predictor.given.seen).all() and texts["seen"].any()
    assert ("generator_texts" in texts) == (kind == "mini")
    things = script["things_of"](WORDS, ["Azure disc", "sand"])
    assert things == [0, 2]
    with pytest.raises(SystemExit, match='stuff "sky" is none of the class names'):
        script["things_of"](WORDS, ["sky"])
    graph = Session(export.graph.module)
    inputs = {"images": np.float32(scene(1)).transpose(2, 0, 1)[None]}
    wanted = Session(panoptic_graph.graph_of(predictor).graph.module).run(None, inputs)
    for one, other in zip(graph.run(None, inputs | texts), wanted):
        np.testing.assert_allclose(one, other, atol=1e-4)
    segmented = script["segment"](graph, scene(1), WORDS, things, **texts)
    assert same_segments(*segmented, predictor(scene(1))) or kind != "mini"


def test_detections_are_those_of_the_predictor(texts_of, tmp_path):
    predictor = clipself_seg.load("mini", task="detection", device="cpu")
    export = detection_graph.graph_of(predictor, text_tower=True)
    texts, script = texts_of(export, WORDS), script_of(export, tmp_path)
    expected = predictor(scene(1), GIVEN)
    assert (texts["seen"] == predictor.given.seen).all() and not texts["seen"].all()
    boxes, scores, classes = script["detect"](Session(export.graph.module), scene(1), **texts)
    np.testing.assert_allclose(boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
    assert classes.tolist() == expected.labels.tolist() and len(classes) > 5
    export.metadata["trained"] = None
    assert texts_of(export, WORDS)["seen"].all()


def test_two_text_towers_are_refused(panoptic):
    other = of_model(model_of(*FCCLIP, *NAMED_BY_VIT), panoptic)
    with pytest.raises(InputError, match="named by those of another CLIP, ViT-Mini-8"):
        panoptic_graph.graph_of(other, text_tower=True)


@pytest.mark.heavy
@pytest.mark.parametrize("task", ["detection", "panoptic"])
def test_files_find_what_the_predictor_does(task, tmp_path):
    require_packages()
    predictor = clipself_seg.load("mini", task=task, device="cpu")
    files = clipself_seg.export(predictor, tmp_path / "model.onnx", text_tower=True)
    assert max(value for differences in files.values() for value in differences.values()) < 1e-5
    if task == "detection":
        printed = run_without_torch(tmp_path / "model.py", scene(1), *WORDS)
        expected = predictor(scene(1), GIVEN)
        certain = expected.scores > SCORE_THRESHOLD
        boxes = [[float(word) for word in line[-4:]] for line in printed]
        np.testing.assert_allclose(boxes, expected.boxes[certain], atol=0.051)
        return
    printed = run_without_torch(tmp_path / "model.py", scene(1), *WORDS, "--stuff", "sand")
    predictor.set_vocabulary(GIVEN, stuff="sand")
    segments = [
        {"id": int(line[0]), "name": " ".join(line[1:-3]), "isthing": "sand" not in line[1]}
        for line in printed
    ]
    ids = np.asarray(Image.open(tmp_path / "photo_segments.png"))
    assert same_segments(ids, segments, predictor(scene(1)))
