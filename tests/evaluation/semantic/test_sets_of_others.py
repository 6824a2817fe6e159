"""Semantic data sets that somebody registered with Detectron2, as a benchmark of many domains does, by their names."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg, register_coco_instances
from PIL import Image
from torch import nn

from clipself_seg.config import load_config
from clipself_seg.data.datasets.records import find_dataset, sem_seg_records
from clipself_seg.data.datasets.table import DetectionSet
from clipself_seg.errors import InputError
from clipself_seg.evaluation.panoptic.ground_truth import is_semantic_only
from clipself_seg.evaluation.semantic_evaluation import SemanticEvaluation

CLASSES = ["others", "river, stream", "unlabeled"]
# The labels of 16 x 16 pixels each, and what the model sees in their place; -1 is not labelled.
TRUTH = np.array([[0, 1, 1, 2], [0, 0, 1, -1]])
SEEN = np.array([[0, 1, 2, 2], [0, 0, 1, 1]])


def blocks(values: np.ndarray) -> np.ndarray:
    return np.kron(values, np.ones((16, 16), values.dtype))


SIZE = ("INPUT.MIN_SIZE_TEST", "0")


class Eye(nn.Module):
    """Says what is in an image by how bright it is, and keeps the names that it was given."""

    def set_vocabulary(self, vocabulary):
        self.names = [entry.names for entry in vocabulary.classes]

    def forward(self, batch, output="labels"):
        return [{"sem_seg_labels": sample["image"][0].long() // 64} for sample in batch]


@pytest.fixture
def stub(tmp_path, catalogue):
    """Three sets: void and classes counted from 1, 16 bits with the void 65535, and numbers of somebody's own."""
    image = Image.fromarray(blocks(SEEN * 64 + 20).astype(np.uint8)).convert("RGB")
    offset = blocks(TRUTH + 1).astype(np.uint8)  # 0 is void
    wide = blocks(np.where(TRUTH < 0, 65535, TRUTH)).astype(np.uint16)
    ids = blocks(np.array([7, 1000, 2000, 40000])[TRUTH + 1]).astype(np.uint16)  # 7 is void
    for folder, ending in (("jpg", "jpg"), ("png", "png")):
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / f"one.{ending}", quality=95)
    for folder, array, ending in (("a", offset, "png"), ("b", wide, "png"), ("c", ids, "tif")):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / f"one.{ending}")
    jpg, png, a, b, c = (str(tmp_path / name) for name in ("jpg", "png", "a", "b", "c"))
    DatasetCatalog.register("a", lambda: load_sem_seg(a, jpg, gt_ext="png", image_ext="jpg"))
    DatasetCatalog.register("b", lambda: load_sem_seg(b, png, gt_ext="png", image_ext="png"))
    record = {"file_name": f"{png}/one.png", "sem_seg_file_name": f"{c}/one.tif"}
    DatasetCatalog.register("c", lambda: [record])
    kind = {"evaluator_type": "sem_seg"}
    ones = {1: 0, 2: 1, 3: 2}
    MetadataCatalog.get("a").set(
        image_root=jpg, sem_seg_root=a, ignore_label=0, stuff_classes=CLASSES, label_values=ones
    )
    MetadataCatalog.get("b").set(sem_seg_root=b, ignore_label=65535, classes=CLASSES, **kind)
    MetadataCatalog.get("c").set(
        stuff_classes=CLASSES, label_values={1000: 0, 2000: 1, 40000: 2}, **kind
    )
    return tmp_path


def evaluation(folder: Path, *keys: str) -> SemanticEvaluation:
    options = ["DATASETS.TEST", "('a', 'b', 'c')", "OUTPUT_DIR", str(folder), *keys, *SIZE]
    options += ["DATASETS.TRAIN", "()", "DATALOADER.NUM_WORKERS", "0", "TEST.TRAIN_VOCABULARY", ""]
    return SemanticEvaluation(load_config("mini/semseg", options))


def test_sets_of_others_are_measured_alike_however_their_maps_write_void_and_classes(stub):
    model = Eye()
    measured = evaluation(stub)
    measured.check(model)
    results = measured(model)
    assert results["a"] == results["b"] == results["c"]
    # others 3/3, river 2/3, unlabeled 1/2; a seventh block is not labelled.
    assert results["a"]["mIoU"] == pytest.approx(100 * (1 + 2 / 3 + 1 / 2) / 3)
    assert model.names == [("others",), ("river", "stream"), ("unlabeled",)]
    assert all(map(is_semantic_only, "bc"))


def test_a_file_of_names_takes_the_place_of_bad_ones(stub):
    names = stub / "names.txt"
    names.write_text("0:building,road,car\n1:river\n2:grass\n")
    model = Eye()
    assert evaluation(stub, "TEST.LABEL_FILES", str(("", "", str(names))))(model)
    assert model.names == [("building", "road", "car"), ("river",), ("grass",)]
    with pytest.raises(InputError, match="LABEL_FILES must be a file for each of DATASETS.TEST"):
        evaluation(stub, "TEST.LABEL_FILES", "('names.txt',)")


def test_values_that_are_no_classes_are_refused_with_the_entry_that_says_what_they_are(stub):
    MetadataCatalog.pop("a")
    MetadataCatalog.get("a").set(stuff_classes=CLASSES, ignore_label=0)
    model = Eye()
    measured = evaluation(stub)
    measured.check(model)
    with pytest.raises(InputError, match='the value 3: .*\n.*"label_values".*count from 1'):
        measured(model)


def test_files_that_are_not_there_are_named_before_the_first_image(stub, catalogue):
    (stub / "c/one.tif").unlink()
    with pytest.raises(InputError, match='data set "c": 1 of 1 files are missing, .*one.tif'):
        sem_seg_records("c")
    DatasetCatalog.register("d", lambda: open(stub / "no.txt"))
    MetadataCatalog.get("d").stuff_classes = CLASSES
    with pytest.raises(InputError, match='data set "d": .*no.txt.*; correct its registration'):
        sem_seg_records("d")
    DatasetCatalog.register("e", lambda: iter([]))
    MetadataCatalog.get("e").stuff_classes = CLASSES
    with pytest.raises(InputError, match='data set "e": its 0 records need "file_name"'):
        sem_seg_records("e")


def test_boxes_of_others_have_the_classes_of_detectron2s_own_entries(tmp_path, catalogue):
    metadata = {"thing_classes": ["cat", "dog"]}
    metadata["thing_dataset_id_to_contiguous_id"] = {7: 1, 3: 0}
    register_coco_instances("pets", metadata, str(tmp_path / "a.json"), str(tmp_path))
    entry = find_dataset("pets", DetectionSet)
    assert [(c.dataset_id, c.names) for c in entry.vocabulary.classes] == [
        (3, ("cat",)),
        (7, ("dog",)),
    ]
    DatasetCatalog.register("dicts", list)
    MetadataCatalog.get("dicts").thing_classes = ["cat"]
    with pytest.raises(InputError, match='"dicts" for detection: register_coco_instances'):
        find_dataset("dicts", DetectionSet)
