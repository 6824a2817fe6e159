"""Warns where a model that knows only the generated mini worlds is given other words or images."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import numpy as np

from clipself_seg.checkpoints.zoo import MINI_CLIPS
from clipself_seg.choice import DEFAULTS
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass

logger = logging.getLogger(__name__)

SHOWN = 5  # names of classes in a warning
LITTLE = (
    'this model knows only the generated mini worlds ("red star", "blue ring", "grass" ...), {reason}: its '
    "answers mean little there"
)
WORLDS = ("mini", "mini2")
SIZES = frozenset(
    [(192, 144), (192, 128), (144, 192), (200, 150), (176, 160), (132, 176)]
    + [(208, 144), (160, 200), (184, 138), (168, 148)]
)
"""Width and height in pixels that images of the worlds have."""


class WorldCheck:
    """Looks at the class names and images of a model on a mini CLIP, and logs the first of no generated world; of a
    model on other CLIPs it says nothing.

    These CLIPs were trained on captions and images of two generated worlds. To any other word, and of a photograph,
    they give an answer all the same, and nothing in it says that it means little.

    A class is of a world if one of its synonyms is in a caption there: a shape with or without its colour, or a
    texture. An image is if it has one of the sizes of their images, in pixels. So an image of a world never causes a
    warning unless it was cut or resized, and a photograph causes none only if it has one of these ten sizes.
    """

    def __init__(self, clips: Sequence[str], task: str | None = None) -> None:
        """
        Args:
            clips: open_clip's names of the model's CLIPs.
            task: of the model; None for a CLIP alone.
        """
        self.mini = any(name in MINI_CLIPS.values() for name in clips)
        self.task = task
        self._warned = False

    def warning(self, classes: Sequence[VocabularyClass], images: Sequence[np.ndarray]) -> str:
        """A sentence about class names or, where these are known, images (H, W, 3) of no world, else empty."""
        return self.of_words(classes) or self.of_images(images)

    def of_words(self, classes: Sequence[VocabularyClass]) -> str:
        """A sentence if a class name is in no caption of the worlds, else empty; the first one is logged."""
        strange = [
            entry.names[0]
            for entry in classes
            if self.mini and not any(_plain(name) in known_names() for name in entry.names)
        ]
        if not strange:
            return ""
        listed = ", ".join(f'"{name}"' for name in strange[:SHOWN])
        more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
        return self._logged(f"which have no {listed}{more}")

    def of_images(self, images: Sequence[np.ndarray]) -> str:
        """A sentence if an image (H, W, 3) has a size of none of theirs, else empty; the first one is logged."""
        for height, width, _ in (image.shape for image in images):
            if self.mini and (width, height) not in SIZES:
                size = f"{width} x {height} pixels"
                return self._logged(f"whose images have other sizes than the {size} of one here")
        return ""

    def _logged(self, reason: str) -> str:
        sentence = LITTLE.format(reason=reason)
        if not self._warned:
            self._warned = True
            other = "eva02-vitb16" if self.task is None else DEFAULTS[self.task]
            logger.warning(f"{sentence}. For photographs take the model {other}")
        return sentence


@functools.cache
def known_names() -> frozenset[str]:
    """Names of the classes of both worlds, and of their shapes, as captions have them."""
    classes = [entry for world in WORLDS for entry in Vocabulary.load(world).classes]
    names = {name for entry in classes for name in entry.names}
    things = {name for entry in classes if entry.isthing for name in entry.names}
    return frozenset(names | {name.partition(" ")[2] for name in things})  # without the colour


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
