"""Label maps, panoptic PNGs, run lengths and polygons are read, and what is none is refused."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from clipself_seg.data import images
from clipself_seg.data.masks import (
    _decompress,
    check_segmentation,
    object_mask,
    read_indices,
    read_label_map,
    run_lengths,
)
from clipself_seg.errors import InputError


def write(path, values, dtype=np.uint8):
    Image.fromarray(np.array(values, dtype=dtype)).save(path)
    return path


def read(path, **changes):
    return read_label_map(path, **{"num_classes": 4, "ignore_label": 255} | changes)


def test_8_and_16_bits_and_palettes_keep_their_values(tmp_path):
    labels = read(write(tmp_path / "a.png", [[0, 3], [255, 1]]))
    assert labels.dtype == np.int64 and labels.tolist() == [[0, 3], [255, 1]]
    for suffix in (".tif", ".png"):
        path = write(tmp_path / f"b{suffix}", [[846, 65535, 256]], np.uint16)
        assert read(path, num_classes=847, ignore_label=65535).tolist() == [[846, 65535, 256]]
    palette = Image.fromarray(np.array([[0, 2]], np.uint8), mode="L").convert("P")
    palette.putpalette([9, 9, 9, 8, 8, 8, 7, 7, 7])
    palette.save(tmp_path / "c.png")
    assert read(tmp_path / "c.png").tolist() == [[0, 2]]


def test_values_of_a_map_become_classes_and_all_others_are_ignored(tmp_path):
    values = {3: 0, 200: 2, 7: 1, 65535: 3}
    path = write(tmp_path / "a.png", [[3, 200, 7, 0, 255]])
    assert read(path, label_values=values).tolist() == [[0, 2, 1, 255, 255]]
    path = write(tmp_path / "b.tif", [[3, 65535, 1000]], np.uint16)
    labels = read(path, label_values=values, ignore_label=65535)
    assert labels.dtype == np.int64 and labels.tolist() == [[0, 3, 65535]]
    for wrong in ({70000: 0}, {3: 10**4}, {-1: 0}):
        with pytest.raises(InputError, match="b.tif: its value .* stands for label .*, but values"):
            read(path, label_values=wrong)


def test_an_ignore_label_just_above_the_classes_is_allowed(tmp_path):
    path = write(tmp_path / "a.tif", [[458, 459]], np.uint16)
    assert read(path, num_classes=459, ignore_label=459).tolist() == [[458, 459]]


def test_missing_and_corrupt_files_are_named(tmp_path):
    with pytest.raises(InputError, match="lost.png is missing"):
        read(tmp_path / "lost.png")
    for suffix in (".png", ".tif"):
        path = write(tmp_path / f"a{suffix}", np.random.default_rng(0).integers(0, 4, (64, 64)))
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(InputError, match=f"a{suffix} cannot be decoded"):
            read(path)
    (tmp_path / "b.png").write_text("not a picture")
    with pytest.raises(InputError, match="b.png cannot be decoded"):
        read(tmp_path / "b.png")


def test_a_map_is_unpacked_or_prepared_again_and_none_is_deleted(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(InputError, match="a.png is missing: unpack its archive, .* restore it"):
        read_indices(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="a.png cannot be decoded .* restore it") as caught:
        read_indices(path)
    assert "delete" not in str(caught.value)


def test_coloured_maps_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a.png has pixels of type RGB: .*getchannel\(0\)"):
        read(write(tmp_path / "a.png", np.zeros((2, 2, 3))))


def test_labels_outside_the_vocabulary_are_named_with_what_helps(tmp_path):
    with pytest.raises(InputError, match="b.png has the value 7, 9: .*\n.*count from 1"):
        read(write(tmp_path / "b.png", [[9, 7, 1, 255]]))


def test_another_size_than_the_image_is_refused(tmp_path):
    path = write(tmp_path / "a.png", [[0, 1, 2]])
    assert read(path, size=(3, 1)).shape == (1, 3)
    with pytest.raises(InputError, match="a.png is 3 x 1, its image b.jpg is 1 x 3"):
        read(path, size=(1, 3), image="b.jpg")


def test_a_map_may_be_as_large_as_its_image_and_not_larger(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 5)
    path = write(tmp_path / "a.png", [[0, 3, 1], [255, 1, 0]])
    assert read(path, size=(3, 2)).shape == (2, 3)
    with pytest.raises(InputError, match="a.png is 3 x 2, which is more than the 5 pixels"):
        read(path)


def test_runs_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for fraction in (0, 0.001, 0.1, 0.5, 0.999, 1):
        for height, width in ((1, 1), (40, 57), (300, 211)):
            mask = np.asfortranarray(rng.random((height, width)) < fraction, np.uint8)
            coded = rle.encode(mask)
            text = coded["counts"].decode()
            flat = mask.flatten(order="F")
            edges = np.flatnonzero(np.diff(flat)) + 1
            lengths = np.diff([0, *([0] if flat[0] else []), *edges, len(flat)])
            assert _decompress(text).tolist() == lengths.tolist()
            check_segmentation({"size": coded["size"], "counts": text}, height, width)
            check_segmentation({"size": [height, width], "counts": lengths.tolist()}, height, width)
    check_segmentation([[-3, 4.5, 60, 4, 30, 45.0]], 40, 57)


@pytest.mark.parametrize(
    "value, words",
    [
        ({"size": [4, 3], "counts": "12100001"}, "do not fill"),
        ({"size": [4, 3], "counts": "P" * 9 + "1"}, "too long"),
        ({"size": [4, 3], "counts": "1P"}, "no text of an RLE"),
        ({"size": [3_000_000_000, 4], "counts": "12100000"}, "not that of the image"),
        ({"size": [4, 3], "counts": [2, 5, 6]}, "do not fill"),
        ({"size": [4, 3], "counts": [2, 10**30]}, "no whole number"),
        ([[3.0, 4.0, 30.0, 2147483648, 30.0, 20.0]], "far from the image"),
        ([[float("nan"), 4.0, 1, 2, 3, 2]], "nowhere"),
        ([[1, 2, 3, 2]], "too few points"),
        ([], "neither polygons nor"),
    ],
)
def test_what_is_no_mask_of_the_image_is_refused(value, words):
    with pytest.raises(ValueError, match=words):
        check_segmentation(value, 4, 3)


@pytest.mark.parametrize("size", [(0, 3), (-4, 3), (1 << 20, 1 << 20)])
def test_images_without_pixels_or_with_too_many_are_refused(size):
    with pytest.raises(ValueError, match="pixels"):
        check_segmentation([[1, 2, 3, 4, 5, 6]], *size)


def test_lines_alone_are_an_empty_mask_of_any_size_that_an_image_has():
    line = [[0, 0, 5, 5]]
    empty = rle.encode(np.zeros((6, 8), np.uint8, order="F"))
    assert run_lengths(line, 6, 8, "it") == empty
    with pytest.raises(InputError, match="the image has"):
        run_lengths(line, 2**20, 2**20, "it")


def test_masks_of_all_kinds_have_the_pixels_of_the_object():
    wanted = np.zeros((6, 8), np.uint8)
    wanted[1:4, 2:7] = 1
    polygon = [[2, 1, 7, 1, 7, 4, 2, 4]]
    compressed = rle.encode(np.asfortranarray(wanted))
    text = {"size": [6, 8], "counts": compressed["counts"].decode()}
    # By columns: two of six zeros, then one zero, three ones, two zeros five times.
    counts = [2 * 6 + 1, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2 + 6]
    for segmentation in (polygon, text, {"size": [6, 8], "counts": counts}):
        np.testing.assert_array_equal(object_mask(segmentation, 6, 8, "a.jpg"), wanted)
    two = [[0, 0, 1, 0, 1, 1, 0, 1], [2, 1, 7, 1, 7, 4, 2, 4], [3, 5, 4, 6]]
    assert object_mask(two, 6, 8, "a.jpg").sum() == 16
    # Two points enclose nothing.
    assert not object_mask([[0, 0, 5, 5]], 6, 8, "a.jpg").any()


@pytest.mark.parametrize(
    "segmentation", [[[1, 2, 3, 4, 5]], [3], {"counts": [48]}, {"size": [6, 8], "counts": [47]}]
)
def test_a_broken_mask_is_named(segmentation):
    with pytest.raises(InputError, match="an object of image a.jpg is no mask of .* 6 x 8 "):
        object_mask(segmentation, 6, 8, "a.jpg")
