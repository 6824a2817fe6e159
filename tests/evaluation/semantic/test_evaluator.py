"""The numbers of Detectron2's own evaluator, and the same from one process as from two."""

import csv
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from clipself_seg.errors import InputError
from clipself_seg.evaluation.mean_iou import MeanIoUEvaluator

# Of the stock evaluator, which is older than numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:detectron2")


def write_sample(folder, index, truth, suffix="png"):
    """A sample with its label map on the disk."""
    path = folder / f"{index}.{suffix}"
    Image.fromarray(truth).save(path)
    height, width = truth.shape
    files = {"file_name": f"{index}.jpg", "sem_seg_file_name": str(path)}
    return files | {"height": height, "width": width}


def random_truth(rng, num_classes, ignore_label, dtype=np.uint8, shape=(31, 45)):
    truth = rng.integers(0, num_classes, shape)
    truth[rng.random(shape) < 0.2] = ignore_label
    return truth.astype(dtype)


def evaluator(num_classes=4, **how):
    how = {"class_names": [f"class{i}" for i in range(num_classes)], "ignore_label": 255} | how
    return MeanIoUEvaluator(dataset_name="tiny", **how)


def detectron2_results(samples, outputs, class_names, ignore_label, name):
    """Of the stock evaluator."""
    records = [{key: s[key] for key in ("file_name", "sem_seg_file_name")} for s in samples]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=class_names, ignore_label=ignore_label)
    try:
        # Its own loading function does not work with numpy 2.
        stock = SemSegEvaluator(
            name,
            distributed=False,
            sem_seg_loading_fn=lambda path, dtype: np.array(Image.open(path)).astype(dtype),
        )
        stock._compute_boundary_iou = False  # slow, and not ours
        stock.reset()
        for sample, output in zip(samples, outputs):
            stock.process([sample], [output])
        return stock.evaluate()["sem_seg"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def assert_same(ours, stock):
    """Every number of the stock evaluator, to the last digit."""
    assert len(stock) == 4 + 2 * sum(key.startswith("IoU-") for key in stock)
    for key in stock:
        np.testing.assert_equal(ours[key], float(stock[key]), err_msg=key)


@pytest.mark.parametrize(
    "num_classes, ignore_label, dtype, suffix",
    [(7, 255, np.uint8, "png"), (459, 459, np.uint16, "tif"), (847, 65535, np.uint16, "tif")],
)
def test_random_numbers_are_detectron2s(tmp_path, num_classes, ignore_label, dtype, suffix):
    rng = np.random.default_rng(num_classes)
    names = [f"class{i}" for i in range(num_classes)]
    used = num_classes - 2  # two classes are predicted, but not in the ground truth
    samples = [
        write_sample(tmp_path, i, random_truth(rng, used, ignore_label, dtype), suffix)
        for i in range(3)
    ]
    outputs = [{"sem_seg": torch.rand(num_classes, 31, 45)} for _ in samples]
    ours = evaluator(class_names=names, ignore_label=ignore_label)
    ours.process(samples, outputs)
    stock = detectron2_results(samples, outputs, names, ignore_label, f"random_{num_classes}")
    assert_same(ours.evaluate()["sem_seg"], stock)


def test_labels_are_worth_what_scores_are_and_ties_go_to_the_first(tmp_path):
    rng = np.random.default_rng(1)
    samples = [write_sample(tmp_path, 0, random_truth(rng, 4, 255))]
    scores = torch.randint(3, (4, 31, 45)).float()
    first = np.argmax(scores.numpy(), axis=0)  # numpy promises the first
    results = []
    for output in (
        {"sem_seg": scores},
        {"sem_seg_labels": torch.from_numpy(first)},
        {"sem_seg_labels": torch.from_numpy(first.astype(np.uint8))},
    ):
        one = evaluator()
        one.process(samples, [output])
        results.append(one.evaluate())
    assert results[0] == results[1] == results[2]


def test_every_word_from_the_background_on_is_the_background(tmp_path):
    truth = np.array([[0, 2, 2, 255]], dtype=np.uint8)
    one = evaluator(num_classes=3, background=2)
    labels = torch.tensor([[0, 2, 5, 4]])  # of six classes
    one.process([write_sample(tmp_path, 0, truth)], [{"sem_seg_labels": labels}])
    results = one.evaluate()["sem_seg"]
    assert results["mIoU"] == 100 and results["classes"] == 2
    assert "IoU-class2" in results and "IoU-class3" not in results


def test_one_wholly_ignored_image_is_fine_and_only_such_are_not(tmp_path):
    blank = write_sample(tmp_path, 0, np.full((4, 5), 255, dtype=np.uint8))
    full = write_sample(tmp_path, 1, np.full((4, 5), 1, dtype=np.uint8))
    output = {"sem_seg_labels": torch.ones(4, 5, dtype=torch.int64)}
    one = evaluator()
    one.process([blank, full], [output, output])
    results = one.evaluate()["sem_seg"]
    assert results["images"] == 2 and results["mIoU"] == 100
    one.reset()
    one.process([blank], [output])
    with pytest.raises(InputError, match='"tiny" has no labelled pixel in 1 images'):
        one.evaluate()


LABELS = {"sem_seg_labels": torch.zeros(4, 5, dtype=torch.int64)}


@pytest.mark.parametrize(
    "truth, output, error, said",
    [
        (0, {"sem_seg_labels": LABELS["sem_seg_labels"].T}, AssertionError, "0.jpg"),
        (0, {"sem_seg_labels": LABELS["sem_seg_labels"] + 4}, AssertionError, "jpg"),
        (0, {"sem_seg_labels": LABELS["sem_seg_labels"] - 1}, AssertionError, "jpg"),
        (0, {"sem_seg": torch.full((4, 4, 5), math.nan)}, FloatingPointError, "0.jpg"),
        (0, LABELS | {"sem_seg_best": torch.full((4, 5), math.nan)}, FloatingPointError, "0.jpg"),
        (9, LABELS, InputError, "0.png"),
    ],
)
def test_what_does_not_fit_is_refused_by_file(tmp_path, truth, output, error, said):
    sample = write_sample(tmp_path, 0, np.full((4, 5), truth, dtype=np.uint8))
    with pytest.raises(error, match=said):
        evaluator().process([sample], [output])


def test_the_csv_has_a_row_for_every_class(tmp_path):
    truth = np.array([[0, 0, 1, 255]], dtype=np.uint8)
    one = evaluator(3, seen=np.array([True, False]), output_dir=tmp_path / "out")
    labels = torch.tensor([[0, 2, 1, 1]])
    one.process([write_sample(tmp_path, 0, truth)], [{"sem_seg_labels": labels}])
    one.evaluate()
    with open(tmp_path / "out" / "sem_seg_classes_tiny.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["index", "name", "iou", "accuracy", "gt_pixels", "predicted_pixels", "seen"]
    assert rows == [
        ["0", "class0", "50.0", "50.0", "2", "1", "1"],
        ["1", "class1", "100.0", "100.0", "1", "1", "0"],
        ["2", "class2", "", "", "0", "1", ""],
    ]


def test_a_score_below_the_threshold_is_background_where_there_is_one(tmp_path):
    sample = write_sample(tmp_path, 0, np.array([[0, 1, 2, 2]], np.uint8))
    # The third pixel is unsure of class 1, the fourth sure of a name of the background.
    labels = torch.tensor([[0, 1, 1, 3]])
    output = {"sem_seg_labels": labels, "sem_seg_best": torch.tensor([[0.9, 0.2, 0.1, 0.9]])}

    def percent(threshold, output, **how):
        measured = evaluator(3, threshold=threshold, **how)
        measured.process([sample], [output])
        return measured.evaluate()["sem_seg"]["pACC"]

    assert percent(0.15, output, background=2) == 100
    assert percent(0.0, output, background=2) == percent(0.1, output, background=2) == 75
    whole = {**output, "sem_seg_labels": labels.clamp(max=2)}
    assert percent(0.15, whole) == 75
    with pytest.raises(AssertionError, match="needs the scores of the labels"):
        percent(0.15, {"sem_seg_labels": labels}, background=2)
