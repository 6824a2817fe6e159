"""Counts words that are found where they are not, before and after `--absent drop`; docs/predict.md has the table.

    python tools/absent_words.py --scenes 20
    python tools/absent_words.py --formulas --scenes 80
    python tools/absent_words.py --images photos/ --words 20

Scenes of both generated worlds ($CLIPSELF_SEG_MINI), drawn by each seed, are read by the models that come with the
project, with all words of their world (F-ViT: its things); which of them are in a scene is known. A word is found if it
has a pixel, a segment or a box. Printed are, of an image, the absent words that are found and the present ones that
are, in percent: mean and standard deviation over the seeds. The same scenes are counted in all rows of a seed; as many
further ones calibrate the threshold of the last.
--formulas compares scores of presence by the area under the ROC curve: that of a random present word against a random
absent one, for the original CLIP of the generated worlds and for its student.
With --images the words are names of LVIS, drawn by each seed for each image, and nobody knows which are there: counts
without a claim.
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
import torch
import torch.nn.functional as F
from scipy.stats import mannwhitneyu
from tabulate import tabulate

from clipself_seg.clip import DenseCLIP, TextBank, load_clip
from clipself_seg.clip.model import whole_image_features
from clipself_seg.commands.options import flag, value
from clipself_seg.data.datasets.table import MINI
from clipself_seg.data.images import read_image
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.heads.text_scores import cosine_cost
from clipself_seg.prediction.files import find_images
from clipself_seg.prediction.load import load
from clipself_seg.prediction.presence import NEAR, SIZE, THRESHOLD, best_threshold

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
    content = json.loads((folder / "annotations/panoptic_val.json").read_text(encoding="utf-8"))
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
    """Of an image on average: absent words that a model finds, and present ones, in percent."""
    false, kept = [], []
    for image, ids in scenes:
        predicted = set(model(image).regions().labels.tolist())
        there = {k for k, entry in enumerate(words.classes) if entry.dataset_id in ids}
        false.append(len(predicted - there))
        kept.append(100 * len(predicted & there) / max(1, len(there)))
    return float(np.mean(false)), float(np.mean(kept))


def calibrated(model: Any, scenes: Sequence[Scene], words: Vocabulary) -> float:
    """The threshold that divides present from absent words of further scenes best."""
    scores = np.concatenate([model.presence().scores(image) for image, _ in scenes])
    there = [[entry.dataset_id in ids for entry in words.classes] for _, ids in scenes]
    return best_threshold(scores, np.concatenate(there))


def rows_of_worlds(count: int, seeds: int) -> list[list[object]]:
    """Rows of the table: world, model, what was asked, absent words found, present words found in percent."""
    rows = list[list[object]]()
    for world, (name, make) in itertools.product(("mini", "mini2"), MODELS.items()):
        model = make()
        words = load_vocabulary(f"{world}_things" if name == "F-ViT" else world)
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


def rows_of_formulas(count: int) -> list[list[object]]:
    """Areas under the curve, in percent, by CLIP and world, of each formula."""
    rows = list[list[object]]()
    for tag in ("mini", "mini-clipself"):
        clip = load_clip("ViT-Mini-8", tag)
        for world in ("mini", "mini2"):
            words = load_vocabulary(world)
            text_KE = TextBank(clip, "single").embed(words)
            scores, there = list[np.ndarray](), list[np.ndarray]()
            for image, ids in scenes_of(world, count, 0):
                scores.append(formulas(clip, image, text_KE))
                there.append(np.isin([entry.dataset_id for entry in words.classes], ids))
            present = np.concatenate(there)
            areas = [100 * area(own, present) for own in np.concatenate(scores, axis=1)]
            rows.append([tag, world, *areas])
    return rows


FORMULAS = ("image", "best cell", "best region", "image and region", "region among the words")


@torch.no_grad()
def formulas(clip: DenseCLIP, image: np.ndarray, text_KE: torch.Tensor) -> np.ndarray:
    """The score of each word in an image by each of `FORMULAS`, (5, K)."""
    square = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    square = F.interpolate(square, (clip.image_size,) * 2, mode="bicubic", antialias=True)
    whole_E = clip.encode_image(clip.preprocess(square.clamp(0, 255).to(torch.uint8)))[0]
    whole_K = text_KE @ F.normalize(whole_E, dim=0)
    features = torch.from_numpy(whole_image_features(clip, image, SIZE * clip.image_size))
    cells_Khw = cosine_cost(features, text_KE[:, None])[0]
    near_Khw = F.avg_pool2d(cells_Khw, NEAR, 1, NEAR // 2, count_include_pad=False)
    best_K, region_K = (maps.flatten(1).amax(dim=1) for maps in (cells_Khw, near_Khw))
    among_K = (40 * near_Khw).softmax(dim=0).flatten(1).amax(dim=1)
    return torch.stack([whole_K, best_K, region_K, (whole_K + region_K) / 2, among_K]).numpy()


def area(scores: np.ndarray, present: np.ndarray) -> float:
    """How often a present word scores higher than an absent one, in [0, 1]."""
    high, low = scores[present], scores[~present]
    return mannwhitneyu(high, low).statistic / (len(high) * len(low))


def rows_of_images(folder: str, count: int, seeds: int) -> list[list[object]]:
    """Words found in an image on average, of random ones: all, and those that are left."""
    names = load_vocabulary("lvis_v1_1203").names
    files = find_images([folder], "output").images
    rows = list[list[object]]()
    for name, make in MODELS.items():
        model, means = make(), list[tuple[float, float]]()
        for seed in range(seeds):
            matches = list[tuple[int, int]]()
            for number, file in enumerate(files):
                drawn = random.Random(f"{seed} {number}").sample(names, count)
                give_words(model, Vocabulary.from_names(drawn))
                labels = list[np.ndarray]()
                for what in (None, "drop"):
                    model.set_absent(what)
                    labels.append(np.unique(model(file.path).regions().labels))
                matches.append((len(labels[0]), len(labels[1])))
            means.append(tuple(np.mean(matches, axis=0)))
        rows.append([name, len(files), *map(spread, zip(*means))])
        sys.stderr.write(f"{rows[-1]}\n")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    value(parser, "--scenes", "of each world and seed", 20)
    value(parser, "--seeds", "draws of scenes, or of words", 3)
    flag(parser, "--formulas", "compare scores of presence")
    value(parser, "--images", "folder of photographs in place of scenes")
    value(parser, "--words", "of a photograph", 20)
    args = parser.parse_args(arguments)
    if args.images:
        rows = rows_of_images(args.images, args.words, args.seeds)
        heads = ["model", "images", "found of all words", "found after drop"]
    elif args.formulas:
        rows, heads = rows_of_formulas(args.scenes), ["CLIP", "world", *FORMULAS]
    else:
        rows = rows_of_worlds(args.scenes, args.seeds)
        heads = ["world", "model", "asked", "absent words found", "present words found, %"]
    text = tabulate(rows, heads, tablefmt="github", floatfmt=".2f", missingval="")
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main()
