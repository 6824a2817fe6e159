"""Detection: numbers and files of one or several processes, and data sets of several rules in one run."""

import csv
import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes
from PIL import Image
from torch import nn

from clipself_seg.config import add_clipself_seg_config
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.errors import InputError
from clipself_seg.evaluation.coco_objects import read_true_objects
from clipself_seg.evaluation.detection_evaluation import DetectionEvaluation, DetectionEvaluator
from clipself_seg.models.model_protocols import Classes
from tests.detection_worlds import (
    SIZE,
    WORDS,
    annotation,
    detected,
    detectron2_results,
    random_world,
    write_objects,
)
from tests.two_processes import in_two_processes

CAT, DOG = [4, 4, 20, 20], [40, 4, 20, 20]

BOTH = ("boxes", "masks")


def sample(image):
    return {"file_name": f"{image}.png", "image_id": image}


def evaluator(json_file, tasks=BOTH, **how):
    truth = read_true_objects(json_file, WORDS, masks="masks" in tasks)
    how = {"dataset_name": "tiny", "vocabulary": WORDS, "seen": WORDS.seen} | how
    return DetectionEvaluator(ground_truth=truth, tasks=tasks, **how)


def test_numbers_and_files(tmp_path):
    json_file, outputs = random_world(tmp_path, 0, ["a", "b", "c"])
    ours = evaluator(json_file, output_dir=tmp_path / "out")
    ours.process([sample(image) for image in outputs], outputs.values())
    results = ours.evaluate()
    theirs = detectron2_results(json_file, outputs, WORDS)
    for kind in ("bbox", "segm"):
        assert {key: results[kind][key] for key in theirs[kind]} == theirs[kind]
        assert (results[kind]["images"], results[kind]["classes"]) == (3, 3)
        mean = (2 * results[kind]["AP50-seen"] + results[kind]["AP50-unseen"]) / 3
        assert mean == pytest.approx(results[kind]["AP50"], abs=1e-10)
    json.dumps(results, allow_nan=False)
    with open(tmp_path / "out/masks_classes_tiny.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(WORDS.first_names)
    assert [row["seen"] for row in rows] == ["1", "0", "1", "1"]
    assert [row["frequency"] for row in rows] == ["f", "r", "c", "c"]
    assert float(rows[1]["ap50"]) == pytest.approx(results["segm"]["AP50-unseen"])
    assert rows[3]["ap"] == rows[3]["ap50"] == "" and rows[3]["objects"] == "0"
    assert sum(int(row["detections"]) for row in rows) == 27
    assert (tmp_path / "out/boxes_classes_tiny.csv").exists()
    entries = json.loads((tmp_path / "out/detections_tiny.json").read_text())
    assert len(entries) == 27 and {"bbox", "segmentation"} <= entries[0].keys()


def test_what_does_not_fit_is_refused(tmp_path):
    json_file = write_objects(tmp_path, [annotation(1, 1, 30, CAT)], [1])
    ours = evaluator(json_file, tasks=("boxes",))
    for label in (-1, 4):
        with pytest.raises(AssertionError, match="1.png"):
            ours.process([sample(1)], [detected([CAT], [0.5], [label])])
    infinite = detected([CAT], [0.5], [0])
    infinite["instances"].pred_boxes = Boxes(torch.tensor([[0.0, 0, float("inf"), 1]]))
    with pytest.raises(FloatingPointError, match="1.png are not finite"):
        ours.process([sample(1)], [infinite])


def test_two_processes_give_the_result_of_one(tmp_path):
    json_file, outputs = random_world(tmp_path, 5, ["a", "b", "c", "d", "e"])

    def work(rank, folder):
        part = evaluator(json_file, output_dir=folder / "two")
        pairs = list(outputs.items())
        # Image "a" comes twice, as a sampler's padding does.
        for image, output in pairs[3:] + pairs[:1] if rank else pairs[:3]:
            part.process([sample(image)], [output])
        results = part.evaluate()
        part.output_dir = None
        part.process([sample("a")], [detected([CAT], [0.5], [0], (SIZE[0], 91))])
        with pytest.raises(InputError, match="image a: masks have 91 x 60 pixels"):
            part.evaluate()
        return results

    first, second = in_two_processes(work, tmp_path)
    one = evaluator(json_file, output_dir=tmp_path / "one")
    for image, output in outputs.items():
        one.process([sample(image)], [output])
    assert first == second == one.evaluate()
    for name in ("boxes_classes_tiny.csv", "masks_classes_tiny.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


# Name of a data set -> Detectron2's evaluator_type, and whether its vocabulary says which classes are seen.
DATASETS = {"split": ("coco", True), "federated": ("lvis", True), "plain": ("coco", False)}


class Recall(nn.Module):
    """Knows the detections of each image."""

    has_masks = True

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs
        self.classes = Classes((("training's",),), (), None)
        self.asked = []

    def set_vocabulary(self, words, seen=None):
        self.classes = Classes(words.first_names, (), seen)

    def forward(self, batch):
        (sample,) = batch
        assert not self.training and "annotations" not in sample
        self.asked.append((sample["image_id"], self.classes))
        assert (sample["height"], sample["width"]) == SIZE
        return [self.outputs[sample["image_id"]]]


@pytest.fixture
def datasets(tmp_path, catalogue):
    """Three data sets of the same four images, and the model of them."""
    json_file, outputs = random_world(tmp_path, 0, [1, 2, 3, 4])
    for image in outputs:
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{image}.png")
    for name, (evaluator, split) in DATASETS.items():
        classes = [
            {"names": list(entry.names), "dataset_id": entry.dataset_id}
            | ({"frequency": entry.frequency, "seen": entry.seen} if split else {})
            for entry in WORDS.classes
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, "classes": classes}))
        DatasetCatalog.register(name, lambda: [])
        MetadataCatalog.get(name).set(
            image_root=str(tmp_path),
            json_file=str(json_file),
            vocabulary=str(tmp_path / f"{name}.json"),
            evaluator_type=evaluator,
        )
    return tmp_path, Recall(outputs)


def evaluation(folder, *options):
    cfg = get_cfg()
    add_clipself_seg_config(cfg)
    cfg.merge_from_list(
        ["DATASETS.TEST", tuple(DATASETS), "DATASETS.TRAIN", (), "DATALOADER.NUM_WORKERS", 0]
        + ["INPUT.FORMAT", "RGB", "OUTPUT_DIR", str(folder / "run")]
        + ["TEST.DETECTION.TASKS", ("boxes", "masks")]
        + list(options)
    )
    return DetectionEvaluation(cfg)


def test_each_data_set_has_its_rule_and_its_split(datasets):
    folder, model = datasets
    before = model.train().classes
    ours = evaluation(folder, "TEST.DETECTION.LIMITS", "mmdetection")
    ours.check(model)
    results = ours(model)
    assert model.training and model.classes is before
    assert [image for image, _ in model.asked] == [1, 2, 3, 4] * 3
    assert [classes.names for _, classes in model.asked] == [WORDS.first_names] * 12
    assert model.asked[0][1].seen.tolist() == [True, False, True, True]
    assert model.asked[-1][1].seen is None
    split, federated, plain = (results[name] for name in DATASETS)
    assert split.keys() == federated.keys() == plain.keys() == {"bbox", "segm"}
    assert {key: split["bbox"][key] for key in plain["bbox"]} == plain["bbox"]
    assert split["segm"].keys() - plain["segm"].keys() == {
        "AP-seen", "AP-unseen", "AP50-seen", "AP50-unseen", "classes-seen", "classes-unseen",
    }  # fmt: skip
    assert "AR300" in plain["bbox"] and {"APr", "APc", "APf"} < federated["segm"].keys()
    json.dumps(results, allow_nan=False)
    metadata = ours.metadata()
    assert metadata["evaluator rule"] == {
        "split": "COCO: AP at 100 detections of a class in an image, all other numbers at 300",
        "federated": "LVIS: the best 300 detections of an image, whatever their classes",
        "plain": "COCO: AP at 100 detections of a class in an image, all other numbers at 300",
    }
    parts = ours.protocols["split"].as_dict()
    assert parts["words"] == "split, 4 classes"
    assert parts["seen"] == "of the vocabulary: 3 of 4"
    assert parts["size"] == "long side 640 px (opencv)" and parts["rule"].startswith("COCO: AP at")
    assert metadata["names of a class"] == "not stated by the model"
    files = {path.name for path in (folder / "run").iterdir()}
    assert {"detections_plain.json", "masks_classes_federated.csv"} < files and len(files) == 9


def test_classes_are_seen_by_the_training_vocabulary(datasets):
    folder, model = datasets
    # DATASETS.TRAIN decides where the vocabulary does not, TEST.TRAIN_VOCABULARY always.
    ours = evaluation(folder, "DATASETS.TRAIN", ("split",), "DATASETS.TEST", ("plain", "split"))
    results = ours(model)
    assert results["plain"] == results["split"]
    (folder / "cups.json").write_text('["Cup", "cat"]')
    ours = evaluation(
        folder, "TEST.TRAIN_VOCABULARY", str(folder / "cups.json"), "DATASETS.TEST", ("split",)
    )
    assert ours(model)["split"]["bbox"]["classes-unseen"] == 1
    assert model.asked[-1][1].seen.tolist() == [True, False, True, False]
    assert ours.metadata()["seen classes"]["split"].startswith("those that share a name with")


MIXED = ("SOLVER.MIX_WITH_START", (0.5,), "MODEL.WEIGHTS", "mini-fvit")


@pytest.mark.parametrize("keys", [("DATASETS.DATA", "own"), MIXED])
def test_after_fine_tuning_seen_are_the_classes_of_its_data_whatever_a_data_set_says(
    datasets, keys
):
    folder, model = datasets
    own = Vocabulary("own", (VocabularyClass((WORDS.first_names[1].upper(),), 1),))
    DatasetCatalog.register("own", lambda: [])
    MetadataCatalog.get("own").set(
        json_file="none", image_root="none", vocabulary=own, evaluator_type="coco"
    )
    options = (*keys, "DATASETS.TRAIN", ("own",), "DATASETS.TEST", ("split",))
    results = evaluation(folder, *options)(model)["split"]["bbox"]
    assert model.asked[-1][1].seen.tolist() == [False, True, False, False]
    assert results["classes-seen"] <= 1 < results["classes-unseen"]


def test_novel_classes_of_a_training_vocabulary_are_not_seen():
    lvis, coco = Vocabulary.load("lvis_v1_1203"), Vocabulary.load("coco_80")
    seen = dict(zip(coco.first_names, coco.seen_in(lvis)))
    # Blanks are underscores in LVIS, and "bus" is "bus_(vehicle)".
    assert seen["dining table"] and seen["cat"] and not seen["bus"] and sum(seen.values()) == 63
    trained = Vocabulary(
        "t", (VocabularyClass(("cat",), 1, seen=False), VocabularyClass(("cow",), 2, seen=True))
    )
    assert WORDS.seen_in(trained).tolist() == [False, False, False, True]


def test_what_would_fail_late_is_refused_early(datasets):
    folder, model = datasets
    model.has_masks = False
    with pytest.raises(InputError, match="the model has no masks, which TEST.DETECTION.TASKS asks"):
        evaluation(folder).check(model)
    model.has_masks = True
    with pytest.raises(InputError, match='"ov_coco_train" is only trained on'):
        evaluation(folder, "DATASETS.TEST", ("ov_coco_train",)).check(model)
    (folder / "3.png").unlink()
    with pytest.raises(InputError, match=r'data set "plain": 1 of 4 images are missing.*3\.png'):
        evaluation(folder, "DATASETS.TEST", ("plain",)).check(model)
    (folder / "objects.json").unlink()
    with pytest.raises(InputError, match="objects.json is missing"):
        evaluation(folder, "DATASETS.TEST", ("plain",)).check(model)
