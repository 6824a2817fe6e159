"""Formats of other programs: values checked by hand, and read back by the libraries that they are for."""

from __future__ import annotations

import contextlib
import io
import json
import unicodedata

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from clipself_seg.data.masks import read_indices
from clipself_seg.errors import InputError
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.formats import (
    OF_REGIONS,
    Formats,
    Region,
    box_lines,
    require_palette,
    safe_name,
    save_palette,
)

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 9, "name": "sea/lion", "seen": True}]


def regions():
    """Two regions of an image of 10 x 20 pixels: a rectangle, and two that are one instance."""
    one = np.zeros((10, 20), bool)
    one[2:6, 4:9] = True
    two = np.zeros((10, 20), bool)
    two[0:3, 12:16] = two[6:9, 12:20] = True
    return [Region(1, 1, one, False), Region(2, 0, two, True)]


@pytest.fixture
def written(tmp_path):
    """The folder, and the paths of the files of an image named "sub/a"."""
    formats = Formats(tmp_path, OF_REGIONS, CATEGORIES)
    files, entry = formats.write("sub/a", regions())
    source = ImageFile(tmp_path / "a.jpg", "sub/a.jpg", "sub/a")
    formats.write_index({"about": "it"}, [(source, {"size": [10, 20], **entry})], {"sub/a": 5})
    return tmp_path, files


def test_masks_are_a_file_for_each_region(written):
    folder, files = written
    masks = [path for path in files if path.startswith("masks/")]
    assert masks == ["masks/sub/a/001_sea_lion.png", "masks/sub/a/002_dog.png"]
    for path, region in zip(masks, regions()):
        with Image.open(folder / path) as image:
            assert image.mode == "L"
            assert (np.asarray(image) == 255 * region.mask).all()


def test_masks_of_an_earlier_call_go_and_nothing_else(tmp_path):
    formats = Formats(tmp_path, ["masks"], CATEGORIES)
    formats.write("a", regions())
    (tmp_path / "masks/a/notes.png").touch()
    formats.write("a", regions()[:1])
    assert {path.name for path in (tmp_path / "masks/a").iterdir()} == {
        "001_sea_lion.png",
        "notes.png",
    }


def test_pycocotools_reads_the_regions(written):
    folder, _ = written
    content = json.loads((folder / "coco.json").read_text())
    assert content["categories"] == CATEGORIES and content["info"] == {"about": "it"}
    image = {"id": 5, "file_name": "sub/a.jpg", "width": 20, "height": 10}
    assert content["images"] == [image]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(folder / "coco.json")
    first, second = coco.loadAnns([1, 2])
    assert (first["category_id"], first["bbox"], first["area"]) == (9, [4, 2, 5, 4], 20)
    assert (second["category_id"], second["bbox"], second["area"]) == (7, [12, 0, 8, 9], 36)
    assert second["image_id"] == 5 and second["iscrowd"] == 0
    for annotation, region in zip((first, second), regions()):
        assert (coco.annToMask(annotation) == region.mask).all()


def test_polygons_of_yolo_are_those_of_the_masks(written):
    folder, files = written
    assert "yolo/labels/sub/a.txt" in files
    first, second = (folder / "yolo/labels/sub/a.txt").read_text().splitlines()
    # The corner pixels of the rectangle, divided by width and height.
    assert first == "1 0.2 0.2 0.2 0.5 0.4 0.5 0.4 0.2"
    label, *numbers = second.split()
    corners = np.array(numbers, float).reshape(-1, 2) * [20, 10]
    canvas = np.zeros((10, 20), np.uint8)
    cv2.fillPoly(canvas, [corners.round().astype(np.int32)], 1)
    assert label == "0" and canvas[regions()[1].mask].all()
    assert canvas.sum() == 36 + 3  # one line leads from part to part
    content = yaml.safe_load((folder / "yolo/data.yaml").read_text())
    assert content == {"train": "images", "val": "images", "names": {0: "dog", 1: "sea/lion"}}


def test_boxes_of_yolo_are_middle_and_sides():
    boxes = np.array([[4, 2, 8, 6], [0, 0, 20, 10]], np.float32)
    lines = box_lines(boxes, np.array([1, 0]), height=10, width=20)
    assert lines == ["1 0.3 0.4 0.2 0.4", "0 0.5 0.5 1 1"]


def test_an_image_without_regions_has_an_empty_file_of_yolo(tmp_path):
    files, entry = Formats(tmp_path, OF_REGIONS, CATEGORIES).write("a", [])
    assert files == ["yolo/labels/a.txt"] and entry == {"regions": []}
    assert (tmp_path / "yolo/labels/a.txt").read_bytes() == b""


def test_what_is_not_asked_for_is_not_written(tmp_path):
    formats = Formats(tmp_path, ["overlays"], CATEGORIES)
    assert formats.write("a", regions()) == ([], {})
    formats.write_index({}, [], {})
    assert list(tmp_path.iterdir()) == []


def test_a_palette_png_has_labels_as_pixels_and_looks_like_the_classes(tmp_path):
    labels = np.array([[0, 1], [255, 1]], np.uint8)
    save_palette(tmp_path / "a.png", labels, np.array([[10, 20, 30], [40, 50, 60]], np.uint8))
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert np.asarray(image.convert("RGB")).tolist() == [
            [[10, 20, 30], [40, 50, 60]],
            [[224, 224, 192], [40, 50, 60]],
        ]
    assert (read_indices(tmp_path / "a.png") == labels).all()


def test_a_palette_for_more_classes_than_it_has_colours_is_refused():
    require_palette(["palette"], 255)
    require_palette(["labels"], 1000)
    with pytest.raises(InputError, match="255 classes at most, these are 256: --save labels"):
        require_palette(["palette"], 256)


@pytest.mark.parametrize(
    "name, safe",
    [
        ("dog", "dog"),
        ("собака 犬", "собака 犬"),
        ("../etc/passwd", "_etc_passwd"),
        ('a\\b:c*"<>|?', "a_b_c______"),
        ("a\x00b\nc\ud800", "a_b_c_"),
        ("...", "_"),
        ("犬" * 100, "犬" * 40),
        (unicodedata.normalize("NFD", "café"), "café"),
    ],
)
def test_names_of_classes_are_safe_in_names_of_files(name, safe):
    assert safe_name(name) == safe
