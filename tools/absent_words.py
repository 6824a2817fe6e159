"""Counts words that are found where they are not, before and after `--absent drop`: docs/tables/absent_words.md.

    python tools/absent_words.py --scenes 20
    python tools/absent_words.py --lvis lvis_v1_val.json --images coco --model tipsv2-l14 --task panoptic

Scenes of both generated worlds ($CLIPSELF_SEG_MINI), drawn by each seed, are read by the models that come with the
project, with all words of their world (F-ViT: its things); which of them are in a scene is known. A word is found if it
has a pixel, a segment or a box. Printed are, of an image, the absent words that are found and the present ones that
are, in percent, and SA-Co's measures (lab/sa_co.py): mean and standard deviation over the seeds. The same scenes are
counted in all rows of a seed; as many further ones calibrate the threshold of the last.

With --lvis the words of an image are those of its annotations, and those that the file says are not in it; words whose
objects are not all annotated are left out. They are asked together, so they compete.

All that a model predicts counts, whatever its score, of F-ViT what has a score of 0.5. Masks are compared with masks,
boxes with boxes. A semantic model has one mask a word, of which several true ones match one at most.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle
from tabulate import tabulate
from tqdm import tqdm

from clipself_seg.commands.options import value
from clipself_seg.data.annotations import listed_records, read_coco_json
from clipself_seg.data.datasets.table import MINI
from clipself_seg.data.images import read_image
from clipself_seg.data.masks import encode_masks, read_panoptic_png
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import report_input_errors
from clipself_seg.evaluation.coco_objects import read_true_objects
from clipself_seg.prediction.load import load
from clipself_seg.prediction.presence import THRESHOLD, best_threshold
from clipself_seg.prediction.results import Regions
from lab.sa_co import sa_co

ZERO_SHOT = "without training, "
SCORE = ["MODEL.FVIT.SCORE_THRESHOLD", "0.5"]  # as predict has it
MODELS: dict[str, Callable[[], Any]] = {
    f"{ZERO_SHOT}original": lambda: load(config_file="mini/zero_shot"),
    f"{ZERO_SHOT}CLIPSelf": lambda: load("mini-clipself"),
    "CAT-Seg": lambda: load("mini", task="semantic"),
    "panoptic": lambda: load("mini", task="panoptic"),
    "F-ViT": lambda: load("mini", task="detection", opts=SCORE),
}
HEADINGS = ["world", "model", "asked", "absent words found", "present words found, %"]
HEADINGS += ["pmF1, %", "IL_MCC", "cgF1"]


class Scene(NamedTuple):
    """An image (H, W, 3), and the run lengths of the true masks of each class in it, by the class's id."""

    image: np.ndarray
    truth: Mapping[int, Sequence[Any]]


def scenes_of(world: str, count: int, seed: int) -> list[Scene]:
    """Validation scenes of a world, drawn by a seed."""
    folder = MINI.drawn / world
    path = folder / "annotations/panoptic_val.json"
    if not path.is_file():
        raise SystemExit(f"error: {path} is missing: python tools/mini.py world draws the worlds")
    content = json.loads(path.read_text(encoding="utf-8"))
    files = {image["id"]: image["file_name"] for image in content["images"]}
    scenes = []
    for entry in random.Random(seed).sample(content["annotations"], count):
        ids = read_panoptic_png(folder / "panoptic_val" / entry["file_name"])
        truth: dict[int, list[Any]] = {}
        for segment in entry["segments_info"]:
            truth.setdefault(segment["category_id"], []).extend(
                encode_masks([ids == segment["id"]])
            )
        scenes.append(Scene(read_image(folder / "val" / files[entry["image_id"]]), truth))
    return scenes


def give_words(model: Any, words: Vocabulary) -> None:
    """Set words; of a model that labels pixels with a background, which none of them gets but from dropped words."""
    of_background = ("background", 0.0) if model.task == "semantic" else ()
    model.set_vocabulary(words, *of_background)


class Counts(NamedTuple):
    """Numbers of a model on some images: means of an image, and SA-Co's measures."""

    false: float
    kept: float
    f1: float  # in percent
    mcc: float
    cgf1: float


def overlaps(regions: Regions, label: int, truth: Sequence[Any]) -> np.ndarray:
    """IoU (t, p) of t true masks with the p predicted regions of a class; of boxes, where regions have no masks."""
    own = regions.labels == label
    if not truth or not own.any():
        return np.zeros((len(truth), int(own.sum())))
    true: Any = truth
    if regions.masks is None:
        true = np.stack([rle.toBbox(mask) for mask in truth])
        predicted: Any = regions.boxes_xywh()[own].astype(float)
    else:
        predicted = encode_masks(regions.masks[own])
    return np.asarray(rle.iou(true, predicted, [0] * len(predicted)))


def matches_of(model: Any, scene: Scene, words: Vocabulary) -> tuple[int, float, list[np.ndarray]]:
    """Absent words found, present words found in percent, and SA-Co's datapoints, of all words asked of a scene."""
    regions = model(scene.image).regions()
    predicted = set(regions.labels.tolist())
    truth = [scene.truth.get(entry.dataset_id, ()) for entry in words.classes]
    there = {label for label, masks in enumerate(truth) if masks}
    datapoints = [overlaps(regions, label, masks) for label, masks in enumerate(truth)]
    return len(predicted - there), 100 * len(predicted & there) / max(1, len(there)), datapoints


def counts(every: Sequence[tuple[int, float, list[np.ndarray]]]) -> Counts:
    """Counts of images, from what `matches_of` says of each."""
    false, kept, datapoints = zip(*every)
    measures = sa_co([one for own in datapoints for one in own])
    return Counts(float(np.mean(false)), float(np.mean(kept)), 100 * measures.f1, *measures[1:])


def calibrated(model: Any, scenes: Sequence[Scene], words: Vocabulary) -> float:
    """The threshold that divides present from absent words of further scenes best."""
    scores = np.concatenate([model.presence(model.given).scores(one.image) for one in scenes])
    there = [[entry.dataset_id in one.truth for entry in words.classes] for one in scenes]
    return best_threshold(scores, np.concatenate(there))


def rows_of_worlds(count: int, seeds: int) -> list[list[object]]:
    """Rows of the table: world, model, what was asked, and the spread of each of `Counts` over the seeds."""
    rows = list[list[object]]()
    for world, (name, make) in itertools.product(("mini", "mini2"), MODELS.items()):
        model = make()
        words = Vocabulary.load(f"{world}_things" if name == "F-ViT" else world)
        give_words(model, words)
        matches: dict[str, list[Counts]] = {"all words": [], "drop": [], "calibrated": []}
        for seed in range(seeds):
            scenes = scenes_of(world, 2 * count, seed)
            thresholds = THRESHOLD, calibrated(model, scenes[count:], words)
            for numbers, threshold in zip(matches.values(), (None, *thresholds)):
                model.set_absent("drop" if threshold else None, threshold)
                numbers.append(counts([matches_of(model, one, words) for one in scenes[:count]]))
        for asked, numbers in matches.items():
            rows.append([world, name, asked, *spreads(numbers)])
            sys.stderr.write(f"{rows[-1]}\n")
    return rows


def spreads(numbers: Sequence[Counts]) -> list[str]:
    """Each of `Counts` as text: the mean and, of several seeds, their standard deviation."""
    return [
        spread(values, 2 if name == "mcc" else 1)
        for name, values in zip(Counts._fields, zip(*numbers))
    ]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and, of several values, their standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} \u00b1 {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def lvis_scenes(file: str, folder: str) -> Iterator[tuple[Scene, Vocabulary]]:
    """Images of a file in LVIS's format, each with the words that the file knows to be there in full, or absent."""
    words = Vocabulary.load("lvis_v1_1203")
    truth = read_true_objects(file, words, boxes=False, masks=True, federated=True)
    assert truth.federated is not None
    negatives, not_exhaustive = truth.federated
    records = listed_records(read_coco_json(file), file, folder, by_url=True)
    names = {record["image_id"]: record["file_name"] for record in records}
    for number, image in enumerate(truth.image_ids):
        asked, masks = [], {}
        for label, entry in enumerate(words.classes):
            own = truth.objects[label].get(number, ())
            if own and number not in not_exhaustive[label]:
                masks[entry.dataset_id] = [one["segmentation"] for one in own]
                asked.append(entry)
            elif number in negatives[label]:
                asked.append(entry)
        if asked:
            scene = Scene(read_image(names[image]), masks)
            yield scene, dataclasses.replace(words, classes=tuple(asked))


def rows_of_lvis(file: str, folder: str, name: str, task: str | None) -> list[list[object]]:
    """Rows of the table on data in LVIS's format: with all words that are asked, and without those dropped."""
    model = load(name, task=task, opts=SCORE if task == "detection" else ())
    every: dict[str, list[tuple[int, float, list[np.ndarray]]]] = {"all words": [], "drop": []}
    for scene, words in tqdm(lvis_scenes(file, folder), unit="image"):
        give_words(model, words)
        for asked, own in every.items():
            model.set_absent("drop" if asked == "drop" else None)
            own.append(matches_of(model, scene, words))
    return [["LVIS", name, asked, *spreads([counts(own)])] for asked, own in every.items()]


@report_input_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    value(parser, "--scenes", "of each world and seed", 20)
    value(parser, "--seeds", "draws of scenes", 3)
    value(parser, "--lvis", "annotations in LVIS's format, in place of the worlds")
    value(parser, "--images", "folder of their images", ".")
    value(parser, "--model", "model for --lvis, as predict --model (the default)")
    value(parser, "--task", "its task (semantic)")
    args = parser.parse_args(arguments)
    if args.lvis:
        rows = rows_of_lvis(args.lvis, args.images, args.model, args.task)
    else:
        rows = rows_of_worlds(args.scenes, args.seeds)
    sys.stdout.write(f"{tabulate(rows, HEADINGS, tablefmt='github', disable_numparse=True)}\n")


if __name__ == "__main__":
    sys.exit(main())
