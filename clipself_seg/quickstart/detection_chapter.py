"""The quickstart's fourth chapter: F-ViT on the original CLIP and on CLIPSelf's, side by side."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipself_seg.data.images import read_image
from clipself_seg.data.records import read_coco_json
from clipself_seg.evaluation.detection.report import novel_table
from clipself_seg.quickstart.steps import (
    WORLDS,
    Chapter,
    Run,
    call_together,
    first_images,
    predict_together,
    prediction,
    read_chapter,
    say,
)
from clipself_seg.quickstart.tiles import Row, write_tiles
from clipself_seg.visualization.boxes import box_overlay
from clipself_seg.visualization.overlays import readable

SHIPPED = "mini-fvit"
# Fewer than the configuration has: a newcomer is waiting.
LIVE = ("SOLVER.MAX_ITER", "240")
ORIGINAL = Run(
    "F-ViT, original CLIP, live",
    "detection_original",
    "detection_original.yaml",
    LIVE,
    training=True,
)
RUNS = (
    ORIGINAL,
    Run("F-ViT, CLIPSelf, live", "detection_clipself", "detection.yaml", LIVE, training=True),
    Run(
        "F-ViT, CLIPSelf, shipped",
        "detection_shipped",
        "detection.yaml",
        ("MODEL.WEIGHTS", SHIPPED),
    ),
)
# What the pictures show: boxes of at least this score.
SCORE_THRESHOLD = "0.7"


def detection_chapter(output: Path, worlds: Path) -> Chapter:
    """Train and evaluate both detectors, evaluate the shipped one, and write `detection_<world>.png`.

    Args:
        output: folder for runs and images.
        worlds: folder of the mini worlds.

    Raises:
        InputError: a step failed.
    """
    say(
        "a detector, trained on the original CLIP and on CLIPSelf's, and one that trained for longer"
    )
    call_together({run.folder: run.command(output) for run in RUNS}, worlds)
    say("the boxes that all three find in images of both worlds")
    predict_together(RUNS, lambda run, world: _prediction(run, world, output, worlds), worlds)
    images = {world: _write_sheet(world, output, worlds) for world in WORLDS}
    table = functools.partial(novel_table, first="AP50 of boxes")
    return read_chapter(RUNS, output, table, images=images)


def _prediction(run: Run, world: str, output: Path, worlds: Path) -> list[str]:
    weights = output / run.folder / "model_final.pth" if run.training else SHIPPED
    options = ["--boxes", "--score-threshold", SCORE_THRESHOLD]
    folder, vocabulary = run.predicted(output, world), f"{world}_things"
    return prediction(run.config, weights, world, worlds, folder, *options, vocabulary=vocabulary)


def _write_sheet(world: str, output: Path, worlds: Path) -> list[Row]:
    """Write images with the true boxes, and with those of each run, as one PNG; returns its rows."""
    detections = {
        run.title: read_coco_json(run.predicted(output, world) / "detections.json") for run in RUNS
    }
    # Which classes are seen is in what was predicted; a file of ground truth does not know.
    categories = {c["id"]: c for c in detections[ORIGINAL.title]["categories"]}
    truth = read_coco_json(worlds / world / "annotations" / "instances_val.json")
    columns = {"ground truth": truth} | detections
    rows = [
        Row({title: _drawn(path, content, categories) for title, content in columns.items()})
        for path in first_images(worlds, world)
    ]
    write_tiles(rows, output / f"detection_{world}.png")
    return rows


def _drawn(
    path: Path, content: Mapping[str, Any], categories: Mapping[int, Mapping[str, Any]]
) -> np.ndarray:
    """An image with the boxes that a file in COCO's format has for it, the best first."""
    (number,) = (e["id"] for e in content["images"] if Path(e["file_name"]).name == path.name)
    boxes = [e for e in content["annotations"] if e["image_id"] == number]
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
