"""The quickstart's second chapter: CAT-Seg on the original CLIP and on CLIPSelf's, side by side."""

from __future__ import annotations

from pathlib import Path

from clipself_seg.data.label_maps import read_indices
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.evaluation.sem_seg_report import split_table
from clipself_seg.mini.gallery import write_panel
from clipself_seg.mini.steps import WORLDS, Chapter, Run, call, first_pictures, read_chapter, say

RUNS = (
    Run("CAT-Seg, original CLIP", "semseg_original", "semseg_original.yaml", training=True),
    Run("CAT-Seg, CLIPSelf", "semseg_clipself", "semseg.yaml", training=True),
)


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
    pictures = first_pictures(worlds, world)
    truths = [worlds / world / "stuffthingmaps" / "val" / f"{p.stem}.png" for p in pictures]
    files = {"ground truth": truths}
    for run in RUNS:
        folder = output / run.folder / f"predicted_{world}"
        words = ["tools/predict.py", "--config-file", f"configs/mini/{run.config}"]
        words += ["--weights", str(output / run.folder / "model_final.pth")]
        words += ["--vocabulary", world, "--output", str(folder), "--input", *map(str, pictures)]
        call(words, worlds)
        files[run.title.split(", ")[1]] = [folder / "labels" / f"{p.stem}.png" for p in pictures]
    columns = {title: [read_indices(path) for path in paths] for title, paths in files.items()}
    write_panel(output / f"semantic_{world}.png", vocabulary, pictures, columns)
