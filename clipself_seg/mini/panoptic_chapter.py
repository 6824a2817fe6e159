"""The quickstart's third chapter: one mask generator, its masks read by the original CLIP and by CLIPSelf's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipself_seg.data.panoptic import read_panoptic_png
from clipself_seg.data.records import read_coco_json
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.evaluation.fusion_report import split_table
from clipself_seg.mini.gallery import write_panel
from clipself_seg.mini.steps import WORLDS, Chapter, Run, call, first_pictures, read_chapter, say

# Half the configuration's steps: a newcomer is waiting.
SHORT = ("SOLVER.MAX_ITER", "600")
CLIPSELF = Run("CLIPSelf", "panoptic_clipself", "panoptic.yaml", SHORT, training=True)
VOID = -1
TITLES = {"clip": "alone", "fused": "and generator"}


def original(output: Path) -> Run:
    """The same generator beside the original CLIP."""
    weights = str(output / CLIPSELF.folder / "model_final.pth")
    return Run(
        "original CLIP",
        "panoptic_original",
        "panoptic_original.yaml",
        options=("MODEL.WEIGHTS", weights),
    )


def panoptic_chapter(output: Path, worlds: Path) -> Chapter:
    """Train the generator, evaluate it with both CLIPs, and write `panoptic_<world>.png`.

    Args:
        output: folder for runs and pictures.
        worlds: folder of the mini worlds.

    Raises:
        InputError: a step failed.
    """
    say("a mask generator, its masks scored by itself, by CLIPSelf's dense features, and by both")
    call(CLIPSELF.command(output), worlds)
    say("the same masks, scored by the original CLIP's dense features")
    runs = (original(output), CLIPSELF)
    call(runs[0].command(output), worlds)
    for world in WORLDS:
        _write_panel(world, output, worlds, runs)
    return read_chapter(runs, output, split_table, "panoptic, ")


def _write_panel(world: str, output: Path, worlds: Path, runs: tuple[Run, ...]) -> None:
    """Pictures, their ground truth, and segments as both CLIPs name them, the second one also fused."""
    vocabulary, folder = load_vocabulary(world), worlds / world
    pictures = first_pictures(worlds, world)
    stems = [picture.stem for picture in pictures]
    truth = folder / "annotations/panoptic_val.json", folder / "panoptic_val"
    columns = {"ground truth": class_maps(*truth, vocabulary, stems)}
    for run, mode in (*((run, "clip") for run in runs), (CLIPSELF, "fused")):
        found = output / run.folder / f"predicted_{world}_{mode}"
        words = ["tools/predict.py", "--panoptic", "--config-file", f"configs/mini/{run.config}"]
        words += ["--weights", str(output / CLIPSELF.folder / "model_final.pth"), "--mode", mode]
        words += ["--vocabulary", world, "--output", str(found), "--input", *map(str, pictures)]
        call(words, worlds)
        columns[f"{run.title}, {TITLES[mode]}"] = class_maps(
            found / "panoptic.json", found / "panoptic", vocabulary, stems
        )
    write_panel(output / f"panoptic_{world}.png", vocabulary, pictures, columns)


def class_maps(
    json_file: Path, folder: Path, vocabulary: Vocabulary, stems: Sequence[str]
) -> list[np.ndarray]:
    """Class of every pixel of some panoptic PNGs, (H, W) of each, -1 where no segment is.

    Args:
        json_file: in COCO's panoptic format.
        folder: of its PNGs.
        vocabulary: of its categories.
        stems: of the PNGs.
    """
    entries = {Path(e["file_name"]).stem: e for e in read_coco_json(json_file)["annotations"]}
    found = []
    for entry in (entries[stem] for stem in stems):
        ids = read_panoptic_png(folder / entry["file_name"])
        labels = np.full(ids.shape, VOID)
        for segment in entry["segments_info"]:
            index = vocabulary.dataset_id_to_index[segment["category_id"]]
            labels[ids == segment["id"]] = index
        found.append(labels)
    return found
