"""Samples of region-text training: the first boxes of an image, and their nouns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_seg.config import load_config
from clipself_seg.data.images import letterbox_crops
from clipself_seg.data.mappers.distill import RegionTextMapper
from clipself_seg.data.regions import enlarge_boxes
from clipself_seg.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
BOXES = np.array([[30, 10, 60, 40], [0, 0, 1, 1], [3, 4, 30, 20]], dtype=np.float32)


@pytest.fixture
def record(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "1.png")
    labels = np.array([5, 2, 5])
    size = {"width": 60, "height": 40}
    name = str(tmp_path / "1.png")
    return {"file_name": name, "image_id": 1, "proposals": BOXES, "labels": labels, **size}


def test_the_first_boxes_are_taken_in_order_and_of_any_size(record):
    mapper = RegionTextMapper(student_size=32, seed=0, max_regions=2)
    sample = mapper(record, 0)
    assert sample.keys() == {"file_name", "image_id", "image", "boxes", "labels"}
    assert sample["image"].shape == (3, 32, 32) and sample["image"].dtype == torch.uint8
    torch.testing.assert_close(sample["boxes"], torch.from_numpy(BOXES[:2] / 60))
    assert sample["labels"].tolist() == [5, 2]
    everything = RegionTextMapper(student_size=32, seed=0, max_regions=0)(record, 0)
    assert everything["labels"].tolist() == [5, 2, 5]


def test_regionclip_reads_crops_a_caption_and_the_whole_image(record):
    mapper = RegionTextMapper(student_size=32, seed=0, crop_size=16, crop_scale=1.5)
    record |= {"captions": ["a dog", "a cat", "grass"]}
    sample = mapper(record, 4)
    crops = letterbox_crops(PIXELS, enlarge_boxes(BOXES, 1.5, 60, 40), 16)
    assert torch.equal(sample["crops"], torch.from_numpy(crops).movedim(-1, 1))
    torch.testing.assert_close(sample["whole"], torch.tensor([[0, 0, 1, 40 / 60]]))
    assert sample["caption"] == mapper(record, 4)["caption"]
    assert {mapper(record, draw)["caption"] for draw in range(20)} == {"a dog", "a cat", "grass"}


def test_regionclip_without_captions_is_refused(record):
    mapper = RegionTextMapper(student_size=32, seed=0, crop_size=16)
    with pytest.raises(InputError, match="image 1 of DATASETS.TRAIN has no caption.*--captions"):
        mapper(record | {"captions": []}, 0)


def test_an_image_of_another_size_than_stated_is_refused(record):
    with pytest.raises(InputError, match="60"):
        RegionTextMapper(student_size=32, seed=0)(record | {"width": 61}, 0)


@pytest.mark.parametrize(("loss", "crop_size"), [("bce", None), ("regionclip", 224)])
def test_keys_reach_the_mapper(loss, crop_size):
    keys = {
        "MODEL.CLIPSELF.TEXTS.LOSS": loss,
        "INPUT.REGIONS.STUDENT_SIZE": 320,
        "INPUT.REGIONS.MAX_REGIONS": 7,
        "INPUT.REGIONS.CROP_SCALE": 1.5,
    }
    cfg = load_config(None, [str(part) for pair in keys.items() for part in pair])
    mapper = RegionTextMapper(cfg, crop_size=224, seed=7)
    assert (mapper.student_size, mapper.max_regions, mapper.crop_scale) == (320, 7, 1.5)
    assert (mapper.crop_size, mapper.seed) == (crop_size, 7)
