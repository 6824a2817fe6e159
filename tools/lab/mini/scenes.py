"""Drawing of a scene: a background of stuff, things in front of it, and the segment of each pixel."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from clipself_seg.data.masks import tight_box
from lab.mini.concepts import COLOURS, Concept, WorldSpec
from lab.mini.shapes import MAX_TILT, Pose, shape_alpha, surface
from lab.mini.textures import TEXTURES, pixel_grid, smooth_noise

MIN_SEGMENT_AREA = 64
"""Smallest segment in pixels; smaller pieces of stuff become void, smaller things are not placed."""

MIN_VISIBLE = 0.65
"""Fraction of a thing that must stay visible behind the things in front of it."""

THING_SIZES = (0.17, 0.52)
"""Smallest and largest side of a thing's frame as a fraction of the scene's longer side."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """A visible thing or kind of stuff.

    Attributes:
        id: value in `Scene.segment_map`, from 1.
        concept: class of the segment.
        box: (x0, y0, x1, y1) in pixels, tight around the visible pixels, exclusive end.
        area: number of visible pixels.
    """

    id: int
    concept: Concept
    box: tuple[int, int, int, int]
    area: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """An image and its panoptic ground truth.

    Attributes:
        image: (height, width, 3) uint8 RGB.
        segment_map: (height, width) uint8, 0 = void.
        segments: things from back to front, then stuff.
    """

    image: np.ndarray
    segment_map: np.ndarray
    segments: tuple[Segment, ...]


def _bands(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """Wavy bands one below or beside the other, (height, width) in 0..count-1."""
    y, x = pixel_grid(height, width)
    upright = rng.random() < 0.3
    along = x / width if upright else y / height
    along = along + 0.05 * smooth_noise(rng, height, width, 48)
    along = along + rng.uniform(-0.25, 0.25) * ((y / height if upright else x / width) - 0.5)
    widths = rng.uniform(0.7, 1.3, count)
    return np.searchsorted(np.cumsum(widths / widths.sum())[:-1], along)


def _patchwork(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """Cells around scattered centres, three for each kind of stuff, (height, width) in 0..count-1."""
    y, x = pixel_grid(height, width)
    centres = rng.uniform(0, 1, (3 * count, 2)) * (height, width)
    wobble = 6 * smooth_noise(rng, height, width, 20)
    distances = [np.abs(y + wobble - cy) + np.abs(x - wobble - cx) for cy, cx in centres]
    return np.argmin(np.stack(distances), axis=0) % count


LAYOUTS = {"bands": _bands, "patchwork": _patchwork}


def _background(
    rng: np.random.Generator, spec: WorldSpec, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, list[Concept]]:
    count = int(rng.integers(2, 5))
    chosen = [spec.stuff[i] for i in rng.choice(len(spec.stuff), count, replace=False)]
    layout = LAYOUTS[spec.layout](rng, height, width, count)
    image = np.zeros((height, width, 3), np.float32)
    for index, concept in enumerate(chosen):
        assert concept.texture is not None
        texture = TEXTURES[concept.texture](rng, height, width)
        tint = rng.normal(0, 5, 3).astype(np.float32)
        # One blurred edge pixel hides the staircase between two textures.
        alpha = cv2.GaussianBlur((layout == index).astype(np.float32), (3, 3), 0)[..., None]
        image += alpha * (texture + tint)
    return image, layout, chosen


def _random_pose(rng: np.random.Generator, shape: str, height: int, width: int) -> Pose:
    longer = max(height, width)
    low, high = (np.log(size * longer) for size in THING_SIZES)
    radius = 0.5 * float(np.exp(rng.uniform(low, high)))
    margin = 0.8 * radius
    tilt = MAX_TILT[shape]
    return Pose(
        centre=(rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)),
        radius=radius,
        angle=float(rng.uniform(-tilt, tilt)),
        stretch=float(rng.uniform(0.87, 1.15)),
    )


def _draw_thing(
    rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray, light: np.ndarray, colour: str
) -> np.ndarray:
    """Paint a marked, shaded, outlined thing with a soft shadow over the image."""
    height, width = alpha.shape
    shift = np.array([[1, 0, 2.5], [0, 1, 3.0]], np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, shift, (width, height)), (0, 0), 2.0)
    image = image * (1 - 0.38 * shadow[..., None])
    y, x = pixel_grid(height, width)
    x0, y0, x1, y1 = tight_box(alpha > 0.5)
    turn = rng.uniform(0, 2 * np.pi)
    across = np.cos(turn) * (x - (x0 + x1) / 2) / (x1 - x0)
    ramp = across + np.sin(turn) * (y - (y0 + y1) / 2) / (y1 - y0)
    base = np.asarray(COLOURS[colour], np.float32) + rng.normal(0, 8, 3).astype(np.float32)
    paint = base * ((0.95 + 0.22 * ramp) * (0.78 + 0.22 * light))[..., None]
    inner = cv2.GaussianBlur(cv2.erode(alpha, np.ones((3, 3))), (3, 3), 0)
    paint = paint * (0.45 + 0.55 * inner[..., None])
    return image * (1 - alpha[..., None]) + paint * alpha[..., None]


def _fits(masks: list[np.ndarray], full_areas: list[int], new: np.ndarray) -> bool:
    """True if a new thing is large enough and leaves enough of the earlier ones visible."""
    if new.sum() < 4 * MIN_SEGMENT_AREA:
        return False
    return all((mask & ~new).sum() >= MIN_VISIBLE * full for mask, full in zip(masks, full_areas))


def _finish(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Uneven light, sensor noise and sometimes a little blur."""
    height, width = image.shape[:2]
    light = 1.0 + 0.06 * smooth_noise(rng, height, width, 90) + rng.normal(0, 0.04)
    image = image * light[..., None]
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 0.8)))
    image = image + 3.0 * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def draw_scene(rng: np.random.Generator, spec: WorldSpec) -> Scene:
    """Draw a random scene of a world: 2 to 6 things before 2 to 4 kinds of stuff."""
    width, height = spec.sizes[rng.integers(len(spec.sizes))]
    image, layout, stuff = _background(rng, spec, height, width)
    wanted = int(rng.integers(2, 7))
    concepts: list[Concept] = []
    masks: list[np.ndarray] = []
    full_areas: list[int] = []
    # Things that would hide others too much are skipped; 30 tries make the first 2 all but certain.
    for _ in range(30):
        if len(concepts) == wanted:
            break
        concept = spec.things[rng.integers(len(spec.things))]
        assert concept.shape is not None and concept.colour is not None
        pose = _random_pose(rng, concept.shape, height, width)
        alpha = shape_alpha(concept.shape, pose, (height, width))
        new = alpha > 0.5
        if not _fits(masks, full_areas, new):
            continue
        light = surface(concept.shape, pose, (height, width))
        image = _draw_thing(rng, image, alpha, light, concept.colour)
        masks = [mask & ~new for mask in masks] + [new]
        full_areas.append(int(new.sum()))
        concepts.append(concept)
    segment_map, segments = _label(layout, stuff, masks, concepts)
    return Scene(_finish(rng, image), segment_map, segments)


def draw_subject(rng: np.random.Generator, spec: WorldSpec, thing: Concept) -> np.ndarray:
    """Draw an image of one thing of a world, near the middle and before stuff, uint8 RGB (height, width, 3)."""
    assert thing.shape is not None and thing.colour is not None
    width, height = spec.sizes[rng.integers(len(spec.sizes))]
    image, _, _ = _background(rng, spec, height, width)
    side = min(height, width)
    pose = dataclasses.replace(
        _random_pose(rng, thing.shape, height, width),
        centre=tuple(rng.normal((width / 2, height / 2), 0.04 * side)),
        radius=float(rng.uniform(0.2, 0.4)) * side,
    )
    alpha = shape_alpha(thing.shape, pose, (height, width))
    light = surface(thing.shape, pose, (height, width))
    return _finish(rng, _draw_thing(rng, image, alpha, light, thing.colour))


def _label(
    layout: np.ndarray, stuff: list[Concept], masks: list[np.ndarray], things: list[Concept]
) -> tuple[np.ndarray, tuple[Segment, ...]]:
    """Segment map and segments, of things by their masks and of stuff where no thing is."""
    free = ~np.any(np.stack(masks), axis=0)
    visible = [*masks, *(free & (layout == index) for index in range(len(stuff)))]
    segment_map = np.zeros(layout.shape, np.uint8)
    segments: list[Segment] = []
    for concept, mask in zip([*things, *stuff], visible):
        area = int(mask.sum())
        if area < MIN_SEGMENT_AREA:
            continue
        segments.append(Segment(len(segments) + 1, concept, tight_box(mask), area))
        segment_map[mask] = len(segments)
    return segment_map, tuple(segments)
