"""Content of the page: models with text embeddings of their words, and images with the features of each model.

Shapes: E channels, h x w cells, K words, H, W pixels of an image.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from clipself_seg.clip import DenseCLIP, TextBank
from clipself_seg.clip.model import whole_image_features
from clipself_seg.data.images import fit_size
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.explore.panoptic_view import PanopticView
from clipself_seg.explore.quantise import (
    cosine_error,
    packed,
    quantise_features,
    quantise_texts,
)
from clipself_seg.models.region_reader import check_size

SHOWN_SIDE = 768  # longest side in pixels of an image on the page
SMALL_SIDE = 96  # of its button
QUALITY = 88  # of JPEG


class Content:
    """CLIPs and words, and what of an image goes onto the page for them.

    Attributes:
        clips: models by title.
        words: classes that can be pressed.
        panoptic: a panoptic model with the same classes, or None.
    """

    def __init__(
        self,
        *,
        clips: Mapping[str, DenseCLIP],
        words: Vocabulary,
        side: int | None = None,
        panoptic: PanopticView | None = None,
    ) -> None:
        """
        Args:
            clips: models by title, at least one.
            words: classes that can be pressed.
            side: longest side in pixels that images are resized to for the models; None: three times that
                of each model's crops.
            panoptic: a panoptic model with the same classes, or None.

        Raises:
            InputError: the patch of a model does not divide `side`.
        """
        if not clips:
            raise InputError("no models: name at least one")
        self.clips = clips
        self.words = words
        self.panoptic = panoptic
        self._sides = {
            title: 3 * clip.image_size if side is None else side for title, clip in clips.items()
        }
        for title, clip in clips.items():
            check_size(self._sides[title], clip)
        self._texts = {
            title: TextBank(clip).embed(words).cpu().numpy() for title, clip in clips.items()
        }

    def models(self) -> dict[str, Any]:
        """Words, models and colours, JSON: what all images have in common."""
        return {
            "words": [list(entry.names) for entry in self.words.classes],
            "models": [self._model(title) for title in self.clips],
            "panoptic": None if self.panoptic is None else self.panoptic.model(),
            "heat": heat_colours(),
        }

    def _model(self, title: str) -> dict[str, Any]:
        clip = self.clips[title]
        values, scales = quantise_texts(self._texts[title])
        return {
            "title": title,
            "architecture": clip.name,
            "weights": clip.weights_hash(),
            "side": self._sides[title],
            "texts": packed(values),
            "textScales": packed(scales),
        }

    def image(self, image: np.ndarray, name: str) -> dict[str, Any]:
        """An image with its features, JSON.

        Args:
            image: (H, W, 3) uint8 RGB.
            name: what it is called on the page.
        """
        return {
            "name": name,
            "width": image.shape[1],
            "height": image.shape[0],
            "jpeg": jpeg_address(image, SHOWN_SIDE),
            "maps": [self._map(title, image) for title in self.clips],
            "panoptic": None if self.panoptic is None else self.panoptic.image(image),
        }

    def _map(self, title: str, image: np.ndarray) -> dict[str, Any]:
        clip = self.clips[title]
        side = self._sides[title]
        features = whole_image_features(clip, image, side)
        quantised = quantise_features(features)
        width, height = fit_size(image.shape[1], image.shape[0], side)
        return {
            "rows": features.shape[1],
            "columns": features.shape[2],
            "channels": len(features),
            # Cells across and down the image: the last ones may go beyond it.
            "across": width / clip.patch_size,
            "down": height / clip.patch_size,
            "values": packed(quantised.values),
            "ofPlace": packed(quantised.of_place),
            "ofChannel": packed(quantised.of_channel),
            "error": cosine_error(features, quantised, self._texts[title]),
        }


def jpeg_address(image: np.ndarray, side: int) -> str:
    """An image (H, W, 3) uint8 as the address of a JPEG that has its longest side, at most `side`, in it."""
    whole = Image.fromarray(image)
    size = fit_size(whole.width, whole.height, min(side, max(whole.size)))
    file = io.BytesIO()
    whole.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def button_of(image: np.ndarray, name: str) -> dict[str, str]:
    """Name and small image of the button that chooses an image."""
    return {"name": name, "jpeg": jpeg_address(image, SMALL_SIDE)}


def heat_colours() -> Sequence[int]:
    """The colours of heat maps from low to high, 256 times RGB: those of `visualization.dense_maps.heat_map`."""
    levels = np.arange(256, dtype=np.uint8)[:, None]
    return [int(c) for c in cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1].ravel()]
