"""What a request may ask, within limits and never for a file, and the answer of each task."""

import base64
import functools
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from clipself_seg.data.datasets.table import SHIPPED_WORLD
from clipself_seg.data.images import read_image
from clipself_seg.errors import InputError
from clipself_seg.prediction.load import load
from tests.tiny import noise

pytest.importorskip("pydantic", reason="the extra demo is not installed")
from clipself_seg.explore import answers  # noqa: E402
from clipself_seg.explore.answers import (  # noqa: E402
    Answer,
    Answers,
    Limits,
    read_request,
    typed_words,
)

LIMITS = Limits(pixels=4_000_000, words=6)


def png(pixels: np.ndarray) -> str:
    """Base64 of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


IMAGE = np.full((40, 60, 3), 120, np.uint8)
SCENE = read_image(SHIPPED_WORLD / "mini/val/000004.jpg")


def request(**values) -> bytes:
    return json.dumps({"image": png(IMAGE), "words": "dog|puppy, grass", **values}).encode()


BOX = {"name": "screw, bolt", "image": png(noise(40, 60)), "box": [0.5, 0.25, 0.25, 0.5]}


def test_an_image_and_words_are_read():
    asked = read_request(request(image=png(noise(7, 9)), stuff="grass", absent="mark"), LIMITS)
    assert (asked.image == noise(7, 9)).all() and asked.size == (7, 9)
    assert [entry.names for entry in asked.words.classes] == [("dog", "puppy"), ("grass",)]
    assert [entry.isthing for entry in asked.words.classes] == [True, False]
    assert asked.absent == "mark" and asked.background is None
    examples = [BOX, BOX, BOX | {"name": "a|A dog"}]
    words = read_request(request(examples=examples), LIMITS).words
    assert words.first_names[-1] == "a" and {len(one.examples) for one in words.examples} == {1}
    assert words.examples[0].examples[0].pixels[..., 3].astype(bool).sum() == 15 * 20
    large = read_request(request(image=png(np.zeros((500, 2000, 3), np.uint8))), LIMITS)
    assert large.image.shape == (400, 1600, 3) and large.size == (500, 2000)


def test_words_are_never_a_file(tmp_path):
    for ending in (".txt", ".json"):
        path = tmp_path / f"w{ending}"
        path.write_text("secret")
        assert typed_words(str(path)[-50:], LIMITS).first_names == (str(path)[-50:],)
    assert typed_words("mini_base", Limits()).name == "mini_base"
    assert typed_words("dog\ngrass,, sky\n", LIMITS).first_names == ("dog", "grass", "sky")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"words": "a|b|c, d, e, f, g"}, "7 words, synonyms among them: give 6 at most"),
        ({"words": "x" * 61}, "more than 60 letters"),
        ({"words": "x" * 9999}, "9999 letters long"),
        ({"words": "dog, Dog"}, "twice"),
        ({"words": "dog, \x1b]0;\x07cat"}, "control characters"),
        ({"words": "dog, \ud800"}, "the request: Invalid JSON: "),
        ({"words": 3}, "the request.words: Input should be a valid string"),
        ({"stuff": "sky"}, 'stuff "sky" is not in the vocabulary'),
        ({"background": "wall" + 30 * "|a"}, "background: String should have at most 60"),
        ({"background": "\x1b"}, "background: String should match"),
        ({"image": ""}, "choose one"),
        ({"image": base64.b64encode(b"<svg>").decode()}, "not an image of"),
        ({"image": png(np.zeros((2000, 3000, 3), np.uint8))}, "4000000 pixels .*: make it smaller"),
        ({"examples": 11 * [BOX]}, "examples: List should have at most 10"),
        ({"examples": [{"name": "a", "image": "../secret.png"}]}, "examples.0.box: Field required"),
        ({"examples": [{"name": "a", "image": "a.png", "box": [0, 0, 1, 1]}]}, "no base64"),
        ({"examples": [BOX | {"box": [0, 0, float("nan"), 1]}]}, "request: Invalid JSON|box.2"),
        ({"examples": [BOX | {"box": [1, 1, 1, 1]}]}, "has no pixel in the region"),
        ({"path": "/etc/passwd"}, "path: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_used_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        read_request(request(**values), LIMITS)


@pytest.mark.parametrize("body", [b"", b"[1]", b"\xff", b"[" * 100_000, b'{"image": NaN}'])
def test_what_is_no_request_is_refused(body):
    with pytest.raises(InputError):
        read_request(body, LIMITS)


def test_many_values_are_refused_before_they_are_built(monkeypatch):
    read = lambda body: pytest.fail("it is read")  # noqa: E731
    monkeypatch.setattr(answers.Question, "model_validate_json", read)
    for part in (b"[],", b'"a":{},', b"1,"):
        with pytest.raises(InputError, match="too many brackets and commas"):
            read_request(b"[" + 1000 * part + b"1]", LIMITS)


@functools.cache
def served(task: str) -> Answers:
    """A server with the shipped model of a task."""
    models = {"semantic": "mini", "panoptic": "mini-open-panoptic", "detection": "mini-fvit"}
    predictor = load(models[task], device="cpu")
    return Answers(clips={"a": predictor.model.clip}, side=64, predictors={task: predictor})


def ask(task: str, words: str, **values) -> dict:
    return served(task).answer(task, read_request(request(words=words, **values), Limits()))


@pytest.mark.parametrize("task", ["semantic", "panoptic", "detection"])
def test_segments_are_the_predictor_s_in_pixels_of_the_image_that_was_sent(task):
    large = SCENE.repeat(2, axis=0).repeat(2, axis=1)
    asked = read_request(request(image=png(large), words="mini"), Limits(side=192))
    answer = Answer.model_validate(served(task).answer(task, asked))
    result = served(task).predictors[task](asked.image, asked.words)
    regions = result.regions()
    assert (answer.height, answer.width) == (256, 384) and asked.image.shape == (128, 192, 3)
    assert len(answer.segments) == len(regions.labels) > 1
    for segment, box, label, score in zip(answer.segments, 2 * regions.boxes_xywh(), *regions[1:3]):
        assert segment.box == pytest.approx(box) and segment.score == pytest.approx(score)
        assert segment.name == result.names[label]
        assert segment.thing == asked.words.classes[label].isthing
        assert (segment.seen is None) == (task == "semantic")
    if task != "detection":
        masks = [mask_utils.decode(one.segmentation.model_dump()) for one in answer.segments]
        assert (masks == regions.masks.repeat(2, axis=1).repeat(2, axis=2)).all()
        assert [one.area for one in answer.segments] == [mask.sum() for mask in masks]


def test_absent_words_are_named_for_who_asks_and_for_nobody_after():
    marked = ask("semantic", "grass, red star", absent="mark")
    below = [name for name, score in marked["presence"].items() if score < 1.5]
    assert len(marked["presence"]) == 2 and marked["absent"] == below
    plain = ask("semantic", "grass, red star")
    assert plain == marked | {"presence": None, "absent": []}
    with pytest.raises(InputError, match="name the background"):
        ask("semantic", "grass, red star", absent="drop")


def test_the_background_is_in_no_segment_and_stuff_is_no_thing():
    names = [one["name"] for one in ask("semantic", "red star", background="a|sand")["segments"]]
    assert {*names} <= {"red star"}
    kinds = {one["name"]: one["thing"] for one in ask("semantic", "a, b", stuff="b")["segments"]}
    assert kinds.items() <= {"a": True, "b": False}.items()


def test_answers_of_a_mini_model_say_what_it_does_not_know():
    for words, said in (("dog, red star", 'no "dog": its answers mean'), ("grass, sand", "")):
        asked = read_request(request(image=png(SCENE), words=words), Limits())
        image = served("semantic").answer("maps", asked)["image"]
        for answer in (image, served("semantic").answer("semantic", asked)):
            assert said in answer["warning"] and bool(said) == bool(answer["warning"])
    with pytest.raises(KeyError, match="detection"):
        served("semantic").answer("detection", asked)


def test_maps_need_no_masks_that_are_generated():
    panoptic = SimpleNamespace(model=SimpleNamespace(masks=SimpleNamespace(generates=False)))
    clips = served("semantic").clips
    answers = Answers(clips=clips, side=64, predictors={"panoptic": panoptic})
    said = answers.answer("maps", read_request(request(), Limits()))
    assert said["models"]["panoptic"] is None and said["image"]["panoptic"] is None


def test_a_detector_is_asked_for_the_words_alone_and_says_so():
    plain, asked = (ask("detection", "red star, grass", examples=own) for own in ([], [BOX]))
    assert asked.pop("warning").endswith("boxes are found by words, without examples")
    assert "examples" not in plain.pop("warning") and asked == plain
