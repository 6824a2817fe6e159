"""Crops with their labels: nothing hidden decides them, and they are Detectron2's."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image

from clipself_seg.config import load_config
from clipself_seg.data.mappers.sem_seg import SemSegTestMapper, SemSegTrainMapper
from clipself_seg.errors import InputError

SIDE = 32
RECIPE = [
    *("INPUT.MIN_SIZE_TRAIN", "(384,)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice"),
    *("INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "[384, 384]"),
    *("INPUT.COLOR_AUG_SSD", "True", "INPUT.SIZE_DIVISIBILITY", "384", "INPUT.FORMAT", "RGB"),
    *("INPUT.MIN_SIZE_TEST", "640", "INPUT.MAX_SIZE_TEST", "2560"),
]


def write_pair(folder, height, width, labels=None, suffix=".png"):
    """An image whose red channel is its label times 20, and the record of both."""
    if labels is None:
        labels = np.add.outer(np.arange(height) // 8, np.arange(width) // 8).astype(np.uint8) % 10
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = (labels % 10) * 20
    Image.fromarray(image).save(folder / "a.png")
    path = folder / f"labels{suffix}"
    Image.fromarray(labels).save(path)
    image, label_map = str(folder / "a.png"), str(path)
    return {"file_name": image, "sem_seg_file_name": label_map, "image_id": "a"}


def mapper(**changes):
    settings = {"seed": 0, "num_classes": 10, "ignore_label": 255, "min_sizes": (SIDE,)}
    settings |= {"max_size": 1333, "crop": ("absolute", (SIDE, SIDE)), "pad_to": SIDE}
    return SemSegTrainMapper(**settings | changes)


@pytest.fixture
def record(tmp_path):
    return write_pair(tmp_path, 64, 96)


@pytest.mark.parametrize("draw", range(6))
def test_labels_follow_the_picture_through_crop_and_flip(tmp_path, draw):
    # No resizing, which would blend the image but not the labels.
    record = write_pair(tmp_path, SIDE, 96)
    sample = mapper()(record, draw)
    assert sample["image"].shape == (3, SIDE, SIDE) and sample["image"].dtype == torch.uint8
    assert sample["sem_seg"].dtype == torch.uint8
    torch.testing.assert_close(sample["image"][0], sample["sem_seg"] * 20)


def test_an_image_that_lies_where_its_annotations_stand_is_refused(record):
    with pytest.raises(InputError, match="a.png is 96 x 64, .* by its annotation it is 64 x 96"):
        mapper()(record | {"width": 64, "height": 96}, 0)


def test_labels_of_an_image_at_half_size_are_its_even_pixels(tmp_path):
    # As in CAT-Seg; PIL's nearest neighbour, which Detectron2 takes for bytes, would be the odd ones.
    labels = np.random.default_rng(0).integers(0, 10, (2 * SIDE, 2 * SIDE), dtype=np.uint8)
    target = mapper()(write_pair(tmp_path, 2 * SIDE, 2 * SIDE, labels), 0)["sem_seg"].numpy()
    even = labels[::2, ::2]
    assert any(np.array_equal(target, turned) for turned in (even, even[:, ::-1]))


def test_padding_is_grey_and_ignored(tmp_path):
    sample = mapper(max_size=64, ignore_label=200)(write_pair(tmp_path, 32, 128), 0)
    # The longer side limits: 16 x 64, of which 32 columns are cut out.
    assert (sample["image"][:, 16:] == 128).all() and (sample["sem_seg"][16:] == 200).all()
    assert (sample["sem_seg"][:16] < 10).all()


def test_a_target_smaller_than_the_crop_cuts(record):
    assert mapper(pad_to=20)(record, 0)["image"].shape == (3, 20, 20)
    assert mapper(pad_to=-1, crop=None)(record, 0)["sem_seg"].shape == (32, 48)


def test_labels_of_16_bits_keep_their_values(tmp_path):
    labels = np.full((SIDE, SIDE), 65535, np.uint16)
    labels[:, :16] = 846
    record = write_pair(tmp_path, SIDE, SIDE, labels, ".tif")
    sem_seg = mapper(num_classes=847, ignore_label=65535)(record, 0)["sem_seg"]
    assert sem_seg.dtype == torch.int32 and sem_seg.unique().tolist() == [846, 65535]


def test_an_ignored_label_below_0_is_kept(record):
    values = {0: 0}
    sem_seg = mapper(ignore_label=-1, pad_to=64)(record | {"label_values": values}, 0)["sem_seg"]
    assert sem_seg.unique().tolist() == [-1, 0]


def test_the_test_mapper_reads_no_ground_truth(record):
    record["sem_seg_file_name"] = "nowhere.png"
    sample = SemSegTestMapper(load_config(None, RECIPE))(record)
    assert sample["image"].shape == (3, 640, 960)
    assert (sample["height"], sample["width"]) == (64, 96)
    assert sample["sem_seg_file_name"] == "nowhere.png"


def real_records(data_dir, count=4):
    folder = data_dir / "coco-stuff"
    for path in sorted((folder / "images/val2017").iterdir())[:count]:
        labels = folder / "annotations/val2017" / f"{path.stem}.png"
        yield {"file_name": str(path), "sem_seg_file_name": str(labels), "image_id": path.stem}


@pytest.mark.parametrize("shape", [(1, 6000, 3), (6000, 1, 3)])
def test_no_side_of_a_thin_picture_is_rounded_away(tmp_path, shape):
    record = write_pair(tmp_path, *shape[:2])
    sample = SemSegTestMapper(load_config(None, RECIPE))(record)
    assert sorted(sample["image"].shape[1:]) == [1, 2560]
    assert mapper()(record, 0)["image"].shape == (3, SIDE, SIDE)


def test_real_pictures_are_resized_as_detectron2_does(data_dir):
    ours = SemSegTestMapper(load_config(None, RECIPE))
    for record in real_records(data_dir):
        image = detectron2_read_image(record["file_name"], "RGB")
        stock = T.AugInput(image)
        T.AugmentationList([T.ResizeShortestEdge([640, 640], 2560)])(stock)
        sample = ours(record)
        np.testing.assert_array_equal(sample["image"].numpy(), stock.image.transpose(2, 0, 1))
        assert (sample["height"], sample["width"]) == image.shape[:2]
