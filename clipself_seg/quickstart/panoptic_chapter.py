"""The quickstart's third chapter: masks of a generator, named by the original CLIP and by CLIPSelf's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipself_seg.data.images import read_image
from clipself_seg.data.panoptic_png import read_panoptic_png
from clipself_seg.data.records import read_coco_json
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.evaluation.panoptic.fusion_report import split_table
from clipself_seg.quickstart.steps import (
    WORLDS,
    Chapter,
    Run,
    call_together,
    first_images,
    prediction,
    read_chapter,
    say,
)
from clipself_seg.quickstart.tiles import Row, label_rows, write_tiles

# A third of the configuration's steps: a newcomer is waiting.
LIVE = Run("CLIPSelf", "panoptic_live", "panoptic.yaml", ("SOLVER.MAX_ITER", "400"), training=True)
SHIPPED = "mini-open-panoptic"
RUNS = tuple(
    Run(title, f"panoptic_shipped_{name}", config, ("MODEL.WEIGHTS", SHIPPED))
    for title, name, config in (
        ("original CLIP", "original", "panoptic_original.yaml"),
        ("CLIPSelf", "clipself", "panoptic.yaml"),
    )
)
# What the images show: both CLIPs alone, and the second one fused with the generator.
NAMED = (*((run, "clip") for run in RUNS), (RUNS[-1], "fused"))
VOID = -1
TITLES = {"clip": "CLIP only", "fused": "fused"}  # as in the tables


def panoptic_chapter(output: Path, worlds: Path) -> dict[str, Chapter]:
    """Train a generator, evaluate it and the shipped one, and write `panoptic_<world>.png`.

    Args:
        output: folder for runs and images.
        worlds: folder of the mini worlds.

    Returns:
        "live" and "shipped".

    Raises:
        InputError: a step failed.
    """
    say(
        "a mask generator, trained just now, and one that trained for longer; who names their masks?"
    )
    call_together({run.folder: run.command(output) for run in (LIVE, *RUNS)}, worlds)
    say("what the longer trained one says of images of both worlds")
    images = show_segments(output, worlds, WORLDS)
    runs = {"live": (LIVE,), "shipped": RUNS}
    return {
        name: read_chapter(
            runs[name],
            output,
            functools.partial(split_table, first=f"generator, {name}"),
            f"panoptic {name}, ",
            images,
        )
        for name in runs
    }


def show_segments(output: Path, worlds: Path, names: Sequence[str]) -> dict[str, list[Row]]:
    """Predict the first images of some worlds with the shipped generator as `NAMED`, and write `panoptic_<world>.png`.

    Args:
        output: folder for predictions and images.
        worlds: folder of the mini worlds.
        names: of the worlds.

    Returns:
        Name of a world -> what the page shows of it.

    Raises:
        InputError: a prediction failed.
    """
    call_together(
        {
            f"{run.folder}, {mode}, {world}": _prediction(run, mode, world, output, worlds)
            for run, mode in NAMED
            for world in names
        },
        worlds,
    )
    return {world: _write_sheet(world, output, worlds) for world in names}


def _prediction(run: Run, mode: str, world: str, output: Path, worlds: Path) -> list[str]:
    folder = run.predicted(output, f"{world}_{mode}")
    return prediction(run.config, SHIPPED, world, worlds, folder, "--panoptic", "--mode", mode)


def _write_sheet(world: str, output: Path, worlds: Path) -> list[Row]:
    """Images, truth, and segments of the shipped generator as `NAMED`."""
    vocabulary, folder = load_vocabulary(world), worlds / world
    images = first_images(worlds, world)
    stems = [image.stem for image in images]
    truth = folder / "annotations/panoptic_val.json", folder / "panoptic_val"
    columns = {"ground truth": class_maps(*truth, vocabulary, stems)}
    for run, mode in NAMED:
        predicted = run.predicted(output, f"{world}_{mode}")
        columns[f"{run.title}, {TITLES[mode]}"] = class_maps(
            predicted / "panoptic.json", predicted / "panoptic", vocabulary, stems
        )
    rows = label_rows(vocabulary, [read_image(image) for image in images], columns)
    write_tiles(rows, output / f"panoptic_{world}.png")
    return rows


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
    maps = []
    for entry in (entries[stem] for stem in stems):
        ids = read_panoptic_png(folder / entry["file_name"])
        labels = np.full(ids.shape, VOID)
        for segment in entry["segments_info"]:
            index = vocabulary.dataset_id_to_index[segment["category_id"]]
            labels[ids == segment["id"]] = index
        maps.append(labels)
    return maps
