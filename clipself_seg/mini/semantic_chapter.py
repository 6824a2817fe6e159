"""The quickstart's second chapter: CAT-Seg on the original CLIP and on CLIPSelf's, side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clipself_seg.data.images import read_image
from clipself_seg.data.label_maps import read_indices
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.evaluation.sem_seg_report import split_table
from clipself_seg.mini.steps import Chapter, Run, call, read_chapter, say
from clipself_seg.visualization.class_colours import class_colours
from clipself_seg.visualization.panels import panel
from clipself_seg.visualization.segments import save_png

RUNS = (
    Run("CAT-Seg, original CLIP", "semseg_original", "semseg_original.yaml", training=True),
    Run("CAT-Seg, CLIPSelf", "semseg_clipself", "semseg.yaml", training=True),
)
WORLDS = ("mini", "mini2")
PICTURES = 4  # of each world


def semantic_chapter(output: Path, worlds: Path) -> Chapter:
    """Train and evaluate both models, and write `semantic_<world>.png`.

    Args:
        output: folder for runs and pictures.
        worlds: folder of the mini worlds.

    Raises:
        InputError: a step failed.
    """
    for run in RUNS:
        say(run.title)
        call(run.command(output), worlds)
    for world in WORLDS:
        _write_panel(world, output, worlds)
    return read_chapter(RUNS, output, split_table)


def _write_panel(world: str, output: Path, worlds: Path) -> None:
    """Pictures, their ground truth and what both models say."""
    vocabulary = load_vocabulary(world)
    pictures = sorted((worlds / world / "val").glob("*.jpg"))[:PICTURES]
    truths = [worlds / world / "stuffthingmaps" / "val" / f"{p.stem}.png" for p in pictures]
    columns = {"ground truth": truths}
    for run in RUNS:
        folder = output / run.folder / f"predicted_{world}"
        words = ["tools/predict.py", "--config-file", f"configs/mini/{run.config}"]
        words += ["--weights", str(output / run.folder / "model_final.pth")]
        words += ["--vocabulary", world, "--output", str(folder), "--input", *map(str, pictures)]
        call(words, worlds)
        columns[run.title.split(", ")[1]] = [folder / "labels" / f"{p.stem}.png" for p in pictures]
    rows: list[tuple[np.ndarray, dict[str, np.ndarray]]] = [
        (read_image(picture), {title: read_indices(maps[i]) for title, maps in columns.items()})
        for i, picture in enumerate(pictures)
    ]
    sheet = panel(rows, vocabulary.names, class_colours(vocabulary.names))
    save_png(sheet, output / f"semantic_{world}.png")
