"""The quickstart's second chapter: the original CLIP and CLIPSelf's, as they are and below CAT-Seg, side by side."""

from __future__ import annotations

from pathlib import Path

from clipself_seg.data.images import read_image
from clipself_seg.data.label_maps import read_indices
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.evaluation.sem_seg.report import split_table
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
from clipself_seg.quickstart.tiles import Row, label_rows, write_tiles

RUNS = (
    Run("CAT-Seg, original CLIP", "semseg_original", "semseg_original.yaml", training=True),
    Run("CAT-Seg, CLIPSelf", "semseg_clipself", "semseg.yaml", training=True),
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


def semantic_chapter(output: Path, worlds: Path) -> Chapter:
    """Train and evaluate all models, and write `semantic_<world>.png`.

    Args:
        output: folder for runs and images.
        worlds: folder of the mini worlds.

    Raises:
        InputError: a step failed.
    """
    say("CAT-Seg, trained on the original CLIP and on CLIPSelf's, and both CLIPs without it")
    call_together({run.folder: run.command(output) for run in (*RUNS, *ZERO_SHOT)}, worlds)
    say("what CAT-Seg says of images of both worlds")
    predict_together(RUNS, lambda run, world: _prediction(run, world, output, worlds), worlds)
    images = {world: _write_sheet(world, output, worlds) for world in WORLDS}
    return read_chapter((*ZERO_SHOT, *RUNS), output, split_table, images=images)


def _prediction(run: Run, world: str, output: Path, worlds: Path) -> list[str]:
    weights = output / run.folder / "model_final.pth"
    return prediction(run.config, weights, world, worlds, run.predicted(output, world))


def _write_sheet(world: str, output: Path, worlds: Path) -> list[Row]:
    """Images, their ground truth and what both models say."""
    images = first_images(worlds, world)
    folders = {"ground truth": worlds / world / "stuffthingmaps" / "val"}
    for run in RUNS:
        folders[run.title.split(", ")[1]] = run.predicted(output, world) / "labels"
    columns = {
        title: [read_indices(folder / f"{image.stem}.png") for image in images]
        for title, folder in folders.items()
    }
    rows = label_rows(load_vocabulary(world), [read_image(image) for image in images], columns)
    write_tiles(rows, output / f"semantic_{world}.png")
    return rows
