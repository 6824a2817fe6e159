"""Annotation files become records: boxes, segments, objects and nouns; broken ones are an error that names the file."""

import copy
import json
import logging

import numpy as np
import pytest

from clipself_seg.data.annotations import (
    caption_records,
    category_indices,
    image_records,
    instance_records,
    panoptic_records,
    proposal_records,
    read_phrases,
    read_region_text,
    require_base_classes,
)
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.errors import InputError

IMAGES = [
    {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
    {"id": 9, "file_name": "b.jpg", "width": 30, "height": 40},
]
BOX = {"image_id": 7, "bbox": [0, 0, 1, 1]}
SEGMENT = {"id": 5, "category_id": 1, "bbox": [0, 0, 3, 3], "iscrowd": 0, "area": 9}
PNG = {"image_id": 7, "file_name": "a.png", "segments_info": [SEGMENT]}
URL = "http://images.cocodataset.org/train2017/000000391895.jpg"


@pytest.fixture
def write(tmp_path):
    def write_json(content):
        path = tmp_path / "annotations.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_json


def test_images_without_annotations_are_listed_and_tiny_ones_left_out(write, caplog):
    tiny = {"id": 1, "file_name": "s.jpg", "width": 9, "height": 400}
    edge = {"id": 2, "coco_url": URL, "width": 10, "height": 400}
    with caplog.at_level(logging.WARNING):
        records = image_records(write({"images": [tiny, *IMAGES, edge]}), "root")
    assert records == [
        {"file_name": "root/a.jpg", "image_id": 7, "width": 40, "height": 30},
        {"file_name": "root/b.jpg", "image_id": 9, "width": 30, "height": 40},
        {"file_name": f"root/{URL[-26:]}", "image_id": 2, "width": 10, "height": 400},
    ]
    assert "1 of 4 images have a side below 10 pixels" in caplog.text
    assert "width" not in image_records(write({"images": [{"id": 1, "coco_url": URL}]}), "")[0]
    (record,) = image_records(write({"images": [IMAGES[0] | {"width": 40.0}]}), "root")
    assert isinstance(record["width"], int)  # of arrays, too


def test_proposals_are_grouped_by_image_as_corners_with_the_areas_of_the_file(write):
    boxes = [(9, [1, 2, 3, 4]), (7, [10.3, 20.7, 8, 8]), (9, [10.5, 0, 1, 2])]
    annotations = [{"image_id": image_id, "bbox": box} for image_id, box in boxes]
    third = {"id": 11, "file_name": "c.jpg", "width": 50, "height": 50}
    content = {"images": [*IMAGES, third], "annotations": annotations}
    first, second, empty = proposal_records(write(content), "root")
    assert second["proposals"].tolist() == [[1, 2, 4, 6], [10.5, 0, 11.5, 2]]
    assert empty["proposals"].shape == (0, 4) and empty["proposal_areas"].shape == (0,)
    assert second["proposal_areas"].tolist() == [12, 2]
    # Rounded corners enclose a little less than the file says.
    x0, y0, x1, y1 = first["proposals"][0].astype(np.float64)
    assert (x1 - x0) * (y1 - y0) < 64 and first["proposal_areas"].tolist() == [64]


def test_panoptic_records_keep_the_files_own_category_ids(write, caplog):
    (record,) = panoptic_records(write({"images": IMAGES, "annotations": [PNG]}), "root", "png")
    assert record["pan_seg_file_name"] == "png/a.png" and record["segments_info"] == [SEGMENT]
    assert "1 of 2 images have no panoptic annotation" in caplog.text


DEEP_BOX = json.loads("[" * 400 + "]" * 400)
# What is wrong, by the list that it stands in -> what the message says.
BAD_IMAGES = [
    (IMAGES[0] | {"file_name": 5}, "'file_name': 5"),
    (IMAGES[0] | {"id": [1]}, "images[0].id is [1]"),
    (IMAGES[0] | {"height": None}, "height is None, and has to be a whole number of pixels"),
    (IMAGES[0] | {"width": 3}, "below 10"),
]
BAD_BOXES = [
    (BOX | {"bbox": [9, 9, -5, -5]}, "annotations[1].bbox is [9, 9, -5, -5]"),
    (BOX | {"bbox": [0, 0, float("nan"), 1]}, "finite"),
    (BOX | {"bbox": DEEP_BOX}, "and has to be [x, y, width, height]"),
    (BOX | {"image_id": 8}, "image 8"),
]
BAD_SEGMENTS = [
    (3, "annotations[0].segments_info[0] is 3"),
    ({"id": 1, "bbox": [0, 0, 1, 1]}, "segments_info[0].category_id is missing"),
    ({"id": 0, "bbox": [0, 0, 1, 1]}, "id is 0, and has to be a whole number from 1 to 16777215"),
]
BAD_PNGS = [(BOX, "annotations[0].file_name is missing")]
BAD = [
    (image_records, '{"images": [', "cannot be read"),
    (image_records, '{"images": ' + "[" * 100_000, "cannot be read"),
    (image_records, {"images": []}, 'its list "images" is empty'),
    (image_records, {"images": [IMAGES[0], IMAGES[0]]}, "the image id 7 is there twice"),
    (proposal_records, {"images": IMAGES}, "annotations is missing"),
    (
        *(panoptic_records, {"images": IMAGES, "annotations": [PNG, PNG | {"file_name": "b.png"}]}),
        "the annotation of image 7 is there twice",
    ),
    *((image_records, {"images": [bad]}, words) for bad, words in BAD_IMAGES),
    *((proposal_records, {"images": IMAGES, "annotations": [BOX, b]}, w) for b, w in BAD_BOXES),
    *((panoptic_records, {"images": IMAGES, "annotations": [b]}, w) for b, w in BAD_PNGS),
    *(
        (panoptic_records, {"images": IMAGES, "annotations": [PNG | {"segments_info": [b]}]}, w)
        for b, w in BAD_SEGMENTS
    ),
]


@pytest.mark.parametrize("reader, content, words", BAD, ids=[bad[2] for bad in BAD])
def test_a_file_that_cannot_be_used_is_named(write, reader, content, words):
    folders = ("root", "png") if reader is panoptic_records else ("root",)
    with pytest.raises(InputError, match="annotations.json") as caught:
        reader(write(content), *folders)
    assert words in str(caught.value) and len(str(caught.value).splitlines()) <= 2


NOUNS = {
    "images": [
        {"id": 1, "file_name": "1.jpg", "captions": ["a dog on grass"]},
        {"id": 2, "file_name": "2.jpg"},
        {"id": 3, "file_name": "3.jpg"},
    ],
    "annotations": [
        {"image_id": 3, "bbox": [0, 0, 2, 2], "category_id": 7, "score": 0.9},
        {"image_id": 1, "bbox": [5, 6, 7, 8], "category_id": 9, "score": 0.2},
        {"image_id": 3, "bbox": [1, 1, 0, 3], "category_id": 9, "score": 0.5},
    ],
    "categories": [{"id": 9, "name": "grass"}, {"id": 7, "name": "dog"}],
}


def test_labels_number_the_categories_by_id_and_boxes_keep_the_order_of_the_file(write, caplog):
    caplog.set_level(logging.INFO)
    records, nouns = read_region_text(write(NOUNS), "images")
    assert nouns == ("dog", "grass")
    assert [record["image_id"] for record in records] == [1, 3]
    assert records[1]["proposals"].tolist() == [[0, 0, 2, 2], [1, 1, 1, 4]]
    assert records[1]["labels"].tolist() == [0, 1] and records[0]["labels"].dtype == np.int64
    assert [record["captions"] for record in records] == [["a dog on grass"], []]
    assert "1 of 3 images have no box and are left out" in caplog.text


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("categories", {"name": " "}, r"categories\[0\].name is ' ', and has to be a word"),
        ("categories", {"name": "dog"}, "the noun 'dog' is there twice"),
        ("annotations", {"category_id": 8}, r"category ids \[8\]"),
        ("images", {"captions": "a dog"}, "captions is 'a dog', and has to be a list of texts"),
    ],
)
def test_what_is_no_file_of_nouns_is_refused(write, key, change, message):
    content = copy.deepcopy(NOUNS)
    content[key][0] |= change
    with pytest.raises(InputError, match=f"annotations.json: .*{message}"):
        read_region_text(write(content), "images")


INDEX_OF = {3: 0, 7: 1}
PETS = Vocabulary(
    "pets", (VocabularyClass(("dog",), 3, seen=True), VocabularyClass(("cat",), 7, seen=False))
)


def annotation(**changes):
    entry = {"id": 5, "image_id": 1, "category_id": 3, "bbox": [10, 20, 30, 40], "area": 9}
    return entry | changes


def content_of(*annotations):
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}],
        "annotations": list(annotations) or [annotation()],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def objects(*annotations, **options):
    content = content_of(*annotations)
    (record,) = instance_records(content, "x.json", "images", INDEX_OF, **options)
    return record["annotations"]


def test_a_record_has_boxes_by_their_corners_and_labels_of_the_vocabulary():
    content = content_of(annotation(), annotation(category_id=7, bbox=[0, 0, 1.5, 2]))
    (record,) = instance_records(content, "x", "in", INDEX_OF)
    boxes = record.pop("annotations")
    assert record == {"file_name": "in/a.jpg", "image_id": 1, "height": 80, "width": 100}
    assert boxes == [
        {"bbox": (10, 20, 40, 60), "label": 0, "iscrowd": 0},
        {"bbox": (0, 0, 1.5, 2), "label": 1, "iscrowd": 0},
    ]


@pytest.mark.parametrize(
    "changes",
    [
        *({"iscrowd": 1}, {"ignore": 1}, {"area": 0}, {"area": -3}),
        *({"bbox": [10, 20, *size]} for size in ([0.99, 40], [30, 0.99], [-5, 40])),
        *({"bbox": [*corner, 30, 40]} for corner in ([100, 20], [-30, 20], [10, 80], [10, -40])),
    ],
)
def test_what_is_no_object_is_skipped_and_its_image_stays(changes):
    assert objects(annotation(**changes)) == []


def test_what_just_is_an_object_stays():
    just = [[10, 20, 1, 1], [99.5, 20, 30, 40], [-29.5, 20, 30, 40], [-5, -5, 900, 900]]
    assert len(objects(*(annotation(bbox=box) for box in just))) == 4
    unstated = annotation()
    del unstated["area"]
    assert len(objects(unstated)) == 1


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"category_id": 4}, r"x.json: category ids \[4\]"),
        ({"image_id": 2}, "of image 2, which is not"),
        ({"bbox": [1, 2, 3, float("nan")]}, r"annotations\[0\].bbox is \[1, 2, 3, nan\]"),
        ({"area": "large"}, "area is 'large', and has to be a finite number"),
        ({}, "segmentation is None, and has to be a list of polygons"),
    ],
)
def test_a_broken_annotation_is_named(changes, words):
    with pytest.raises(InputError, match=words):
        objects(annotation(**changes), masks=True)


def test_an_image_without_size_is_named_and_a_small_one_left_out_where_that_is_asked():
    content = content_of()
    content["images"].append({"id": 2, "file_name": "b.jpg", "width": 31, "height": 80})
    content["annotations"].append(annotation(image_id=2))
    assert len(instance_records(content, "x", "in", INDEX_OF)) == 2
    (record,) = instance_records(content, "x", "in", INDEX_OF, min_side=32)
    assert record["image_id"] == 1
    del content["images"][0]["height"]
    with pytest.raises(InputError, match=r"x.json: images\[0\].height is missing"):
        instance_records(content, "x.json", "in", INDEX_OF)


def test_annotations_of_other_than_base_classes_are_named_and_counted():
    content = content_of(*[annotation(category_id=7)] * 3, annotation())
    with pytest.raises(InputError, match=r'3 annotations are of 1 .* "pets": cat \(3\); do so'):
        require_base_classes(content, INDEX_OF, PETS, "x.json", "do so")
    content["annotations"].append(annotation(category_id=9, iscrowd=1))
    with pytest.raises(InputError, match=r"4 annotations are of 2 classes .*cat \(3\), 9 \(1\)"):
        require_base_classes(content, INDEX_OF, PETS, "x.json", "do so")
    require_base_classes(content_of(), INDEX_OF, PETS, "x.json", "do so")
    silent = Vocabulary.of(["dog", "cat"])  # all are base classes
    require_base_classes(content_of(annotation(category_id=7)), INDEX_OF, silent, "x.json", "")


SHELVES = Vocabulary.of(["shelf / rack", "tissue"])


def test_classes_by_order_are_those_of_the_file_and_classes_by_id_are_the_vocabularys():
    assert category_indices(content_of(), PETS, "x") == INDEX_OF
    listed = [{"id": 12, "name": "tissue "}, {"id": 4, "name": "shelf/rack"}]
    indices = category_indices({"categories": listed}, SHELVES, "x", by_order=True)
    assert indices == {4: 0, 12: 1}


@pytest.mark.parametrize(
    "names, message",
    [
        ({12: "Tissue", 4: "shelf/rack"}, 'category 12 is "Tissue" where "custom" has "tissue"'),
        ({4: "shelf/rack"}, 'category None is "" where "custom" has "tissue"'),
    ],
)
def test_classes_by_order_of_another_file_are_refused(names, message):
    listed = [{"id": number, "name": name} for number, name in names.items()]
    with pytest.raises(InputError, match=message):
        category_indices({"categories": listed}, SHELVES, "x", by_order=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_id": [3], "phrases": ["a dog"]},
        {"image_id": 3, "phrases": ["a dog", 7]},
        {"image_id": 3, "phrases": "a dog"},
    ],
)
def test_phrases_are_lists_of_texts_by_image(tmp_path, wrong):
    path = tmp_path / "captions.json"
    phrases = [(3, ["a dog"]), (4, []), (3, ["grass", "sky"])]
    entries = [{"image_id": image, "phrases": listed} for image, listed in phrases]
    path.write_text(json.dumps({"annotations": entries}))
    assert read_phrases(path) == {3: [["a dog"], ["grass", "sky"]], 4: [[]]}
    path.write_text(json.dumps({"annotations": [*entries, wrong]}))
    with pytest.raises(InputError, match="captions.json.*prepare.py coco_captions") as caught:
        read_phrases(path)
    assert "annotations[3]." in str(caught.value)


def write_captions(path, *annotations):
    images = [{"id": index, "file_name": f"{index}.jpg"} for index in (1, 2)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_records_have_all_captions_of_their_image_and_images_without_are_left_out(tmp_path, caplog):
    captions = [{"image_id": 2, "caption": text} for text in ("A dog. \n", " ", "Grass")]
    (record,) = caption_records(write_captions(tmp_path / "c.json", *captions), "train")
    assert record == {"file_name": "train/2.jpg", "image_id": 2, "captions": ["A dog.", "Grass"]}
    assert "1 of 2 images have no caption and are left out" in caplog.text


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 1, "bbox": [0, 0, 1, 1]}, "caption is missing, and has to be text: give"),
        ({"image_id": 1, "caption": ["a dog"]}, r"caption is \['a dog'\], and has to be text"),
        ({"image_id": 9, "caption": "a dog"}, 'image 9, which is not in "images"'),
        ({"image_id": 1, "caption": ""}, "no image has a caption"),
    ],
)
def test_files_without_captions_are_refused(tmp_path, annotation, message):
    with pytest.raises(InputError, match=f"c.json.*{message}"):
        caption_records(write_captions(tmp_path / "c.json", annotation), "train")
