"""What a request may ask, within limits and never for a file, and the answer of each task."""

import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from clipself_seg.data.datasets.table import SHIPPED_WORLD
from clipself_seg.data.images import read_image
from clipself_seg.data.masks import tight_box
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.prediction.load import load
from clipself_seg.prediction.results import Detections
from tests.tiny import noise, random_clip

pytest.importorskip("pydantic", reason="the extra demo is not installed")
from clipself_seg.explore import answers  # noqa: E402
from clipself_seg.explore.answers import (  # noqa: E402
    LARGEST_SIDE,
    Answer,
    Asked,
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
# A scene of one of the sizes that the mini models know.
SCENE = next(
    image
    for path in sorted((SHIPPED_WORLD / "mini/val").glob("*.jpg"))
    if (image := read_image(path)).shape == (128, 192, 3)
)


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
    assert large.image.shape == (LARGEST_SIDE // 4, LARGEST_SIDE, 3) and large.size == (500, 2000)


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
        ({"absent": "keep"}, "absent: Input should be 'drop' or 'mark'"),
        ({"background": "wall" + 30 * "|a"}, "background: String should have at most 60"),
        ({"background": "\x1b"}, "background: String should match"),
        ({"image": ""}, "choose one"),
        ({"image": "a\u0301"}, "no base64"),
        ({"image": base64.b64encode(b"<svg>").decode()}, "not an image of"),
        ({"image": png(np.zeros((2000, 3000, 3), np.uint8))}, "4000000 pixels .*: send a smaller"),
        ({"examples": 11 * [BOX]}, "examples: List should have at most 10"),
        ({"examples": [{"name": "a", "image": "../secret.png"}]}, "examples.0.box: Field required"),
        ({"examples": [{"name": "a", "image": "a.png", "box": [0, 0, 1, 1]}]}, "no base64"),
        ({"examples": [BOX | {"box": [0, 0, float("nan"), 1]}]}, "request: Invalid JSON|box.2"),
        ({"examples": [BOX | {"box": [0, 0, 1.01, 1]}]}, "box.2: Input should be less than"),
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


def mini(name: str, task: str) -> answers.Answers:
    """A server with one shipped model."""
    return answers.Answers(
        clips={"a": random_clip()}, side=64, predictors={task: load(name, device="cpu")}
    )


@pytest.fixture(scope="module")
def semantic() -> answers.Answers:
    return mini("mini", "semantic")


@pytest.fixture(scope="module")
def panoptic() -> answers.Answers:
    return mini("mini-open-panoptic", "panoptic")


def asking(words: str, image: np.ndarray = SCENE, **values) -> Asked:
    return read_request(request(image=png(image), words=words, **values), Limits())


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_segments_are_those_of_the_predictor(task, request):
    served = request.getfixturevalue(task)
    asked = asking("grass, red star, sand", stuff="grass, sand")
    answer = Answer.model_validate(served.answer(task, asked))
    result = served.predictors[task](SCENE, asked.words)
    regions = result.regions()
    assert (answer.width, answer.height) == (192, 128) and len(answer.segments) > 1
    for index, segment in enumerate(answer.segments):
        mask = mask_utils.decode(segment.segmentation.model_dump())
        assert (mask == regions.masks[index]).all() and segment.area == mask.sum()
        assert segment.name == result.names[regions.labels[index]]
        assert segment.thing == (segment.name == "red star")
        assert segment.score == pytest.approx(float(regions.scores[index]))
        x0, y0, x1, y1 = tight_box(mask > 0)
        assert segment.box == (x0, y0, x1 - x0, y1 - y0)
        assert (segment.seen is None) == (task == "semantic")


def test_segments_have_the_pixels_of_the_image_that_was_sent(semantic, monkeypatch):
    monkeypatch.setattr(answers, "LARGEST_SIDE", 96)
    answer = Answer.model_validate(semantic.answer("semantic", asking("grass, sand, water")))
    assert (answer.width, answer.height) == (192, 128)
    masks = [mask_utils.decode(one.segmentation.model_dump()) for one in answer.segments]
    assert (sum(masks) == 1).all()
    for mask, segment in zip(masks, answer.segments, strict=True):
        x0, y0, x1, y1 = tight_box(mask > 0)
        assert segment.box == (x0, y0, x1 - x0, y1 - y0) and segment.area == mask.sum()


def test_boxes_have_the_pixels_of_the_image_that_was_sent():
    boxes = np.array([[1, 2, 5, 8]], np.float32)
    found = Detections(
        names=("dog",),
        category_ids=(1,),
        image=np.zeros((10, 20, 3), np.uint8),
        boxes=boxes,
        scores=np.array([0.5], np.float32),
        labels=np.array([0]),
        seen=np.array([True]),
    )
    given = SimpleNamespace(vocabulary=Vocabulary.of(["dog"]), seen=found.seen)
    (segment,) = answers._segments_of(found, given, (20, 60))
    assert segment.box == (3, 4, 12, 12) and segment.area == 144 and segment.seen
    assert segment.segmentation is None and segment.score == 0.5


def test_absent_words_are_marked_for_who_asks_and_for_nobody_after(semantic):
    marked = semantic.answer("semantic", asking("grass, red star", absent="mark"))
    assert marked["presence"].keys() == {"grass", "red star"}
    below = [name for name, score in marked["presence"].items() if score < 1.5]
    assert marked["absent"] == below
    plain = semantic.answer("semantic", asking("grass, red star"))
    assert plain["presence"] is None and plain["absent"] == []
    assert plain["segments"] == marked["segments"]
    with pytest.raises(InputError, match="name the background"):
        semantic.answer("semantic", asking("grass, red star", absent="drop"))


def test_the_background_is_in_no_segment(semantic):
    answer = semantic.answer("semantic", asking("red star", background="grass|sand|water"))
    assert {one["name"] for one in answer["segments"]} <= {"red star"}


def test_answers_of_a_mini_model_say_what_it_does_not_know(semantic):
    served = answers.Answers(
        clips={"a": semantic.predictors["semantic"].model.clip},
        side=64,
        predictors=semantic.predictors,
    )
    for words, said in (("dog, red star", 'no "dog": its answers mean'), ("grass, sand", "")):
        asked = asking(words)
        image = served.answer("maps", asked)["image"]
        for answer in (image, served.answer("semantic", asked)):
            assert said in answer["warning"] and bool(said) == bool(answer["warning"])
    with pytest.raises(KeyError, match="detection"):
        served.answer("detection", asked)


def test_a_detector_is_asked_for_the_words_alone_and_says_so():
    served = mini("mini-fvit", "detection")
    plain, asked = (
        served.answer("detection", asking("red star, grass", examples=examples))
        for examples in ([], [BOX])
    )
    assert asked.pop("warning").endswith("boxes are found by words, without examples")
    assert "examples" not in plain.pop("warning") and asked == plain
