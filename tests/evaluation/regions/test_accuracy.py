"""Mean class accuracy by hand and by loop, files, and how tokens group by class."""

import json
import math

import numpy as np
import pytest
import torch

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.region_accuracy import (
    NO_CLASS,
    RegionAccuracyEvaluator,
    class_accuracies,
    label_ranks,
    mean_class_accuracy,
    neighbour_purity,
    token_classes,
)

NUM_CLASSES = 7
NAMES = [f"class{index}" for index in range(NUM_CLASSES)]


def test_ranks_agree_with_a_stable_sort():
    scores = torch.rand(50, 20).mul(10).round()  # with ties
    labels = torch.randint(20, (50,))
    order = scores.sort(dim=1, descending=True, stable=True).indices
    for k in (1, 5):
        hits = (order[:, :k] == labels[:, None]).any(dim=1)
        torch.testing.assert_close(label_ranks(scores, labels) < k, hits)


def test_classes_weigh_the_same_whatever_their_number_of_regions():
    ranks, labels = np.array([0, 0, 0, 9, 4]), np.array([2, 2, 2, 2, 0])
    assert mean_class_accuracy(ranks, labels, 5, 1) == (0.75 + 0.0) / 2
    assert mean_class_accuracy(ranks, labels, 5, 5) == (0.75 + 1.0) / 2
    np.testing.assert_array_equal(
        class_accuracies(ranks, labels, 5, 1), [0.0, math.nan, 0.75, math.nan, math.nan]
    )


def image(image_id, count=4):
    """A sample and its outputs; everything follows from the id."""
    generator = torch.Generator().manual_seed(image_id)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    sample = {"image_id": image_id, "file_name": f"{image_id}.jpg", "labels": labels}
    scores = {
        readout: torch.rand(count, NUM_CLASSES, generator=generator)
        for readout in ("boxes", "masks", "crops", "attention_boxes")
    }
    return sample | {"isthing": labels < 4}, {"scores": scores}


def evaluator(output_dir=None):
    return RegionAccuracyEvaluator(
        dataset_name="tiny", vocabulary=Vocabulary.of(NAMES), output_dir=output_dir
    )


def evaluate(image_ids, output_dir=None):
    one = evaluator(output_dir)
    for image_id in image_ids:
        sample, output = image(image_id)
        one.process([sample], [output])
    return one.evaluate()


def test_groups_compete_among_all_classes():
    one = evaluator()
    sample = {"image_id": 1, "file_name": "1.jpg", "labels": torch.tensor([0, 0, 5])}
    sample |= {"isthing": torch.tensor([True, True, False])}
    scores = torch.zeros(3, NUM_CLASSES)
    scores[0, 0] = 1  # recognised
    scores[1, [0, 6]] = torch.tensor([0.5, 1.0])  # a stuff class beats the thing
    scores[2, 5] = 1
    one.process([sample], [{"scores": {"boxes": scores}}])
    things = {
        "thing.regions": 2,
        "thing.classes": 1,
        "boxes.thing.top1": 50,
        "boxes.thing.top5": 100,
    }
    stuff = {
        "stuff.regions": 1,
        "stuff.classes": 1,
        "boxes.stuff.top1": 100,
        "boxes.stuff.top5": 100,
    }
    assert (things | stuff | {"images": 1}).items() <= one.evaluate()["regions"].items()


def test_images_without_regions_do_not_disturb():
    one = evaluator()
    one.process(*zip(image(1), image(50, count=0)))
    results = one.evaluate()["regions"]
    assert results.pop("images") == 2
    assert results == {k: v for k, v in evaluate([1])["regions"].items() if k != "images"}


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_a_set_without_any_region_is_refused_by_name(counts):
    one = evaluator()
    for index, count in enumerate(counts):
        one.process(*zip(image(index, count)))
    with pytest.raises(InputError, match='"tiny" has no region'):
        one.evaluate()


def test_scores_that_are_not_finite_name_the_image():
    sample, output = image(8)
    output["scores"]["masks"][1, 2] = math.nan
    with pytest.raises(FloatingPointError, match="masks in 8.jpg"):
        evaluator().process([sample], [output])


def test_the_file_holds_a_row_for_each_class_that_occurs(tmp_path):
    results = evaluate(range(10), tmp_path)["regions"]
    content = json.loads((tmp_path / "region_accuracy_tiny.json").read_text())
    assert content["results"] == results
    things = [row for row in content["classes"] if row["group"] == "thing"]
    assert len(things) == results["thing.classes"]
    assert sum(row["regions"] for row in things) == results["thing.regions"]
    mean = np.mean([row["boxes.top5"] for row in things])
    assert mean == pytest.approx(results["boxes.thing.top5"])


def grouped(image_id, purity_of):
    """A sample of two classes of 2 x 1 tokens each, whose features lie apart or not, and its outputs."""
    sample, output = image(image_id, count=2)
    sample |= {"labels": torch.tensor([1, 5])}
    masks = torch.zeros(2, 2, 2, dtype=torch.bool)
    masks[0, 0] = masks[1, 1] = True
    first, second = ([1.0, 0.0], [0.0, 1.0])
    rows = {1.0: [[first, first], [second, second]], 0.0: [[first, second], [first, second]]}
    dense = torch.tensor(rows[purity_of]).permute(2, 0, 1)
    return sample | {"masks": masks}, output | {"dense": dense}


def test_grouping_is_the_mean_over_images_that_have_several_classes():
    one = evaluator()
    for image_id, purity in ((1, 1.0), (2, 0.0), (3, 1.0), (1, 1.0)):
        sample, output = grouped(image_id, purity)
        one.process([sample], [output])
    sample, output = grouped(4, 1.0)
    one.process([sample | {"masks": sample["masks"] & False}], [output])
    results = one.evaluate()["regions"]
    assert results["grouping.purity"] == pytest.approx(100 * 2 / 3)
    assert results["grouping.chance"] == pytest.approx(100 / 3) and results["images"] == 4
    assert "grouping.purity" not in evaluate([1, 2])["regions"]


def test_purity_is_that_of_a_loop_over_tokens():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(40, 6, generator=generator)
    classes = torch.randint(-1, 4, (40,), generator=generator)
    each = {}
    for i in range(40):
        others = [j for j in range(40) if j != i and classes[j] != NO_CLASS]
        others.sort(key=lambda j: -torch.cosine_similarity(tokens[i], tokens[j], dim=0).item())
        same = sum(int(classes[j] == classes[i]) for j in others)
        right = sum(int(classes[j] == classes[i]) for j in others[:same])
        if classes[i] != NO_CLASS:
            each.setdefault(int(classes[i]), []).append(right / same)
    expected = sum(sum(values) / len(values) for values in each.values()) / len(each)
    assert neighbour_purity(tokens, classes).purity == pytest.approx(expected)


@pytest.mark.parametrize("classes", [[], [3, 3, 3], [0, 1, 2], [NO_CLASS] * 3, [NO_CLASS, 1, 1]])
def test_an_image_with_nothing_to_tell_apart_has_no_purity(classes):
    grouping = neighbour_purity(torch.randn(len(classes), 2), torch.tensor(classes).long())
    assert math.isnan(grouping.purity) and math.isnan(grouping.chance)


def test_tokens_of_no_region_or_of_two_classes_have_none():
    masks = torch.zeros(3, 1, 5, dtype=torch.bool)
    masks[0, 0, :2] = True
    masks[1, 0, 1:4] = True
    masks[2, 0, 3] = True
    # The first two are of different classes, the last two of one.
    classes = token_classes(masks, torch.tensor([4, 0, 0]))
    assert classes.tolist() == [[4, NO_CLASS, 0, 0, NO_CLASS]]
    assert (token_classes(masks[:0], torch.zeros(0).long()) == NO_CLASS).all()
