"""AP of instance masks is Detectron2's and pycocotools', whatever the ids and the processes; Cityscapes' by hand."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.errors import InputError
from clipself_seg.evaluation.coco_objects import read_true_instances
from clipself_seg.evaluation.panoptic.instance_ap import (
    InstanceAPEvaluator,
    cityscapes_precision,
    image_overlaps,
)
from tests import detection_worlds
from tests.detection_worlds import annotation, detectron2_results, write_objects

# Stuff stands between the things.
CAT, *OTHERS = [replace(entry, isthing=True) for entry in detection_worlds.WORDS.classes]
WORDS = Vocabulary("tiny", (CAT, VocabularyClass(("sky",), 20, False), *OTHERS))
SEEN = np.array([True, True, False, True, True])


def sample(image):
    return {"file_name": f"{image}.jpg", "image_id": image}


def evaluator(json_file, vocabulary=WORDS, **how):
    truth = read_true_instances(json_file, vocabulary)
    how = {"dataset_name": "tiny", "vocabulary": vocabulary, "ground_truth": truth} | how
    return InstanceAPEvaluator(**how)


def random_world(folder, seed, images):
    """A file of objects, predictions with indices among all classes, and Detectron2's numbers of them."""
    json_file, outputs = detection_worlds.random_world(folder, seed, images)
    expected = detectron2_results(json_file, outputs, detection_worlds.WORDS)["segm"]
    for output in outputs.values():
        output["instances"].pred_classes += output["instances"].pred_classes > 0
    return json_file, outputs, expected


@pytest.mark.parametrize("seed", range(3))
def test_random_instances_have_detectron2s_numbers(tmp_path, seed):
    images = list(range(7, 19)) if seed else [f"val_{index}" for index in range(12)]
    json_file, outputs, expected = random_world(tmp_path, seed, images)
    ours = evaluator(json_file, seen=SEEN)
    for image in reversed(images):  # the order of images does not count
        ours.process([sample(image)], [outputs[image]])
    results = ours.evaluate()["segm"]
    assert expected["AP"] > 5 and expected.keys() <= results.keys()
    assert {key: results[key] for key in expected} == expected
    assert (results["images"], results["classes"]) == (12, 3)
    assert (results["classes-seen"], results["classes-unseen"]) == (2, 1)
    mean = (2 * results["AP-seen"] + results["AP-unseen"]) / 3
    assert mean == pytest.approx(results["AP"], abs=1e-10)


def test_instances_are_of_things(tmp_path):
    json_file = write_objects(tmp_path, [annotation(1, "a", 20, [0, 0, 5, 5])], ["a"])
    with pytest.raises(InputError, match="objects.json.*category 20, which is no thing of"):
        evaluator(json_file)
    silent = Vocabulary("silent", tuple(replace(one, isthing=None) for one in WORDS.classes))
    with pytest.raises(InputError, match='"silent" does not say "isthing" of "cat": add'):
        evaluator(json_file, vocabulary=silent)


def test_the_csv_has_a_row_for_every_class(tmp_path):
    json_file, outputs, _ = random_world(tmp_path, 0, ["a", "b", "c"])
    ours = evaluator(json_file, seen=SEEN, output_dir=tmp_path / "out")
    ours.process([sample(image) for image in outputs], list(outputs.values()))
    results = ours.evaluate()["segm"]
    with open(tmp_path / "out" / "instance_classes_tiny.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(WORDS.first_names)
    assert [row["seen"] for row in rows] == ["1", "1", "0", "1", "1"]
    assert rows[1]["instances"] == "0" and rows[1]["ap"] == rows[4]["ap50"] == ""
    assert sum(int(row["predictions"]) for row in rows) == 27
    means = [np.mean([float(rows[i][key]) for i in (0, 2, 3)]) for key in ("ap", "ap50")]
    assert means == pytest.approx([results["AP"], results["AP50"]])


VOCABULARY = Vocabulary.load("openseg_cityscapes_19")
PERSON, CAR = 11, 13
# Two persons, a small one, a group of persons, a car; below them road, unlabelled and a caravan, which is no class.
VALUES = np.full((60, 100), 7)
VALUES[0:20, 0:20] = 24000
VALUES[0:20, 30:50] = 24001
VALUES[0:9, 60:69] = 24002
VALUES[20:40, 60:90] = 24
VALUES[40:60, 0:20] = 26000
VALUES[40:60, 30:50] = 0
VALUES[40:60, 60:80] = 29000


def box(rows, columns):
    mask = np.zeros(VALUES.shape, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


FIRST, SECOND, SMALL = box((0, 20), (0, 20)), box((0, 20), (30, 50)), box((0, 9), (60, 69))
GROUP, CAR_MASK, VOID = box((20, 40), (60, 75)), box((40, 60), (0, 20)), box((40, 60), (30, 50))
CARAVAN = box((40, 60), (60, 80))


def precision(*predictions, label=PERSON, images=1):
    """Of [(mask, score)] of one class, in each of some images."""
    masks = np.array([mask for mask, _ in predictions]).reshape(-1, *VALUES.shape)
    scores = np.array([score for _, score in predictions])
    classes = np.full(len(masks), label)
    overlaps = image_overlaps(VALUES, VOCABULARY, masks, classes, scores)
    return cityscapes_precision([overlaps] * images, len(VOCABULARY))[label]


def test_overlaps_by_hand():
    masks = np.array([box((10, 30), (0, 20)), CARAVAN, VOID, np.zeros_like(VOID)])
    overlaps = image_overlaps(
        VALUES, VOCABULARY, masks, np.array([PERSON, CAR, CAR, CAR]), np.arange(4)
    )
    assert overlaps.truth_classes.tolist() == [PERSON, PERSON, PERSON, PERSON, CAR]
    assert overlaps.truth_areas.tolist() == [600, 400, 400, 81, 400]
    assert overlaps.truth_groups.tolist() == [True, False, False, False, False]
    # A mask without a pixel is left out; the caravan is no void, as what has an instance's number is none.
    assert overlaps.scores.tolist() == [0, 1, 2] and overlaps.areas.tolist() == [400] * 3
    assert overlaps.void.tolist() == [0, 0, 400]
    assert overlaps.both.tolist() == [[0, 200, 0, 0, 0], [0] * 5, [0] * 5]


def test_the_truth_is_1_and_classes_without_a_true_instance_are_none():
    assert precision((FIRST, 0.9), (SECOND, 0.8)).tolist() == [1] * 10
    assert np.isnan(precision((FIRST, 0.9), label=PERSON + 1)).all()
    assert precision(label=CAR).tolist() == [0] * 10
    assert precision((FIRST, 0.9), (SECOND, 0.8), images=3).tolist() == [1] * 10


def test_the_area_is_that_of_trapezia():
    """True at 0.9, false at 0.8, true at 0.7: recalls 1/2, 1/2, 1 with precisions 1, 1/2, 2/3, and (0, 1)."""
    found = precision((FIRST, 0.9), (CAR_MASK, 0.8), (SECOND, 0.7))
    # Each precision by half of the difference of the recalls beside it.
    assert found.tolist() == pytest.approx([2 / 3 / 4 + 1 / 8 + 1 / 4 + 1 / 4] * 10)
    # One of two true ones is missed.
    assert precision((FIRST, 0.9)).tolist() == pytest.approx([0.5] * 10)


def test_overlap_has_to_be_above_the_threshold():
    # 20 x 15 of 20 x 20: 0.75, so up to 0.7.
    found = precision((box((0, 20), (0, 15)), 0.9), (SECOND, 0.8))
    assert found[:5].tolist() == [1] * 5 and (found[5:] < 1).all()


def test_void_groups_and_small_instances_are_not_false_and_whatever_else_is():
    for mask in (VOID, GROUP, SMALL):
        assert precision((FIRST, 0.9), (SECOND, 0.8), (mask, 0.95)).tolist() == [1] * 10
    for mask in (CARAVAN, CAR_MASK, box((21, 39), (0, 20))):
        assert (precision((FIRST, 0.9), (SECOND, 0.8), (mask, 0.95)) < 1).all()


def test_of_two_on_one_instance_the_surer_is_true_and_the_other_false():
    both = precision((FIRST, 0.5), (FIRST, 0.9), (SECOND, 0.8))
    # The false one comes last, at full recall, and costs nothing.
    assert both.tolist() == pytest.approx([1] * 10)
    assert precision((FIRST, 0.9), (FIRST, 0.8), (SECOND, 0.7))[0] == pytest.approx(19 / 24)
    assert precision((VOID, 0.9)).tolist() == [0] * 10  # ignored, and no instance is met
