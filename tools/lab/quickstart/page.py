"""The quickstart's page: its tables, and images that explain them, in one file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from clipself_seg.checkpoints.zoo import MINI_CLIP
from clipself_seg.clip import CLIP, TextBank, load_clip
from clipself_seg.clip.model import whole_image_features
from clipself_seg.commands.demo import EXPLORE
from clipself_seg.data.images import letterbox_crops, letterbox_image, read_image
from clipself_seg.data.mappers.samples import box_tensor, chw
from clipself_seg.data.regions import enlarge_boxes
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.explore.demo import SHOWN, WORLD, Question, ask
from clipself_seg.files import atomic_path, parse_json, read_text
from clipself_seg.pages import write_page
from clipself_seg.schema import NUMBER, Schema
from clipself_seg.visualization.dense_maps import (
    colour_segments,
    enlarge_labels,
    kmeans,
    match_labels,
)
from clipself_seg.visualization.overlays import Row, write_tiles
from clipself_seg.visualization.sheets import sheet
from lab.mini.concepts import WORLDS
from lab.mini.scenes import Scene
from lab.mini.writer import scene_of
from lab.quickstart.chapters import Results

SHEETS = "images"  # below the output folder
TEMPLATE = Path(__file__).with_name("quickstart.html")
COLUMNS = {
    "original CLIP": "mini",
    "CLIPSelf patches": "mini-clipself",
    "CLIPSelf proposals": "mini-clipself-proposals",
}
# How many scenes are drawn, how many K-Means maps and crops of things of them are shown.
SCENES, MAPS, CROPS = 11, 5, 12
CROP = 96  # pixels
TRAINED_SIDE = 160  # pixels, as in configs/mini: answers are best there
MAP_SIDE = 192  # a finer grid shows more of the outlines
HEAT_TEXT = 21  # height in pixels: can be read where the whole is as wide as a telephone
ENLARGED = 2  # pixels of a K-Means map for one of the scene


class Answers(NamedTuple):
    """The classes that several models predict for one thing.

    Attributes:
        crop: (CROP, CROP, 3) uint8 RGB, the thing with what is around it.
        name: name of its class.
        given: title of a model -> name of a class.
    """

    crop: np.ndarray
    name: str
    given: Mapping[str, str]


def kmeans_rows(clips: Mapping[str, CLIP], scenes: Sequence[Scene], most: int) -> list[Row]:
    """Scene, ground truth, and K-Means of each model's dense features with k = number of segments.

    Args:
        clips: models by title.
        scenes: those that are wider than high are shown, so that all columns are of one shape.
        most: number of rows.
    """
    wide = [scene for scene in scenes if scene.image.shape[1] > scene.image.shape[0]]
    rows = []
    for scene in wide[:most]:
        height, width = (ENLARGED * side for side in scene.segment_map.shape)
        ids = np.searchsorted(np.unique(scene.segment_map), scene.segment_map)
        ids = ids.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
        image = Image.fromarray(scene.image).resize((width, height), Image.Resampling.BICUBIC)
        tiles = {"image": np.asarray(image), "ground truth": colour_segments(ids)}
        for title, clip in clips.items():
            features = whole_image_features(clip, scene.image, MAP_SIDE)
            labels = kmeans(features, clusters=len(scene.segments))
            large = enlarge_labels(labels, height, width)
            tiles[title] = colour_segments(match_labels(large, ids))
        rows.append(Row(tiles))
    return rows


def region_answers(
    clips: Mapping[str, CLIP], scenes: Sequence[Scene], vocabulary: Vocabulary, most: int
) -> list[Answers]:
    """The classes that each model finds in the boxes of things.

    Args:
        clips: models by title.
        scenes: images with their things.
        vocabulary: classes to choose from.
        most: number of things.
    """
    answers = []
    for scene in scenes:
        things = [segment for segment in scene.segments if segment.concept.isthing]
        boxes = np.array([thing.box for thing in things], float)
        around = enlarge_boxes(boxes, 1.5, *scene.image.shape[1::-1])
        crops = letterbox_crops(scene.image, around, CROP)
        given = zip(*_names(clips, scene.image, boxes, vocabulary))
        for crop, thing, names in zip(crops, things, given):
            answers.append(Answers(crop, thing.concept.names[0], dict(zip(clips, names))))
    return answers[:most]


def _names(
    clips: Mapping[str, CLIP], image: np.ndarray, boxes: np.ndarray, vocabulary: Vocabulary
) -> Iterator[list[str]]:
    """The class of each box, for each model."""
    relative = box_tensor(boxes, image.shape[1], image.shape[0])
    square = chw(letterbox_image(image, TRAINED_SIDE)[None])
    for clip in clips.values():
        text = TextBank(clip).embed(vocabulary)
        with torch.no_grad():
            read = clip.encode_boxes(clip.preprocess(square), [relative])
        yield [vocabulary.first_names[i] for i in (read @ text.T).argmax(1).tolist()]


def heat_sheet(questions: Sequence[Question]) -> Image.Image:
    """A row for each question: the scene with its words, and the heat map of each CLIP."""
    rows = [[question.image, *question.maps.values()] for question in questions]
    captions = [[f"“{question.name}”", *([""] * len(question.maps))] for question in questions]
    return sheet(rows, ["scene", *questions[0].maps], captions, text=HEAT_TEXT)


def plot_losses(runs: Mapping[str, Path], path: Path) -> None:
    """Loss over the steps of the live runs, from their metrics.json."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    # Told apart without their colours, too.
    for (title, metrics), style in zip(runs.items(), itertools.cycle(("-", "--", ":"))):
        axes.plot(*zip(*_losses(metrics)), style, label=title)
    axes.set(xlabel="step", ylabel="1 - cosine to the crop", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _losses(path: Path) -> list[tuple[float, float]]:
    """Step, counted from 1, and loss of each line of a metrics.json that has a loss."""
    key = "loss_clipself"
    schema: Schema = {"iteration": NUMBER, f"{key}?": NUMBER}
    texts = read_text(path, "file of metrics").splitlines()
    lines = [parse_json(text, f"line {n} of {path}", schema) for n, text in enumerate(texts, 1)]
    return [(line["iteration"] + 1, line[key]) for line in lines if key in line]


def write_images_and_page(
    output: Path, live: Mapping[str, Path], results: Mapping[str, Results]
) -> None:
    """Write heat_maps.jpg, kmeans.png and loss.png into SHEETS, and index.html.

    Args:
        output: folder for them; it has EXPLORE, which the page links.
        live: title -> metrics.json of a run, for the loss curves.
        results: of the chapters' tables, by their names.
    """
    vocabulary = Vocabulary.load(WORLD)
    clips = {title: load_clip(MINI_CLIP, tag) for title, tag in COLUMNS.items()}
    scenes = [scene_of(WORLDS[WORLD], "val", number, seed=0) for number in range(SCENES)]
    questions = ask({title: load_clip(MINI_CLIP, tag) for title, tag in SHOWN.items()})
    clusters = kmeans_rows(clips, scenes, MAPS)
    answers = region_answers(clips, scenes, vocabulary, CROPS)
    sheets = output / SHEETS
    with atomic_path(sheets / "heat_maps.jpg") as temporary:
        # Without the loss of colours that small text would suffer from.
        heat_sheet(questions).save(temporary, "JPEG", quality=86, subsampling=0, optimize=True)
    write_tiles(clusters, sheets / "kmeans.png")
    plot_losses(live, sheets / "loss.png")
    write_page(
        output / "index.html",
        TEMPLATE,
        tables={name: table.table("html") for name, table in results.items()},
        images={name: table.images for name, table in results.items()},
        questions=questions,
        clusters=clusters,
        answers=answers,
        losses=read_image(sheets / "loss.png"),
        explore=EXPLORE,
    )
