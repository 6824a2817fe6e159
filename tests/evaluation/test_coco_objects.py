"""Objects of files are what pycocotools and the LVIS package read; detections are kept and written as COCO's."""

import json

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.errors import InputError
from clipself_seg.evaluation.coco_objects import (
    image_detections,
    read_true_objects,
    write_coco_results,
)
from tests.detection_worlds import SIZE, WORDS, annotation, detected, kept, write_objects

CAT, DOG = [4, 4, 20, 20], [40, 4, 20, 10]

LISTS = {"neg_category_ids": {2: [7]}, "not_exhaustive_category_ids": {1: [9, 4]}}


def read(folder, annotations, images=(1, 2), lists=LISTS, image_ids=None, words=WORDS, **how):
    json_file = write_objects(folder, annotations, list(images), **lists)
    return read_true_objects(json_file, words, image_ids, **how)


def test_objects_are_listed_by_class_and_image(tmp_path):
    objects = [
        annotation(0, "b", 9, DOG), annotation(1, 3, 30, CAT, iscrowd=1),
        annotation(2, "b", 9, CAT, area=0), annotation(3, "a", 30, CAT),
    ]  # fmt: skip
    truth = read(tmp_path, objects, ["b", 3, "a"], image_ids=["b", 3])
    assert truth.image_ids == (3, "b") and truth.sizes == [SIZE, SIZE]
    assert truth.category_ids == (30, 9, 7, 4) and truth.federated is None
    assert [sorted(by_image) for by_image in truth.objects] == [[0], [1], [], []]
    crowd = truth.objects[0][0][0]
    assert (crowd["iscrowd"], crowd["ignore"], crowd["bbox"]) == (1, 1, CAT)
    assert [entry["area"] for entry in truth.objects[1][1]] == [200, 0]
    ids = [entry["id"] for by_image in truth.objects for own in by_image.values() for entry in own]
    assert sorted(ids) == [1, 2, 3]  # pycocotools takes 0 for no match


def test_lvis_has_no_crowds_and_only_objects_with_an_area(tmp_path):
    objects = [
        annotation(1, 1, 9, DOG, iscrowd=1), annotation(2, 1, 9, CAT, area=0),
        annotation(3, 2, 9, CAT, ignore=1),
    ]  # fmt: skip
    truth = read(tmp_path, objects, federated=True)
    assert [entry["ignore"] for own in truth.objects[1].values() for entry in own] == [0, 1]
    assert truth.federated.negatives == [set(), set(), {1}, set()]
    assert truth.federated.not_exhaustive == [set(), {0}, set(), {0}]


def test_masks_of_all_forms_are_read(tmp_path):
    mask = np.zeros(SIZE, dtype=np.uint8, order="F")
    mask[4:14, 40:60] = 1
    coded = rle.encode(mask)
    runs = np.diff(np.flatnonzero(np.diff(np.pad(mask.ravel("F"), 1, constant_values=2))))
    forms = [
        [[40, 4, 60, 4, 60, 14, 40, 14]],
        {"size": list(SIZE), "counts": coded["counts"].decode()},
        {"size": list(SIZE), "counts": runs.tolist()},
    ]
    objects = [annotation(i, 1, 9, DOG, segmentation=form) for i, form in enumerate(forms)]
    truth = read(tmp_path, objects, masks=True)
    for entry in truth.objects[1][0]:
        np.testing.assert_array_equal(rle.decode(entry["segmentation"]), mask)
    assert "segmentation" not in read(tmp_path, objects).objects[1][0][0]


def test_classes_by_the_order_of_the_file(tmp_path):
    words = Vocabulary(
        "ordered", tuple(VocabularyClass((name,), i) for i, name in enumerate(["cow", "cup", "dog", "cat"]))
    )  # fmt: skip
    truth = read(tmp_path, [annotation(1, 1, 9, DOG)], words=words, by_order=True)
    assert truth.category_ids == (4, 7, 9, 30) and list(truth.objects[2]) == [0]


RLE = {"size": [60, 90], "counts": [12]}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"category_id": 5}, r"category ids \[5\] are not in the vocabulary"),
        ({"image_id": 7}, 'annotation of image 7, which is not in "images"'),
        ({"bbox": [1, 2, 3, 10**400]}, r"bbox is \[1, 2, 3, of type int\]"),
        ({"area": float("nan")}, "area is nan, and has to be a finite number"),
        ({"segmentation": [[1, 2, 3]]}, "a polygon is x and y in turn"),
        ({"segmentation": {**RLE, "size": [3, 4]}}, r"image 1 .* of 60 x 90 .*size \[3, 4\]"),
        ({"segmentation": RLE}, "its runs do not fill the image of 5400"),
    ],
)
def test_objects_that_do_not_fit_name_file_and_value(tmp_path, change, said):
    with pytest.raises(InputError, match=f"objects.json.*{said}"):
        read(tmp_path, [annotation(1, 1, 9, DOG, **change)], masks=True)


NONE_LISTED = {"neg_category_ids": {}, "not_exhaustive_category_ids": {}}


@pytest.mark.parametrize(
    "how, said",
    [
        ({"image_ids": [3]}, r"lacks 1 of 1 images of the data set, such as \[3\]"),
        ({"image_ids": [2]}, "no object in the 1 images"),
        ({"lists": {}}, r"images\[0\].neg_category_ids is missing"),
        ({"lists": NONE_LISTED | {"neg_category_ids": {1: [5]}}}, r"category ids \[5\]"),
    ],
)
def test_images_that_do_not_fit_are_named(tmp_path, how, said):
    with pytest.raises(InputError, match=said):
        read(tmp_path, [annotation(1, 1, 9, DOG)], federated="lists" in how, **how)


BOXES = [[4, 4.25, 20.5, 20], [40, 4, 20, 20], [4, 30, 20, 20]]


def test_the_best_keep_their_order_among_equals():
    detections = kept({1: detected(BOXES, [0.5, 0.9, 0.5], [0, 1, 2])})[1]
    assert detections.best(3) is detections
    best = detections.best(2)
    assert best.classes.tolist() == [1, 0] and best.scores.tolist() == pytest.approx([0.9, 0.5])
    assert best.masks == [detections.masks[1], detections.masks[0]]
    np.testing.assert_array_equal(best.boxes, detections.boxes[[1, 0]])


def test_results_are_cocos(tmp_path, capsys):
    scores = [0.1, 0.9, 1 / 3]
    outputs = {
        "a": detected(BOXES, scores, [2, 0, 0]), "b": detected([], [], []),
        "c": detected(BOXES[:1], [0.5], [1]),
    }  # fmt: skip
    path = tmp_path / "results.json"
    write_coco_results(path, kept(outputs).items(), [30, 9, 7])
    entries = json.loads(path.read_text())
    assert [entry["image_id"] for entry in entries] == ["a", "a", "a", "c"]
    assert [entry["category_id"] for entry in entries] == [7, 30, 30, 9]
    assert entries[0]["bbox"] == BOXES[0]
    assert [np.float32(entry["score"]) for entry in entries[:3]] == np.float32(scores).tolist()
    truth = COCO(write_objects(tmp_path, [annotation(1, "a", 9, BOXES[1])], ["a", "b", "c"]))
    read = truth.loadRes(str(path))
    mask = read.annToMask(read.loadAnns([2])[0])
    assert mask.shape == SIZE and mask.sum() == 400 and mask[4:24, 40:60].all()


def test_boxes_alone_and_no_detection_at_all(tmp_path):
    path = tmp_path / "results.json"
    outputs = {1: detected(BOXES, [0.1, 0.2, 0.3], [0, 0, 0])["instances"]}
    boxes = {k: image_detections(v, masks=False, source="1.png") for k, v in outputs.items()}
    write_coco_results(path, boxes.items(), [30])
    entries = json.loads(path.read_text())
    assert len(entries) == 3 and "segmentation" not in entries[0]
    write_coco_results(path, [], [30])
    assert json.loads(path.read_text()) == []


def test_scores_that_are_not_finite_are_refused():
    instances = detected(BOXES, [0.5, float("nan"), 0.5], [0, 0, 0])["instances"]
    with pytest.raises(FloatingPointError, match="x.png are not finite"):
        image_detections(instances, masks=False, source="x.png")
