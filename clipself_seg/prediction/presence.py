"""Presence: a score of how likely a word is in an image at all, from the best region of CLIP's dense features.

The score of a word is the cosine of its text with the mean of 3 x 3 neighbouring cells, the highest of the image. It
is compared with what other words score there, those of `WORDS`, few of which are in any one image: a presence of 1.5
is 1.5 standard deviations above their mean. So it has one meaning for every CLIP and image, and does not depend on the
other words that are asked for, as a softmax over them would. Embeddings of whole images tell less where things are
small (docs/tables/absent_words.md has figures).

Shapes: K classes, E embedding, h x w cells.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from clipself_seg.clip import TextBank, VisionLanguageBackbone
from clipself_seg.clip.model import whole_image_features
from clipself_seg.data.images import read_image
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError, known
from clipself_seg.files import read_json
from clipself_seg.heads.text_scores import cosine_cost
from clipself_seg.schema import TEXT, Each, check

WORDS = "ade20k_150"  # that words are compared with
THRESHOLD = 1.5  # of a presence, where nothing was calibrated
NEAR = 3  # side in cells of a region
SIZE = 3  # sides of CLIP's own images that the longest side of an image has
WHAT = ("drop", "mark")


class Absent(NamedTuple):
    """The treatment of words that are not in an image.

    Attributes:
        what: "drop" or "mark".
        threshold: presence from which on a word is there.
        calibrated: true if images gave the threshold.
    """

    what: str
    threshold: float
    calibrated: bool


class Presence:
    """Scores the presence of the classes of a vocabulary."""

    def __init__(self, clip: VisionLanguageBackbone, vocabulary: Vocabulary) -> None:
        """
        Args:
            clip: its dense features and texts are compared.
            vocabulary: K classes; of synonyms the mean of their texts counts.
        """
        self.clip = clip
        bank = TextBank(clip, "single")
        others = [entry.names[0] for entry in Vocabulary.load(WORDS).classes]
        self._text_NE = torch.cat([bank.embed(vocabulary), bank.embed(others)])
        self._count = len(vocabulary)

    @torch.no_grad()
    def scores(self, image: np.ndarray) -> np.ndarray:
        """Presence (K,) float32 of each class in an image (H, W, 3) uint8, in standard deviations."""
        features = whole_image_features(self.clip, image, SIZE * self.clip.image_size)
        dense_Ehw = torch.from_numpy(features).to(self._text_NE.device)
        cosines_Nhw = cosine_cost(dense_Ehw, self._text_NE[:, None])[0]
        near = F.avg_pool2d(cosines_Nhw, NEAR, 1, NEAR // 2, count_include_pad=False)
        best = near.flatten(1).amax(dim=1).cpu().numpy()
        own, others = best[: self._count], best[self._count :]
        presence: np.ndarray = (own - others.mean()) / max(others.std(), 1e-6)
        return presence.astype(np.float32)


def calibrated_threshold(
    presence: Presence, vocabulary: Vocabulary, path: str | os.PathLike[str], max_pixels: int
) -> float:
    """The presence that best divides the words that are in somebody's images from those that are not (highest F1).

    Args:
        presence: of the vocabulary.
        vocabulary: K classes.
        path: JSON, image -> list of those of the words that are in it, {"photo.jpg": ["dog", "grass"]}; images are
            files beside it.
        max_pixels: largest number of pixels of an image that is decoded.

    Raises:
        InputError: the file or an image cannot be read, a word is none of the vocabulary, or every word is in every
            image, or none in any.
    """
    given = read_json(path, "file of words in images")
    check(given, Each(TEXT, [TEXT]), path, 'give such as {"photo.jpg": ["dog", "grass"]}')
    place = {n.casefold(): k for k, entry in enumerate(vocabulary.classes) for n in entry.names}
    there, scores = np.zeros((len(given), len(vocabulary)), bool), list[np.ndarray]()
    for row, (name, words) in zip(there, given.items()):
        for word in words:
            row[place[known(word.casefold(), place, "word", origin=f"{path}, {name}")]] = True
        scores.append(presence.scores(read_image(Path(path).parent / name, max_pixels=max_pixels)))
    if there.all() or not there.any():
        raise InputError(
            f"{path} has to name images in which some words are, and some are not: give further images or words"
        )
    return best_threshold(np.concatenate(scores), there.ravel())


def best_threshold(scores: np.ndarray, there: np.ndarray) -> float:
    """The score from which on a word counts as present for the highest F1, halfway to the next lower one.

    Args:
        scores: (n,) of words in images.
        there: (n,) bool, of which some are true and some are not.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(there[order])
    best = int(np.argmax(2 * hits / (np.arange(1, len(order) + 1) + there.sum())))
    lower = scores[order[min(best + 1, len(order) - 1)]]
    return float((scores[order[best]] + lower) / 2)
