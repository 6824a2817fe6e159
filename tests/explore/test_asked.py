"""What a request may ask: within limits, and never for a file."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from clipself_seg.errors import InputError
from clipself_seg.explore.asked import LARGEST_SIDE, Limits, read_request, typed_words

LIMITS = Limits(pixels=4_000_000, words=6)


def png(width: int, height: int) -> str:
    """Base64 of a PNG."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (9, 90, 200)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def request(**values) -> bytes:
    return json.dumps({"image": png(20, 10), "words": "dog|puppy, grass", **values}).encode()


def test_an_image_and_words_are_read():
    asked = read_request(request(stuff="grass"), LIMITS)
    assert asked.image.shape == (10, 20, 3) and (asked.image == (9, 90, 200)).all()
    assert [entry.names for entry in asked.words.classes] == [("dog", "puppy"), ("grass",)]
    assert asked.stuff.names == ("grass",)
    assert read_request(request(), LIMITS).stuff is None


def test_a_large_image_is_made_smaller():
    asked = read_request(request(image=png(2000, 500)), LIMITS)
    assert asked.image.shape == (LARGEST_SIDE // 4, LARGEST_SIDE, 3)


def test_words_are_never_a_file(tmp_path):
    for ending in (".txt", ".json"):
        path = tmp_path / f"w{ending}"
        path.write_text("secret")
        assert typed_words(str(path)[-50:], LIMITS).names == (str(path)[-50:],)
    assert typed_words("mini_base", Limits()).name == "mini_base"
    assert typed_words("dog\ngrass,, sky\n", LIMITS).names == ("dog", "grass", "sky")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"words": "a|b|c, d, e, f, g"}, "7 words, synonyms among them: give 6 at most"),
        ({"words": "x" * 61}, "more than 60 letters"),
        ({"words": "x" * 9999}, "9999 letters long"),
        ({"words": " , "}, "the list of words is empty"),
        ({"words": "dog, Dog"}, "twice"),
        ({"words": "dog, \x1b]0;\x07cat"}, "control characters"),
        ({"words": "dog, \ud800"}, "no text in UTF-8"),
        ({"words": 3}, "words is 3, no text"),
        ({"image": ""}, "choose one"),
        ({"image": "///"}, "no base64"),
        ({"image": "a\u0301"}, "no base64"),
        ({"image": base64.b64encode(b"<svg>").decode()}, "not an image of"),
        ({"image": png(3000, 2000)}, "more than the 4000000 pixels"),
        ({"path": "/etc/passwd"}, "no object of image, words and stuff"),
    ],
)
def test_what_cannot_be_used_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        read_request(request(**values), LIMITS)


@pytest.mark.parametrize("body", [b"", b"[1]", b"\xff", b"[" * 100_000, b'{"image": NaN}'])
def test_what_is_no_request_is_refused(body):
    with pytest.raises(InputError):
        read_request(body, LIMITS)


def test_an_image_is_what_was_sent():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    sent = base64.b64encode(file.getvalue()).decode()
    assert (read_request(request(image=sent), LIMITS).image == pixels).all()
