"""What a request may ask, within limits and never for a file, and what is answered."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.explore import answers
from clipself_seg.explore.answers import LARGEST_SIDE, Asked, Limits, read_request, typed_words
from clipself_seg.prediction.load import load
from tests.tiny import noise, random_clip

LIMITS = Limits(pixels=4_000_000, words=6)


def png(pixels: np.ndarray) -> str:
    """Base64 of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


IMAGE = np.full((40, 60, 3), 120, np.uint8)


def request(**values) -> bytes:
    return json.dumps({"image": png(IMAGE), "words": "dog|puppy, grass", **values}).encode()


BOX = {"name": "screw, bolt", "image": png(noise(40, 60)), "box": [0.5, 0.25, 0.25, 0.5]}


def test_an_image_and_words_are_read():
    asked = read_request(request(image=png(noise(7, 9)), stuff="grass"), LIMITS)
    assert (asked.image == noise(7, 9)).all()
    assert [entry.names for entry in asked.words.classes] == [("dog", "puppy"), ("grass",)]
    assert asked.stuff.first_names == ("grass",)
    assert read_request(request(), LIMITS).stuff is None
    examples = [BOX, BOX, BOX | {"name": "a|A dog"}]
    words = read_request(request(examples=examples), LIMITS).words
    assert words.first_names[-1] == "a" and {len(one.examples) for one in words.examples} == {1}
    assert words.examples[0].examples[0].pixels[..., 3].astype(bool).sum() == 15 * 20
    large = read_request(request(image=png(np.zeros((500, 2000, 3), np.uint8))), LIMITS)
    assert large.image.shape == (LARGEST_SIDE // 4, LARGEST_SIDE, 3)


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
        ({"words": "dog, \ud800"}, "no text in UTF-8"),
        ({"words": 3}, "the request: words is 3, and has to be text"),
        ({"image": ""}, "choose one"),
        ({"image": "a\u0301"}, "no base64"),
        ({"image": base64.b64encode(b"<svg>").decode()}, "not an image of"),
        ({"image": png(np.zeros((2000, 3000, 3), np.uint8))}, "4000000 pixels .*: send a smaller"),
        ({"examples": 3}, "a list of at most 10"),
        ({"examples": [{"name": "a", "image": "../secret.png"}]}, r"examples\[0\].box is missing"),
        ({"examples": [{"name": "a", "image": "a.png", "box": [0, 0, 1, 1]}]}, "no base64"),
        ({"examples": [BOX | {"box": [0, 0, float("nan"), 1]}]}, "four numbers from 0 to 1"),
        ({"examples": [BOX | {"box": [1, 1, 1, 1]}]}, "has no pixel in the region"),
        ({"path": "/etc/passwd"}, "unknown key"),
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
    monkeypatch.setattr(answers.json, "loads", lambda body: pytest.fail("it is read"))
    for part in (b"[],", b'"a":{},', b"1,"):
        with pytest.raises(InputError, match="too many brackets and commas"):
            read_request(b"[" + 1000 * part + b"1]", LIMITS)


def test_texts_of_earlier_words_go(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_CACHE", str(tmp_path))
    monkeypatch.setattr(answers, "MOST_TEXTS", 3)
    served = answers.Answers(clips={"a": random_clip()}, side=64, texts=tmp_path)
    counts = []
    for number in range(7):
        said = served.answer("maps", Asked(IMAGE, Vocabulary.of([f"word {number}"]), None))
        counts.append(len(list(tmp_path.glob("text/*.safetensors"))))
        assert said["models"]["words"] == [[f"word {number}"]]
    assert counts == [1, 2, 1, 2, 3, 1, 2]
    with pytest.raises(KeyError, match="boxes"):
        served.answer("boxes", Asked(IMAGE, Vocabulary.of(["x"]), None))


def test_answers_of_a_mini_model_say_what_it_does_not_know():
    semantic = load("mini", device="cpu")
    served = answers.Answers(
        clips={"a": semantic.model.clip}, side=64, predictors={"semantic": semantic}
    )
    for words, said in (("dog, red star", 'no "dog": its answers mean'), ("grass, sand", "")):
        asked = Asked(np.zeros((128, 192, 3), np.uint8), Vocabulary.of(words.split(", ")), None)
        image = served.answer("maps", asked)["image"]
        for answer in (image, served.answer("semantic", asked)):
            assert said in answer["warning"] and bool(said) == bool(answer["warning"])


def test_a_detector_is_asked_for_the_words_alone_and_says_so():
    served = answers.Answers(
        clips={"a": random_clip()}, side=64, predictors={"boxes": load("mini-fvit", device="cpu")}
    )
    words = read_request(request(words="red star, grass"), LIMITS).words
    given = read_request(request(words="red star, grass", examples=[BOX]), LIMITS).words
    plain, asked = (served.answer("boxes", Asked(noise(128, 192), w, None)) for w in (words, given))
    assert asked.pop("warning").endswith("boxes are found by words, without examples")
    assert "examples" not in plain.pop("warning") and asked == plain
