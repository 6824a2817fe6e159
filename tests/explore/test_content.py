"""What goes onto the page of an image of any size."""

from __future__ import annotations

import base64
import gzip
import io

import numpy as np
import pytest
from PIL import Image

from clipself_seg.clip import load_clip
from clipself_seg.clip.model import whole_image_features
from clipself_seg.data.vocabulary import own_words
from clipself_seg.errors import InputError
from clipself_seg.explore.content import SHOWN_SIDE, Content, button_of


@pytest.fixture(scope="module")
def clip():
    return load_clip("ViT-Mini-8", None)


@pytest.fixture(scope="module")
def small(clip) -> Content:
    return Content(clips={"one": clip}, words=own_words(["dog|puppy", "grass"]), side=64)


def test_models_have_the_texts_of_all_words(small, clip):
    models = small.models()
    assert models["words"] == [["dog", "puppy"], ["grass"]] and models["panoptic"] is None
    assert models["models"][0]["weights"] == clip.weights_hash()
    values = np.frombuffer(unpacked(models["models"][0]["texts"]), "<i2")
    assert values.size == 2 * clip.embed_dim and len(models["heat"]) == 3 * 256


@pytest.mark.parametrize(("width", "height"), [(2000, 10), (10, 999), (1, 1), (64, 50)])
def test_an_image_of_any_size_has_cells_that_cover_it(small, clip, width, height):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shown = small.image(image, "x.png")
    (view,) = shown["maps"]
    features = whole_image_features(clip, image, 64)
    assert (view["channels"], view["rows"], view["columns"]) == features.shape
    assert view["rows"] - 1 < view["down"] <= view["rows"]
    assert view["columns"] - 1 < view["across"] <= view["columns"]
    assert len(unpacked(view["values"])) == features.size and view["error"] < 0.005
    picture = Image.open(io.BytesIO(base64.b64decode(shown["jpeg"].partition(",")[2])))
    assert max(picture.size) == min(SHOWN_SIDE, max(width, height))


def test_a_button_is_small(small):
    assert len(button_of(np.zeros((900, 900, 3), np.uint8), "x")["jpeg"]) < 2000


def test_models_and_sides_that_do_not_go_are_refused(clip):
    with pytest.raises(InputError, match="take 56 or 64"):
        Content(clips={"one": clip}, words=own_words(["dog"]), side=63)
    with pytest.raises(InputError, match="no models"):
        Content(clips={}, words=own_words(["dog"]))


def unpacked(text: str) -> bytes:
    return gzip.decompress(base64.b64decode(text))
