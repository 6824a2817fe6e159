"""What predictors of all tasks do alike: an image or a list of them, in whatever form, and a vocabulary."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from torch import nn

from clipself_seg.data.images import read_image
from clipself_seg.data.vocabulary import own_words
from clipself_seg.errors import InputError
from clipself_seg.prediction import predictor
from clipself_seg.prediction.predictor import ImagePredictor, rgb_image
from tests.weight_server import serving

LIMIT = 1000


@pytest.fixture
def turned(tmp_path):
    """A JPEG that is to be turned, as a camera writes it."""
    exif = Image.Exif()
    exif[274] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    return tmp_path / "turned.jpg"


def test_a_path_an_address_a_pil_image_and_an_array_give_the_pixels_of_the_file(turned):
    expected = read_image(turned)
    assert expected.shape == (20, 12, 3)
    with serving(turned_jpg=turned.read_bytes()) as server, Image.open(turned) as image:
        address = f"{server.address}/turned.jpg"
        for given in (turned, str(turned), image, address, expected):
            assert np.array_equal(rgb_image(given, LIMIT), expected)


def test_a_large_image_is_refused_whatever_it_comes_in(turned):
    with serving(turned_jpg=turned.read_bytes()) as server, Image.open(turned) as image:
        for given in (turned, image, f"{server.address}/turned.jpg"):
            with pytest.raises(InputError, match=r"turned.jpg is 20 x 12, .* 100 pixels of INPUT"):
                rgb_image(given, 100)


def test_an_address_that_gives_no_small_image_is_refused(monkeypatch):
    with serving(a_jpg=b"no image", page_html=b"<html>") as server:
        with pytest.raises(InputError, match="a.jpg is not an image of JPEG"):
            rgb_image(f"{server.address}/a.jpg", LIMIT)
        monkeypatch.setattr(predictor, "MOST_BYTES", 7)
        with pytest.raises(InputError, match="more than 7 bytes: fetch the file"):
            rgb_image(f"{server.address}/a.jpg", LIMIT)
        server.kind = "text/html"
        with pytest.raises(InputError, match="is a web page, not an image"):
            rgb_image(f"{server.address}/page.html", LIMIT)
    with pytest.raises(InputError, match="no http or https address"):
        rgb_image("file:///etc/hostname", LIMIT)


def test_what_is_no_image_is_refused_by_its_type():
    for given in (b"bytes", None, 3, io.BytesIO()):
        with pytest.raises(InputError, match=f"or an address, got {type(given).__name__}"):
            rgb_image(given, LIMIT)
    with pytest.raises(InputError, match="floating-point pixels"):
        rgb_image(Image.new("F", (3, 4)), LIMIT)


class Mapper:
    max_pixels = LIMIT


class Watch:
    """In the place of a `WorldCheck`."""

    def __init__(self):
        self.images, self.classes = [], []

    def look_at_images(self, images):
        self.images += [image.shape for image in images]

    def look_at_classes(self, entries):
        self.classes += [entry.names[0] for entry in entries]


class Sizes(ImagePredictor):
    """Says of each image its height and width."""

    def set_vocabulary(self, words):
        self._set_classes(own_words(words))
        self.batches = []

    def __call__(self, image, batch_size=1):
        self.require_vocabulary()
        return self._results(image, self._predict, batch_size)

    def _predict(self, images):
        self.batches.append(len(images))
        return [image.shape[:2] for image in images]


def blank(height, width):
    return np.zeros((height, width, 3), np.uint8)


def sizes(watch=None):
    made = Sizes(model=nn.Dropout().train(), mapper=Mapper(), world_check=watch)
    made.set_vocabulary(["cat"])
    return made


def test_every_image_is_looked_at_in_batches_and_belongs_to_an_evaluated_model():
    watch = Watch()
    made = Sizes(model=nn.Dropout().train(), mapper=Mapper(), world_check=watch)
    assert not made.model.training and made.config is None
    assert made.names == () == made.category_ids
    with pytest.raises(RuntimeError, match="call set_vocabulary before the predictor"):
        made(blank(2, 3))
    made.set_vocabulary(["cat"])
    assert made.names == ("cat",) and made.category_ids == (0,)
    assert made(blank(2, 3)) == (2, 3)
    assert len(made([blank(1, 1), blank(2, 2), blank(3, 3)], batch_size=2)) == 3
    assert watch.classes == ["cat"] and watch.images == [(2, 3, 3), *((i, i, 3) for i in (1, 2, 3))]


def test_a_list_is_read_and_predicted_in_batches_and_keeps_its_order(turned):
    given = [blank(height, 5) for height in (1, 2, 3, 4)]
    shapes = [(1, 5), (2, 5), (3, 5), (4, 5), (20, 12)]
    made = sizes()
    assert made([*given, turned], 2) == shapes and made.batches == [2, 2, 1]
    assert made(tuple(given), 1) == shapes[:4]
    assert made(given[2], 8) == (3, 5)
    assert made([]) == []
    with pytest.raises(InputError, match="batch_size is 0"):
        made(given, 0)


def test_a_bad_entry_of_a_list_is_named_by_its_index(turned):
    for bad, reason in (("gone.jpg", "image gone.jpg is missing"), ([blank(2, 2)], "got list")):
        with pytest.raises(InputError, match=f"image 2 of the list: .*{reason}"):
            sizes()([blank(2, 2), turned, bad], 2)
