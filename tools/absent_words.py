"""Counts words that are found where they are not, before and after `--absent drop`; docs/predict.md has the table.

    python tools/absent_words.py --scenes 60
    python tools/absent_words.py --formulas --scenes 80
    python tools/absent_words.py --images photos/ --words 20

Scenes of both generated worlds ($CLIPSELF_SEG_MINI) are read by the models that come with the project, with all words
of their world (F-ViT: its things); which of them are in a scene is known. A word is found if it has a pixel, a segment
or a box. Printed are, of an image, the absent words that are found and the fraction of the present ones that are.
Scenes are counted in all rows; as many further ones calibrate the threshold of the last.
--formulas compares scores of presence by the area under the ROC curve: that of a random present word against a random
absent one, for the original CLIP of the generated worlds and for its student.
With --images the words are names of LVIS, drawn at random for each image, and nobody knows which are there: counts
without a claim.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from tabulate import tabulate

from clipself_seg.clip import DenseCLIP, TextBank, load_clip
from clipself_seg.clip.model import whole_image_features
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


class Counts(NamedTuple):
    """Of an image on average: absent words that are found, and the fraction of the present ones that are found."""

    false: float
    kept: float


def scenes_of(world: str, first: int, count: int) -> list[Scene]:
    """Validation scenes of a world."""
    folder = Path(os.environ.get("CLIPSELF_SEG_MINI", "output/mini_world")) / world
    content = json.loads((folder / "annotations/panoptic_val.json").read_text(encoding="utf-8"))
    files = {image["id"]: image["file_name"] for image in content["images"]}
    chosen = content["annotations"][first : first + count]
    return [
        Scene(
            read_image(folder / "val" / files[entry["image_id"]]),
            [segment["category_id"] for segment in entry["segments_info"]],
        )
        for entry in chosen
    ]


def give_words(model: Any, words: Vocabulary) -> None:
    """Set words; of a model that labels pixels with a background, which none of them gets but from dropped words."""
    of_background = ("background", 0.0) if model.folder == "semseg" else ()
    model.set_vocabulary(words, *of_background)


def counts(model: Any, scenes: Sequence[Scene], words: Vocabulary) -> Counts:
    """What a model finds in scenes, as it is set."""
    false, kept = [], []
    for image, ids in scenes:
        predicted = set(model(image).regions().labels.tolist())
        there = {k for k, entry in enumerate(words.classes) if entry.dataset_id in ids}
        false.append(len(predicted - there))
        kept.append(len(predicted & there) / max(1, len(there)))
    return Counts(float(np.mean(false)), float(np.mean(kept)))


def calibrated(model: Any, scenes: Sequence[Scene], words: Vocabulary) -> float:
    """The threshold that divides present from absent words of further scenes best."""
    scores = np.concatenate([model.presence().scores(image) for image, _ in scenes])
    there = [[entry.dataset_id in ids for entry in words.classes] for _, ids in scenes]
    return best_threshold(scores, np.concatenate(there))


def rows_of_worlds(count: int) -> list[list[object]]:
    """Rows of the table: world, model, what was asked, threshold, absent words found, present words found."""
    rows = list[list[object]]()
    for world in ("mini", "mini2"):
        scenes, further = (scenes_of(world, first, count) for first in (0, count))
        for name, make in MODELS.items():
            model = make()
            words = load_vocabulary(f"{world}_things" if name == "F-ViT" else world)
            give_words(model, words)
            own = calibrated(model, further, words)
            for asked, threshold in (("all words", None), ("drop", THRESHOLD), ("calibrated", own)):
                model.set_absent("drop" if threshold else None, threshold)
                numbers = counts(model, scenes, words)
                rows.append([world, name, asked, threshold, numbers.false, 100 * numbers.kept])
                sys.stderr.write(f"{rows[-1]}\n")
    return rows


def rows_of_formulas(count: int) -> list[list[object]]:
    """Areas under the curve, in percent, by CLIP and world, of each formula."""
    rows = list[list[object]]()
    for tag in ("mini", "mini-clipself"):
        clip = load_clip("ViT-Mini-8", tag)
        for world in ("mini", "mini2"):
            words = load_vocabulary(world)
            text_KE = TextBank(clip, "single").embed(words)
            scores, there = list[np.ndarray](), list[np.ndarray]()
            for image, ids in scenes_of(world, 0, count):
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
    ranks = rankdata(scores)
    count = int(present.sum())
    return (ranks[present].sum() - count * (count + 1) / 2) / (count * (len(scores) - count))


def rows_of_images(folder: str, count: int) -> list[list[object]]:
    """Words found in an image on average, of random ones: all, and those that are left."""
    names = [entry.names[0] for entry in load_vocabulary("lvis_v1_1203").classes]
    files = find_images([folder], "output").images
    rows = list[list[object]]()
    for name, make in MODELS.items():
        model, numbers = make(), {"all words": list[int](), "drop": list[int]()}
        for number, file in enumerate(files):
            drawn = random.Random(number).sample(names, count)
            give_words(model, Vocabulary.from_names(drawn))
            for asked in numbers:
                model.set_absent(None if asked == "all words" else "drop")
                labels = model(file.path).regions().labels
                numbers[asked].append(len(set(labels.tolist())))
        rows.append([name, len(files), *(float(np.mean(own)) for own in numbers.values())])
        sys.stderr.write(f"{rows[-1]}\n")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=60, help="of each world (60)")
    parser.add_argument("--formulas", action="store_true", help="compare scores of presence")
    parser.add_argument("--images", help="folder of photographs in place of scenes")
    parser.add_argument("--words", type=int, default=20, help="of a photograph (20)")
    args = parser.parse_args(arguments)
    if args.images:
        rows = rows_of_images(args.images, args.words)
        heads = ["model", "images", "found of all words", "found after drop"]
    elif args.formulas:
        rows, heads = rows_of_formulas(args.scenes), ["CLIP", "world", *FORMULAS]
    else:
        rows = rows_of_worlds(args.scenes)
        heads = ["world", "model", "asked", "threshold", "absent words found", "present words, %"]
    text = tabulate(rows, heads, tablefmt="github", floatfmt=".2f", missingval="")
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main()
