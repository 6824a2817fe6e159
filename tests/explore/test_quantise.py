"""Features of 8 bits: what they change, and what they weigh."""

from __future__ import annotations

import base64
import gzip

import numpy as np

from clipself_seg.explore.quantise import (
    cosine_error,
    packed,
    quantise_features,
    quantise_masks,
    quantise_texts,
)

LIMIT = 5_000_000  # bytes of an image and model, ViT-L/14 at 896 pixels


def unit(shape: tuple[int, ...], axis: int, outlier: float = 1) -> np.ndarray:
    """Random unit vectors along an axis, with a channel that is larger than the others, as CLIP's have."""
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.moveaxis(values, axis, 0)[3] *= outlier
    return values / np.linalg.norm(values, axis=axis, keepdims=True)


def test_cosines_change_little_also_with_an_outlying_channel():
    texts = unit((50, 256), 1)
    for outlier in (1, 30):
        features = unit((256, 9, 11), 0, outlier)
        quantised = quantise_features(features)
        assert quantised.values.dtype == np.int8 and quantised.values.shape == (99, 256)
        assert cosine_error(features, quantised, texts) < 0.0025


def test_a_scale_of_the_channels_is_what_an_outlying_one_needs():
    features, texts = unit((256, 9, 11), 0, 30), unit((50, 256), 1)
    places = features.reshape(256, -1).T
    step = np.abs(places).max(axis=1, keepdims=True) / 127
    without = np.abs((np.rint(places / step) * step - places) @ texts.T).max()
    assert cosine_error(features, quantise_features(features), texts) < without / 5


def test_features_of_nothing_stay_nothing():
    quantised = quantise_features(np.zeros((4, 1, 2), np.float32))
    assert not quantised.restored().any()


def test_texts_are_the_same_to_four_digits():
    texts = unit((7, 64), 1)
    values, scales = quantise_texts(texts)
    assert np.abs(values * scales[:, None] - texts).max() < 1e-5


def test_a_pixel_is_inside_a_mask_exactly_if_it_was():
    logits = np.array([-100, -8.01, -0.01, -0.0, 0.0, 0.01, 0.07, 7.99, 100], np.float32)
    quantised = quantise_masks(logits)
    assert quantised.tolist() == [-128, -128, -1, 0, 0, 0, 1, 127, 127]
    assert ((quantised >= 0) == (logits >= 0)).all()


def test_what_is_packed_is_little_endian_and_the_same_each_time():
    values = np.array([1, -2, 300], ">i2")
    text = packed(values)
    assert text == packed(values)
    assert gzip.decompress(base64.b64decode(text)) == values.astype("<i2").tobytes()


def test_an_image_of_vit_l_14_at_896_pixels_weighs_less_than_5_mb():
    quantised = quantise_features(unit((768, 64, 64), 0))
    assert sum(len(packed(part)) for part in quantised) < LIMIT
