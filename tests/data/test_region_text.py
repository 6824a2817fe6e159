"""Files of boxes with nouns: order, labels, and what is refused."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest

from clipself_seg.data.records import read_region_text
from clipself_seg.errors import InputError

IMAGES = [
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
CONTENT = {"images": IMAGES, "annotations": BOXES, "categories": NOUNS}


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
