"""Masks that anybody made: every form gives the same masks, and what does not fit is refused by file and mask."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from clipself_seg.data import given_masks as module
from clipself_seg.data.given_masks import (
    GivenMasks,
    MaskFolder,
    given_masks,
    image_name,
    read_masks,
)
from clipself_seg.errors import InputError

SIZE = (6, 9)
MASKS = np.zeros((2, *SIZE), dtype=bool)
MASKS[0, 1:4, 2:5] = MASKS[1, 3:6, 4:9] = True  # they overlap
APART = MASKS.copy()
APART[1] &= ~MASKS[0]


def runs(mask):
    """COCO's uncompressed RLE, by a loop over the pixels of one column after the other."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().astype(int):
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def compressed(mask):
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def box(mask):
    rows, columns = np.nonzero(mask)
    x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return [[int(n) for n in (x0, y0, x1, y0, x1, y1, x0, y1)]]


def write(folder, content, name="a"):
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json"


@pytest.mark.parametrize("form", [runs, compressed, box])
@pytest.mark.parametrize("bare", [True, False])
def test_json_of_run_lengths_and_polygons_gives_the_masks(tmp_path, form, bare):
    entries = [form(mask) if bare else {"segmentation": form(mask)} for mask in MASKS]
    if bare and form is box:
        entries = [{"segmentation": entry} for entry in entries]
    masks, scores = read_masks(write(tmp_path, entries), SIZE)
    assert masks.dtype == bool and (masks == MASKS).all() and scores.tolist() == [1, 1]
    wrapped = write(tmp_path, {"image": {}, "annotations": entries}, "b")
    assert (read_masks(wrapped, SIZE).masks == MASKS).all()


def test_scores_are_the_files_an_estimate_is_cut_at_1_and_without_it_is_1(tmp_path):
    keys = ({"score": 0.25}, {"predicted_iou": 1.02}, {"score": 0, "predicted_iou": 0.9}, {})
    entries = [{"segmentation": runs(MASKS[0]), **key} for key in keys]
    assert read_masks(write(tmp_path, entries), SIZE).scores.tolist() == [0.25, 1, 0, 1]


@pytest.mark.parametrize("kind", ["indices", "16 bits", "rgb"])
def test_a_png_has_a_mask_for_each_value(tmp_path, kind):
    high = {"indices": 200, "16 bits": 40000, "rgb": 70000}[kind]
    ids = np.where(APART[0], 7, 0) + np.where(APART[1], high, 0)
    pixels = ids.astype(np.uint8 if kind == "indices" else np.uint16)
    if kind == "rgb":
        pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    masks, scores = read_masks(tmp_path / "a.png", SIZE)
    assert (masks == APART).all() and scores.tolist() == [1, 1]


def test_masks_from_memory_are_arrays_annotations_or_paths(tmp_path):
    for value in (MASKS, MASKS.astype(np.int64) * 3, GivenMasks(MASKS, np.ones(2))):
        assert (given_masks(value, SIZE).masks == MASKS).all()
    # What the generator of Segment Anything returns, with masks as arrays, and with pycocotools' run lengths.
    arrays = [{"segmentation": mask, "predicted_iou": 0.5} for mask in MASKS]
    encoded = [
        {"segmentation": rle.encode(np.asfortranarray(mask.astype(np.uint8)))} for mask in MASKS
    ]
    assert given_masks(arrays, SIZE).scores.tolist() == [0.5, 0.5]
    for value in (arrays, encoded, write(tmp_path, [runs(mask) for mask in MASKS])):
        assert (given_masks(value, SIZE).masks == MASKS).all()
    assert given_masks([], SIZE).masks.shape == (0, *SIZE)
    for value, message in (
        (MASKS[0], "masks are an array"),
        (MASKS[:, :5], "masks is 9 x 5, the image, .* is 9 x 6"),
        (GivenMasks(MASKS, np.array([1, 2])), r"scores of 2 masks are as many numbers in \[0, 1\]"),
        ([{"segmentation": MASKS[0, :5]}], "mask 0 is 9 x 5"),
        (None, "got None"),
    ):
        with pytest.raises(InputError, match=message):
            given_masks(value, SIZE)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"masks": []}, "a.json is None, and has to be a list: give COCO's"),
        ([3], "a.json: mask 0 is no mask .* neither polygons nor an RLE, in 3"),
        ([runs(MASKS[0]), {"size": [6, 9], "counts": [3]}], "mask 1 .* do not fill the image"),
        ([{"size": [9, 6], "counts": [54]}], r"its size \[9, 6\] is not that of the image"),
        (
            [{"segmentation": runs(MASKS[0]), "score": 1.5}],
            r"mask 0: score is 1.5, and has to be a number in \[0, 1\]",
        ),
    ],
)
def test_malformed_json_is_refused_by_file_and_mask(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_masks(write(tmp_path, content), SIZE)


def test_pngs_that_do_not_fit_are_refused(tmp_path):
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png is 9 x 6, the image, .*EXIF.* is 6 x 9"):
        read_masks(tmp_path / "a.png", (9, 6))
    Image.fromarray(np.zeros((*SIZE, 4), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match="b.png has pixels of type RGBA"):
        read_masks(tmp_path / "b.png", SIZE)
    (tmp_path / "c.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    with pytest.raises(InputError, match="c.png cannot be decoded"):
        read_masks(tmp_path / "c.png", SIZE)
    for name in ("gone.png", "gone.json"):
        with pytest.raises(InputError, match=f"{name} (is|are) missing"):
            read_masks(tmp_path / name, SIZE)


def test_numbers_and_sizes_are_bounded_before_masks_are_made(tmp_path, monkeypatch):
    path = write(tmp_path, [runs(mask) for mask in MASKS])
    for name, value, message in (
        ("MOST_MASKS", 1, "2 masks .* and 1 masks"),
        ("MOST_BYTES", 2 * 6 * 9 - 1, "2 masks of 9 x 6 pixels, .* 107 pixels at most"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            for given in (path, MASKS):
                with pytest.raises(InputError, match=message):
                    given_masks(given, SIZE)
    monkeypatch.setattr(module, "MOST_FILE_BYTES", 10)
    with pytest.raises(InputError, match="a.json has .* bytes, and 10 at most"):
        read_masks(path, SIZE)


def test_a_folder_of_masks_has_one_form_for_each_image(tmp_path):
    write(tmp_path, [runs(MASKS[0])])
    (tmp_path / "a").mkdir()  # of further images, a/b.jpg
    write(tmp_path / "a", [runs(MASKS[1])], "b")
    masks = MaskFolder(tmp_path)
    assert (masks.read("a", SIZE).masks == MASKS[:1]).all()
    assert (masks.read("a/b", SIZE).masks == MASKS[1:]).all()
    assert masks.check(["a", "a/b"])["forms"] == {"json": 2}
    with pytest.raises(InputError, match="no masks of c in .*NAME.json or NAME.png"):
        masks.read("c", SIZE)
    with pytest.raises(InputError, match="no masks of c in"):
        masks.check(["a", "c"])
    with pytest.raises(InputError, match="name of an image, without .*, 'a' is there twice: leave"):
        masks.check([image_name("x/a.jpg"), image_name("y/a.jpg")])
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.json and .*a.png are of one image"):
        masks.read("a", SIZE)
    for wrong in ("", tmp_path / "gone", tmp_path / "a.png"):
        with pytest.raises(InputError, match="no folder of masks"):
            MaskFolder(wrong)


def test_a_digest_changes_with_the_files(tmp_path):
    paths = [write(tmp_path, [runs(MASKS[0])], name) for name in ("a", "b")]
    masks = MaskFolder(tmp_path)
    names = ["a", "b", "none"]
    before = masks.digest(names), masks.digest(names, times=False)
    assert (masks.digest(names), masks.digest(names, times=False)) == before
    os.utime(paths[1], ns=(1, 1))
    assert masks.digest(names) != before[0] and masks.digest(names, times=False) == before[1]
    paths[1].unlink()
    assert masks.digest(names, times=False) != before[1]
