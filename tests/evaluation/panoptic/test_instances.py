"""AP of instance masks is Detectron2's and pycocotools', whatever the ids and the processes; Cityscapes' by hand."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from clipself_seg.data.masks import encode_masks
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.errors import InputError
from clipself_seg.evaluation.coco_objects import read_true_instances
from clipself_seg.evaluation.panoptic.instance_ap import (
    InstanceAPEvaluator,
    cityscapes_precision,
    image_overlaps,
)

# Category ids fall, and stuff stands between the things.
WORDS = Vocabulary(
    "tiny",
    tuple(
        VocabularyClass((name,), number, thing)
        for name, number, thing in [
            ("cat", 30, True), ("sky", 20, False), ("dog", 9, True), ("cow", 4, True), ("sea", 2, False),
        ]
    ),
)  # fmt: skip
SEEN = np.array([True, True, False, True, False])
SIZE = (20, 30)


def box_mask(x, y, width, height):
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def rle_annotation(number, image, category, mask, iscrowd=0):
    encoded = encode_masks(mask[None])[0]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": encoded | {"counts": encoded["counts"].decode()},
        "area": int(mask.sum()),
        "bbox": [0, 0, 1, 1],
        "iscrowd": iscrowd,
    }


def write_instances(folder, annotations, images=("a", "b")):
    content = {
        "images": [{"id": name, "height": SIZE[0], "width": SIZE[1]} for name in images],
        "annotations": annotations,
        "categories": [
            {"id": entry.dataset_id, "name": entry.names[0]}
            for entry in WORDS.classes
            if entry.isthing
        ],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def predicted(masks, scores, classes):
    instances = Instances(SIZE)
    instances.pred_masks = torch.from_numpy(np.array(masks).reshape(-1, *SIZE))
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    instances.pred_boxes = Boxes(torch.zeros(len(scores), 4))
    return {"instances": instances}


def sample(image):
    return {"file_name": f"{image}.jpg", "image_id": image}


def evaluator(json_file, vocabulary=WORDS, **how):
    truth = read_true_instances(json_file, vocabulary)
    how = {"dataset_name": "tiny", "vocabulary": vocabulary, "ground_truth": truth} | how
    return InstanceAPEvaluator(**how)


def random_boxes(rng, count):
    corners = rng.integers(0, (SIZE[1] - 12, SIZE[0] - 9), (count, 2))
    sides = rng.integers(5, (12, 9), (count, 2))
    return np.array([box_mask(*corner, *side) for corner, side in zip(corners, sides)])


def random_world(folder, seed, images):
    """A file of boxes, and shifted, mislabelled and wholly wrong predictions with equal scores."""
    rng = np.random.default_rng(seed)
    things = [30, 9, 4]
    annotations, outputs = [], {}
    for image in images:
        masks = random_boxes(rng, 5)
        classes = rng.integers(0, 3, 5)
        for mask, label in zip(masks, classes):
            crowd = int(rng.random() < 0.15)
            number = len(annotations) + 1
            annotations.append(rle_annotation(number, image, things[label], mask, crowd))
        given = [*np.roll(masks, rng.integers(0, 2), 1), *random_boxes(rng, 3)]
        labels = np.where(rng.random(8) < 0.8, [*classes, 0, 1, 2], rng.integers(0, 3, 8))
        # Indices of cat, dog and cow among all classes.
        outputs[image] = predicted(given, rng.integers(1, 6, 8) / 7, np.array([0, 2, 3])[labels])
    return write_instances(folder, annotations, images), outputs


def detectron2_results(json_file, outputs, contiguous):
    """Of a `COCOEvaluator` with things alone; `contiguous` is category id -> its own label."""
    name = f"instances_of_{json_file.parent.name}"
    metadata = MetadataCatalog.get(name)
    metadata.set(json_file=str(json_file), thing_dataset_id_to_contiguous_id=contiguous)
    theirs = COCOEvaluator(name, tasks=("segm",), distributed=False)
    theirs.reset()
    for image, output in outputs.items():
        theirs.process([sample(image)], [output])
    MetadataCatalog.remove(name)
    return {key: value for key, value in theirs.evaluate()["segm"].items() if value == value}


@pytest.mark.parametrize("seed", range(3))
def test_random_instances_have_detectron2s_numbers(tmp_path, seed):
    images = list(range(7, 19)) if seed else [f"val_{index}" for index in range(12)]
    json_file, outputs = random_world(tmp_path, seed, images)
    ours = evaluator(json_file, seen=SEEN)
    for image in reversed(images):  # the order of images does not count
        ours.process([sample(image)], [outputs[image]])
    results = ours.evaluate()["segm"]
    for output in outputs.values():
        labels = output["instances"].pred_classes
        output["instances"].pred_classes = (labels - 1).clamp(min=0)
    expected = detectron2_results(json_file, outputs, {30: 0, 9: 1, 4: 2})
    assert expected["AP"] > 5 and expected.keys() <= results.keys()
    assert {key: results[key] for key in expected} == expected
    assert (results["images"], results["classes"]) == (12, 3)
    assert (results["classes-seen"], results["classes-unseen"]) == (2, 1)
    mean = (2 * results["AP-seen"] + results["AP-unseen"]) / 3
    assert mean == pytest.approx(results["AP"], abs=1e-10)


def test_instances_are_of_things(tmp_path):
    entry = rle_annotation(1, "a", 20, box_mask(0, 0, 5, 5))
    with pytest.raises(InputError, match="instances.json.*category 20, which is no thing of"):
        evaluator(write_instances(tmp_path, [entry]))
    silent = Vocabulary("silent", tuple(replace(one, isthing=None) for one in WORDS.classes))
    with pytest.raises(InputError, match='"silent" does not say "isthing" of "cat": add'):
        evaluator(tmp_path / "instances.json", vocabulary=silent)


def test_the_csv_has_a_row_for_every_class(tmp_path):
    json_file, outputs = random_world(tmp_path, 0, ["a", "b", "c"])
    ours = evaluator(json_file, seen=SEEN, output_dir=tmp_path / "out")
    ours.process([sample(image) for image in outputs], list(outputs.values()))
    results = ours.evaluate()["segm"]
    with open(tmp_path / "out" / "instance_classes_tiny.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(WORDS.first_names)
    assert [row["seen"] for row in rows] == ["1", "1", "0", "1", "0"]
    assert rows[1]["instances"] == "0" and rows[1]["ap"] == rows[4]["ap50"] == ""
    assert sum(int(row["predictions"]) for row in rows) == 24
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
