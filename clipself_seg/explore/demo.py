"""Heat maps of words, and segments, of the shipped models on scenes of the shipped world: the pictures of the demo.

Shapes: E channels, h x w cells of the features, H x W pixels of a tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from clipself_seg.clip import TextBank, VisionLanguageBackbone
from clipself_seg.clip.model import whole_image_features
from clipself_seg.data.datasets.table import SHIPPED_WORLD
from clipself_seg.data.images import read_image
from clipself_seg.data.masks import read_indices
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.prediction.load import load
from clipself_seg.visualization.dense_maps import heat_map
from clipself_seg.visualization.overlays import Row, label_rows

WORLD = "mini"
SCENES = SHIPPED_WORLD / WORLD / "val"
SHOWN_SCENES = 4  # whose segments are shown
# Number of a scene, and the class that is looked for.
ASKED = ((9, "green triangle"), (12, "bricks"))
# Title of a column -> weights.
SHOWN = {"original CLIP": "mini", "after CLIPSelf": "mini-clipself-proposals"}
SIDE = 192  # pixels of the scene's longest side for the CLIPs, which is that of the scene itself
TILE = 184  # width in pixels
GENERATOR = "mini-open-panoptic"
# Title of a column of segments -> configuration, and which scores name them.
SEGMENTED = {
    "original CLIP, CLIP only": ("mini/panoptic_original", "clip"),
    "CLIPSelf, CLIP only": ("mini/panoptic", "clip"),
    "CLIPSelf, fused": ("mini/panoptic", "fused"),
}


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


def ask(
    clips: Mapping[str, VisionLanguageBackbone], asked: Sequence[tuple[int, str]] = ASKED
) -> list[Question]:
    """Heat maps of scenes of the mini world.

    Bright is the probability of the class among all classes of the world: a softmax over the cosines of a
    cell's features with every class name, times CLIP's own factor. Black is 0 and yellow is 1 everywhere.

    Args:
        clips: models by title.
        asked: numbers of scenes, and names of classes.
    """
    vocabulary = Vocabulary.load(WORLD)
    texts = {title: TextBank(clip).embed(vocabulary).cpu().numpy() for title, clip in clips.items()}
    questions = []
    for number, name in asked:
        scene = read_image(SCENES / f"{number:06d}.jpg")
        height = round(TILE * scene.shape[0] / scene.shape[1])
        image = cv2.resize(scene, (TILE, height), interpolation=cv2.INTER_CUBIC)
        index = vocabulary.first_names.index(name)
        maps = {
            title: heat_map(image, _probability(clip, scene, texts[title], index, height), 0, 1)
            for title, clip in clips.items()
        }
        questions.append(Question(name, image, maps))
    return questions


def _probability(
    clip: VisionLanguageBackbone, scene: np.ndarray, texts: np.ndarray, index: int, height: int
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


def shown_scenes() -> list[Path]:
    """Files of the scenes whose segments are shown."""
    return sorted(SCENES.glob("*.jpg"))[:SHOWN_SCENES]


def segment_rows() -> list[Row]:
    """Scenes beside the class of every pixel, and what the mask generator with each CLIP says of it."""
    vocabulary, scenes = Vocabulary.load(WORLD), shown_scenes()
    images = [read_image(scene) for scene in scenes]
    truth = SHIPPED_WORLD / WORLD / "stuffthingmaps" / "val"
    columns = {"ground truth": [read_indices(truth / f"{scene.stem}.png") for scene in scenes]}
    for title, (config, mode) in SEGMENTED.items():
        model = load(GENERATOR, config_file=config, opts=("MODEL.FUSION.MODE", mode))
        columns[title] = [result.labels for result in model(images, vocabulary)]
    return label_rows(vocabulary, images, columns)
