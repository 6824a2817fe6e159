"""Runs the quickstart on the mini world: worlds, original CLIP, distillation, region recognition, images."""

from __future__ import annotations

import functools
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipself_seg.data.images import read_image
from clipself_seg.data.masks import read_indices, read_panoptic_png
from clipself_seg.data.records import read_coco_json
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.evaluation.detection.report import novel_table
from clipself_seg.evaluation.panoptic.fusion_report import split_table as split_fusion_table
from clipself_seg.evaluation.protocol import protocol_lines
from clipself_seg.evaluation.regions.report import region_table
from clipself_seg.evaluation.sem_seg.report import split_table
from clipself_seg.files import alone_in, atomic_path, remove_leftovers, write_json
from clipself_seg.mini.writer import WorldSize, make_worlds
from clipself_seg.quickstart.page import write_images_and_page
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
from clipself_seg.visualization.boxes import box_overlay
from clipself_seg.visualization.overlays import readable

# A third of the configuration's steps: a newcomer is waiting.
LIVE_PANOPTIC_CHAPTER = Run(
    "CLIPSelf", "panoptic_live", "panoptic.yaml", ("SOLVER.MAX_ITER", "400"), training=True
)
SHIPPED_PANOPTIC_CHAPTER = "mini-open-panoptic"
RUNS_PANOPTIC_CHAPTER = tuple(
    Run(title, f"panoptic_shipped_{name}", config, ("MODEL.WEIGHTS", SHIPPED_PANOPTIC_CHAPTER))
    for title, name, config in (
        ("original CLIP", "original", "panoptic_original.yaml"),
        ("CLIPSelf", "clipself", "panoptic.yaml"),
    )
)
# What the images show: both CLIPs alone, and the second one fused with the generator.
NAMED = (*((run, "clip") for run in RUNS_PANOPTIC_CHAPTER), (RUNS_PANOPTIC_CHAPTER[-1], "fused"))
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
    call_together(
        {
            run.folder: run.command(output)
            for run in (LIVE_PANOPTIC_CHAPTER, *RUNS_PANOPTIC_CHAPTER)
        },
        worlds,
    )
    say("what the longer trained one says of images of both worlds")
    images = show_segments(output, worlds, WORLDS)
    runs = {"live": (LIVE_PANOPTIC_CHAPTER,), "shipped": RUNS_PANOPTIC_CHAPTER}
    return {
        name: read_chapter(
            runs[name],
            output,
            functools.partial(split_fusion_table, first=f"generator, {name}"),
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
            f"{run.folder}, {mode}, {world}": _prediction_panoptic_chapter(
                run, mode, world, output, worlds
            )
            for run, mode in NAMED
            for world in names
        },
        worlds,
    )
    return {world: _write_sheet_panoptic_chapter(world, output, worlds) for world in names}


def _prediction_panoptic_chapter(
    run: Run, mode: str, world: str, output: Path, worlds: Path
) -> list[str]:
    folder = run.predicted(output, f"{world}_{mode}")
    return prediction(
        run.config, SHIPPED_PANOPTIC_CHAPTER, world, worlds, folder, "--panoptic", "--mode", mode
    )


def _write_sheet_panoptic_chapter(world: str, output: Path, worlds: Path) -> list[Row]:
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


RUNS_SEMANTIC_CHAPTER = (
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
    call_together(
        {run.folder: run.command(output) for run in (*RUNS_SEMANTIC_CHAPTER, *ZERO_SHOT)}, worlds
    )
    say("what CAT-Seg says of images of both worlds")
    predict_together(
        RUNS_SEMANTIC_CHAPTER,
        lambda run, world: _prediction_semantic_chapter(run, world, output, worlds),
        worlds,
    )
    images = {world: _write_sheet_semantic_chapter(world, output, worlds) for world in WORLDS}
    return read_chapter((*ZERO_SHOT, *RUNS_SEMANTIC_CHAPTER), output, split_table, images=images)


def _prediction_semantic_chapter(run: Run, world: str, output: Path, worlds: Path) -> list[str]:
    weights = output / run.folder / "model_final.pth"
    return prediction(run.config, weights, world, worlds, run.predicted(output, world))


def _write_sheet_semantic_chapter(world: str, output: Path, worlds: Path) -> list[Row]:
    """Images, their ground truth and what both models say."""
    images = first_images(worlds, world)
    folders = {"ground truth": worlds / world / "stuffthingmaps" / "val"}
    for run in RUNS_SEMANTIC_CHAPTER:
        folders[run.title.split(", ")[1]] = run.predicted(output, world) / "labels"
    columns = {
        title: [read_indices(folder / f"{image.stem}.png") for image in images]
        for title, folder in folders.items()
    }
    rows = label_rows(load_vocabulary(world), [read_image(image) for image in images], columns)
    write_tiles(rows, output / f"semantic_{world}.png")
    return rows


SHIPPED = "mini-fvit"
# Fewer than the configuration has: a newcomer is waiting.
LIVE = ("SOLVER.MAX_ITER", "240")
ORIGINAL_DETECTION_CHAPTER = Run(
    "F-ViT, original CLIP, live",
    "detection_original",
    "detection_original.yaml",
    LIVE,
    training=True,
)
RUNS_DETECTION_CHAPTER = (
    ORIGINAL_DETECTION_CHAPTER,
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
    call_together({run.folder: run.command(output) for run in RUNS_DETECTION_CHAPTER}, worlds)
    say("the boxes that all three find in images of both worlds")
    predict_together(
        RUNS_DETECTION_CHAPTER, lambda run, world: _prediction(run, world, output, worlds), worlds
    )
    images = {world: _write_sheet(world, output, worlds) for world in WORLDS}
    table = functools.partial(novel_table, first="AP50 of boxes")
    return read_chapter(RUNS_DETECTION_CHAPTER, output, table, images=images)


def _prediction(run: Run, world: str, output: Path, worlds: Path) -> list[str]:
    weights = output / run.folder / "model_final.pth" if run.training else SHIPPED
    options = ["--boxes", "--score-threshold", SCORE_THRESHOLD]
    folder, vocabulary = run.predicted(output, world), f"{world}_things"
    return prediction(run.config, weights, world, worlds, folder, *options, vocabulary=vocabulary)


def _write_sheet(world: str, output: Path, worlds: Path) -> list[Row]:
    """Write images with the true boxes, and with those of each run, as one PNG; returns its rows."""
    detections = {
        run.title: read_coco_json(run.predicted(output, world) / "detections.json")
        for run in RUNS_DETECTION_CHAPTER
    }
    # Which classes are seen is in what was predicted; a file of ground truth does not know.
    categories = {c["id"]: c for c in detections[ORIGINAL_DETECTION_CHAPTER.title]["categories"]}
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


DATASET = "mini_val_panoptic"


def _shipped(title: str, tag: str) -> Run:
    return Run(title, tag, "regions.yaml", ("MODEL.CLIP.WEIGHTS", tag))


ORIGINAL = _shipped("original CLIP", "mini")
RUNS = (
    ORIGINAL,
    Run("+ CLIPSelf, patches, live", "patches_live", "patches.yaml", training=True),
    Run("+ CLIPSelf, proposals, live", "proposals_live", "proposals.yaml", training=True),
    _shipped("+ CLIPSelf, patches, shipped", "mini-clipself"),
    _shipped("+ CLIPSelf, proposals, shipped", "mini-clipself-proposals"),
)


def run_quickstart(output: str | Path, worlds: str | Path, fresh: bool = False) -> None:
    """Run every step, print the table, write table and images.

    Finished and interrupted runs in `output` are gone on with.

    Args:
        output: folder for the runs, results.json, table.md and index.html.
        worlds: folder of the mini worlds; made if need be.
        fresh: forget earlier runs first.

    Raises:
        InputError: a step failed; its command is named. Or another quickstart is at work there.
    """
    output, worlds = Path(output).absolute(), Path(worlds).absolute()
    with alone_in(output):
        remove_leftovers(output)
        if fresh:
            for path in output.iterdir():  # not the folder, which is locked
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _run_chapters(output, worlds)


def _run_chapters(output: Path, worlds: Path) -> None:
    begin = time.monotonic()
    say("the mini worlds: scenes with panoptic labels, captions and proposals, in COCO's formats")
    make_worlds(worlds, WorldSize())
    rows: dict[str, dict[str, float]] = {}
    provenances: dict[str, Any] = {}
    protocols: dict[str, Any] = {}
    say("region recognition: CLIP as it is, after distillations just now, and after longer ones")
    # Those that take long begin.
    runs = sorted(RUNS, key=lambda run: not run.training)
    call_together({run.folder: run.command(output) for run in runs}, worlds)
    for run in RUNS:
        content = run.results(output)
        (rows[run.title],) = content["results"][DATASET].values()
        provenances[run.title] = content["provenance"]
        protocols[run.title] = content["protocol"]
    chapters = {"semantic": semantic_chapter(output, worlds)}
    panoptic = panoptic_chapter(output, worlds)
    chapters |= {f"panoptic, {name}": chapter for name, chapter in panoptic.items()}
    chapters["detection"] = detection_chapter(output, worlds)
    say("images")
    live = {run.title: output / run.folder / "metrics.json" for run in RUNS if run.training}
    write_images_and_page(output, worlds / "mini", rows, live, chapters)
    _write_table(output, rows, provenances, protocols, chapters, time.monotonic() - begin)


def _write_table(
    output: Path,
    rows: dict[str, dict[str, float]],
    provenances: dict[str, Any],
    protocols: dict[str, Any],
    chapters: Mapping[str, Chapter],
    seconds: float,
) -> None:
    content = {"results": rows} | {name: chapter.rows for name, chapter in chapters.items()}
    provenances = provenances | {
        k: v for chapter in chapters.values() for k, v in chapter.provenances.items()
    }
    for chapter in chapters.values():
        protocols = protocols | dict(chapter.protocols)
    about = {"seconds": seconds, "provenance": provenances, "protocol": protocols}
    write_json(output / "results.json", content | about)
    with atomic_path(output / "table.md") as temporary:
        tables = [region_table(rows, style="github")]
        tables += [chapter.table("github") for chapter in chapters.values()]
        lines = (line for one in protocols.values() for line in protocol_lines(one))
        temporary.write_text("\n\n".join([*tables, *dict.fromkeys(lines)]) + "\n")
    style = "terminal" if sys.stdout.isatty() else "simple"
    semantic, *panoptic, detection = (chapter.table(style) for chapter in chapters.values())
    panoptic_tables = "\n\n".join(panoptic)
    table = region_table(rows, style=style)
    sys.stdout.write(
        f"\n{table}\n\n"
        "Top-1/top-5 mean accuracy on mini_val in %.\n"
        "Boxes, Thing Masks, Stuff Masks: pooled from the dense features. Image Crops: the image "
        "embedding of each\nregion's crop, what a region could be recognised with at best; its first "
        "row is the teacher's.\n\n"
        f"{semantic}\n\n"
        "Mean IoU in % of two CLIPs without any training, and of CAT-Seg on them, trained just now on the seen classes "
        "of\nmini. mini2 is a world of its own, with other layouts, textures and words.\n\n"
        f"{panoptic_tables}\n\n"
        "Panoptic quality in % of two mask generators, one trained just now, one for longer, on images "
        "of the seen classes\nof mini. Their masks are named by CLIP's dense features alone, by the "
        "generator alone, or by both (fused).\n\n"
        f"{detection}\n\n"
        "AP50 of boxes of F-ViT in %, trained on boxes of the seen (base) things of mini alone; novel ones "
        "were never\nnamed in its training.\n"
        f"{seconds / 60:.1f} minutes. Images: {output / 'index.html'}; protocols of the numbers: table.md\n"
    )
