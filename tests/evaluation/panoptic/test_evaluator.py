"""The evaluator counts what the files say, and the same from one process as from two."""

import csv
import json

import numpy as np
import pytest
import torch

from clipself_seg.data.masks import read_panoptic_png
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.errors import InputError
from clipself_seg.evaluation.panoptic.quality import PanopticQualityEvaluator, panoptic_results
from tests.panoptic_worlds import CATEGORIES, own_quality, random_sides

WORDS = Vocabulary(
    "tiny",
    tuple(
        VocabularyClass((entry["name"],), entry["id"], bool(entry["isthing"]))
        for entry in CATEGORIES
    ),
)
SEEN = np.array([True, False, True, True, False, False])
IMAGES = [f"image_{index}" for index in range(5)]


def batches(truth, predicted):
    """(sample, output) of each image, as data set and model give them."""
    sides = [json.loads(side.json.read_text())["annotations"] for side in (truth, predicted)]
    for true, given in zip(*sides):
        sample = {
            "file_name": f"{true['image_id']}.jpg",
            "image_id": true["image_id"],
            "pan_seg_file_name": str(truth.folder / true["file_name"]),
            "segments_info": true["segments_info"],
        }
        segments = [
            {"id": info["id"], "category_id": WORDS.dataset_id_to_index[info["category_id"]]}
            for info in given["segments_info"]
        ]
        ids = torch.tensor(read_panoptic_png(predicted.folder / given["file_name"]))
        yield sample, {"panoptic_seg": (ids, segments)}


def evaluator(**how):
    how = {"image_ids": IMAGES, "seen": SEEN} | how
    return PanopticQualityEvaluator(dataset_name="tiny", vocabulary=WORDS, **how)


def test_results_are_those_of_the_files(tmp_path):
    sides = random_sides(tmp_path, 1, len(IMAGES))
    one = evaluator()
    for sample, output in batches(*sides):
        one.process([sample], [output])
        one.process([sample], [output])  # an image that comes twice counts once
    quality = own_quality(*sides)
    expected = panoptic_results(quality, WORDS.first_names, WORDS.thing, SEEN) | {"images": 5.0}
    np.testing.assert_equal(one.evaluate(), {"panoptic_seg": expected})
    np.testing.assert_equal(one.evaluate()["panoptic_seg"], expected)
    one.image_ids = None
    assert one.evaluate()["panoptic_seg"]["PQ"] == pytest.approx(expected["PQ"], abs=1e-10)


def test_ground_truth_that_was_read_before_is_not_read_again(tmp_path):
    (sample, output), *_ = batches(*random_sides(tmp_path, 1, 1))
    one, two = evaluator(image_ids=None), evaluator(image_ids=None)
    one.process([sample], [output])
    read = read_panoptic_png(sample["pan_seg_file_name"])
    two.process([sample | {"pan_seg": read, "pan_seg_file_name": "gone.png"}], [output])
    np.testing.assert_equal(one.evaluate()["panoptic_seg"], two.evaluate()["panoptic_seg"])


def test_blank_data_are_refused():
    with pytest.raises(InputError, match='"tiny" has no segment, true or predicted, in 0 images'):
        evaluator(image_ids=[]).evaluate()


def test_predictions_that_do_not_fit_name_image_and_file(tmp_path):
    (sample, (ids, segments)), *_ = [
        (sample, output["panoptic_seg"])
        for sample, output in batches(*random_sides(tmp_path, 1, 1))
    ]
    for given, said in (
        ((ids[1:], segments), "predicted map of image_0.jpg.*31 x 23 pixels.*image_0.png"),
        ((ids, segments[1:]), "predicted map of image_0.jpg and its list of segments disagree"),
    ):
        with pytest.raises(InputError, match=said):
            evaluator().process([sample], [{"panoptic_seg": given}])
    sample["segments_info"] = sample["segments_info"][1:]
    with pytest.raises(InputError, match="image_0.png and the entry of image image_0 in mine.json"):
        evaluator(panoptic_json="mine.json").process([sample], [{"panoptic_seg": (ids, segments)}])


def test_a_vocabulary_without_things_or_stuff_is_refused():
    plain = Vocabulary.of(["dog", "sky"])
    with pytest.raises(InputError, match='does not say "isthing"'):
        PanopticQualityEvaluator(dataset_name="x", vocabulary=plain)
    things = Vocabulary("mine", WORDS.classes[:3])
    with pytest.raises(InputError, match='vocabulary "mine": none of the 3 classes is stuff'):
        PanopticQualityEvaluator(dataset_name="x", vocabulary=things)


def test_the_csv_has_every_class(tmp_path):
    sides = random_sides(tmp_path, 1, len(IMAGES))
    one = evaluator(output_dir=tmp_path / "out")
    for sample, output in batches(*sides):
        one.process([sample], [output])
    results = one.evaluate()["panoptic_seg"]
    with open(tmp_path / "out" / "panoptic_classes_tiny.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == list(WORDS.first_names)
    assert [row["seen"] for row in table] == ["1", "0", "1", "1", "0", "0"]
    assert [float(row["pq"]) for row in table] == [
        results[f"PQ-{name}"] for name in WORDS.first_names
    ]
