"""The quickstart's second chapter: CAT-Seg on the original CLIP and on CLIPSelf's, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipself_seg.data.images import read_image
from clipself_seg.data.label_maps import read_indices
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.evaluation.sem_seg_report import split_table
from clipself_seg.mini.steps import Run, call, say
from clipself_seg.visualization.class_colours import class_colours
from clipself_seg.visualization.panels import panel
from clipself_seg.visualization.segments import save_png

RUNS = (
    Run("CAT-Seg, original CLIP", "semseg_original", "semseg_original.yaml", training=True),
    Run("CAT-Seg, CLIPSelf", "semseg_clipself", "semseg.yaml", training=True),
)
WORLDS = ("mini", "mini2")
PICTURES = 4  # of each world


@dataclasses.dataclass(frozen=True)
class SemanticChapter:
    """Numbers of the chapter.

    Attributes:
        rows: model -> data set -> results.
        facts: model -> provenance.
    """

    rows: Mapping[str, Mapping[str, Mapping[str, float]]]
    facts: Mapping[str, Any]

    def table(self, style: str) -> str:
        """Table 5 in miniature: mean IoU of seen and unseen classes, and of the second world."""
        return split_table(self.rows, style=style)


def semantic_chapter(output: Path, worlds: Path) -> SemanticChapter:
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
    contents = {run.title: run.results(output) for run in RUNS}
    return SemanticChapter(
        {title: content["results"] for title, content in contents.items()},
        {title: content["provenance"] for title, content in contents.items()},
    )


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
