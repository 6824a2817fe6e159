"""Counts words that are found where they are not, before and after `--absent drop`; docs/tables/absent_words.md has the table.

    python tools/absent_words.py --scenes 20

Scenes of both generated worlds ($CLIPSELF_SEG_MINI), drawn by each seed, are read by the models that come with the
project, with all words of their world (F-ViT: its things); which of them are in a scene is known. A word is found if it
has a pixel, a segment or a box. Printed are, of an image, the absent words that are found and the present ones that
are, in percent: mean and standard deviation over the seeds. The same scenes are counted in all rows of a seed; as many
further ones calibrate the threshold of the last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

from clipself_seg.commands.options import value
from clipself_seg.data.datasets.table import MINI
from clipself_seg.data.images import read_image
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.prediction.load import load
from clipself_seg.prediction.presence import THRESHOLD, best_threshold

ZERO_SHOT = "without training, "
SCORE = ["MODEL.FVIT.SCORE_THRESHOLD", "0.5"]  # as predict has it
MODELS: dict[str, Callable[[], Any]] = {
    f"{ZERO_SHOT}original": lambda: load(config_file="mini/zero_shot"),
    f"{ZERO_SHOT}CLIPSelf": lambda: load("mini-clipself"),
    "CAT-Seg": lambda: load("mini", task="semantic"),
    "panoptic": lambda: load("mini", task="panoptic"),
    "F-ViT": lambda: load("mini", task="detection", opts=SCORE),
}


class Scene(NamedTuple):
    """An image (H, W, 3), and the ids of the classes in it."""

    image: np.ndarray
    ids: Sequence[int]


def scenes_of(world: str, count: int, seed: int) -> list[Scene]:
    """Validation scenes of a world, drawn by a seed."""
    folder = MINI.drawn / world
    path = folder / "annotations/panoptic_val.json"
    if not path.is_file():
        raise SystemExit(f"error: {path} is missing: python tools/mini.py world draws the worlds")
    content = json.loads(path.read_text(encoding="utf-8"))
    files = {image["id"]: image["file_name"] for image in content["images"]}
    return [
        Scene(
            read_image(folder / "val" / files[entry["image_id"]]),
            [segment["category_id"] for segment in entry["segments_info"]],
        )
        for entry in random.Random(seed).sample(content["annotations"], count)
    ]


def give_words(model: Any, words: Vocabulary) -> None:
    """Set words; of a model that labels pixels with a background, which none of them gets but from dropped words."""
    of_background = ("background", 0.0) if model.task == "semantic" else ()
    model.set_vocabulary(words, *of_background)


def counts(model: Any, scenes: Sequence[Scene], words: Vocabulary) -> tuple[float, float]:
    """Mean numbers of an image: absent words that a model finds, and present ones that it finds, in percent."""
    false, kept = [], []
    for image, ids in scenes:
        predicted = set(model(image).regions().labels.tolist())
        there = {k for k, entry in enumerate(words.classes) if entry.dataset_id in ids}
        false.append(len(predicted - there))
        kept.append(100 * len(predicted & there) / max(1, len(there)))
    return float(np.mean(false)), float(np.mean(kept))


def calibrated(model: Any, scenes: Sequence[Scene], words: Vocabulary) -> float:
    """The threshold that divides present from absent words of further scenes best."""
    scores = np.concatenate([model.presence(model.given).scores(image) for image, _ in scenes])
    there = [[entry.dataset_id in ids for entry in words.classes] for _, ids in scenes]
    return best_threshold(scores, np.concatenate(there))


def rows_of_worlds(count: int, seeds: int) -> list[list[object]]:
    """Rows of the table: world, model, what was asked, absent words found, present words found in percent."""
    rows = list[list[object]]()
    for world, (name, make) in itertools.product(("mini", "mini2"), MODELS.items()):
        model = make()
        words = Vocabulary.load(f"{world}_things" if name == "F-ViT" else world)
        give_words(model, words)
        matches: dict[str, list[tuple[float, float]]] = {
            "all words": [],
            "drop": [],
            "calibrated": [],
        }
        for seed in range(seeds):
            scenes = scenes_of(world, 2 * count, seed)
            thresholds = THRESHOLD, calibrated(model, scenes[count:], words)
            for numbers, threshold in zip(matches.values(), (None, *thresholds)):
                model.set_absent("drop" if threshold else None, threshold)
                numbers.append(counts(model, scenes[:count], words))
        for asked, numbers in matches.items():
            rows.append([world, name, asked, *map(spread, zip(*numbers))])
            sys.stderr.write(f"{rows[-1]}\n")
    return rows


def spread(values: Sequence[float]) -> str:
    """Mean and, of several values, their standard deviation."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} \u00b1 {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    value(parser, "--scenes", "of each world and seed", 20)
    value(parser, "--seeds", "draws of scenes", 3)
    args = parser.parse_args(arguments)
    heads = ["world", "model", "asked", "absent words found", "present words found, %"]
    text = tabulate(rows_of_worlds(args.scenes, args.seeds), heads, tablefmt="github")
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main()
