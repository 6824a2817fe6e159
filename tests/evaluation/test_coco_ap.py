"""Average precision is pycocotools', Detectron2's and LVIS's, to the last digit."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clipself_seg.errors import InputError
from clipself_seg.evaluation.coco_ap import (
    LIMITS,
    class_precision,
    coco_numbers,
    lvis_numbers,
    object_quality,
)
from clipself_seg.evaluation.coco_objects import read_true_objects, write_coco_results
from tests.detection_worlds import (
    SIZE,
    WORDS,
    annotation,
    detected,
    detectron2_results,
    kept,
    random_world,
    write_objects,
)

FREQUENCIES = [entry.frequency for entry in WORDS.classes]
CAT, DOG, CUP = ([4, 4, 20, 20], [40, 4, 20, 20], [4, 30, 20, 20])
FAR = [70, 40, 12, 12]
ABSENT = {"neg_category_ids": {}, "not_exhaustive_category_ids": {}}


def numbers_of(json_file, outputs, kind="bbox", limits="detectron2", vocabulary=WORDS):
    truth = read_true_objects(json_file, vocabulary, masks=True)
    return coco_numbers(object_quality(truth, kept(outputs), kind, LIMITS[limits]))


def lvis_quality(json_file, outputs, kind="bbox"):
    truth = read_true_objects(json_file, WORDS, masks=True, federated=True)
    return object_quality(truth, kept(outputs), kind, LIMITS["detectron2"])


def pycocotools_counted(json_file, folder, outputs, limits):
    """What pycocotools says of boxes in files, with any three limits, but for what no class counts for."""
    categories = [entry.dataset_id for entry in WORDS.classes]
    write_coco_results(folder / "results.json", kept(outputs).items(), categories)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(json_file)
        results = truth.loadRes(str(folder / "results.json"))
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * value for value in evaluation.stats.tolist() if value >= 0]


@pytest.mark.parametrize("seed", range(3))
def test_random_detections_have_detectron2s_numbers(tmp_path, seed):
    images = list(range(7, 19)) if seed else [f"val_{index}" for index in range(12)]
    json_file, outputs = random_world(tmp_path, seed, images)
    expected = detectron2_results(json_file, outputs, WORDS)
    for kind in ("bbox", "segm"):
        ours = numbers_of(json_file, dict(reversed(outputs.items())), kind)
        assert expected[kind]["AP"] > 5 and expected[kind].keys() <= ours.keys()
        assert {key: ours[key] for key in expected[kind]} == expected[kind]


def test_limits_are_pycocotools_and_mmdetections(tmp_path):
    objects = [annotation(i, i, 30, CAT) for i in (1, 2, 3)]
    json_file = write_objects(tmp_path, objects + [annotation(4, 1, 9, DOG)], [1, 2, 3])
    # The cat is the 5th, 50th and 150th of its class in its image; 10 dogs are worse.
    outputs = {
        image: detected(
            [FAR] * place + [CAT] + [FAR] * (280 - place) + [DOG] * 10,
            np.linspace(0.9, 0.1, 291),
            [0] * 281 + [1] * 10,
        )
        for image, place in ((1, 4), (2, 49), (3, 149))
    }
    ours = numbers_of(json_file, outputs)
    assert list(ours.values()) == pycocotools_counted(json_file, tmp_path, outputs, (1, 10, 100))
    both = numbers_of(json_file, outputs, limits="mmdetection")
    assert list(both.values()) == pycocotools_counted(json_file, tmp_path, outputs, (1, 100, 300))
    assert both["AP"] == ours["AP"] and both["AP50"] > ours["AP50"]
    assert both["AR300"] > both["AR100"] == ours["AR100"] > ours["AR10"] > ours["AR1"]
    # MMDetection's third limit is 1000, and the published detector keeps 300 of an image.
    official = pycocotools_counted(json_file, tmp_path, outputs, (100, 300, 1000))
    assert [both[key] for key in ("AP", "AP50", "AP75", "APs")] == official[:4]


def lvis_by_loops(json_file, outputs, kind, area, threshold):
    """Precision (101,) of each category by LVIS's published rules, None for one without an object."""
    content = json.loads(json_file.read_text())
    entries = []
    for image, output in outputs.items():
        instances = output["instances"]
        boxes = instances.pred_boxes.tensor.numpy().astype(float)
        own = []
        for box, score, label, mask in zip(
            boxes.tolist(), instances.scores.tolist(), instances.pred_classes.tolist(), instances.pred_masks
        ):  # fmt: skip
            size = (box[2] - box[0]) * (box[3] - box[1])
            if kind == "segm":
                size = int(mask.sum())
            own.append((score, image, WORDS.classes[label].dataset_id, box, size))
        # The best 300 of an image, whatever their classes.
        entries += sorted(own, key=lambda entry: -entry[0])[:300]
    return {
        category["id"]: category_by_loops(content, entries, category["id"], area, threshold)
        for category in content["categories"]
    }


def category_by_loops(content, entries, category, area, threshold):
    scored, objects = [], 0
    for image in sorted(content["images"], key=lambda image: image["id"]):
        true = [
            a for a in content["annotations"]
            if a["image_id"] == image["id"] and a["category_id"] == category and a["area"] > 0
        ]  # fmt: skip
        if not true and category not in image["neg_category_ids"]:
            continue
        counts = [area[0] <= a["area"] <= area[1] for a in true]
        objects += sum(counts)
        taken = set()
        given = [e for e in entries if e[1] == image["id"] and e[2] == category and e[4] > 0]
        for score, _, _, box, size in sorted(given, key=lambda entry: -entry[0]):
            free = [i for i in range(len(true)) if i not in taken]
            overlaps = {i: box_iou(box, true[i]["bbox"]) for i in free}
            fit = [i for i in free if overlaps[i] >= threshold]
            # An object that counts before one that does not; the last of equal overlaps.
            fit = [i for i in fit if counts[i]] or fit
            if fit:
                best = max(fit, key=lambda i: (overlaps[i], i))
                taken.add(best)
                if counts[best]:
                    scored.append((score, True))
            elif (
                area[0] <= size <= area[1] and category not in image["not_exhaustive_category_ids"]
            ):
                scored.append((score, False))
    if not objects:
        return None
    scored.sort(key=lambda entry: -entry[0])
    right, points = 0, []
    for number, (_, correct) in enumerate(scored, 1):
        right += correct
        points.append((right / objects, right / number))
    return [
        max([precision for recall, precision in points if recall >= at], default=0.0)
        for at in np.linspace(0, 1, 101)
    ]


def box_iou(corners, box):
    left, top = max(corners[0], box[0]), max(corners[1], box[1])
    right, bottom = min(corners[2], box[0] + box[2]), min(corners[3], box[1] + box[3])
    both = max(right - left, 0) * max(bottom - top, 0)
    either = (corners[2] - corners[0]) * (corners[3] - corners[1]) + box[2] * box[3] - both
    return both / either if either else 0.0


@pytest.mark.parametrize("seed, per_image", [(0, 9), (1, 330)])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_lvis_numbers_follow_its_rules(tmp_path, seed, per_image, kind):
    json_file, outputs = random_world(tmp_path, seed, [5, 2, 9, 4], per_image, whole=True)
    quality = lvis_quality(json_file, outputs, kind)
    thresholds = np.linspace(0.5, 0.95, 10)
    for t in (0, 5):
        for a, area in enumerate([(0, 1e10), (0, 32**2), (32**2, 96**2)]):
            expected = lvis_by_loops(json_file, outputs, kind, area, thresholds[t])
            for label, entry in enumerate(WORDS.classes):
                ours = quality.precision[t, :, label, a, 0]
                wanted = expected[entry.dataset_id]
                np.testing.assert_allclose(ours, -1 if wanted is None else wanted, atol=1e-12)
    results = lvis_numbers(quality, FREQUENCIES)
    of_class = 100 * class_precision(quality)[0]
    assert results["AP"] == pytest.approx(np.nanmean(of_class))
    assert [results["APf"], results["APr"], results["APc"]] == pytest.approx(of_class[:3])
    assert np.isnan(of_class[3]) and "APl" not in results


def test_no_detection_at_all_is_a_precision_of_0(tmp_path, capfd):
    json_file = write_objects(tmp_path, [annotation(1, "a", 9, DOG)], ["a", "b"], **ABSENT)
    outputs = {image: detected([], [], []) for image in ("a", "b")}
    results = numbers_of(json_file, outputs)
    assert results["AP"] == results["AP50"] == results["AR100"] == 0 and "APl" not in results
    federated = lvis_numbers(lvis_quality(json_file, outputs), FREQUENCIES)
    assert federated["AP"] == federated["APr"] == 0 and not {"APf", "APc"} & federated.keys()
    printed = capfd.readouterr().out
    assert not any(word in printed for word in ("DONE", "Average Precision", "per image"))


def test_masks_of_another_size_are_refused(tmp_path):
    json_file = write_objects(tmp_path, [annotation(1, "a", 9, DOG)], ["a"])
    wide = {"a": detected([DOG], [0.5], [1], (SIZE[0], 91))}
    with pytest.raises(InputError, match="image a: masks have 91 x 60 pixels.*says 90 x 60"):
        numbers_of(json_file, wide, "segm")
