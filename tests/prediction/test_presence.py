"""Words that are not in an image: their score, its threshold, and what dropping them leaves."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clipself_seg.clip import load_clip
from clipself_seg.commands.predict import main as predict
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.prediction.load import load
from clipself_seg.prediction.presence import (
    THRESHOLD,
    Presence,
    best_threshold,
    calibrated_threshold,
)
from lab.mini.concepts import WORLDS
from lab.mini.scenes import draw_scene

WORDS = "red star, blue ring|hoop, grass, brick wall, green triangle"
MODELS = {
    "without training": lambda: load("mini-clipself", device="cpu"),
    "CAT-Seg": lambda: load("mini", task="semantic", device="cpu"),
    "panoptic": lambda: load("mini", task="panoptic", device="cpu"),
    "F-ViT": lambda: load("mini", task="detection", device="cpu"),
}


def scene(seed=0):
    return draw_scene(np.random.default_rng(seed), WORLDS["mini"])


def asked(model, present, words=WORDS, what="drop", background="background"):
    """Set a model's words, of which those at the places in `present` are said to be in every image."""
    of_background = (background, 0.0) if model.task == "semantic" and background else ()
    model.set_vocabulary(words, *of_background)
    scores = np.full(len(model.vocabulary), -1, np.float32)
    scores[list(present)] = 2
    model.presence = lambda given: SimpleNamespace(scores=lambda image: scores)
    model.set_absent(what)
    return model


def regions_of(result):
    """Regions as names, boxes and scores."""
    regions = result.regions()
    rows = zip(regions.labels, regions.boxes.tolist(), regions.scores)
    return [
        (result.names[label], box, pytest.approx(score, abs=1e-5)) for label, box, score in rows
    ]


def test_words_that_are_in_a_scene_score_higher_than_those_that_are_not():
    words = Vocabulary.load("mini")
    presence = Presence(load_clip("ViT-Mini-8", "mini-clipself"), words)
    own, others = [], []
    for seed in range(3):
        drawn = scene(seed)
        names = {segment.concept.names[0] for segment in drawn.segments}
        for name, score in zip(words.first_names, presence.scores(drawn.image)):
            (own if name in names else others).append(score)
    assert np.mean([one > other for one in own for other in others]) > 0.9
    assert np.mean(np.array(own) > THRESHOLD) > 0.7 > 0.4 > np.mean(np.array(others) > THRESHOLD)
    tiny = presence.scores(np.zeros((1, 1, 3), np.uint8))
    assert tiny.shape == (44,) and np.isfinite(tiny).all()


@pytest.mark.parametrize("name", MODELS)
def test_dropped_words_are_as_if_they_had_not_been_given_and_marked_ones_change_nothing(name):
    model, image = MODELS[name](), scene().image
    dropped = asked(model, [1, 2])(image)
    assert dropped.absent == ("red star", "brick wall", "green triangle")
    assert dropped.presence["grass"] == 2 and dropped.presence["red star"] == -1
    left = asked(model, [0, 1], "blue ring|hoop, grass", what=None)(image)
    assert left.presence is None and left.absent == ()
    assert regions_of(dropped) == regions_of(left) != []
    marked = asked(model, [1, 2], what="mark")(image)
    assert regions_of(marked) == regions_of(asked(model, [], what=None)(image))
    assert marked.absent == dropped.absent
    nothing = asked(model, [])(image)
    assert regions_of(nothing) == [] and len(nothing.absent) == 5
    if model.task == "semantic":
        scored = model.predict(image, scores=True)
        assert (nothing.labels == nothing.background).all() and not scored.scores.any()
        assert (nothing.class_scores == 0).all() and (scored.class_scores == 0).all()


def test_words_of_the_background_compete_with_what_is_left_and_are_never_absent():
    model, image = MODELS["without training"](), scene().image
    words = "red star, grass, rest"
    result = asked(model, [1], words, background="rest|blue ring")(image)
    assert result.absent == ("red star",) and result.background == 2
    expected = asked(model, [0], "grass, rest", what=None, background="rest|blue ring")(image)
    assert [result.names[k] for k in np.unique(result.labels)] == ["grass", "rest"]
    assert ((result.labels == 2) == (expected.labels == 1)).all()
    scores = asked(model, [1], words, background="rest|blue ring").predict(image, scores=True)
    assert (scores.labels == result.labels).all() and not scores.scores[0].any()


def test_pixels_without_a_word_need_a_background(capsys, tmp_path):
    model = asked(MODELS["CAT-Seg"](), [0], background=None)
    with pytest.raises(InputError, match="need a class: name the background"):
        model(scene().image)
    with pytest.raises(InputError, match='absent words "drip": did you mean "drop"'):
        model.set_absent("drip")
    with pytest.raises(InputError, match="is nan: give a finite number"):
        model.set_absent("drop", float("nan"))
    model.set_absent("drop", np.float32(0.5))  # results are JSON
    assert json.loads(json.dumps(model.absent._asdict()))["threshold"] == 0.5
    for words, message in (
        (["--absent", "drop"], "--absent drop needs --background"),
        (["--absent-threshold", "1"], "--absent-threshold needs --absent drop"),
        (["--absent", "mark", "--absent-threshold", "high"], "file of words in images high"),
    ):
        image = tmp_path / "a.png"
        Image.new("RGB", (8, 8)).save(image)
        assert predict([str(image), "--model", "mini", "--words", "grass", *words]) == 2
        assert message in capsys.readouterr().err


def test_the_threshold_is_calibrated_from_images_whose_words_are_known(tmp_path, capsys):
    scores, there = np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, False, True, False])
    assert best_threshold(scores, there) == 1.5
    words = Vocabulary.of(WORDS)
    presence = SimpleNamespace(scores=lambda image: np.array([2.5, 2, 1, 0, 0], np.float32))
    Image.fromarray(scene().image).save(tmp_path / "a.png")
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"a.png": ["Red star", "hoop"]}))
    assert calibrated_threshold(presence, words, path, 10**6) == 1.5
    for content, message in (
        ([], "and has to be an object"),
        ({"a.png": "grass"}, "a.png' is 'grass', and has to be a list"),
        ({"a.png": ["zebra"]}, 'a.png: unknown word "zebra"'),
        ({}, "has to name images"),
        ({"a.png": []}, "has to name images"),
        ({"https://a.b/c.png": ["grass"]}, "c.png"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            calibrated_threshold(presence, words, path, 10**6)
    path.write_text(json.dumps({"a.png": ["grass"]}))
    call = [str(tmp_path / "a.png"), "--model", "mini-clipself", "--words", WORDS]
    call += ["--absent", "mark", "--absent-threshold", str(path), "--output", str(tmp_path / "o")]
    assert predict(call) == 0
    index = json.loads((tmp_path / "o/classes.json").read_text())
    assert index["absent words"]["what"] == "mark" and index["absent words"]["calibrated"]
    entry = index["images"]["a"]
    assert entry["presence"].keys() == {
        "red star",
        "blue ring",
        "grass",
        "brick wall",
        "green triangle",
    }
    below = index["absent words"]["threshold"]
    assert entry["absent"] == [n for n, score in entry["presence"].items() if score < below]
