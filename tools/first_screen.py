"""Draws the first picture of README: one scene as classes, segments and boxes, and where a CLIP finds a word in it.

    python tools/first_screen.py     # writes docs/pictures/one_scene.jpg

The models come with the project, and the scene is one of the generated world, which they know.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from clipself_seg.checkpoints.zoo import MINI_CLIP
from clipself_seg.clip import load_clip
from clipself_seg.data.images import read_image
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.explore.demo import SCENES, SHOWN, ask
from clipself_seg.files import atomic_path
from clipself_seg.prediction.load import load
from clipself_seg.visualization.sheets import sheet
from lab import ROOT

FILE = ROOT / "docs/pictures/one_scene.jpg"
SCENE, WORD = 9, "green triangle"
SIDES = (264, 198)  # width and height in pixels of each tile: names can be read on them
TEXT = 22  # height of the titles in pixels: they can be read on a telephone
# Title of a column -> task, words, and further keys.
SEEN = {
    "a class for every pixel": ("semantic", "mini", []),
    "segments": ("panoptic", "mini", []),
    "boxes": ("detection", "mini_things", ["MODEL.FVIT.SCORE_THRESHOLD", "0.8"]),
}


def one_scene() -> Image.Image:
    """The picture: a row of predictions, and one of heat maps."""
    scene = read_image(SCENES / f"{SCENE:06d}.jpg")
    image = cv2.resize(scene, SIDES, interpolation=cv2.INTER_CUBIC)
    predicted = []
    for task, words, opts in SEEN.values():
        model = load("mini", task=task, opts=opts)
        model.set_vocabulary(Vocabulary.load(words))
        predicted.append(np.asarray(model(image).overlay(legend=False, enlarge=False)))
    clips = {title: load_clip(MINI_CLIP, tag) for title, tag in SHOWN.items()}
    (question,) = ask(clips, [(SCENE, WORD)])
    maps = [cv2.resize(one, SIDES, interpolation=cv2.INTER_CUBIC) for one in question.maps.values()]
    captions = [[""] * len(SEEN), [f"“{WORD}”", *question.maps]]
    return sheet([predicted, [image, *maps]], [*SEEN], captions, text=TEXT)


def main() -> None:
    """Draw it."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with atomic_path(Path(FILE)) as temporary:
        one_scene().save(temporary, "JPEG", quality=88, subsampling=0, optimize=True)


if __name__ == "__main__":
    main()
