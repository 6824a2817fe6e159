"""Quantises data for the browser: dense features as int8, texts as int16, masks as int8, encoded as text.

Shapes: P places (cells of the features), E channels, K classes, Q queries, H x W pixels of a mask.
"""

from __future__ import annotations

import base64
import gzip
from typing import NamedTuple

import numpy as np

BYTE = 127  # largest magnitude of int8 that is used
WORD = 32767  # of int16
MASK_STEPS = 16  # values of a mask logit between two whole numbers


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

    def restored(self) -> np.ndarray:
        """The features again, (P, E) float32, nearly."""
        scaled = self.values * self.of_channel
        restored: np.ndarray = scaled * self.of_place[:, None]
        return restored


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


def cosine_error(features: np.ndarray, quantised: Quantised, texts: np.ndarray) -> float:
    """The largest difference that int8 makes to a cosine of a place and a text.

    Args:
        features: (E, h, w), as they were.
        quantised: the same as int8.
        texts: text embeddings (K, E) of unit length.
    """
    places = features.reshape(len(features), -1).T
    return float(np.abs((quantised.restored() - places) @ texts.T).max(initial=0))


def packed(values: np.ndarray) -> str:
    """The bytes of an array, little-endian, compressed by gzip, in base64: what `blobs.js` unpacks."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    # No time in the header: equal arrays are equal text.
    return base64.b64encode(gzip.compress(little.tobytes(), 6, mtime=0)).decode("ascii")


def _largest(values: np.ndarray, axis: int) -> np.ndarray:
    """Largest magnitude along an axis, 1 where all are 0, so that it can be divided by."""
    largest: np.ndarray = np.abs(values).max(axis=axis)
    return np.where(largest > 0, largest, 1).astype(np.float32)
