"""Files of results: formats of other programs, by hand, and read back by the libraries that they are for."""

import contextlib
import io
import json
import types
import unicodedata

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage

from clipself_seg.files import read_json
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.loop import Index
from clipself_seg.prediction.results import PanopticSegment, PanopticSegmentation
from clipself_seg.prediction.writers import (
    OF_REGIONS,
    Region,
    ResultFiles,
    joined_polygon,
    mask_polygons,
    regions_of,
    safe_name,
    yolo_lines,
)

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 9, "name": "sea/lion", "seen": True}]
# Of an image of 10 x 20 pixels: a rectangle of stuff, and two that are one object.
IDS = np.zeros((10, 20), np.int64)
IDS[2:6, 4:9] = 1
IDS[0:3, 12:16] = IDS[6:9, 12:20] = 2
SEGMENTS = (
    PanopticSegment(1, 1, "sea/lion", False, 20, (4, 2, 5, 4), 0.5),
    PanopticSegment(2, 0, "dog", True, 36, (12, 0, 8, 9), 0.5),
)


def result_of(segments):
    image, ids = np.zeros((10, 20, 3), np.uint8), np.where(IDS <= len(segments), IDS, 0)
    names = ("dog", "sea/lion")
    return PanopticSegmentation(ids, segments, names=names, category_ids=(7, 9), image=image)


def regions():
    return list(regions_of(result_of(SEGMENTS)))


def results(folder, save):
    """Results of an image whose file is sub/a.jpg, or a.jpg."""
    predictor = types.SimpleNamespace(
        task="panoptic",
        mapper=types.SimpleNamespace(max_pixels=1),
        has_masks=True,
        absent=None,
        about=dict,
        categories=lambda: CATEGORIES,
    )
    sources = [ImageFile(folder / "5.jpg", "sub/a.jpg", "sub/a")]
    return ResultFiles(predictor=predictor, folder=folder, images=sources, save=save)


def write(made, segments, name="sub/a"):
    result = result_of(segments)
    return made.write(ImageFile(made.folder / "5.jpg", "sub/a.jpg", name), result)


@pytest.fixture
def written(tmp_path):
    """The folder, and the paths of the files of an image named "sub/a"."""
    made = results(tmp_path, OF_REGIONS)
    files, entry = write(made, SEGMENTS)
    source = ImageFile(tmp_path / "5.jpg", "sub/a.jpg", "sub/a")
    made.write_index(Index([(source, entry)], [], {}, True, {"about": "it"}))
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
    made = results(tmp_path, ["masks"])
    write(made, SEGMENTS, "a")
    (tmp_path / "masks/a/notes.png").touch()
    write(made, SEGMENTS[:1], "a")
    assert {path.name for path in (tmp_path / "masks/a").iterdir()} == {
        "001_sea_lion.png",
        "notes.png",
    }


def test_pycocotools_reads_the_regions(written):
    folder, _ = written
    content = json.loads((folder / "coco.json").read_text())
    assert content["categories"] == CATEGORIES and content["info"] == {
        "provenance": {"about": "it"}
    }
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
    for label, box, line in (
        (1, [4, 2, 8, 6], "1 0.3 0.4 0.2 0.4"),
        (0, [0, 0, 20, 10], "0 0.5 0.5 1 1"),
    ):
        region = Region(1, label, None, np.array(box, np.float32), True)
        assert yolo_lines(region, height=10, width=20) == [line]


def test_an_image_without_regions_has_an_empty_file_of_yolo(tmp_path):
    files, entry = write(results(tmp_path, OF_REGIONS), (), "a")
    assert files == ["yolo/labels/a.txt"] and entry["regions"] == []
    assert (tmp_path / "yolo/labels/a.txt").read_bytes() == b""


def test_what_is_not_asked_for_is_not_written(tmp_path):
    made = results(tmp_path, [])
    files, entry = write(made, SEGMENTS)
    assert not files and entry.keys() == {"annotations", "size"}
    made.write_index(Index([], [], {"b.jpg": "broken"}, False, {"seed": 0}))
    (path,) = tmp_path.iterdir()
    info = {"provenance": {"seed": 0}, "failed": {"b.jpg": "broken"}, "complete": False}
    assert read_json(path) == {
        "info": info,
        "images": [],
        "annotations": [],
        "categories": CATEGORIES,
    }


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


def filled(polygons, shape):
    canvas = np.zeros(shape, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [polygon.astype(np.int32)], 1)
    return canvas.astype(bool)


def test_parts_are_polygons_of_their_own_and_holes_are_filled():
    rng = np.random.default_rng(0)
    mask = ndimage.binary_opening(rng.random((60, 80)) > 0.12, np.ones((3, 3)))
    polygons = mask_polygons(mask)
    assert len(polygons) > 1 and ndimage.binary_fill_holes(mask).sum() > mask.sum()
    areas = [cv2.contourArea(polygon) for polygon in polygons]
    assert areas == sorted(areas, reverse=True)
    assert (filled(polygons, mask.shape) == ndimage.binary_fill_holes(mask)).all()


def test_lines_and_single_pixels_have_no_polygon():
    mask = np.zeros((9, 9), bool)
    mask[1, 2:8] = mask[7, 7] = True
    assert mask_polygons(mask) == [] == mask_polygons(np.zeros((4, 5), bool))


def test_parts_of_an_instance_are_joined_by_lines_and_nothing_else():
    mask = np.zeros((40, 60), bool)
    mask[2:10, 2:12] = mask[20:38, 5:30] = mask[5:9, 40:58] = True
    joined = joined_polygon(mask_polygons(mask))
    painted = filled([joined], mask.shape)
    assert painted[mask].all()
    lines = painted & ~mask
    # From (30 - 1, 20) to (40, 8), and from (11, 20) to (11, 9): so many pixels between the parts.
    assert 10 <= lines.sum() <= 40
    (alone,) = mask_polygons(mask[:15, :15])
    assert (joined_polygon([alone]) == alone).all()
