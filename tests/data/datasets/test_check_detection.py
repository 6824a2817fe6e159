"""Every state that a data set for detection can be in, with what mends it."""

from __future__ import annotations

import json
import shutil

import pytest

from clipself_seg.data.datasets.check import Options, check_datasets
from clipself_seg.data.prepare.common import Options as PrepareOptions
from clipself_seg.data.prepare.detection import prepare_ov_coco
from tests.small_coco import write_small_coco


@pytest.fixture
def coco(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return write_small_coco(data_dir, tmp_path, 3)


def check(name):
    (finding,) = check_datasets([name], Options())
    return finding


def test_absent_then_unprepared_then_complete(coco, tmp_path):
    finding = check("ov_coco_val")
    assert finding.state == "unprepared" and "all_2.json" in finding.notes[0]
    assert finding.mend == "clipself-seg data prepare ov_coco --splits val2017"
    prepare_ov_coco(PrepareOptions(tmp_path), ["val2017"])
    finding = check("ov_coco_val")
    assert finding.state == "complete" and finding.images == finding.read > 0
    shutil.rmtree(coco)
    finding = check("ov_coco_val")
    assert finding.state == "absent" and "cocodataset.org" in finding.mend


def test_an_official_file_that_is_not_whole_or_without_images(coco):
    assert check("transfer_coco_val").notes == ("3 of 5000 images",)
    next((coco / "val2017").iterdir()).unlink()
    finding = check("transfer_coco_val")
    assert (finding.state, finding.missing) == ("incomplete", 1)
    shutil.rmtree(coco / "val2017")
    assert check("transfer_coco_val").state == "incomplete"


def test_a_training_file_with_novel_classes_is_broken(coco):
    path = coco / "zero-shot/instances_train2017_seen_2_65_cat.json"
    path.parent.mkdir()
    (coco / "train2017").mkdir()
    content = json.loads((coco / "annotations/instances_val2017.json").read_text())
    path.write_text(json.dumps(content))
    finding = check("ov_coco_train")
    assert finding.state == "broken" and "not base" in finding.notes[0]
    assert finding.mend == "clipself-seg data prepare ov_coco --splits train2017 --overwrite"
