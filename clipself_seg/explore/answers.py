"""Requests to the server, within limits, and the answers of its models.

A request is an image and words, of which nothing is used as a path. Each method of `Answers` is for one thread at a
time.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from clipself_seg.clip import VisionLanguageBackbone
from clipself_seg.data.images import TooManyPixels, decode_image, fit_size
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError, check_keys
from clipself_seg.explore.content import Content, PanopticView, jpeg_address
from clipself_seg.prediction import task_predictors
from clipself_seg.prediction.predictor import ImagePredictor
from clipself_seg.prediction.results import Detections, PanopticSegmentation, Segmentation
from clipself_seg.schema import LIST, TEXT, Kind, Schema, check, is_number

LARGEST_SIDE = 1600  # pixels of an image for the models; a larger one is made smaller
MOST_LETTERS = 60  # of a word
# But for tabs and ends of lines. Messages with words of visitors stand in the terminal, which would obey them.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
MOST_EXAMPLES = 10  # of a request, each with an image
VALUES = 20  # brackets and commas of an example, at most
OVERLAY_SIDE = 1024  # longest side in pixels of an overlay on the page
MOST_TEXTS = 50  # answers after which the files of text embeddings go
MOST_LISTED = 100  # lines of a list
Answer = dict[str, object]  # JSON
BOX = Kind(
    "four numbers from 0 to 1",
    lambda box: LIST.test(box)
    and [is_number(side) and 0 <= side <= 1 for side in box] == [True] * 4,
)
EXAMPLES = Kind(
    f"a list of at most {MOST_EXAMPLES}",
    lambda value: LIST.test(value) and len(value) <= MOST_EXAMPLES,
)
KEYS = ("image", "words", "stuff", "examples")
REQUEST: Schema = {"image?": TEXT, "words?": TEXT, "stuff?": TEXT, "examples?": EXAMPLES}
EXAMPLE: Schema = {"name": TEXT, "image": TEXT, "box": BOX}
R = TypeVar("R", Segmentation, PanopticSegmentation, Detections)


class Limits(NamedTuple):
    """Limits of a request.

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
        stuff: classes that are stuff; None for none.
    """

    image: np.ndarray
    words: Vocabulary
    stuff: Vocabulary | None


def read_request(body: bytes, limits: Limits) -> Asked:
    """Reads a request: a JSON object of "image" (base64 of a file), "words" and "stuff" (text), and "examples".

    An example is an object of "name", "image" and "box": x, y, width and height as fractions of the image.

    Raises:
        InputError: it is not of that form, or beyond the limits.
    """
    # As many values as the brackets and commas, which only words and stuff need more of. Many take long to build.
    most = 2 * limits.words * (MOST_LETTERS + 2) + len(KEYS) + VALUES * MOST_EXAMPLES
    if sum(map(body.count, b"[{,")) > most:
        raise InputError(
            "the request has too many brackets and commas: send an image and fewer words"
        )
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError("the request is no JSON: send image, words and stuff") from None
    check(given, REQUEST, "the request")
    check_keys(given, KEYS, "the request")
    examples, stuff = given.get("examples", []), given.get("stuff", "")
    check(examples, [EXAMPLE], "the request", place="examples")
    words = typed_words(given.get("words", ""), limits)
    for one in examples:
        name = " ".join(re.split(r"[,\s]+", one["name"]))
        (entry,) = typed_words(f"{name},", limits).classes
        pixels = _image(one["image"], limits)
        region = np.multiply(one["box"], pixels.shape[1::-1] * 2)
        words = words.with_examples({"|".join(entry.names): [(pixels, region)]})
    image = _image(given.get("image", ""), limits)
    return Asked(image, words, typed_words(stuff, limits) if stuff.strip() else None)


def typed_words(text: str, limits: Limits) -> Vocabulary:
    """The vocabulary that was typed: "dog|puppy, grass", or the name of a built-in one; never a file.

    Raises:
        InputError: no words, too many, too long ones, or one word twice.
    """
    if len(text) > limits.words * (MOST_LETTERS + 2):
        raise InputError(f"the words are {len(text)} letters long: give fewer")
    if CONTROL.search(text):
        raise InputError("the words have control characters: type letters alone")
    if text.strip() in Vocabulary.available():
        words = Vocabulary.load(text.strip())
    else:
        entries = text.replace("\n", ",").split(",")
        words = Vocabulary.of(
            [entry for entry in entries if entry.strip()], origin="the list of words"
        )
    names = [name for entry in words.classes for name in entry.names]
    if len(names) > limits.words:
        raise InputError(f"{len(names)} words, synonyms among them: give {limits.words} at most")
    if long := next((name for name in names if len(name) > MOST_LETTERS), None):
        raise InputError(
            f'the word "{long[:20]}..." has more than {MOST_LETTERS} letters: shorten it'
        )
    return words


def _image(text: str, limits: Limits) -> np.ndarray:
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        content = b""
    if not content:
        raise InputError("there is no image, or it is no base64 of a file: choose one")
    try:
        pixels = decode_image(content, "that was sent", limits.pixels)
    except TooManyPixels:
        raise InputError(
            f"the image has more than the {limits.pixels} pixels that are taken here: send a smaller one"
        ) from None
    whole = Image.fromarray(pixels)
    if max(whole.size) <= LARGEST_SIDE:
        return pixels
    size = fit_size(whole.width, whole.height, LARGEST_SIDE)
    return np.asarray(whole.resize(size, Image.Resampling.BICUBIC))


class Answers:
    """The models of a server."""

    def __init__(
        self,
        *,
        clips: Mapping[str, VisionLanguageBackbone],
        side: int | None = None,
        predictors: Mapping[str, Any] | None = None,
        texts: Path | None = None,
    ) -> None:
        """
        Args:
            clips: models of the heat maps by title.
            side: see `Content`.
            predictors: predictors that may be asked, by "semantic", "panoptic" and "boxes".
            texts: folder of this server alone in which text embeddings are kept, emptied from time to time.
        """
        self.clips = clips
        self.side = side
        self.predictors = predictors or {}
        self.texts = texts
        self._answered = 0

    def answer(self, task: str, asked: Asked) -> Answer:
        """The answer of one of the models, JSON.

        Args:
            task: "maps", "view" (what the page needs to fuse and merge by itself), or a key of `predictors`.
            asked: image and words.

        Raises:
            InputError: the words do not fit the model.
            KeyError: the server has no such model.
        """
        # Models keep few texts in memory; their files are of this server alone, and would grow without end.
        self._answered += 1
        if self.texts is not None and self._answered % MOST_TEXTS == 0:
            for path in self.texts.glob("text/*.safetensors"):
                path.unlink(missing_ok=True)
        answers = {
            "maps": self._maps,
            "view": self._view,
            "semantic": self._semantic,
            "panoptic": self._panoptic,
            "boxes": self._boxes,
        }
        return answers[task](asked)

    def _maps(self, asked: Asked) -> Answer:
        content = Content(clips=self.clips, words=asked.words, side=self.side)
        return {"models": content.models(), "image": content.image(asked.image, "")}

    def _view(self, asked: Asked) -> Answer:
        view = PanopticView(self._with_stuff(asked))
        return {"model": view.model(), "image": view.image(asked.image)}

    def _semantic(self, asked: Asked) -> Answer:
        predictor: task_predictors.SemanticPredictor = self.predictors["semantic"]
        predictor.set_vocabulary(asked.words)
        result = predictor(asked.image)
        scores = dict(zip(result.names, result.class_scores))
        rows = [
            [name, f"{100 * fraction:.1f} %", f"{scores[name]:.2f}"]
            for name, fraction in result.fractions().items()
        ]
        return _answer(predictor, result, ("word", "area", "score"), rows)

    def _panoptic(self, asked: Asked) -> Answer:
        predictor = self._with_stuff(asked)
        result = predictor(asked.image)
        seen = predictor.require_words().seen
        rows = []
        for segment in result.segments:
            kind = "thing" if segment.isthing else "stuff"
            kind += "" if seen[segment.label] else ", unseen"
            area = f"{100 * segment.area / result.ids.size:.1f} %"
            rows.append([segment.name, area, f"{segment.score:.2f}", kind])
        return _answer(predictor, result, ("segment", "area", "score", "kind"), rows)

    def _boxes(self, asked: Asked) -> Answer:
        predictor: task_predictors.DetectionPredictor = self.predictors["boxes"]
        words = dataclasses.replace(asked.words, classes=tuple(asked.words.worded), examples=())
        predictor.set_vocabulary(words)
        result = predictor(asked.image)
        rows = [
            [
                result.names[label],
                f"{score:.2f}",
                "seen" if result.seen[label] else "unseen",
                "{:.0f}, {:.0f} to {:.0f}, {:.0f}".format(*box),
            ]
            for box, score, label in zip(result.boxes, result.scores, result.labels)
        ]
        answer = _answer(predictor, result, ("word", "score", "class", "box in pixels"), rows)
        if asked.words.examples:
            said = filter(None, (answer["warning"], "boxes are found by words, without examples"))
            answer["warning"] = ". ".join(map(str, said))
        return answer

    def _with_stuff(self, asked: Asked) -> task_predictors.PanopticPredictor:
        predictor: task_predictors.PanopticPredictor = self.predictors["panoptic"]
        if asked.stuff is None and asked.words.classes[0].isthing is not None:
            predictor.set_vocabulary(asked.words)
        else:
            stuff = "" if asked.stuff is None else asked.stuff
            predictor.set_vocabulary(task_predictors.panoptic_words(asked.words, stuff))
        return predictor


def _answer(
    predictor: ImagePredictor[R], result: R, columns: Sequence[str], rows: list[list[str]]
) -> Answer:
    return {
        "warning": predictor.warning_of([result.image]),
        "overlay": jpeg_address(np.asarray(result.overlay(legend=False)), OVERLAY_SIDE),
        "columns": columns,
        "rows": rows[:MOST_LISTED],
        "more": max(0, len(rows) - MOST_LISTED),
    }
