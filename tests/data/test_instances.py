"""Which annotations are objects, where images lie, and what a mask is made of."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from pycocotools import mask as rle

from clipself_seg.data.instances import (
    annotated_ids,
    category_indices,
    instance_records,
    names_from_urls,
    object_mask,
    require_base_classes,
)
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.errors import InputError

INDEX_OF = {3: 0, 7: 1}
WORDS = Vocabulary(
    "pets",
    (
        VocabularyClass(("dog",), 3, seen=True),
        VocabularyClass(("cat",), 7, seen=False),
    ),
)


def annotation(**changes):
    entry = {"id": 5, "image_id": 1, "category_id": 3, "bbox": [10, 20, 30, 40], "area": 9}
    return entry | changes


def content(*annotations):
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}],
        "annotations": list(annotations) or [annotation()],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def objects(*annotations, **options):
    (record,) = instance_records(content(*annotations), "x.json", "images", INDEX_OF, **options)
    return record["annotations"]


def test_a_record_has_boxes_by_their_corners_and_labels_of_the_vocabulary():
    (record,) = instance_records(
        content(annotation(), annotation(category_id=7, bbox=[0, 0, 1.5, 2])), "x", "in", INDEX_OF
    )
    assert record == {
        "file_name": "in/a.jpg",
        "image_id": 1,
        "height": 80,
        "width": 100,
        "annotations": [
            {"bbox": (10, 20, 40, 60), "label": 0, "iscrowd": 0},
            {"bbox": (0, 0, 1.5, 2), "label": 1, "iscrowd": 0},
        ],
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"iscrowd": 1},
        {"ignore": 1},
        {"area": 0},
        {"area": -3},
        {"bbox": [10, 20, 0.99, 40]},
        {"bbox": [10, 20, 30, 0.99]},
        {"bbox": [10, 20, -5, 40]},
        {"bbox": [100, 20, 30, 40]},  # right of the image
        {"bbox": [-30, 20, 30, 40]},  # left of it
        {"bbox": [10, 80, 30, 40]},
        {"bbox": [10, -40, 30, 40]},
    ],
)
def test_what_is_no_object_is_skipped_and_its_image_stays(changes):
    assert objects(annotation(**changes)) == []
    assert annotated_ids(content(annotation(**changes)), INDEX_OF, "x") == {1}


def test_what_just_is_an_object_stays():
    just = [[10, 20, 1, 1], [99.5, 20, 30, 40], [-29.5, 20, 30, 40], [-5, -5, 900, 900]]
    assert len(objects(*(annotation(bbox=box) for box in just))) == 4
    unstated = annotation()
    del unstated["area"]
    assert len(objects(unstated)) == 1


def test_segmentations_are_kept_where_masks_are_asked():
    polygon = [[1, 2, 3, 4, 5, 6]]
    (entry,) = objects(annotation(segmentation=polygon), masks=True)
    assert entry["segmentation"] == polygon
    assert "segmentation" not in objects(annotation(segmentation=polygon))[0]
    for nothing in ({}, {"segmentation": []}, {"segmentation": "x"}):
        with pytest.raises(InputError, match="annotation 5 of image 1 .*segmentation"):
            objects(annotation(**nothing), masks=True)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"category_id": 4}, r"x.json: category ids \[4\]"),
        ({"category_id": "dog"}, "a whole number as"),
        ({"image_id": 2}, "of image 2, which is not"),
        ({"bbox": [1, 2, 3]}, "annotation 5 of image 1 is broken"),
        ({"bbox": [1, 2, 3, float("nan")]}, "annotation 5 of image 1 is broken"),
        ({"bbox": [1, 2, 3, 10**400]}, "annotation 5 of image 1 is broken"),
        ({"bbox": None}, "annotation 5 of image 1 is broken"),
        ({"area": "large"}, '"area" is no finite number'),
    ],
)
def test_a_broken_annotation_is_named(changes, words):
    with pytest.raises(InputError, match=words):
        objects(annotation(**changes))


def test_an_image_without_size_is_named():
    given = content()
    del given["images"][0]["height"]
    with pytest.raises(InputError, match='x.json: image 1 has no "height"'):
        instance_records(given, "x.json", "in", INDEX_OF)


def test_small_images_are_left_out_where_that_is_asked():
    given = content()
    given["images"].append({"id": 2, "file_name": "b.jpg", "width": 31, "height": 80})
    given["annotations"].append(annotation(image_id=2))
    assert len(instance_records(given, "x", "in", INDEX_OF)) == 2
    (record,) = instance_records(given, "x", "in", INDEX_OF, min_side=32)
    assert record["image_id"] == 1


def test_annotations_of_other_than_base_classes_are_named_and_counted():
    given = content(*[annotation(category_id=7)] * 3, annotation())
    with pytest.raises(
        InputError, match=r'3 annotations are of 1 classes .* "pets": cat \(3\); do'
    ):
        require_base_classes(given, INDEX_OF, WORDS, "x.json", "do so")
    given["annotations"].append(annotation(category_id=9, iscrowd=1))
    with pytest.raises(InputError, match=r"4 annotations are of 2 classes .*cat \(3\), 9 \(1\)"):
        require_base_classes(given, INDEX_OF, WORDS, "x.json", "do so")
    require_base_classes(content(), INDEX_OF, WORDS, "x.json", "do so")
    silent = Vocabulary.from_names(["dog", "cat"])  # all are base classes
    require_base_classes(content(annotation(category_id=7)), INDEX_OF, silent, "x.json", "")


def test_names_of_lvis_follow_from_its_urls():
    given = content()
    url = "http://images.cocodataset.org/train2017/000000391895.jpg"
    given["images"][0] = {"id": 1, "coco_url": url, "width": 100, "height": 80}
    names_from_urls(given, "lvis.json")
    (record,) = instance_records(given, "lvis.json", "coco/", INDEX_OF)
    assert record["file_name"] == "coco/train2017/000000391895.jpg"
    for broken in ({}, {"coco_url": 4}, {"coco_url": "a.jpg"}):
        given["images"][0] = {"id": 1, "file_name": "a.jpg", **broken}
        with pytest.raises(InputError, match='lvis.json: image 1 has no "coco_url"'):
            names_from_urls(given, "lvis.json")


def test_classes_by_order_are_compared_by_name_and_classes_by_id_are_the_vocabularys():
    assert category_indices(content(), WORDS, "x") == INDEX_OF
    words = Vocabulary.from_names(["shelf / rack", "tissue"])
    given = content()
    given["categories"] = [{"id": 12, "name": "tissue "}, {"id": 4, "name": "shelf/rack"}]
    assert category_indices(given, words, "x", by_order=True) == {4: 0, 12: 1}
    other = copy.deepcopy(given)
    other["categories"][0]["name"] = "Tissue"
    with pytest.raises(InputError, match='category 12 is "Tissue" where "custom" has "tissue"'):
        category_indices(other, words, "x", by_order=True)
    given["categories"].pop()
    given["categories"][0]["name"] = "shelf/rack"
    with pytest.raises(InputError, match="has 1 categories, .* has 2 classes"):
        category_indices(given, words, "x", by_order=True)
    given["categories"] *= 2
    with pytest.raises(InputError, match="a category needs an"):
        category_indices(given, words, "x", by_order=True)


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
    "segmentation",
    [
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, float("inf")]],
        [[1, 2, 3, 4, 5, 1e12]],
        [3],
        {"counts": [48]},
        {"size": [8, 6], "counts": [48]},
        {"size": [6, 8], "counts": [47]},
        {"size": [6, 8], "counts": [50, -2]},
        {"size": [6, 8], "counts": "abc"},
        {"size": [6, 8], "counts": None},
        {"size": 6, "counts": [48]},
    ],
)
def test_a_broken_mask_is_named(segmentation):
    with pytest.raises(InputError, match="image a.jpg: the mask .* of 8 x 6 pixels"):
        object_mask(segmentation, 6, 8, "a.jpg")
