"""The quickstart's chapters as specifications: which runs, which tables of them, and what images of them show.

`SEMANTIC`, `PANOPTIC` and `DETECTION` are at the end; region recognition, whose table has another form, is in
quickstart.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipself_seg.data.annotations import Record, read_coco_json
from clipself_seg.data.images import read_image
from clipself_seg.data.masks import read_indices
from clipself_seg.data.vocabulary import load_vocabulary, seen_in_training
from clipself_seg.evaluation.report import novel_table, panoptic_split_table, semantic_split_table
from clipself_seg.files import read_json
from clipself_seg.provenance import read_results
from clipself_seg.visualization.boxes import box_overlay
from clipself_seg.visualization.overlays import readable
from clipself_seg.visualization.tiles import Row, label_rows, write_tiles
from lab.quickstart.steps import (
    WORLDS,
    Run,
    View,
    call_together,
    first_images,
    say,
)

# Score that a box needs to be shown.
SHOWN_BOXES = 0.7
RowsOf = Callable[[Sequence[View], str, Path, Path], list[Row]]


@dataclass(frozen=True)
class Table:
    """A table of a chapter.

    Attributes:
        runs: its rows.
        write: (rows, style=...) -> text, where rows are title of a run -> data set -> numbers.
        prefix: what stands before the titles in "provenance" and "protocol".
        numbers: results of a run -> what its row is written from.
    """

    runs: tuple[Run, ...]
    write: Callable[..., str]
    prefix: str = ""
    numbers: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict


@dataclass(frozen=True)
class Chapter:
    """Specification of one chapter.

    Attributes:
        name: of its sheets of images, and said when they are predicted.
        heading: said when its runs begin.
        runs: of all tables, in the order in which they begin.
        tables: name in results.json and on the page -> table.
        views: what is predicted for the columns of images beside the ground truth.
        rows: (views, world, output, worlds) -> rows of images.
        note: said below the tables on the terminal.
    """

    name: str
    heading: str
    runs: tuple[Run, ...]
    tables: Mapping[str, Table]
    views: tuple[View, ...]
    rows: RowsOf
    note: str


@dataclass(frozen=True)
class Results:
    """Results of the runs of a table.

    Attributes:
        table: format of `tabulate` -> the table.
        rows: title of a run -> what its row is written from.
        provenances: title of a run -> its provenance.
        protocols: title of a run -> data set -> what its numbers were measured with.
        images: name of a world -> what the page shows of it.
    """

    table: Callable[[str], str]
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenances: Mapping[str, object] = field(default_factory=dict)
    protocols: Mapping[str, Mapping[str, Mapping[str, object]]] = field(default_factory=dict)
    images: Mapping[str, Sequence[Row]] = field(default_factory=dict)


def show_chapter(chapter: Chapter, output: Path, sheets: Path, worlds: Path) -> dict[str, Results]:
    """Predict what a chapter shows, and write its sheets of images.

    Args:
        chapter: what to do.
        output: folder of the runs, which are finished.
        sheets: folder for the sheets of images, NAME_WORLD.png.
        worlds: folder of the mini worlds.

    Returns:
        Name of a table -> its results.

    Raises:
        InputError: a step failed.
    """
    say(f"{chapter.name}: images of both worlds")
    images = show_images(chapter, output, worlds)
    for world, rows in images.items():
        write_tiles(rows, sheets / f"{chapter.name}_{world}.png")
    return {name: results_of(table, output, images) for name, table in chapter.tables.items()}


def show_images(
    chapter: Chapter, output: Path, worlds: Path, names: Sequence[str] = WORLDS
) -> dict[str, list[Row]]:
    """Predict the first images of some worlds with every view.

    Returns:
        Name of a world -> what the page shows of it.

    Raises:
        InputError: a prediction failed.
    """
    commands = {
        view.name(world): view.command(output, worlds, world)
        for view in chapter.views
        for world in names
    }
    call_together(commands, worlds)
    return {world: chapter.rows(chapter.views, world, output, worlds) for world in names}


def results_of(
    table: Table, output: Path, images: Mapping[str, Sequence[Row]] | None = None
) -> Results:
    """Reads the results that the finished runs of a table wrote below `output`, and the images of their chapter."""
    contents = {run.title: read_results(output / run.folder / "results.json") for run in table.runs}
    rows = {title: table.numbers(content["results"]) for title, content in contents.items()}
    return Results(
        table=lambda style: table.write(rows, style=style),
        rows=rows,
        provenances={table.prefix + title: c["provenance"] for title, c in contents.items()},
        protocols={table.prefix + title: c["protocol"] for title, c in contents.items()},
        images=images or {},
    )


def class_rows(views: Sequence[View], world: str, output: Path, worlds: Path) -> list[Row]:
    """Images, the class of every pixel, and what every view says of it."""
    images = first_images(worlds, world)
    folders = {"ground truth": worlds / world / "stuffthingmaps" / "val"}
    folders |= {view.title: view.folder(output, world) / "labels" for view in views}
    columns = {
        title: [read_indices(folder / f"{image.stem}.png") for image in images]
        for title, folder in folders.items()
    }
    return label_rows(load_vocabulary(world), [read_image(image) for image in images], columns)


def detection_rows(_: Sequence[View], world: str, output: Path, worlds: Path) -> list[Row]:
    """Images with the true boxes, and with the surest of those that every run found in its evaluation."""
    truth = read_coco_json(worlds / world / "annotations" / "instances_val.json")
    words = load_vocabulary(f"{world}_things")
    seen = seen_in_training(words, load_vocabulary("mini_base"))
    entries = zip(words.classes, seen.tolist())
    categories = {c.dataset_id: {"name": c.names[0], "seen": known} for c, known in entries}
    columns = {"ground truth": truth["annotations"]}
    for run in DETECTORS:
        boxes = read_json(output / run.folder / f"detections_{world}_val_boxes.json")
        columns[run.title] = [entry for entry in boxes if entry["score"] >= SHOWN_BOXES]
    return [
        Row(
            {
                title: _drawn(image, truth["images"], boxes, categories)
                for title, boxes in columns.items()
            }
        )
        for image in first_images(worlds, world)
    ]


def _drawn(
    path: Path,
    images: Iterable[Record],
    entries: Iterable[Record],
    categories: Mapping[int, Record],
) -> np.ndarray:
    """An image with its boxes out of some in COCO's format, the best first."""
    (number,) = (e["id"] for e in images if Path(e["file_name"]).name == path.name)
    boxes = [e for e in entries if e["image_id"] == number]
    boxes.sort(key=lambda entry: -entry.get("score", 1))
    corners = np.array([entry["bbox"] for entry in boxes], float).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    classes = [categories[entry["category_id"]] for entry in boxes]
    names = [entry["name"] for entry in classes]
    seen = np.array([entry["seen"] for entry in classes], dtype=bool)
    scores = np.array([entry["score"] for entry in boxes if "score" in entry])
    image = read_image(path)
    (large,) = readable(image)
    corners *= large.shape[0] / image.shape[0]
    drawn = box_overlay(large, corners, scores if len(scores) else None, names, seen, sheet=False)
    return np.asarray(drawn)


FEW_IMAGES = ("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "100")
CAT_SEG = (
    Run("CAT-Seg, original CLIP", "semseg_original", "semseg_original.yaml", (), True, FEW_IMAGES),
    Run("CAT-Seg, CLIPSelf", "semseg_clipself", "semseg.yaml", (), True, FEW_IMAGES),
)
# The CLIPs of both, as they are.
ZERO_SHOT = (
    Run("no training, original CLIP", "zero_shot_original", "zero_shot.yaml"),
    Run(
        "no training, original CLIP, values of three blocks",
        "zero_shot_values",
        "zero_shot.yaml",
        ("MODEL.CLIP.DENSE", "multi_value"),
    ),
    Run(
        "no training, CLIPSelf",
        "zero_shot_clipself",
        "zero_shot.yaml",
        ("MODEL.CLIP.WEIGHTS", "mini-clipself-proposals"),
    ),
)
SEMANTIC = Chapter(
    name="semantic",
    heading="semantic segmentation: CAT-Seg, trained on the original CLIP and on CLIPSelf, and both CLIPs alone",
    runs=(*CAT_SEG, *ZERO_SHOT),
    tables={"semantic": Table((*ZERO_SHOT, *CAT_SEG), semantic_split_table)},
    views=(View("original CLIP", CAT_SEG[0]), View("CLIPSelf", CAT_SEG[1])),
    rows=class_rows,
    note="Mean IoU in %. No training: each pixel gets the class whose text embedding is closest. CAT-Seg was trained "
    "just now\non the seen classes of mini. mini2 is a second world, with other layouts, textures and words.",
)

GENERATOR = "mini-open-panoptic"
# The table has no other numbers.
QUALITY = ("TEST.PANOPTIC.TASKS", "('panoptic',)")
LIVE_GENERATOR = Run(
    "CLIPSelf",
    "panoptic_live",
    "panoptic.yaml",
    options=(*QUALITY, "SOLVER.MAX_ITER", "400"),
    training=True,
    short=(*QUALITY, "SOLVER.MAX_ITER", "160"),
)
WEIGHTS = (*QUALITY, "MODEL.WEIGHTS", GENERATOR)
ORIGINAL = Run("original CLIP", "panoptic_shipped_original", "panoptic_original.yaml", WEIGHTS)
CLIPSELF = Run("CLIPSelf", "panoptic_shipped_clipself", "panoptic.yaml", WEIGHTS)
PANOPTIC = Chapter(
    name="panoptic",
    heading="panoptic segmentation: masks of two generators, classified by CLIP, by the generator, or by both",
    runs=(LIVE_GENERATOR, ORIGINAL, CLIPSELF),
    tables={
        f"panoptic, {name}": Table(
            runs,
            functools.partial(panoptic_split_table, first=f"generator, {name}"),
            f"panoptic {name}, ",
        )
        for name, runs in (("live", (LIVE_GENERATOR,)), ("shipped", (ORIGINAL, CLIPSELF)))
    },
    # Both CLIPs alone, and the second one fused with the generator; titles as in the tables.
    views=(
        View("original CLIP, CLIP only", ORIGINAL, GENERATOR, mode="clip"),
        View("CLIPSelf, CLIP only", CLIPSELF, GENERATOR, mode="clip"),
        View("CLIPSelf, fused", CLIPSELF, GENERATOR, mode="fused"),
    ),
    rows=class_rows,
    note="Panoptic quality in %. Both generators were trained on the seen classes of mini: one just now, the shipped "
    "one longer.\nThe class of a mask comes from CLIP only, from the generator only, or from both (fused).",
)

DETECTOR = "mini-fvit"
STEPS = ("SOLVER.MAX_ITER", "240")
FEW_STEPS = ("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "150")
DETECTORS = (
    Run(
        "F-ViT, original CLIP, live",
        "detection_original",
        "detection_original.yaml",
        STEPS,
        True,
        FEW_STEPS,
    ),
    Run("F-ViT, CLIPSelf, live", "detection_clipself", "detection.yaml", STEPS, True, FEW_STEPS),
    Run(
        "F-ViT, CLIPSelf, shipped",
        "detection_shipped",
        "detection.yaml",
        ("MODEL.WEIGHTS", DETECTOR),
    ),
)
DETECTION = Chapter(
    name="detection",
    heading="detection: F-ViT, trained on the original CLIP and on CLIPSelf, and a shipped one that trained longer",
    runs=DETECTORS,
    tables={"detection": Table(DETECTORS, functools.partial(novel_table, first="AP50 of boxes"))},
    views=(),
    rows=detection_rows,
    note="AP50 of boxes in %. F-ViT was trained on boxes of the seen (base) classes of mini; novel classes were never "
    "named\nin training.",
)
