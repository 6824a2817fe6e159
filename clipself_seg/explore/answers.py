"""Requests to the server, within limits, and the answers of its models.

A request is an image and words, of which nothing is used as a path. Each method of `Answers` is for one thread at a
time. `Question` and `Answer` are the API's: their docstrings are its description at /docs.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipself_seg.clip import VisionLanguageBackbone
from clipself_seg.data.images import decode_image
from clipself_seg.data.masks import mask_as_json
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.explore.content import Content, PanopticView
from clipself_seg.prediction.predictor import GivenWords, ImagePredictor
from clipself_seg.prediction.results import Prediction, colours_of
from clipself_seg.prediction.task_predictors import panoptic_words

MOST_LETTERS = 60  # of a word
# But for tabs and ends of lines. Messages with words of visitors stand in the terminal, which would obey them.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
PLAIN = f"^[^{CONTROL.pattern[1:]}*$"  # text without them, in pydantic's words
MOST_EXAMPLES = 10  # of a request, each with an image
VALUES = 20  # brackets and commas of an example or of the other keys, at most
Fraction = Annotated[float, Field(ge=0, le=1)]


class Example(BaseModel):
    """A region of an image that stands for a word of the question, or for a further class.

    Attributes:
        name: the word or the class, with synonyms as in "dog|puppy".
        image: base64 of an image file.
        box: x, y, width and height of the region, as fractions of the image.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    name: str
    image: str
    box: tuple[Fraction, Fraction, Fraction, Fraction]


class Question(BaseModel):
    """An image, and the words to look for.

    Attributes:
        image: base64 of an image file, such as a JPEG or PNG.
        words: class names as in "dog|puppy, grass" ("|" between synonyms), or the name of a built-in vocabulary.
        stuff: the words that are stuff, of which a panoptic model does not tell one object from another.
        examples: regions that stand for words, or for classes without one.
        absent: "drop" leaves out words that are not in the image, "mark" only names them.
        background: for a semantic model, the name of what is none of the words; such pixels are in no segment. There
            "drop" needs one.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    image: str
    words: str
    stuff: str = ""
    examples: list[Example] = Field(default=[], max_length=MOST_EXAMPLES)
    absent: Literal["drop", "mark"] | None = None
    background: Annotated[str, Field(max_length=MOST_LETTERS, pattern=PLAIN)] | None = None


class RunLengths(BaseModel):
    """COCO's compressed run lengths of a mask.

    Attributes:
        size: height and width of the image.
        counts: the runs, which `decode` of pycocotools.mask reads.
    """

    size: tuple[int, int]
    counts: str


class Segment(BaseModel):
    """A class of the image, a segment or an object, in pixels of the image that was sent.

    Attributes:
        name: the first of its synonyms.
        score: from 0 to 1.
        box: x, y, width and height.
        area: of the mask, or else of the box.
        segmentation: the mask; null of a model of boxes alone.
        thing: false of a word that is stuff.
        seen: true if training has shown the class; null of a semantic model.
        colour: red, green and blue of the class, as on overlays.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    area: int
    segmentation: RunLengths | None
    thing: bool
    seen: bool | None
    colour: tuple[int, int, int]


class Answer(BaseModel):
    """The segments of an image: classes and panoptic segments, the largest first, or objects, the best first.

    Attributes:
        width: of the image as it is meant to be seen, in pixels.
        height: the same.
        segments: the segments.
        presence: score of each word in the image, where absent words were asked for.
        absent: the words that are not in the image, where they were asked for.
        warning: a sentence if the model does not know words or images like these, else empty.
        weights: hash of the model's weights.
    """

    width: int
    height: int
    segments: list[Segment]
    presence: dict[str, float] | None
    absent: list[str]
    warning: str
    weights: str


class Limits(NamedTuple):
    """Limits of a request.

    Attributes:
        size: bytes of a request.
        pixels: of an image.
        words: names, synonyms among them.
        seconds: until an answer is given up.
        waiting: requests that may wait for a model.
        side: pixels of an image for the models; a larger one is made smaller.
    """

    size: int = 20_000_000
    pixels: int = 25_000_000
    words: int = 256
    seconds: float = 120
    waiting: int = 8
    side: int = 1600


class Asked(NamedTuple):
    """A question as the models take it.

    Attributes:
        image: (H, W, 3) uint8 RGB, no larger than the limit.
        size: height and width in pixels of the image that was sent.
        words: classes to look for, each a thing or stuff.
        absent: as in the question.
        background: one class, as in the question.
    """

    image: np.ndarray
    size: tuple[int, int]
    words: Vocabulary
    absent: str | None = None
    background: str | None = None


def read_request(body: bytes, limits: Limits) -> Asked:
    """Reads a request: the JSON of a `Question`.

    Raises:
        InputError: it is not of that form, or beyond the limits.
    """
    # As many values as the brackets and commas, which only words and stuff need more of. Many take long to build.
    most = 2 * limits.words * (MOST_LETTERS + 2) + VALUES * (MOST_EXAMPLES + 1)
    if sum(map(body.count, b"[{,")) > most:
        raise InputError("the request has too many brackets and commas: send fewer words")
    try:
        question = Question.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(["the request", *map(str, problem["loc"])])[: 2 * MOST_LETTERS]
        raise InputError(f"{place}: {problem['msg']}: correct it as /docs says") from None
    words = typed_words(question.words, limits)
    for one in question.examples:
        (entry,) = typed_words(" ".join(re.split(r"[,\s]+", one.name)) + ",", limits).classes
        pixels = _image(one.image, limits)
        region = np.multiply(one.box, pixels.shape[1::-1] * 2)
        words = words.with_examples({"|".join(entry.names): [(pixels, region)]})
    stuff = typed_words(question.stuff, limits) if question.stuff.strip() else ""
    if stuff or words.classes[0].isthing is None:
        words = panoptic_words(words, stuff)
    image = _image(question.image, limits)
    smaller = Image.fromarray(image)
    smaller.thumbnail((limits.side, limits.side), Image.Resampling.BICUBIC)
    size = image.shape[0], image.shape[1]
    return Asked(np.array(smaller), size, words, question.absent, question.background)


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
        entries = [entry for entry in text.replace("\n", ",").split(",") if entry.strip()]
        words = Vocabulary.of(entries, origin="the list of words")
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
    return decode_image(content, "that was sent", limits.pixels)


@dataclasses.dataclass(kw_only=True)
class Answers:
    """The models of a server.

    Attributes:
        clips: models of the heat maps by title.
        side: see `Content`.
        predictors: predictors that may be asked, by task.
    """

    clips: Mapping[str, VisionLanguageBackbone]
    side: int | None = None
    predictors: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def weights(self) -> dict[str, str]:
        """Hash of the weights of each model, by task."""
        return {task: one.model.weights_hash() for task, one in self.predictors.items()}

    def answer(self, task: str, asked: Asked) -> dict[str, object]:
        """The answer of one of the models, JSON.

        Args:
            task: "maps" (what the page computes heat maps of, and fuses and merges segments of), or a key of
                `predictors`, whose answer is an `Answer`.
            asked: image and words.

        Raises:
            InputError: the words do not fit the model.
            KeyError: the server has no such model.
        """
        if task == "maps":
            view = None
            if (panoptic := self.predictors.get("panoptic")) and panoptic.model.masks.generates:
                panoptic.set_vocabulary(asked.words)
                view = PanopticView(panoptic)
            content = Content(clips=self.clips, words=asked.words, side=self.side, panoptic=view)
            return {"models": content.models(), "image": content.image(asked.image, "")}
        return self._segments(task, asked).model_dump()

    def _segments(self, task: str, asked: Asked) -> Answer:
        predictor: ImagePredictor[Any] = self.predictors[task]
        given = _words(predictor, asked)
        predictor.set_absent(asked.absent)
        (result,) = predictor.predict_batch([asked.image], given)
        warnings = [predictor.warning_of([asked.image], given)]
        if task == "detection" and asked.words.examples:
            warnings.append("boxes are found by words, without examples")
        return Answer(
            width=asked.size[1],
            height=asked.size[0],
            segments=list(_segments_of(result, given, asked.size)),
            presence=result.presence,
            absent=list(result.absent),
            warning=". ".join(filter(None, warnings)),
            weights=self.weights[task],
        )


def _words(predictor: Any, asked: Asked) -> GivenWords:
    """The words of a question, as the predictor of a task reads them."""
    words, further = asked.words, {}
    if predictor.task == "semantic":
        further = {"background": asked.background}
    elif predictor.task == "detection":
        words = dataclasses.replace(words, classes=tuple(words.worded), examples=())
    given: GivenWords = predictor.read(words, **further)
    return given


def _segments_of(result: Prediction, given: GivenWords, size: tuple[int, int]) -> Iterator[Segment]:
    """The regions of a prediction in an image of another size (height, width) than its own."""
    height, width = size
    regions, colours = result.streamed_regions(), colours_of(result.names).tolist()
    scale = np.divide(size, result.image.shape[:2])[[1, 0, 1, 0]]
    for index, (label, box) in enumerate(zip(regions.labels, regions.boxes_xywh() * scale)):
        mask: RunLengths | None
        mask, area = None, round(box[2] * box[3])
        if regions.masks is not None:
            pixels = regions.masks[index].astype(np.uint8)
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            mask, area = RunLengths(**mask_as_json(pixels)), int(pixels.sum())
        yield Segment(
            name=result.names[label],
            score=float(regions.scores[index]),
            box=box.tolist(),
            area=area,
            segmentation=mask,
            thing=given.vocabulary.classes[label].isthing is not False,
            seen=None if given.seen is None else bool(given.seen[label]),
            colour=colours[label],
        )
