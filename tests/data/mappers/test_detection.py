"""Augmented images and their objects, by hand and against Detectron2."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from clipself_seg.data.mappers.detection import (
    DetectionTestMapper,
    DetectionTrainMapper,
    evaluation_size,
    nearest_indices,
    resize_image,
    training_size,
)

SIDE = 32


def write_image(folder, height, width):
    """An image of smooth colours, so that a place in it can be read from its colour."""
    rows, columns = np.indices((height, width))
    image = np.stack([rows * 255 // height, columns * 255 // width, rows * 0 + 7], -1)
    Image.fromarray(image.astype(np.uint8)).save(folder / "a.png")
    return image.astype(np.uint8)


def rectangle(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def record_of(folder, height, width, *boxes):
    write_image(folder, height, width)
    return {
        "file_name": str(folder / "a.png"),
        "image_id": 4,
        "height": height,
        "width": width,
        "annotations": [
            {"bbox": list(box), "label": 3 + n, "iscrowd": 0, "segmentation": rectangle(*box)}
            for n, box in enumerate(boxes)
        ],
    }


def mapper(**changes):
    return DetectionTrainMapper(**{"seed": 0, "side": SIDE, "scales": (1.0, 1.0)} | changes)


def draws(make, record, count=40):
    return [make(record, draw) for draw in range(count)]


def test_sizes_round_as_the_official_code_does():
    # int(640 * 0.3337) = 213; 213 / 640 of 427 is 142.1.
    assert training_size(427, 640, 640, 0.3337, "opencv") == (142, 213)
    # 0.3337 of 427 is 142.49, of 640 213.57: halves do not decide.
    assert training_size(427, 640, 640, 0.3337, "pillow") == (142, 214)
    assert evaluation_size(427, 640, 1024, "opencv") == (683, 1024)  # 683.2
    assert evaluation_size(5, 2, 3, "opencv") == (3, 1)
    assert evaluation_size(1000, 1, 64, "opencv") == (64, 1)  # 0.064 is no row
    assert evaluation_size(1000, 1, 64, "pillow") == training_size(1000, 1, 64, 1, "pillow")


def test_pillows_sizes_and_pixels_are_detectron2s():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(20, 60, (12, 2)).tolist():
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        scale = rng.uniform(0.3, 2)
        theirs = T.ResizeScale(scale, scale, SIDE, SIDE).get_transform(image)
        size = training_size(height, width, SIDE, scale, "pillow")
        assert size == (theirs.new_h, theirs.new_w)
        ours = resize_image(image, size, "pillow")
        np.testing.assert_array_equal(ours, theirs.apply_image(image))
        theirs = T.ResizeShortestEdge(SIDE, SIDE).get_transform(image)
        assert evaluation_size(height, width, SIDE, "pillow") == (theirs.new_h, theirs.new_w)


@pytest.mark.parametrize("resize", ["opencv", "pillow"])
def test_indices_of_the_nearest_neighbour_resize_a_whole_mask(resize):
    rng = np.random.default_rng(1)
    for height, width, new_height, new_width in rng.integers(1, 90, (60, 4)).tolist():
        mask = rng.integers(0, 2, (height, width), np.uint8)
        if resize == "opencv":
            size = (new_width, new_height)
            whole = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        else:
            transform = T.ResizeTransform(height, width, new_height, new_width)
            whole = transform.apply_segmentation(mask)
        rows = nearest_indices(height, new_height, resize)
        columns = nearest_indices(width, new_width, resize)
        np.testing.assert_array_equal(mask[np.ix_(rows, columns)], whole)


def test_boxes_are_resized_by_true_ratios_and_clipped(tmp_path):
    # The official 640 of 31 x 64 at scale 1: 15.5 becomes 16 rows, so that y is scaled by 16 / 31.
    record = record_of(tmp_path, 31, 64, (-4, 3, 20, 31), (50, 0, 70, 10.5))
    sample = next(s for s in draws(mapper(), record) if s["image"][1, 0, 0] < 10)  # not flipped
    assert sample["image"].shape == (3, 16, 32) and sample["image"].dtype == torch.uint8
    high = np.float32(16 / 31)
    wanted = [[0, 3 * high, 10, 16], [25, 0, 32, np.float32(10.5) * high]]
    assert sample["boxes"].tolist() == np.array(wanted, np.float32).tolist()
    assert sample["boxes"].dtype == torch.float32
    assert sample["labels"].tolist() == [3, 4] and sample["labels"].dtype == torch.int64
    assert sample["image_id"] == 4 and sample["file_name"].endswith("a.png")
    assert "masks" not in sample and sample.keys() == {
        *("file_name", "image_id", "image", "boxes", "labels", "draw")
    }


def test_half_of_the_samples_are_flipped_with_their_boxes_and_masks(tmp_path):
    record = record_of(tmp_path, 32, 32, (2, 4, 12, 10))
    samples = draws(mapper(masks=True), record, 60)
    flipped = [s for s in samples if s["boxes"].tolist() == [[20, 4, 30, 10]]]
    plain = [s for s in samples if s["boxes"].tolist() == [[2, 4, 12, 10]]]
    assert len(flipped) + len(plain) == 60 and 15 < len(flipped) < 45
    torch.testing.assert_close(flipped[0]["image"], plain[0]["image"].flip(2))
    torch.testing.assert_close(flipped[0]["masks"], plain[0]["masks"].flip(2))
    assert plain[0]["masks"][0, 4:10, 2:12].all() and plain[0]["masks"].sum() == 60


def test_cuts_begin_anywhere_and_boxes_follow(tmp_path):
    record = record_of(tmp_path, 32, 32, (14, 12, 19, 21))
    samples = draws(mapper(scales=(1.25, 1.25)), record, 300)  # 40 x 40, eight pixels to spare
    corners = {tuple(s["boxes"][0, :2].tolist()) for s in samples}
    # x of the box is 17.5 less 0 to 8, or from the other side 32 - 23.75 + 0 to 8; y is 15 less 0 to 8.
    plain = {17.5 - offset for offset in range(9)}
    turned = {8.25 + offset for offset in range(9)}
    assert {x for x, _ in corners} == plain | turned and {y for _, y in corners} == set(
        range(7, 16)
    )


def test_what_a_cut_leaves_nothing_of_goes_and_an_image_without_objects_stays(tmp_path):
    record = record_of(tmp_path, 32, 32, (0, 0, 4, 4), (28, 28, 32, 32))
    samples = draws(mapper(scales=(2.0, 2.0)), record)
    numbers = {tuple(s["labels"].tolist()) for s in samples}
    assert () in numbers and numbers <= {(), (3,), (4,)} and len(numbers) == 3
    for sample in samples:
        assert sample["boxes"].shape == (len(sample["labels"]), 4)
    empty = record | {"annotations": []}
    sample = mapper(masks=True)(empty, 0)
    assert sample["boxes"].shape == (0, 4) and sample["boxes"].dtype == torch.float32
    assert sample["labels"].shape == (0,) and sample["labels"].dtype == torch.int64
    assert sample["masks"].shape == (0, 32, 32) and sample["masks"].dtype == torch.bool


def test_boxes_are_made_anew_of_masks_whether_they_were_cut_or_not(tmp_path):
    record = record_of(tmp_path, 32, 32, (2, 4, 20, 28))
    record["annotations"][0]["segmentation"] = rectangle(5, 6, 9, 11)
    boxes = {tuple(s["boxes"][0].tolist()) for s in draws(mapper(masks=True), record)}
    assert boxes == {(5, 6, 9, 11), (23, 6, 27, 11)}


def test_masks_are_cut_as_their_image_is(tmp_path):
    record = record_of(tmp_path, 32, 32, (16, 0, 32, 32))  # where columns are bright
    shares = set()
    for sample in draws(mapper(scales=(1.5, 1.5), masks=True), record):
        columns = sample["image"][1].float()
        clear = (columns - 124).abs() > 8
        assert torch.equal(sample["masks"][0][clear], (columns > 124)[clear])
        shares.add(int(sample["masks"].sum()))
    assert len(shares) > 5


def test_another_image_is_wanted_where_the_last_object_has_no_pixel(tmp_path):
    record = record_of(tmp_path, 32, 32, (2, 4, 20, 28), (1, 1, 9, 9))
    nothing = [[-3, -3, -2, -3, -2, -2]]  # beside the image
    record["annotations"][0]["segmentation"] = nothing
    sample = mapper(masks=True)(record, 0)
    assert sample["labels"].tolist() == [4] and sample["masks"].shape == (1, 32, 32)
    record["annotations"][1]["segmentation"] = nothing
    assert mapper(masks=True)(record, 0) is None
    # Without masks the boxes decide.
    assert mapper()(record, 0)["labels"].tolist() == [3, 4]


def test_a_sliver_is_no_object(tmp_path):
    # Scaled by 1/64, one pixel is 0.0156 and half of one, which the border cuts, 0.0078.
    wide, thin = (10, 0, 11, 64), (2047.5, 0, 2050, 64)
    record = record_of(tmp_path, 64, 2048, wide, thin)
    assert mapper(scales=(1.0, 1.0))(record, 0)["labels"].tolist() == [3]
    record["annotations"].pop(0)
    assert mapper(scales=(1.0, 1.0))(record, 0) is None


def test_factors_are_drawn_between_the_two(tmp_path):
    record = record_of(tmp_path, 20, 10, (0, 0, 10, 20))
    sides = [s["image"].shape[1] for s in draws(mapper(scales=(0.25, 0.75)), record, 200)]
    assert min(sides) == 8 and max(sides) in (23, 24) and set(range(8, 23)) < set(sides)


@pytest.mark.parametrize("resize", ["opencv", "pillow"])
def test_a_test_image_fills_its_longer_side(tmp_path, resize):
    record = record_of(tmp_path, 31, 64, (2, 4, 12, 10))
    sample = DetectionTestMapper(side=48, resize=resize)(record)
    assert sample.keys() == {"file_name", "image_id", "image", "height", "width"}
    assert sample["image"].shape == (3, 23, 48) and sample["image"].dtype == torch.uint8
    assert (sample["height"], sample["width"]) == (31, 64)
    # The first channel says the row, the second one the column.
    assert sample["image"][0, -1].float().mean() > 230 and sample["image"][1, :, 0].max() < 10
