"""Panoptic quality of a prediction in files, such as that of another project, by panopticapi."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clipself_seg.commands.options import CommandLine, command, required, value
from clipself_seg.errors import InputError, in_short, require_unique, shown
from clipself_seg.schema import LIST, TEXT, WHOLE, Schema, one_of

if TYPE_CHECKING:
    from clipself_seg.evaluation.coco_objects import Entry
    from clipself_seg.evaluation.panoptic.quality import ClassQuality

COUNTED = ("tp", "fp", "fn", "iou")  # by panopticapi, of each class


class Side(NamedTuple):
    """Files of the ground truth, or of a prediction: a panoptic JSON, and the folder of the PNGs that it names."""

    json: Path
    folder: Path


def _options(parser: CommandLine) -> None:
    for side, what in (("truth", "ground truth"), ("prediction", "prediction")):
        text = f"panoptic JSON of the {what} and the folder of its PNGs"
        required(parser, f"--{side}", text, nargs=2, type=Path, metavar=("JSON", "FOLDER"))
    value(parser, "--json", "file for the numbers", kind=Path)


@command(_options)
def main(args: argparse.Namespace) -> None:
    """Panoptic quality (PQ, SQ, RQ) of a prediction in COCO's format: a JSON and a folder of PNGs.

        clipself-seg panoptic-quality --truth panoptic_val2017.json panoptic_val2017 \\
            --prediction pred.json pred --json quality.json

    panopticapi matches the segments, on all cores. clipself-seg eval has the same numbers without files, and those of
    seen and of unseen classes. The JSON has SQ and RQ of things and of stuff, too, and the numbers of each class.
    """
    import numpy as np

    from clipself_seg.evaluation.panoptic.quality import panoptic_results
    from clipself_seg.evaluation.report import run_table
    from clipself_seg.provenance import provenance, write_results

    truth = Side(*args.truth)
    classes = read_classes(truth.json)
    ids, names = ([entry[key] for entry in classes] for key in ("id", "name"))
    isthing = np.array([entry["isthing"] == 1 for entry in classes])
    quality, images = evaluate_files(truth, Side(*args.prediction), ids)
    results = {"images": float(images)} | panoptic_results(quality, names, isthing)
    sys.stdout.write(run_table("panoptic", {truth.json.name: results}) + "\n")
    if args.json:
        # Without NaN, which JSON lacks: a class that is nowhere has no number.
        known = {key: number for key, number in results.items() if number == number}
        write_results(args.json, {"panoptic_seg": known}, provenance())


def read_classes(json: Path) -> list[Entry]:
    """The categories of a panoptic JSON, each with "id", "name" and "isthing".

    Raises:
        InputError: a missing or broken file; no categories, one that lacks any of these, or one id twice.
    """
    from clipself_seg.data.annotations import coco_list, read_coco_json

    schema: Schema = {"id": WHOLE, "name": TEXT, "isthing": one_of(0, 1)}
    classes = coco_list(read_coco_json(json), "categories", json, schema)
    require_unique((entry["id"] for entry in classes), "category id", json)
    return classes


def evaluate_files(truth: Side, predicted: Side, ids: Sequence[int]) -> tuple[ClassQuality, int]:
    """Quality of the classes with these category ids, and the number of images, those of the ground truth.

    Raises:
        InputError: files that are missing, broken, or disagree.
    """
    from panopticapi.evaluation import pq_compute_multi_core

    from clipself_seg.evaluation.panoptic.quality import class_quality

    wanted, given = read_entries(truth.json), read_entries(predicted.json)
    if missing := [image for image in wanted if image not in given]:
        raise InputError(
            f"{predicted.json} has no prediction for {len(missing)} of {len(wanted)} images of {truth.json}, such as "
            f"{shown(missing[0])}: give an entry for each, under the same id, and one without segments too"
        )
    pairs = [(entry, given[image]) for image, entry in wanted.items()]
    categories = {number: {"id": number} for number in ids}
    said = io.StringIO()  # what panopticapi prints
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            stat = pq_compute_multi_core(pairs, truth.folder, predicted.folder, categories)
    except Exception as error:  # whatever its code makes of a strange file
        raise InputError(
            f"panopticapi cannot compare {predicted.json} with {truth.json} ({in_short(error, 200)}): "
            "correct the entry, or its PNG"
        ) from None
    tp, fp, fn, iou = ([getattr(stat[number], key) for number in ids] for key in COUNTED)
    return class_quality(tp, fp, fn, iou), len(pairs)


def read_entries(json: Path) -> dict[int | str, Entry]:
    """The entry of each image by its id."""
    from clipself_seg.data.annotations import ID, coco_list, read_coco_json

    schema: Schema = {"image_id": ID, "file_name": TEXT, "segments_info": LIST}
    entries = coco_list(read_coco_json(json), "annotations", json, schema)
    return {entry["image_id"]: entry for entry in entries}
