"""What goes onto the page of an image of any size, and what 8 bits change and weigh."""

import base64
import gzip
import io

import numpy as np
import pytest
from PIL import Image

from clipself_seg.clip.model import whole_image_features
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.explore.content import (
    SHOWN_SIDE,
    Content,
    button_of,
    packed,
    quantise_features,
    quantise_masks,
    quantise_texts,
)
from tests.tiny import noise, random_clip


@pytest.fixture(scope="module")
def clip():
    return random_clip()


@pytest.fixture(scope="module")
def small(clip) -> Content:
    return Content(clips={"one": clip}, words=Vocabulary.of(["dog|puppy", "grass"]), side=64)


def test_models_have_the_texts_of_all_words(small, clip):
    models = small.models()
    assert models["words"] == [["dog", "puppy"], ["grass"]] and models["panoptic"] is None
    assert models["models"][0]["weights"] == clip.weights_hash()
    values = np.frombuffer(unpacked(models["models"][0]["texts"]), "<i2")
    assert values.size == 2 * clip.embed_dim and len(models["heat"]) == 3 * 256


@pytest.mark.parametrize(("width", "height"), [(2000, 10), (10, 999), (1, 1), (64, 50)])
def test_an_image_of_any_size_has_cells_that_cover_it(small, clip, width, height):
    image = noise(height, width)
    shown = small.image(image, "x.png")
    (view,) = shown["maps"]
    features = whole_image_features(clip, image, 64)
    assert (view["channels"], view["rows"], view["columns"]) == features.shape
    assert view["rows"] - 1 < view["down"] <= view["rows"]
    assert view["columns"] - 1 < view["across"] <= view["columns"]
    assert len(unpacked(view["values"])) == features.size
    jpeg = Image.open(io.BytesIO(base64.b64decode(shown["jpeg"].partition(",")[2])))
    assert max(jpeg.size) == min(SHOWN_SIDE, max(width, height))
    assert len(button_of(image, "x")["jpeg"]) < 12000


def test_a_side_that_no_patch_divides_is_refused(clip):
    with pytest.raises(InputError, match="take 56 or 64"):
        Content(clips={"one": clip}, words=Vocabulary.of(["dog"]), side=63)


def unpacked(text: str) -> bytes:
    return gzip.decompress(base64.b64decode(text))


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
        places = features.reshape(256, -1).T
        restored = quantised.values * quantised.of_channel * quantised.of_place[:, None]
        error = np.abs((restored - places) @ texts.T).max()
        assert error < 0.0025
    # A scale of the channels is what the outlying one needs.
    step = np.abs(places).max(axis=1, keepdims=True) / 127
    without = np.abs((np.rint(places / step) * step - places) @ texts.T).max()
    assert error < without / 5
    assert not quantise_features(np.zeros((4, 1, 2), np.float32)).values.any()


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
    assert packed(values) == packed(values)
    assert unpacked(packed(values)) == values.astype("<i2").tobytes()


def test_an_image_of_vit_l_14_at_896_pixels_weighs_less_than_5_mb():
    quantised = quantise_features(unit((768, 64, 64), 0))
    assert sum(len(packed(part)) for part in quantised) < LIMIT
