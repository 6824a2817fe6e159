"""Image-caption pairs for the mini CLIP: letterboxed crops of scenes, and captions of their content."""

from __future__ import annotations

import dataclasses
import functools
import re

import numpy as np

from clipself_seg.data.images import letterbox_crops, pixel_corners
from clipself_seg.data.regions import enlarge_boxes, grid_boxes, grid_pairs
from lab.mini.concepts import COLOURS, WORLDS, Concept
from lab.mini.scenes import Scene, Segment

Box = tuple[float, float, float, float]

CROPS_A_SCENE = {"thing": 6, "stuff": 2, "cell": 4, "scene": 1}
"""Number of crops of each kind: things and stuff with context, grid cells, the whole scene."""

COLOURLESS = 0.35
"""Fraction of the things whose training captions name their shape alone."""

_QUALITIES = (
    *("good", "bad", "bright", "dark", "cropped", "close-up", "low resolution"),
    *("jpeg corrupted", "blurry", "pixelated", "black and white"),
)
_KINDS = (
    *("plastic", "toy", "plushie", "cartoon", "embroidered", "nice", "cool", "weird"),
    *("small", "large", "clean"),
)
_ARTICLES = ("the", "one", "my", "a")
_BEFORE = ("on", "in front of")


@dataclasses.dataclass(frozen=True)
class Crop:
    """A letterboxed crop and what a caption may mention.

    Attributes:
        pixels: (side, side, 3) uint8 RGB.
        things: visible things, the main one first.
        stuff: visible stuff, the largest first.
        subject: whether the crop is centred on its first thing (or, without things, its first stuff),
            so that a caption may leave the rest out.
    """

    pixels: np.ndarray
    things: tuple[Concept, ...]
    stuff: tuple[Concept, ...]
    subject: bool


def visible_concepts(
    scene: Scene, box: Box, main: Segment | None = None
) -> tuple[tuple[Concept, ...], tuple[Concept, ...]]:
    """Things and stuff of which a box shows enough to name them, largest first, `main` before all.

    Args:
        scene: scene of the box.
        box: (x0, y0, x1, y1) in pixels.
        main: segment that the box was drawn around.
    """
    x0, y0, x1, y1 = pixel_corners(np.array([box]), *scene.image.shape[1::-1])[0]
    window = scene.segment_map[y0:y1, x0:x1]
    counts = np.bincount(window.ravel(), minlength=len(scene.segments) + 1)
    order = sorted(scene.segments, key=lambda segment: -counts[segment.id])
    things = []
    stuff = []
    for segment in order:
        covered = counts[segment.id] / window.size
        if segment is main:
            continue
        shown = counts[segment.id] / segment.area
        # Most of a thing, or a considerable part of it that fills a considerable part of the box.
        named = (shown > 0.5 and covered > 0.02) or (shown > 0.15 and covered > 0.15)
        if segment.concept.isthing and named:
            things.append(segment.concept)
        elif not segment.concept.isthing and covered > 0.12:
            stuff.append(segment.concept)
    if main is not None:
        (things if main.concept.isthing else stuff).insert(0, main.concept)
    return tuple(things), tuple(stuff)


def _make(scene: Scene, box: Box, side: int, main: Segment | None) -> Crop | None:
    if min(box[2] - box[0], box[3] - box[1]) < 8:
        return None
    things, stuff = visible_concepts(scene, box, main)
    if not things and not stuff:
        return None
    subject = main is not None or len(things) + len(stuff) == 1
    pixels = letterbox_crops(scene.image, np.array([box]), side)[0]
    return Crop(pixels, things, stuff, subject)


def _cell(rng: np.random.Generator, size: tuple[int, int]) -> Box:
    pairs = grid_pairs(6)
    cells = grid_boxes(*pairs[rng.integers(len(pairs))], width=size[1], height=size[0])
    return _box(cells[rng.integers(len(cells))])


def _around(box: Box, factor: float, size: tuple[int, int]) -> Box:
    return _box(enlarge_boxes(np.array([box]), factor, width=size[1], height=size[0])[0])


def _box(corners: np.ndarray) -> Box:
    x0, y0, x1, y1 = corners.tolist()
    return x0, y0, x1, y1


def sample_crops(rng: np.random.Generator, scene: Scene, side: int) -> list[Crop]:
    """Crops of a scene such as the teacher of CLIPSelf gets: things with context, stuff, cells, all of it.

    Args:
        rng: generator that decides the boxes.
        scene: scene to cut from.
        side: side of the crops in pixels.
    """
    size = scene.image.shape[:2]
    things = [segment for segment in scene.segments if segment.concept.isthing]
    stuff = [segment for segment in scene.segments if not segment.concept.isthing]
    wanted: list[tuple[Box, Segment | None]] = []
    for i in range(CROPS_A_SCENE["thing"]):
        segment = things[i % len(things)]
        wanted.append((_around(segment.box, float(rng.uniform(1.0, 2.0)), size), segment))
    for i in range(min(CROPS_A_SCENE["stuff"], len(stuff))):
        wanted.append((_around(stuff[i].box, float(rng.uniform(0.6, 1.0)), size), stuff[i]))
    wanted += [(_cell(rng, size), None) for _ in range(CROPS_A_SCENE["cell"])]
    wanted += [((0.0, 0.0, float(size[1]), float(size[0])), None)] * CROPS_A_SCENE["scene"]
    crops = (_make(scene, box, side, main) for box, main in wanted)
    return [crop for crop in crops if crop is not None]


def _phrase(rng: np.random.Generator, concept: Concept) -> str:
    name = concept.names[rng.integers(len(concept.names))]
    if rng.random() < 0.05:
        name = f"{_KINDS[rng.integers(len(_KINDS))]} {name}"
    if rng.random() < 0.15:
        return f"{_ARTICLES[rng.integers(len(_ARTICLES))]} {name}"
    return f"a {name}" if concept.isthing else name


def _frame(rng: np.random.Generator, phrase: str) -> str:
    """Put a phrase into a sentence such as those of the prompt templates."""
    choice = rng.random()
    if choice < 0.15:
        return phrase
    if choice < 0.25:
        return f"there is {phrase} in the scene."
    if choice < 0.3:
        return f"itap of {phrase}."
    quality = f"{_QUALITIES[rng.integers(len(_QUALITIES))]} " if rng.random() < 0.4 else ""
    kind = "painting" if rng.random() < 0.05 else "photo"
    sentence = f"a {quality}{kind} of {phrase}"
    sentence = f"this is {sentence}" if rng.random() < 0.4 else sentence
    return sentence + ("." if rng.random() < 0.7 else "")


def _join(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def choose_mentions(
    rng: np.random.Generator, things: tuple[Concept, ...], stuff: tuple[Concept, ...], subject: bool
) -> tuple[tuple[Concept, ...], tuple[Concept, ...]]:
    """Things and stuff that one caption mentions: often the subject alone, else up to three and two."""
    if subject and rng.random() < 0.7:
        return (things[:1], ()) if things else ((), stuff[:1])
    if things and rng.random() < 0.5:
        return things[:3], ()
    return things[:3], stuff[:2]


def leave_out_colours(rng: np.random.Generator, things: tuple[Concept, ...]) -> tuple[Concept, ...]:
    """Things, some of them named without their colour: else embeddings would be mostly of colour."""
    return tuple(thing.without_colour() if rng.random() < COLOURLESS else thing for thing in things)


def write_caption(
    rng: np.random.Generator, things: tuple[Concept, ...], stuff: tuple[Concept, ...]
) -> str:
    """Sentence that mentions things (in this order) and stuff: "a photo of a red star on grass"."""
    named = [concepts for concepts in (things, stuff) if concepts]
    parts = [_join([_phrase(rng, concept) for concept in concepts]) for concepts in named]
    return _frame(rng, f" {_BEFORE[rng.integers(2)]} ".join(parts))


def tag_caption(caption: str) -> list[tuple[str, str]]:
    """Words of a caption of `write_caption` with their tags, for `noun_phrases`.

    Words about the photo and not about the scene get the tag "FW", so that they are in no phrase.
    """
    words = re.findall(r"[\w-]+|[^\w\s]", caption)
    return [(word, _tags().get(word, "FW")) for word in words]


@functools.cache
def _tags() -> dict[str, str]:
    names = {name for spec in WORLDS.values() for entry in spec.concepts for name in entry.names}
    tags = {word: "NN" for name in names for word in name.split()}
    tags |= dict.fromkeys((*COLOURS, *_KINDS), "JJ") | dict.fromkeys(_ARTICLES, "DT")
    return tags | {word: "IN" for phrase in _BEFORE for word in phrase.split()}
