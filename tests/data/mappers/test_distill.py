"""Samples of distillation: regions with crops, boxes with nouns, images with captions."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from clipself_seg.data.images import letterbox_crops
from clipself_seg.data.mappers.distill import (
    CaptionMapper,
    DistillMapper,
    RegionTextMapper,
    random_crop,
)
from clipself_seg.data.mappers.regions import RegionMapper
from clipself_seg.data.regions import enlarge_boxes
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError

BLOCK = 10


@pytest.fixture
def checkerboard(tmp_path):
    """A record of 60 x 40 pixels whose 10-pixel blocks each have a colour of their own."""
    colours = np.random.default_rng(0).integers(60, 256, (4, 6, 3), dtype=np.uint8)
    image = colours.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)
    Image.fromarray(image).save(tmp_path / "a.png")
    return {"file_name": str(tmp_path / "a.png"), "image_id": 1, "width": 60, "height": 40}


def distill(**changes):
    settings = {"source": "grid", "student_size": 60, "crop_size": 16, "seed": 0}
    return DistillMapper(**settings | changes)


def mean_colour(image_CHW):
    """Mean over the pixels that are not padding."""
    pixels = image_CHW.float().flatten(1)
    return pixels[:, pixels.sum(0) > 0].mean(1)


@pytest.mark.parametrize("draw", range(8))
def test_a_students_box_shows_what_the_teachers_crop_shows(checkerboard, draw):
    sample = distill()(checkerboard, draw)
    assert sample["image"].shape == (3, 60, 60) and sample["image"].dtype == torch.uint8
    assert sample["boxes"].dtype == torch.float32 and len(sample["boxes"]) == len(sample["crops"])
    for box, crop in zip(sample["boxes"], sample["crops"]):
        x0, y0, x1, y1 = (box * 60).round().int().tolist()
        inside = mean_colour(sample["image"][:, y0:y1, x0:x1])
        assert (inside - mean_colour(crop)).abs().max() < 12


def test_the_box_of_the_image_leaves_out_the_padding(checkerboard):
    whole = distill()(checkerboard, 0)["whole"]
    torch.testing.assert_close(whole, torch.tensor([[0, 0, 1, 40 / 60]]))


def test_proposals_keep_their_box_and_widen_their_crop(checkerboard):
    record = checkerboard | {"proposals": np.array([[20, 10, 40, 20]], dtype=np.float32)}
    sample = distill(source="proposals", crop_scale=1.5, crop_size=30)(record, 0)
    torch.testing.assert_close(sample["boxes"], torch.tensor([[20.0, 10, 40, 20]]) / 60)
    # 20 x 10 grows to 30 x 15; rows 7.5 and 22.5 round to 8 and 22.
    expected = np.asarray(Image.open(record["file_name"]))[8:22, 15:45]
    np.testing.assert_array_equal(sample["crops"][0, :, 8:22].permute(1, 2, 0), expected)
    # The areas of the file decide; without a proposal the top left quarter is taken.
    record["proposal_areas"] = np.array([63.0])
    sample = distill(source="proposals")(record, 0)
    torch.testing.assert_close(sample["boxes"], torch.tensor([[0.0, 0, 15, 10]]) / 60)


def test_proposals_of_another_picture_size_are_refused_and_grids_fit_any(checkerboard):
    record = checkerboard | {"width": 61, "proposals": np.zeros((0, 4))}
    with pytest.raises(InputError, match="a.png is 60 x 40"):
        distill(source="proposals")(record, 0)
    assert len(distill()(record, 0)["boxes"]) >= 1


@pytest.mark.parametrize("shape", [(1, 50), (50, 1), (3, 3)])
def test_pictures_smaller_than_a_grid_still_give_crops(tmp_path, shape):
    Image.fromarray(np.full((*shape, 3), 200, np.uint8)).save(tmp_path / "thin.png")
    record = {"file_name": str(tmp_path / "thin.png"), "image_id": 1}
    for draw in range(10):
        assert distill()(record, draw)["crops"].flatten(1).any(dim=1).all()


def test_an_image_of_a_shard_is_the_same_as_its_file_and_a_tiny_one_is_refused(checkerboard):
    with open(checkerboard["file_name"], "rb") as file:
        record = checkerboard | {"content": file.read()}
    whole, read = distill()(checkerboard, 3), distill()(record, 3)
    assert whole.keys() == read.keys() and torch.equal(whole["crops"], read["crops"])
    tiny = io.BytesIO()
    Image.new("RGB", (9, 40)).save(tiny, "PNG")
    with pytest.raises(InputError, match="is 9 x 40, with a side below 10 pixels"):
        distill()(checkerboard | {"content": tiny.getvalue()}, 3)


def words(things=2, stuff=1):
    names = [{"names": [f"thing{i}"], "dataset_id": 10 + i, "isthing": True} for i in range(things)]
    names += [
        {"names": [f"stuff{i}"], "dataset_id": 90 + i, "isthing": False} for i in range(stuff)
    ]
    return {"name": "test", "classes": names}


@pytest.fixture
def vocabulary(tmp_path):
    (tmp_path / "words.json").write_text(json.dumps(words()))
    return Vocabulary.load(tmp_path / "words.json")


@pytest.fixture
def labelled(checkerboard, tmp_path):
    """Thing 11 on the block at (20, 10), stuff 90 on the lower half."""
    png = np.zeros((40, 60, 3), dtype=np.uint8)
    png[10:20, 20:30, 0] = 5
    png[20:, :, 1] = 1
    Image.fromarray(png).save(tmp_path / "a_panoptic.png")
    segments = [
        {"id": 256, "category_id": 90, "bbox": [0, 20, 60, 20]},
        {"id": 5, "category_id": 11, "bbox": [20, 10, 10, 10]},
    ]
    path = str(tmp_path / "a_panoptic.png")
    return checkerboard | {"pan_seg_file_name": path, "segments_info": segments}


def regions(vocabulary, **changes):
    settings = {"image_size": 60, "crop_size": 16, "stride": 10, "vocabulary": vocabulary}
    return RegionMapper(**settings | changes)


def test_regions_carry_labels_boxes_masks_and_crops(labelled, vocabulary):
    sample = regions(vocabulary)(labelled)
    assert sample["labels"].tolist() == [2, 1]
    assert sample["isthing"].tolist() == [False, True]
    expected = torch.tensor([[0.0, 20, 59, 39], [20, 10, 30, 20]]) / 60
    torch.testing.assert_close(sample["boxes"], expected)
    cells = torch.zeros(2, 6, 6, dtype=torch.bool)
    cells[0, 2:4] = True
    cells[1, 1, 2] = True
    torch.testing.assert_close(sample["masks"], cells)
    assert sample["crops"].shape == (2, 3, 16, 16)


def test_what_is_not_read_is_not_made(labelled, vocabulary):
    assert not {"masks", "crops"} & regions(vocabulary, read=("boxes",))(labelled).keys()
    sample = regions(vocabulary, read=("attention_masks",))(labelled)
    assert "masks" in sample and "crops" not in sample


def test_a_picture_of_small_segments_only_has_no_regions(labelled, vocabulary, tmp_path):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a_panoptic.png")
    sample = regions(vocabulary)(labelled | {"segments_info": []})
    shapes = {key: tuple(value.shape) for key, value in sample.items() if torch.is_tensor(value)}
    assert shapes["boxes"] == (0, 4) and shapes["labels"] == shapes["isthing"] == (0,)
    assert shapes["masks"] == (0, 6, 6) and shapes["crops"] == (0, 3, 16, 16)


def test_a_vocabulary_that_does_not_tell_things_is_refused():
    with pytest.raises(InputError, match="isthing"):
        regions(Vocabulary.of(["cat", "dog"]))


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


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
BOXES = np.array([[30, 10, 60, 40], [0, 0, 1, 1], [3, 4, 30, 20]], dtype=np.float32)


@pytest.fixture
def boxes_with_nouns(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "1.png")
    labels = np.array([5, 2, 5])
    size = {"width": 60, "height": 40}
    name = str(tmp_path / "1.png")
    return {"file_name": name, "image_id": 1, "proposals": BOXES, "labels": labels, **size}


def test_the_first_boxes_are_taken_in_order_and_of_any_size(boxes_with_nouns):
    mapper = RegionTextMapper(student_size=32, seed=0, max_regions=2)
    sample = mapper(boxes_with_nouns, 0)
    assert sample.keys() == {"file_name", "image_id", "image", "boxes", "labels"}
    assert sample["image"].shape == (3, 32, 32) and sample["image"].dtype == torch.uint8
    torch.testing.assert_close(sample["boxes"], torch.from_numpy(BOXES[:2] / 60))
    assert sample["labels"].tolist() == [5, 2]
    everything = RegionTextMapper(student_size=32, seed=0, max_regions=0)(boxes_with_nouns, 0)
    assert everything["labels"].tolist() == [5, 2, 5]


def test_regionclip_reads_crops_a_caption_and_the_whole_image(boxes_with_nouns):
    mapper = RegionTextMapper(student_size=32, seed=0, crop_size=16, crop_scale=1.5)
    boxes_with_nouns |= {"captions": ["a dog", "a cat", "grass"]}
    sample = mapper(boxes_with_nouns, 4)
    crops = letterbox_crops(PIXELS, enlarge_boxes(BOXES, 1.5, 60, 40), 16)
    assert torch.equal(sample["crops"], torch.from_numpy(crops).movedim(-1, 1))
    torch.testing.assert_close(sample["whole"], torch.tensor([[0, 0, 1, 40 / 60]]))
    assert sample["caption"] == mapper(boxes_with_nouns, 4)["caption"]
    assert {mapper(boxes_with_nouns, draw)["caption"] for draw in range(20)} == {
        "a dog",
        "a cat",
        "grass",
    }


def test_regionclip_without_captions_is_refused(boxes_with_nouns):
    mapper = RegionTextMapper(student_size=32, seed=0, crop_size=16)
    with pytest.raises(InputError, match="image 1 of DATASETS.TRAIN has no caption.*--captions"):
        mapper(boxes_with_nouns | {"captions": []}, 0)
