"""Content of the page: models with text embeddings of their words, and images with the features of each model.

`Content` has what the browser computes heat maps of, and `PanopticView` what it fuses scores and merges masks of.
Numbers go there quantised, dense features as int8, texts as int16, masks as int8, and encoded as text.

Shapes: E channels, h x w cells or P places of the features, K words or classes, Q queries, H, W pixels of an image.
"""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

from clipself_seg.clip import TextBank, VisionLanguageBackbone
from clipself_seg.clip.model import whole_image_features
from clipself_seg.data.images import fit_size
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.heads.panoptic.panoptic_merge import resize_masks
from clipself_seg.prediction.mini_worlds import WorldCheck
from clipself_seg.prediction.results import colours_of
from clipself_seg.prediction.task_predictors import PanopticPredictor

SHOWN_SIDE = 768  # longest side in pixels of an image on the page
SMALL_SIDE = 96  # of its button
QUALITY = 88  # of JPEG
MAP_SIDE = 256  # longest side in pixels of the map of segments
BYTE = 127  # largest magnitude of int8 that is used
WORD = 32767  # of int16
MASK_STEPS = 16  # values of a mask logit between two whole numbers


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
        clips: Mapping[str, VisionLanguageBackbone],
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
        self.clips = clips
        self.words = words
        self.panoptic = panoptic
        self._sides = {
            title: 3 * clip.image_size if side is None else side for title, clip in clips.items()
        }
        for title, clip in clips.items():
            clip.check_side(self._sides[title])
        self._world_check = WorldCheck([clip.name for clip in clips.values()])
        self._texts = {
            title: TextBank(clip).embed(words).cpu().numpy() for title, clip in clips.items()
        }

    def models(self) -> dict[str, object]:
        """Words, models and colours, JSON: what all images have in common."""
        return {
            "words": [list(entry.names) for entry in self.words.classes],
            "models": [self._model(title) for title in self.clips],
            "panoptic": None if self.panoptic is None else self.panoptic.model(),
            "heat": heat_colours(),
        }

    def _model(self, title: str) -> dict[str, object]:
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

    def image(self, image: np.ndarray, name: str) -> dict[str, object]:
        """An image with its features, JSON.

        Args:
            image: (H, W, 3) uint8 RGB.
            name: its name on the page.
        """
        return {
            "name": name,
            "width": image.shape[1],
            "height": image.shape[0],
            "jpeg": jpeg_address(image, SHOWN_SIDE),
            "maps": [self._map(title, image) for title in self.clips],
            "warning": self._world_check.warning(self.words.worded, [image]),
            "panoptic": None if self.panoptic is None else self.panoptic.image(image),
        }

    def _map(self, title: str, image: np.ndarray) -> dict[str, object]:
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


class PanopticView:
    """A panoptic model with its vocabulary, as `fusion.js` and `merge.js` take it."""

    def __init__(self, predictor: PanopticPredictor) -> None:
        """
        Args:
            predictor: one with a vocabulary, see `PanopticPredictor.set_vocabulary`.
        """
        predictor.model.masks.require_generator()
        self.predictor = predictor
        self.given = predictor.require_words()

    def model(self) -> dict[str, object]:
        """Classes, exponents and thresholds, JSON."""
        model = self.predictor.model
        names = tuple(self.given.vocabulary.first_names)
        things = set(model.classes.things)
        classes = [
            {"name": name, "thing": index in things, "seen": bool(seen), "colour": colour.tolist()}
            for index, (name, seen, colour) in enumerate(
                zip(names, self.given.seen, colours_of(names))
            )
        ]
        return {
            "classes": classes,
            "alpha": model.exponents[0],
            "beta": model.exponents[1],
            "voidDiscount": model.void_discount,
            "objectThreshold": model.settings.object_threshold,
            "overlapThreshold": model.settings.overlap_threshold,
            "weights": model.weights_hash(),
        }

    @torch.no_grad()
    def image(self, image: np.ndarray) -> dict[str, object]:
        """Scores and masks of an image (H, W, 3) uint8, JSON."""
        model = self.predictor.model
        sample = self.predictor.mapper.resized(image)
        generated = model.generate(sample)
        clip_logits, valid = model.clip_scores(sample, generated)
        columns, rows = fit_size(image.shape[1], image.shape[0], MAP_SIDE)
        size = (rows, columns)
        masks = resize_masks(generated.mask_logits, generated.canvas, generated.image_size, size)
        if not model.fusion.valid_mask:
            valid = torch.ones_like(valid)
        return {
            "rows": rows,
            "columns": columns,
            "warning": self.predictor.warning_of([image], self.given),
            "queries": len(masks),
            "generator": packed(generated.class_logits.float().cpu().numpy()),
            "clip": packed(clip_logits.float().cpu().numpy()),
            "void": packed(generated.void_prob.float().cpu().numpy()),
            "valid": packed(valid.cpu().numpy().astype(np.uint8)),
            "masks": packed(quantise_masks(masks.cpu().numpy())),
        }


class Quantised(NamedTuple):
    """Features as int8: value times the scale of its place times that of its channel.

    Attributes:
        values: (P, E) int8.
        of_place: scale of each place, (P,) float32.
        of_channel: scale of each channel, (E,) float32.
    """

    values: np.ndarray
    of_place: np.ndarray
    of_channel: np.ndarray


def quantise_features(features: np.ndarray) -> Quantised:
    """Features of unit length as int8.

    Channels come first, because those of CLIP differ in size by far: a few large ones would leave the
    others of their place a handful of values.

    Args:
        features: (E, h, w), of unit length at each place.
    """
    places = features.reshape(len(features), -1).T.astype(np.float32)
    of_channel = _largest(places, axis=0)
    relative = places / of_channel
    of_place = _largest(relative, axis=1) / BYTE
    values = np.rint(relative / of_place[:, None]).astype(np.int8)
    return Quantised(values, of_place, of_channel)


def quantise_texts(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Text embeddings (K, E) as int16 and the scale of each, (K,) float32."""
    scales = _largest(texts.astype(np.float32), axis=1) / WORD
    return np.rint(texts / scales[:, None]).astype(np.int16), scales


def quantise_masks(logits: np.ndarray) -> np.ndarray:
    """Mask logits (Q, H, W) as int8: sixteenths, rounded down, from -8 to just below 8.

    So a pixel is inside a mask (a logit of at least 0) exactly if it was.
    """
    steps = np.floor(logits * np.float32(MASK_STEPS)).clip(-BYTE - 1, BYTE)
    quantised: np.ndarray = steps.astype(np.int8)
    return quantised


def packed(values: np.ndarray) -> str:
    """The bytes of an array, little-endian, compressed by gzip, in base64: what `blobs.js` unpacks."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    # No time in the header: equal arrays are equal text.
    return base64.b64encode(gzip.compress(little.tobytes(), 6, mtime=0)).decode("ascii")


def _largest(values: np.ndarray, axis: int) -> np.ndarray:
    """Largest magnitude along an axis, 1 where all are 0, so that it can be divided by."""
    largest: np.ndarray = np.abs(values).max(axis=axis)
    return np.where(largest > 0, largest, 1).astype(np.float32)
