"""Label maps from panoptic PNGs: every pixel by a loop over the segments, on real files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from clipself_seg.data.datasets.records import panoptic_set_records
from clipself_seg.data.prepare.coco import prepare_coco_panoptic_semseg
from clipself_seg.data.prepare.common import Options
from clipself_seg.errors import InputError
from tests.small_coco import write_small_coco

VAL = "coco/annotations/panoptic_val2017.json"
COUNT = 6


@pytest.fixture
def root(data_dir, tmp_path, monkeypatch):
    """The first images of the real validation split."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_small_coco(data_dir, tmp_path, COUNT)
    return tmp_path


def prepare(root, **options):
    (done,) = prepare_coco_panoptic_semseg(Options(root, **options), ["val2017"])
    return done


def test_every_pixel_has_the_position_of_its_segments_category(root):
    assert prepare(root)[1:4] == (COUNT, 0, 0)
    content = json.loads((root / VAL).read_text())
    numbers = [category["id"] for category in content["categories"]]
    assert len(numbers) == 133 and numbers == sorted(numbers)
    seen_void = False
    for entry in content["annotations"]:
        rgb = np.asarray(Image.open(root / "coco/panoptic_val2017" / entry["file_name"])).astype(
            int
        )
        ids, expected = rgb @ [1, 256, 65536], np.full(rgb.shape[:2], 255)
        for info in entry["segments_info"]:
            expected[ids == info["id"]] = numbers.index(info["category_id"])
        labels = np.asarray(Image.open(root / "coco/panoptic_semseg_val2017" / entry["file_name"]))
        assert labels.dtype == np.uint8 and (labels == expected).all()
        seen_void |= bool((expected == 255).any())
    assert seen_void
    name = "coco_2017_val_panoptic_with_sem_seg"
    for record in panoptic_set_records(name, ["semantic"]):
        assert Image.open(record["sem_seg_file_name"]).mode == "L"


def test_a_second_run_completes_and_overwrite_writes_all(root):
    prepare(root)
    paths = sorted((root / "coco/panoptic_semseg_val2017").iterdir())
    before = [path.read_bytes() for path in paths]
    paths[2].unlink()
    paths[3].write_bytes(b"mine")
    assert prepare(root)[1:4] == (1, COUNT - 1, 0) and paths[3].read_bytes() == b"mine"
    assert prepare(root, overwrite=True)[1:4] == (COUNT, 0, 0)
    assert [path.read_bytes() for path in paths] == before


def edit(root, change):
    content = json.loads((root / VAL).read_text())
    change(content["annotations"][1]["segments_info"])
    (root / VAL).write_text(json.dumps(content))


def test_png_and_json_that_disagree_are_both_named(root):
    edit(root, lambda infos: infos.pop())
    with pytest.raises(
        InputError,
        match="panoptic PNG .*panoptic_val2017/.*image .* in .*panoptic_val2017.json dis",
    ):
        prepare(root)


def test_a_category_of_another_data_set_is_named(root):
    edit(root, lambda infos: infos[0].update(category_id=12))
    with pytest.raises(InputError, match=r"panoptic_val2017.*category ids \[12\] are not in the"):
        prepare(root)


def test_a_missing_archive_is_named_with_its_address(tmp_path):
    with pytest.raises(InputError, match="panoptic_val2017.json is missing.*\n.*cocodataset.org"):
        prepare(tmp_path)
