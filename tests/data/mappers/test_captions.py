"""Captioned records become samples: crops of the paper's rule, one caption, no hidden randomness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from clipself_seg.config import load_config
from clipself_seg.data.images import letterbox_image
from clipself_seg.data.mappers.distill import CaptionMapper, random_crop
from tests.conftest import ROOT


@pytest.fixture
def record(tmp_path):
    """An image of 60 x 48 pixels of noise with three captions."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    captions = ["a dog", "a cat", "a bird"]
    return {"file_name": str(tmp_path / "a.png"), "image_id": 1, "captions": captions}


@pytest.mark.parametrize(
    ("size", "most"),
    [((60, 48), 60), ((64, 64), 60), ((40, 60), 3), ((300, 10), 1), ((7, 200), 1), ((1, 1), 1)],
)
def test_crops_keep_area_and_aspect_or_are_torchvisions_middle(size, most):
    width, height = size
    boxes = {random_crop(np.random.default_rng(seed), *size) for seed in range(60)}
    # Without a draw that fits it is the crop that torchvision takes, too.
    cut = RandomResizedCrop(1, (0.9, 1.0))
    top, left, h, w = cut.get_params(torch.zeros(3, height, width), [2.0, 2.0], [3 / 4, 4 / 3])
    for x0, y0, x1, y1 in boxes - {(left, top, left + w, top + h)}:
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        # Sides are rounded to pixels.
        assert 0.88 <= (x1 - x0) * (y1 - y0) / (width * height) <= 1
        assert 0.74 <= (x1 - x0) / (y1 - y0) <= 1.35
    assert most / 2 < len(boxes) <= most


def test_the_crop_is_warped_to_the_square_and_never_flipped(record):
    image = Image.open(record["file_name"])
    for draw in range(5):
        sample = CaptionMapper(student_size=32, seed=3)(record, draw)
        rng = np.random.default_rng((3, draw))
        caption = record["captions"][rng.integers(3)]
        x0, y0, x1, y1 = random_crop(rng, 60, 48)
        place = (y0, x0, y1 - y0, x1 - x0)
        expected = resized_crop(image, *place, [32, 32], InterpolationMode.BICUBIC)
        np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), expected)
        assert sample["image"].dtype == torch.uint8 and sample["caption"] == caption


def test_letterboxed_crops_are_padded_as_in_evaluation(record):
    mapper = CaptionMapper(student_size=32, seed=3, resize="letterbox")
    rng = np.random.default_rng((3, 0))
    rng.integers(3)
    x0, y0, x1, y1 = random_crop(rng, 60, 48)
    crop = np.asarray(Image.open(record["file_name"]))[y0:y1, x0:x1]
    expected = letterbox_image(crop, 32)
    np.testing.assert_array_equal(mapper(record, 0)["image"].permute(1, 2, 0), expected)


def test_a_sample_depends_on_record_seed_and_draw_only(record):
    mapper = CaptionMapper(student_size=32, seed=0)
    first = mapper(record, 5)
    np.random.seed(2)
    mapper(record, 4)
    again = mapper(record, 5)
    assert torch.equal(first["image"], again["image"]) and first["caption"] == again["caption"]
    said = {mapper(record, draw)["caption"] for draw in range(20)}
    assert said == set(record["captions"])


def test_the_config_says_size_and_resize():
    cfg = load_config(ROOT / "configs/mini/captions.yaml", ["INPUT.CAPTIONS.RESIZE", "letterbox"])
    mapper = CaptionMapper(cfg, seed=7)
    assert (mapper.student_size, mapper.resize, mapper.seed) == (160, "letterbox", 7)
    assert mapper.max_pixels == cfg.INPUT.MAX_PIXELS
