"""Parses what is sent to the server, an image and words, within limits. Nothing of it is used as a path."""

from __future__ import annotations

import base64
import json
import re
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipself_seg.data.images import decode_image, fit_size
from clipself_seg.data.vocabulary import (
    Vocabulary,
    available_vocabularies,
    load_vocabulary,
    own_words,
)
from clipself_seg.errors import InputError, shown

LARGEST_SIDE = 1600  # pixels of an image for the models; a larger one is made smaller
MOST_LETTERS = 60  # of a word
# But for tabs and ends of lines. Messages with words of visitors stand in the terminal, which would obey them.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
KEYS = {"image", "words", "stuff"}


class Limits(NamedTuple):
    """What a request may ask for.

    Attributes:
        size: bytes of a request.
        pixels: of an image.
        words: names, synonyms among them.
        seconds: until an answer is given up.
        waiting: requests that may wait for a model.
    """

    size: int = 20_000_000
    pixels: int = 25_000_000
    words: int = 200
    seconds: float = 120
    waiting: int = 8


class Asked(NamedTuple):
    """A request to the server.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        words: classes to look for.
        stuff: those that are stuff; None for none.
    """

    image: np.ndarray
    words: Vocabulary
    stuff: Vocabulary | None


def read_request(body: bytes, limits: Limits) -> Asked:
    """Read a request: a JSON object of "image" (base64 of a file), "words" and "stuff" (text).

    Raises:
        InputError: it is not of that form, or beyond the limits.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError("the request is no JSON: send image, words and stuff") from None
    if not isinstance(given, dict) or not given.keys() <= KEYS:
        raise InputError("the request is no object of image, words and stuff")
    stuff = _text(given, "stuff")
    words = typed_words(_text(given, "words"), limits)
    image = _image(_text(given, "image"), limits)
    return Asked(image, words, typed_words(stuff, limits) if stuff.strip() else None)


def typed_words(text: str, limits: Limits) -> Vocabulary:
    """The vocabulary that was typed: "dog|puppy, grass", or the name of a built-in one; never a file.

    Raises:
        InputError: no words, too many, too long ones, or one word twice.
    """
    if CONTROL.search(text):
        raise InputError("the words have control characters: type letters alone")
    if text.strip() in available_vocabularies():
        words = load_vocabulary(text.strip())
    else:
        if len(text) > limits.words * (MOST_LETTERS + 2):
            raise InputError(f"the words are {len(text)} letters long: give fewer")
        entries = text.replace("\n", ",").split(",")
        words = own_words([entry for entry in entries if entry.strip()], origin="the list of words")
    names = [name for entry in words.classes for name in entry.names]
    if len(names) > limits.words:
        raise InputError(f"{len(names)} words, synonyms among them: give {limits.words} at most")
    if long := next((name for name in names if len(name) > MOST_LETTERS), None):
        raise InputError(
            f'the word "{long[:20]}..." has more than {MOST_LETTERS} letters: shorten it'
        )
    return words


def _text(given: dict[str, Any], key: str) -> str:
    value = given.get(key, "")
    if not isinstance(value, str):
        raise InputError(f"{key} is {shown(value)}, no text")
    return value


def _image(text: str, limits: Limits) -> np.ndarray:
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        raise InputError("the image is no base64 of a file") from None
    if not content:
        raise InputError("there is no image: choose one")
    pixels = decode_image(content, "that was sent", limits.pixels)
    whole = Image.fromarray(pixels)
    if max(whole.size) <= LARGEST_SIDE:
        return pixels
    size = fit_size(whole.width, whole.height, LARGEST_SIDE)
    return np.asarray(whole.resize(size, Image.Resampling.BICUBIC))
