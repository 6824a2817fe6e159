"""Annotation files become records, boxes with nouns too, and broken ones an error that names the file."""

from __future__ import annotations

import copy
import json
import logging

import numpy as np
import pytest

from clipself_seg.data.records import (
    category_labels,
    image_records,
    panoptic_records,
    proposal_records,
    read_region_text,
)
from clipself_seg.errors import InputError

IMAGES = [
    {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
    {"id": 9, "file_name": "b.jpg", "width": 30, "height": 40},
]
SEGMENT = {"id": 5, "category_id": 1, "bbox": [0, 0, 3, 3], "iscrowd": 0, "area": 9}


@pytest.fixture
def write(tmp_path):
    def write_json(content):
        path = tmp_path / "annotations.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_json


def panoptic(images=IMAGES, segments=(SEGMENT,), image_id=7):
    annotation = {"image_id": image_id, "file_name": "a.png", "segments_info": list(segments)}
    return {"images": images, "annotations": [annotation]}


def test_images_without_annotations_are_listed(write):
    assert image_records(write({"images": IMAGES}), "root") == [
        {"file_name": "root/a.jpg", "image_id": 7, "width": 40, "height": 30},
        {"file_name": "root/b.jpg", "image_id": 9, "width": 30, "height": 40},
    ]


def test_lvis_images_are_found_by_the_end_of_their_url(write):
    url = "http://images.cocodataset.org/train2017/000000391895.jpg"
    (record,) = image_records(write({"images": [{"id": 1, "coco_url": url}]}), "coco/")
    assert record == {"file_name": "coco/train2017/000000391895.jpg", "image_id": 1}


def test_images_below_ten_pixels_are_left_out_with_a_count(write, caplog):
    small = {"id": 1, "file_name": "s.jpg", "width": 9, "height": 400}
    edge = {"id": 2, "file_name": "e.jpg", "width": 10, "height": 400}
    with caplog.at_level(logging.WARNING):
        records = image_records(write({"images": [small, edge]}), "root")
    assert [record["image_id"] for record in records] == [2]
    assert "1 of 2 images have a side below 10 pixels" in caplog.text


def test_proposals_are_grouped_by_image_as_corners(write):
    boxes = [(9, [1, 2, 3, 4]), (7, [0, 0, 5, 5]), (9, [10.5, 0, 1, 2])]
    annotations = [{"image_id": image_id, "bbox": box} for image_id, box in boxes]
    third = {"id": 11, "file_name": "c.jpg", "width": 50, "height": 50}
    content = {"images": [*IMAGES, third], "annotations": annotations}
    first, second, empty = proposal_records(write(content), "root")
    assert first["proposals"].tolist() == [[0, 0, 5, 5]]
    assert second["proposals"].tolist() == [[1, 2, 4, 6], [10.5, 0, 11.5, 2]]
    assert empty["proposals"].shape == (0, 4)
    assert second["proposal_areas"].tolist() == [12, 2] and empty["proposal_areas"].shape == (0,)


def test_areas_of_proposals_are_those_of_the_file_and_not_of_rounded_corners(write):
    box = {"image_id": 7, "bbox": [10.3, 20.7, 8, 8]}
    record, _ = proposal_records(write({"images": IMAGES, "annotations": [box]}), "root")
    x0, y0, x1, y1 = record["proposals"][0].astype(np.float64)
    assert (x1 - x0) * (y1 - y0) < 64 and record["proposal_areas"].tolist() == [64]


def test_panoptic_records_keep_the_files_own_category_ids(write, caplog):
    (record,) = panoptic_records(write(panoptic()), "root", "png")
    assert record["pan_seg_file_name"] == "png/a.png"
    assert record["segments_info"] == [SEGMENT]
    assert "1 images have no panoptic annotation" in caplog.text


PNG = panoptic()["annotations"][0]
BOX = {"image_id": 7, "bbox": [0, 0, 1, 1]}
BAD = {
    "not JSON": (image_records, '{"images": [', "cannot be read"),
    "a list": (image_records, "[]", "not in COCO's format"),
    "no images": (image_records, {"annotations": []}, 'no "images"'),
    "empty images": (image_records, {"images": []}, 'no "images"'),
    "no file name": (image_records, {"images": [{"id": 1}]}, "file_name"),
    "no image id": (image_records, {"images": [{"file_name": "a.jpg"}]}, '"id"'),
    "repeated id": (image_records, {"images": [IMAGES[0], IMAGES[0]]}, "7 is listed twice"),
    "all tiny": (image_records, {"images": [IMAGES[0] | {"width": 3}]}, "below 10"),
    "no annotations": (proposal_records, {"images": IMAGES}, 'no "annotations"'),
    "no box": (proposal_records, {"images": IMAGES, "annotations": [{"image_id": 7}]}, "bbox"),
    "three numbers": (
        proposal_records,
        {"images": IMAGES, "annotations": [BOX | {"bbox": [1, 2, 3]}]},
        "image 7",
    ),
    "negative width": (
        proposal_records,
        {"images": IMAGES, "annotations": [BOX | {"bbox": [9, 9, -5, -5]}]},
        "image 7",
    ),
    "not a number": (
        proposal_records,
        '{"images": [{"id": 7, "file_name": "a"}], "annotations": '
        '[{"image_id": 7, "bbox": [0, 0, NaN, 1]}]}',
        "finite",
    ),
    "unlisted image": (
        proposal_records,
        {"images": IMAGES, "annotations": [BOX | {"image_id": 8}]},
        "image 8",
    ),
    "panoptic without annotations": (panoptic_records, {"images": IMAGES}, 'no "annotations"'),
    "panoptic of an unlisted image": (panoptic_records, panoptic(image_id=8), "image 8"),
    "instances given as panoptic": (
        panoptic_records,
        {"images": IMAGES, "annotations": [BOX]},
        "give a panoptic JSON",
    ),
    "segment without category": (
        panoptic_records,
        panoptic(segments=[{"id": 1, "bbox": [0, 0, 1, 1]}]),
        "category_id",
    ),
    "nested too deeply": (image_records, '{"images": ' + "[" * 100_000, "cannot be read"),
    "a height that is null": (
        image_records,
        {"images": [IMAGES[0] | {"height": None}]},
        "image 7 has {'height': None, 'width': 40}",
    ),
    "a height that is text": (
        image_records,
        {"images": [IMAGES[0] | {"height": "20"}]},
        "whole numbers",
    ),
    "a file name that is a number": (
        image_records,
        {"images": [{"id": 7, "file_name": 5}]},
        "'file_name': 5",
    ),
    "an image id that is a list": (
        image_records,
        {"images": [IMAGES[0] | {"id": [1]}]},
        "'id': [1]",
    ),
    "an annotation of a list": (
        proposal_records,
        {"images": IMAGES, "annotations": [BOX | {"image_id": [7]}]},
        "image [7]",
    ),
    "a box beyond all numbers": (
        proposal_records,
        {"images": IMAGES, "annotations": [BOX | {"bbox": [0, 0, 10**400, 1]}]},
        "finite",
    ),
    "panoptic of a list": (panoptic_records, panoptic(image_id=[7]), "image [7]"),
    "segments that are numbers": (panoptic_records, panoptic(segments=[3]), '3 among the "segm'),
    "segment with an id that is a list": (
        panoptic_records,
        panoptic(segments=[SEGMENT | {"id": [5]}]),
        "whole numbers",
    ),
    "panoptic file name that is a number": (
        panoptic_records,
        {"images": IMAGES, "annotations": [PNG | {"file_name": 5}]},
        '"file_name"',
    ),
    "a box of texts": (
        proposal_records,
        {"images": IMAGES, "annotations": [BOX, BOX | {"bbox": ["0", "0", "1", "1"]}]},
        """image 7 has the "bbox" ['0', '0', '1', '1'], which is not""",
    ),
    "segment with a box of texts": (
        panoptic_records,
        panoptic(segments=[SEGMENT, SEGMENT | {"bbox": ["0", "0", "3", "3"]}]),
        """image 7 has the "bbox" ['0', '0', '3', '3'], which is not""",
    ),
    "a box of lists in lists": (
        proposal_records,
        {"images": IMAGES, "annotations": [BOX | {"bbox": json.loads("[" * 400 + "]" * 400)}]},
        "which is not [x, y, width, height]",
    ),
    "two panoptic annotations of an image": (
        panoptic_records,
        {"images": IMAGES, "annotations": [PNG, PNG | {"file_name": "b.png"}]},
        "image 7 has two annotations, of png/a.png and 'b.png'",
    ),
    "segment with a broken box": (
        panoptic_records,
        panoptic(segments=[SEGMENT | {"bbox": "x"}]),
        "bbox",
    ),
}


@pytest.mark.parametrize("reader, content, words", BAD.values(), ids=BAD.keys())
def test_a_file_that_cannot_be_used_is_named(write, reader, content, words):
    folders = ("root", "png") if reader is panoptic_records else ("root",)
    with pytest.raises(InputError, match="annotations.json") as caught:
        reader(write(content), *folders)
    assert words in str(caught.value) and len(str(caught.value).splitlines()) <= 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.json is missing"):
        image_records(tmp_path / "nowhere.json", "root")


def test_categories_outside_the_vocabulary_are_named():
    index_of = {1: 0, 100: 1}
    assert category_labels(np.array([100, 1, 100]), index_of, "x.json").tolist() == [1, 0, 1]
    assert category_labels(np.zeros(0, dtype=np.int64), index_of, "x.json").shape == (0,)
    with pytest.raises(InputError, match=r"x.json: category ids \[7\]"):
        category_labels(np.array([1, 7]), index_of, "x.json")


REGION_TEXT_IMAGES = [
    {"id": 1, "file_name": "1.jpg", "captions": ["a dog on grass"]},
    {"id": 2, "file_name": "2.jpg"},
    {"id": 3, "file_name": "3.jpg"},
]
BOXES = [
    {"image_id": 3, "bbox": [0, 0, 2, 2], "category_id": 7, "score": 0.9},
    {"image_id": 1, "bbox": [5, 6, 7, 8], "category_id": 9, "score": 0.2},
    {"image_id": 3, "bbox": [1, 1, 0, 3], "category_id": 9, "score": 0.5},
]
NOUNS = [{"id": 9, "name": "grass"}, {"id": 7, "name": "dog"}]
CONTENT = {"images": REGION_TEXT_IMAGES, "annotations": BOXES, "categories": NOUNS}


def changed(path, value):
    """The content with another value at a path."""
    content = copy.deepcopy(CONTENT)
    *parents, last = path
    place = content
    for key in parents:
        place = place[key]
    place[last] = value
    return content


def test_labels_number_the_categories_by_id_and_boxes_keep_the_order_of_the_file(caplog):
    caplog.set_level(logging.INFO)
    records, nouns = read_region_text(CONTENT, "nouns.json", "images")
    assert nouns == ("dog", "grass")
    assert [record["image_id"] for record in records] == [1, 3]
    assert records[1]["proposals"].tolist() == [[0, 0, 2, 2], [1, 1, 1, 4]]
    assert records[1]["labels"].tolist() == [0, 1] and records[0]["labels"].dtype == np.int64
    assert [record["captions"] for record in records] == [["a dog on grass"], []]
    assert "nouns.json: 1 images have no box and are left out" in caplog.text


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("categories",), [], 'no "categories" in it'),
        (("categories", 0), {"id": 9}, 'a category needs "id".*"name", text; got'),
        (("categories", 0), {"id": "9", "name": "grass"}, 'a category needs "id", a whole number'),
        (("categories", 0, "name"), "dog", "'dog'.* repeats the id or name"),
        (("categories", 0, "id"), 7, "repeats the id or name"),
        (("annotations", 0, "category_id"), None, 'the "category_id" None: give the id'),
        (("annotations", 0, "category_id"), 8, r"category ids \[8\] are not in the vocabulary"),
        (("annotations", 0, "bbox"), [0, 0, -1, 2], "sides of at least 0"),
        (("images", 0, "captions"), "a dog", "image 1 has the \"captions\" 'a dog'"),
        (("images", 0, "captions"), [3], r'the "captions" \[3\]: give a list of texts'),
    ],
)
def test_what_is_no_such_file_is_refused(path, value, message):
    with pytest.raises(InputError, match=f"nouns.json: .*{message}"):
        read_region_text(changed(path, value), "nouns.json", "images")
