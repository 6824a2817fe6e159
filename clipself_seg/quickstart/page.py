"""The quickstart's page: its tables, and images that explain them, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clipself_seg.checkpoints.shipped import MINI_CLIP
from clipself_seg.clip import load_clip
from clipself_seg.data.images import read_image
from clipself_seg.data.records import panoptic_records
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.evaluation.regions.report import region_table
from clipself_seg.files import atomic_path
from clipself_seg.pages import render
from clipself_seg.quickstart.gallery import (
    Answers,
    LabelledImage,
    kmeans_rows,
    kmeans_sheet,
    plot_losses,
    region_answers,
    region_sheet,
)
from clipself_seg.quickstart.heat_maps import SHOWN, Question, ask, heat_sheet
from clipself_seg.quickstart.steps import Chapter
from clipself_seg.quickstart.tiles import Row
from clipself_seg.visualization.overlays import save_jpeg, save_png

COLUMNS = {"original CLIP": "mini", "CLIPSelf patches": "mini-clipself"}
COLUMNS |= {"CLIPSelf proposals": "mini-clipself-proposals"}
SCENES = 11
MAPS = 5
CROPS = 12


def write_images_and_page(
    output: Path,
    world: Path,
    rows: Mapping[str, Mapping[str, float]],
    live: Mapping[str, Path],
    chapters: Mapping[str, Chapter],
) -> None:
    """Write heat_maps.jpg, kmeans.png, regions.png, loss.png and index.html.

    Args:
        output: folder for them.
        world: folder of the mini world.
        rows: results by model, for the page's table.
        live: title -> metrics.json of a run, for the loss curves.
        chapters: "semantic", "panoptic, live", "panoptic, shipped" and "detection".
    """
    annotations = world / "annotations" / "panoptic_val.json"
    records = panoptic_records(str(annotations), str(world / "val"), str(world / "panoptic_val"))
    vocabulary = load_vocabulary("mini")
    clips = {title: load_clip(MINI_CLIP, tag) for title, tag in COLUMNS.items()}
    scenes = [LabelledImage(record, vocabulary) for record in records[:SCENES]]
    questions = ask({title: load_clip(MINI_CLIP, tag) for title, tag in SHOWN.items()})
    clusters = kmeans_rows(clips, scenes, MAPS)
    answers = region_answers(clips, scenes, vocabulary, CROPS)
    save_jpeg(heat_sheet(questions), output / "heat_maps.jpg")
    save_png(kmeans_sheet(clusters), output / "kmeans.png")
    save_png(region_sheet(answers), output / "regions.png")
    plot_losses(live, output / "loss.png")
    text = page(rows, chapters, questions, clusters, answers, read_image(output / "loss.png"))
    with atomic_path(output / "index.html") as temporary:
        temporary.write_text(text, encoding="utf-8")


def page(
    rows: Mapping[str, Mapping[str, float]],
    chapters: Mapping[str, Chapter],
    questions: Sequence[Question],
    clusters: Sequence[Row],
    answers: Sequence[Answers],
    losses: np.ndarray,
) -> str:
    """The page, whose images are in it.

    Args:
        rows: results by model.
        chapters: see `write_images_and_page`.
        questions: heat maps.
        clusters: K-Means maps.
        answers: what models take things for.
        losses: the chart, (H, W, 3) uint8 RGB.
    """
    return render(
        "quickstart.html",
        regions=region_table(rows, style="html"),
        tables={name: chapter.table("html") for name, chapter in chapters.items()},
        images={name: chapter.images for name, chapter in chapters.items()},
        questions=questions,
        clusters=clusters,
        answers=answers,
        losses=losses,
    )
