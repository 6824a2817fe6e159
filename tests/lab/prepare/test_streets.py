"""Cityscapes' files are what cityscapesscripts writes, Vistas' the archive's or made of its instance maps."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from clipself_seg.data.datasets.records import panoptic_set_records
from clipself_seg.data.masks import read_panoptic_ids, read_panoptic_png
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from lab.prepare.common import Options
from lab.prepare.streets import prepare_cityscapes, prepare_vistas
from tests.archives import (
    CAR,
    PERSON,
    POLE,
    RIDER,
    ROAD,
    grown,
    save,
    write_city_image,
    write_vistas_image,
)
from tests.panoptic_worlds import save_ids

STEM = "aachen_000000_000019"
CITYSCAPES = "cityscapes_fine_panoptic_val"


@pytest.fixture
def truth(datasets_root):
    """gtFine of a tree of one image."""
    return write_city_image(datasets_root).parent.parent


def prepare_city(truth, **options):
    (done,) = prepare_cityscapes(Options(truth.parent.parent, **options), ["val"])
    return done


def read(truth, kind):
    return json.loads((truth / f"cityscapes_{kind}_val.json").read_text())


def test_segments_are_those_of_cityscapesscripts_by_hand(truth):
    assert prepare_city(truth)[1:4] == (1, 0, 0)
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
    prepare_city(truth)
    labels = np.asarray(Image.open(truth / f"val/aachen/{STEM}_gtFine_labelTrainIds.png"))
    assert labels[::8, ::8].tolist() == [[11, 5, 13, 12, 11], [0, 255, 11, 255, 0]]
    content = read(truth, "instances")
    assert [entry["id"] for entry in content["categories"]] == [24, 25, 26, 27, 28, 31, 32, 33]
    found = [(a["category_id"], a["iscrowd"], a["area"]) for a in content["annotations"]]
    assert found == [(CAR, 1, 64), (PERSON, 0, 128), (PERSON, 0, 64), (RIDER, 0, 64)]
    mask = rle.decode(content["annotations"][1]["segmentation"])
    assert (mask[::8, ::8] == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]).all()


def test_the_set_of_detectron2s_name_reads_them_in_the_archives_layout(truth):
    prepare_city(truth)
    (record,) = panoptic_set_records(CITYSCAPES, ["panoptic", "instances", "semantic"])
    assert record["file_name"].endswith(f"leftImg8bit/val/aachen/{STEM}_leftImg8bit.png")
    assert record["sem_seg_file_name"].endswith(f"val/aachen/{STEM}_gtFine_labelTrainIds.png")
    assert record["instance_map_file_name"].endswith(f"val/aachen/{STEM}_gtFine_instanceIds.png")
    assert read_panoptic_ids(record).shape == (16, 40) and record["width"] == 40


def test_panoptic_files_that_are_there_stay_and_the_rest_is_completed(truth):
    prepare_city(truth)
    (truth / "cityscapes_instances_val.json").unlink()
    path = truth / "cityscapes_panoptic_val.json"
    path.write_text(path.read_text().replace('"info"', '"of cityscapesscripts"'))
    before = path.read_text()
    assert prepare_city(truth)[1:4] == (1, 0, 0)
    assert path.read_text() == before and read(truth, "instances")["annotations"]
    assert prepare_city(truth)[1:4] == (0, 1, 0)
    assert prepare_city(truth, overwrite=True)[1:4] == (1, 0, 0) and path.read_text() != before


def test_files_that_are_missing_or_of_something_else_are_named(truth):
    place = truth / "val/aachen"
    labels = place / f"{STEM}_gtFine_labelIds.png"
    save(labels, grown([[34]]))
    with pytest.raises(InputError, match="labelIds.png has the label id 34.*gtFine_trainvaltest"):
        prepare_city(truth)
    save(labels, grown([[7]]))
    with pytest.raises(InputError, match="labelIds.png is 8 x 8, its image .* is 40 x 16"):
        prepare_city(truth)
    (truth.parent / f"leftImg8bit/val/aachen/{STEM}_leftImg8bit.png").unlink()
    with pytest.raises(InputError, match="image .*leftImg8bit.png of .*instanceIds.png is missing"):
        prepare_city(truth)
    save(place / f"{STEM}_gtFine_instanceIds.png", [[35000]], np.uint16)
    with pytest.raises(InputError, match="instanceIds.png has the label id 35"):
        prepare_city(truth)
    shutil.rmtree(truth / "val")
    with pytest.raises(InputError, match="gtFine/val is missing.*\n.*gtFine_trainvaltest.zip"):
        prepare_city(truth)


VISTAS = "mapillary_vistas_panoptic_val"


@pytest.fixture
def vistas(datasets_root):
    return write_vistas_image(datasets_root)


def prepare_vistas_val(vistas, **options):
    (done,) = prepare_vistas(Options(vistas.parent.parent, **options), ["validation"])
    return done


def write_archived(vistas, stem="a-B_1"):
    """Panoptic files as the archive has them: ids of its own, a crowd of birds, names that are left out."""
    ids = [[900, 900, 4, 4], [56, 14, 0, 900]]
    save_ids(vistas / f"panoptic/{stem}.png", grown(ids))
    infos = [
        {"id": number, "category_id": category, "area": 64, "bbox": [0, 0, 8, 8], "iscrowd": crowd}
        for number, category, crowd in ((900, 1, 1), (4, 4, 0), (56, 56, 0), (14, 14, 0))
    ]
    classes = Vocabulary.load("mapillary_vistas_65").classes
    content = {
        "info": {"description": "of the archive"},
        "images": [{"id": stem, "file_name": f"{stem}.jpg", "height": 16, "width": 32}],
        "annotations": [{"image_id": stem, "file_name": f"{stem}.png", "segments_info": infos}],
        "categories": [{"id": c.dataset_id, "isthing": int(c.isthing)} for c in classes],
    }
    path = vistas / "panoptic/panoptic_2018.json"
    path.write_text(json.dumps(content))
    return path


def test_without_panoptic_files_they_are_made_of_the_instance_maps(vistas):
    done = prepare_vistas_val(vistas)
    assert done[1:4] == (1, 0, 0) and "were made of the instance maps" in str(done)
    content = json.loads((vistas / "panoptic/panoptic_2018.json").read_text())
    (entry,) = content["annotations"]
    # Both numbers of the fence are one segment, the two birds are two; category ids count from 1.
    infos = [(i["id"], i["category_id"], i["area"]) for i in entry["segments_info"]]
    assert infos == [
        (1, 1, 128), (2, 1, 64), (3 * 256 + 1, 4, 128), (13 * 256 + 1, 14, 64), (55 * 256 + 3, 56, 64)
    ]  # fmt: skip
    ids = read_panoptic_png(vistas / "panoptic/a-B_1.png")[::8, ::8]
    assert ids.tolist() == [[1, 2, 769, 769], [55 * 256 + 3, 13 * 256 + 1, 0, 1]]
    things = json.loads((vistas / "instances_detectron2.json").read_text())
    assert [a["category_id"] for a in things["annotations"]] == [1, 1, 56]
    assert len(content["categories"]) == 65 and len(things["categories"]) == 37
    assert prepare_vistas_val(vistas)[1:4] == (0, 1, 0)
    assert prepare_vistas_val(vistas, overwrite=True)[1:4] == (1, 0, 0)
    assert "were made of the instance maps" in str(prepare_vistas_val(vistas))


@pytest.mark.parametrize("archived", [False, True])
def test_label_maps_ignore_255_where_the_archive_says_65(vistas, archived):
    if archived:
        write_archived(vistas)
    prepare_vistas_val(vistas)
    labels = np.asarray(Image.open(vistas / "labels_detectron2/a-B_1.png"))
    assert labels[::8, ::8].tolist() == [[0, 0, 3, 3], [55, 13, 255, 0]]
    (record,) = panoptic_set_records(VISTAS, ["panoptic", "instances", "semantic"])
    assert record["file_name"] == str(vistas / "images/a-B_1.jpg")
    assert record["sem_seg_file_name"] == str(vistas / "labels_detectron2/a-B_1.png")
    assert read_panoptic_ids(record).shape == (16, 32)


def test_the_archives_panoptic_files_stay_and_give_the_instances(vistas):
    path = write_archived(vistas)
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    done = prepare_vistas_val(vistas)
    assert done[1:4] == (1, 0, 0) and "are the archive's" in str(done)
    things = json.loads((vistas / "instances_detectron2.json").read_text())["annotations"]
    found = [(a["category_id"], a["iscrowd"], a["area"], a["bbox"]) for a in things]
    assert found == [(1, 1, 192, [0, 0, 32, 16]), (56, 0, 64, [0, 8, 8, 8])]
    assert prepare_vistas_val(vistas, overwrite=True)[1:4] == (1, 0, 0)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_other_versions_and_missing_files_are_refused_with_what_to_do(vistas, tmp_path):
    path = write_archived(vistas)
    content = json.loads(path.read_text())
    content["categories"].append({"id": 66, "isthing": 0})
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="66 categories, which are not the 65 .* has the id 66"):
        prepare_vistas_val(vistas)
    content["categories"] = [c | {"isthing": 1} for c in content["categories"][:65]]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="differs has the id 3"):
        prepare_vistas_val(vistas)
    write_archived(vistas)
    (vistas / "panoptic/a-B_1.png").unlink()
    with pytest.raises(InputError, match="panoptic PNG .*a-B_1.png is missing"):
        prepare_vistas_val(vistas)
    path.unlink()
    write_vistas_image(tmp_path, values=[[66 * 256]])
    with pytest.raises(InputError, match="instances/a-B_1.png has the label 66, where v1.2 has 0 "):
        prepare_vistas_val(vistas)
    (vistas / "labels").rename(vistas / "elsewhere")
    with pytest.raises(InputError, match="labels is missing.*\n.*Mapillary Vistas v1.2"):
        prepare_vistas_val(vistas)
