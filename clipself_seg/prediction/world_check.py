"""Warns where a model that was trained on the generated mini worlds is given other words or images.

The mini CLIP was trained on captions and images of two generated worlds. To any other word, and of a photograph,
it gives an answer all the same, and nothing in that says that it means little.
"""

from __future__ import annotations

import difflib
import functools
import logging
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode

from clipself_seg.checkpoints.zoo import MINI_CLIP, zoo
from clipself_seg.data.vocabulary import VocabularyClass
from clipself_seg.mini.concepts import WORLDS

logger = logging.getLogger(__name__)

SHOWN = 5  # names of classes in the warning
SLIP = 0.85  # likeness of two names, in [0, 1], from which on one may be meant by the other


class WorldCheck:
    """Looks at the class names and images of a model, and warns of the first that are of no generated world.

    A class is of a world if one of its synonyms is in a caption there: a shape with or without its colour, or a
    texture. An image is if it has one of the sizes of their images, in pixels. So an image of a world never causes a
    warning unless it was cut or resized, and a photograph causes none only if it has one of these ten sizes.
    """

    def __init__(self, *, mini: bool, folder: str) -> None:
        """
        Args:
            mini: whether the model stands on the mini CLIP; others are not checked.
            folder: below ``configs/``, of configurations that do the same task on photographs, such as "semseg".
        """
        self.mini = mini
        self.folder = folder
        self._warned = not mini

    @classmethod
    def of_config(cls, cfg: CfgNode, folder: str) -> WorldCheck:
        """The check for the configured model: on the mini CLIP, whoever trained or saved it, it knows no more."""
        return cls(mini=cfg.MODEL.CLIP.NAME == MINI_CLIP, folder=folder)

    def look_at_classes(self, classes: Sequence[VocabularyClass]) -> None:
        """Warn of class names that are in no caption of the worlds, unless a warning was given before."""
        strange = [
            entry.names[0]
            for entry in classes
            if not any(_plain(name) in known_names() for name in entry.names)
        ]
        if strange and not self._warned:
            listed = ", ".join(f'"{name}"{_meant(name)}' for name in strange[:SHOWN])
            more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
            self._warn(f"which have no {listed}{more}")

    def look_at_images(self, images: Sequence[np.ndarray]) -> None:
        """Warn of an image (H, W, 3) of a size that none of the worlds has, unless a warning was given before."""
        for height, width, _ in (image.shape for image in images):
            if not self._warned and (width, height) not in sizes():
                size = f"{width} x {height} pixels"
                self._warn(f"whose images have other sizes than the {size} of one here")

    def _warn(self, reason: str) -> None:
        self._warned = True
        entry = next(
            entry
            for entry in zoo().values()
            if entry.key == "MODEL.WEIGHTS" and entry.configs[0].startswith(f"{self.folder}/")
        )
        logger.warning(
            f'this model knows only the generated mini worlds ("red star", "blue ring", "grass" ...), {reason}: its '
            f"answers mean little there. For photographs: --config-file {entry.configs[0]}.yaml --weights {entry.name}"
        )


@functools.cache
def known_names() -> frozenset[str]:
    """Names of the classes of all worlds, and of their shapes, as captions have them."""
    concepts = [concept for world in WORLDS.values() for concept in world.concepts]
    plain = [concept.without_colour() for concept in concepts]
    return frozenset(name for concept in (*concepts, *plain) for name in concept.names)


@functools.cache
def sizes() -> frozenset[tuple[int, int]]:
    """Width and height in pixels that images of the worlds have."""
    return frozenset(size for world in WORLDS.values() for size in world.sizes)


def _meant(name: str) -> str:
    """A hint behind a name that is a slip of the pen away from a known one."""
    close = difflib.get_close_matches(_plain(name), sorted(known_names()), n=1, cutoff=SLIP)
    return f' (did you mean "{close[0]}"?)' if close else ""


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
