"""One image or a list of them: paths, addresses, PIL images and arrays give the same pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from clipself_seg.data.images import read_image
from clipself_seg.errors import InputError
from clipself_seg.prediction import common
from clipself_seg.prediction.common import predict_images, rgb_image
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
        monkeypatch.setattr(common, "MOST_BYTES", 7)
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


def test_a_list_is_read_and_predicted_in_batches_and_keeps_its_order(turned):
    sizes = []

    def predict(batch):
        sizes.append(len(batch))
        return [image.shape[:2] for image in batch]

    given = [np.zeros((height, 5, 3), np.uint8) for height in (1, 2, 3, 4)]
    shapes = [(1, 5), (2, 5), (3, 5), (4, 5), (20, 12)]
    assert predict_images([*given, turned], predict, LIMIT, 2) == shapes and sizes == [2, 2, 1]
    assert predict_images(tuple(given), predict, LIMIT, 1) == shapes[:4]
    assert predict_images(given[2], predict, LIMIT, 8) == (3, 5)
    assert predict_images([], predict, LIMIT, 1) == []
    with pytest.raises(InputError, match="batch_size is 0"):
        predict_images(given, predict, LIMIT, 0)


def test_a_bad_entry_of_a_list_is_named_by_its_index(turned):
    good = np.zeros((2, 2, 3), np.uint8)
    for bad, reason in (("gone.jpg", "image gone.jpg is missing"), ([good], "got list")):
        with pytest.raises(InputError, match=f"image 2 of the list: .*{reason}"):
            predict_images([good, turned, bad], list, LIMIT, 2)
