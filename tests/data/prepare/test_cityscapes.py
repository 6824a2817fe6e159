"""Cityscapes' panoptic files from instance maps: what cityscapesscripts writes, by hand on a small image."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from clipself_seg.data.datasets.records import panoptic_set_records
from clipself_seg.data.masks import read_panoptic_ids, read_panoptic_png
from clipself_seg.data.prepare.cityscapes import prepare_cityscapes
from clipself_seg.data.prepare.common import Options
from clipself_seg.errors import InputError
from tests.archives import CAR, PERSON, POLE, RIDER, ROAD, grown, save, write_city_image

STEM = "aachen_000000_000019"
NAME = "cityscapes_fine_panoptic_val"


@pytest.fixture
def truth(tmp_path, monkeypatch):
    """gtFine of a tree of one image."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return write_city_image(tmp_path).parent.parent


def prepare(truth, **options):
    (done,) = prepare_cityscapes(Options(truth.parent.parent, **options), ["val"])
    return done


def read(truth, kind):
    return json.loads((truth / f"cityscapes_{kind}_val.json").read_text())


def test_segments_are_those_of_cityscapesscripts_by_hand(truth):
    assert prepare(truth)[1:4] == (1, 0, 0)
    content = read(truth, "panoptic")
    name = f"{STEM}_gtFine_leftImg8bit.png"
    assert content["images"] == [{"id": STEM, "file_name": name, "width": 40, "height": 16}]
    (entry,) = content["annotations"]
    assert entry["image_id"] == STEM and entry["file_name"] == f"{STEM}_gtFine_panoptic.png"
    infos = [tuple(info.values()) for info in entry["segments_info"]]
    # Id, label id, area, box, crowd: by id. A group of cars is a crowd; what is not evaluated is no segment.
    assert infos == [
        (ROAD, ROAD, 128, [0, 8, 40, 8], 0),
        (POLE, POLE, 64, [8, 0, 8, 8], 0),
        (CAR, CAR, 64, [16, 0, 8, 8], 1),
        (PERSON * 1000, PERSON, 128, [0, 0, 24, 16], 0),
        (PERSON * 1000 + 1, PERSON, 64, [32, 0, 8, 8], 0),
        (RIDER * 1000 + 3, RIDER, 64, [24, 0, 8, 8], 0),
    ]
    ids = read_panoptic_png(truth / f"cityscapes_panoptic_val/{entry['file_name']}")
    assert ids[::8, ::8].tolist() == [[24000, 17, 26, 25003, 24001], [7, 0, 24000, 0, 7]]


def test_label_maps_have_training_ids_and_instances_their_masks(truth):
    prepare(truth)
    labels = np.asarray(Image.open(truth / f"val/aachen/{STEM}_gtFine_labelTrainIds.png"))
    assert labels[::8, ::8].tolist() == [[11, 5, 13, 12, 11], [0, 255, 11, 255, 0]]
    content = read(truth, "instances")
    assert [entry["id"] for entry in content["categories"]] == [24, 25, 26, 27, 28, 31, 32, 33]
    found = [(a["category_id"], a["iscrowd"], a["area"]) for a in content["annotations"]]
    assert found == [(CAR, 1, 64), (PERSON, 0, 128), (PERSON, 0, 64), (RIDER, 0, 64)]
    mask = rle.decode(content["annotations"][1]["segmentation"])
    assert (mask[::8, ::8] == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]).all()


def test_the_set_of_detectron2s_name_reads_them_in_the_archives_layout(truth):
    prepare(truth)
    (record,) = panoptic_set_records(NAME, ["panoptic", "instances", "semantic"])
    assert record["file_name"].endswith(f"leftImg8bit/val/aachen/{STEM}_leftImg8bit.png")
    assert record["sem_seg_file_name"].endswith(f"val/aachen/{STEM}_gtFine_labelTrainIds.png")
    assert record["instance_map_file_name"].endswith(f"val/aachen/{STEM}_gtFine_instanceIds.png")
    assert read_panoptic_ids(record).shape == (16, 40) and record["width"] == 40


def test_panoptic_files_that_are_there_stay_and_the_rest_is_completed(truth):
    prepare(truth)
    (truth / "cityscapes_instances_val.json").unlink()
    path = truth / "cityscapes_panoptic_val.json"
    path.write_text(path.read_text().replace('"info"', '"of cityscapesscripts"'))
    before = path.read_text()
    assert prepare(truth)[1:4] == (1, 0, 0)
    assert path.read_text() == before and read(truth, "instances")["annotations"]
    assert prepare(truth)[1:4] == (0, 1, 0)
    assert prepare(truth, overwrite=True)[1:4] == (1, 0, 0) and path.read_text() != before


def test_files_that_are_missing_or_of_something_else_are_named(truth):
    place = truth / "val/aachen"
    labels = place / f"{STEM}_gtFine_labelIds.png"
    save(labels, grown([[34]]))
    with pytest.raises(InputError, match="labelIds.png has the label id 34.*gtFine_trainvaltest"):
        prepare(truth)
    save(labels, grown([[7]]))
    with pytest.raises(InputError, match="labelIds.png is 8 x 8, its image .* is 40 x 16"):
        prepare(truth)
    labels.unlink()
    with pytest.raises(InputError, match="labelIds.png is missing"):
        prepare(truth)
    image = truth.parent / f"leftImg8bit/val/aachen/{STEM}_leftImg8bit.png"
    write_city_image(truth.parent.parent)
    image.write_bytes(b"no image")
    with pytest.raises(InputError, match="leftImg8bit.png of .* cannot be decoded"):
        prepare(truth)
    image.unlink()
    with pytest.raises(InputError, match="image .*leftImg8bit.png of .*instanceIds.png is missing"):
        prepare(truth)
    save(place / f"{STEM}_gtFine_instanceIds.png", [[35000]], np.uint16)
    with pytest.raises(InputError, match="instanceIds.png has the label id 35"):
        prepare(truth)
    shutil.rmtree(truth / "val")
    with pytest.raises(InputError, match="gtFine/val is missing.*\n.*gtFine_trainvaltest.zip"):
        prepare(truth)
