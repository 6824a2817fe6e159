"""JPEGs are those of Pillow, and tell the quality that they were written with."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from clipself_seg.data.images import describe_jpegs, encode_jpeg, jpeg_quality
from clipself_seg.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (19, 27, 3)).astype(np.uint8)


def test_the_default_is_pillows():
    plain = io.BytesIO()
    Image.fromarray(PIXELS).save(plain, format="JPEG")
    assert encode_jpeg(PIXELS) == plain.getvalue()


def test_each_quality_is_told_from_the_file_whoever_wrote_it(tmp_path):
    path = tmp_path / "a.jpg"
    for quality in (1, 30, 75, 95, 100):
        path.write_bytes(encode_jpeg(PIXELS, quality))
        assert jpeg_quality(path) == quality
        path.write_bytes(cv2.imencode(".jpg", PIXELS, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
        assert jpeg_quality(path) == quality


def test_files_that_are_no_jpegs_of_libjpeg_have_no_quality(tmp_path):
    path = tmp_path / "a.jpg"
    assert jpeg_quality(path) is None
    Image.fromarray(PIXELS).save(path, format="PNG")
    assert jpeg_quality(path) is None
    Image.fromarray(PIXELS).save(path, format="JPEG", qtables=[list(range(1, 65))])
    assert jpeg_quality(path) is None


def test_a_mixture_is_described_with_its_counts(tmp_path):
    paths = [tmp_path / f"{index}.jpg" for index in range(3)]
    for path, quality in zip(paths, (75, 95, 75)):
        path.write_bytes(encode_jpeg(PIXELS, quality))
    assert describe_jpegs(paths[::2]) == "JPEG quality 75"
    assert describe_jpegs(paths) == "JPEG quality 75 (2 images), 95 (1 images)"
    assert describe_jpegs([]) == "JPEG quality unknown"


@pytest.mark.parametrize("quality", [0, 101])
def test_other_qualities_are_refused(quality):
    with pytest.raises(InputError, match=f"JPEG quality {quality}: give a number from 1 to 100"):
        encode_jpeg(PIXELS, quality)
