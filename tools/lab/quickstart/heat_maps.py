"""Where a CLIP finds a word: generated scenes with a heat map of the original CLIP and one after CLIPSelf.

Shapes: E channels, h x w cells of the features, H x W pixels of a tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from clipself_seg.clip import DenseCLIP, TextBank
from clipself_seg.clip.model import whole_image_features
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.visualization.dense_maps import heat_map
from clipself_seg.visualization.overlays import FAINT, INK, PAPER
from clipself_seg.visualization.text import write_text
from lab.mini.concepts import WORLDS
from lab.mini.writer import scene_of

WORLD = "mini"
# Number of a scene of the split val, and the class that is looked for.
ASKED = ((9, "green triangle"), (12, "bricks"))
# Title of a column -> weights.
SHOWN = {"original CLIP": "mini", "after CLIPSelf": "mini-clipself-proposals"}
SIDE = 192  # pixels of the scene's longest side for the CLIPs, which is that of the scene itself
TILE = 184  # width in pixels
TEXT = 23  # height in pixels: can be read where the whole is as wide as a telephone
GAP = 10


class Question(NamedTuple):
    """A scene and a class that is looked for in it, and for each CLIP how sure it is at each pixel.

    Attributes:
        name: name of the class.
        image: (H, W, 3) uint8 RGB.
        maps: title -> (H, W, 3) uint8, the heat map over the image.
    """

    name: str
    image: np.ndarray
    maps: Mapping[str, np.ndarray]


def ask(clips: Mapping[str, DenseCLIP], asked: Sequence[tuple[int, str]] = ASKED) -> list[Question]:
    """Heat maps of scenes of the mini world, which are drawn anew.

    Bright is the probability of the class among all classes of the world: a softmax over the cosines of a
    cell's features with every class name, times CLIP's own factor. Black is 0 and yellow is 1 everywhere.

    Args:
        clips: models by title.
        asked: numbers of scenes, and names of classes.
    """
    vocabulary = load_vocabulary(WORLD)
    texts = {title: TextBank(clip).embed(vocabulary).cpu().numpy() for title, clip in clips.items()}
    questions = []
    for number, name in asked:
        scene = scene_of(WORLDS[WORLD], "val", number, seed=0).image
        height = round(TILE * scene.shape[0] / scene.shape[1])
        image = cv2.resize(scene, (TILE, height), interpolation=cv2.INTER_CUBIC)
        index = vocabulary.names.index(name)
        maps = {
            title: heat_map(image, _probability(clip, scene, texts[title], index, height), 0, 1)
            for title, clip in clips.items()
        }
        questions.append(Question(name, image, maps))
    return questions


def _probability(
    clip: DenseCLIP, scene: np.ndarray, texts: np.ndarray, index: int, height: int
) -> np.ndarray:
    """Probability of one class at every pixel of a tile, (H, W); `texts` is (K, E)."""
    features = whole_image_features(clip, scene, SIDE)
    logits = float(clip.logit_scale.detach().exp()) * np.einsum("ke,ehw->khw", texts, features)
    odds = np.exp(logits - logits.max(0))
    cells = odds[index] / odds.sum(0)
    # The last cells may reach beyond the scene.
    pixels = TILE * clip.patch_size / SIDE
    size = (round(cells.shape[1] * pixels), round(cells.shape[0] * pixels))
    large: np.ndarray = cv2.resize(cells, size, interpolation=cv2.INTER_CUBIC)
    return large[:height, :TILE]


def heat_sheet(questions: Sequence[Question]) -> Image.Image:
    """A row for each question: its words, the scene, and the heat map of each CLIP."""
    titles = ["scene", *questions[0].maps]
    head = TEXT + 2 * GAP
    steps = [head + question.image.shape[0] + GAP for question in questions]
    width = GAP + len(titles) * (TILE + GAP)
    canvas = Image.new("RGB", (width, head + sum(steps)), PAPER)
    draw = ImageDraw.Draw(canvas)
    lefts = [GAP + column * (TILE + GAP) for column in range(len(titles))]
    for left, title in zip(lefts, titles):
        write_text(draw, (left + TILE / 2, head / 2 + GAP / 2), title, TEXT, FAINT, "mm")
    top = head
    for question, step in zip(questions, steps):
        write_text(draw, (GAP, top + head / 2), f"“{question.name}”", TEXT, INK)
        for left, tile in zip(lefts, [question.image, *question.maps.values()]):
            canvas.paste(Image.fromarray(tile), (left, top + head))
        top += step
    return canvas
