"""Mapillary Vistas' files for evaluation: with the archive's panoptic files, and made of the instance maps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from clipself_seg.data.datasets.records import panoptic_set_records
from clipself_seg.data.masks import read_panoptic_ids, read_panoptic_png
from clipself_seg.data.prepare.common import Options
from clipself_seg.data.prepare.vistas import prepare_vistas
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError
from tests.archives import grown, write_vistas_image
from tests.panoptic_worlds import save_ids

NAME = "mapillary_vistas_panoptic_val"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return write_vistas_image(tmp_path)


def prepare(folder, **options):
    (done,) = prepare_vistas(Options(folder.parent.parent, **options), ["validation"])
    return done


def write_archived(folder, stem="a-B_1"):
    """Panoptic files as the archive has them: ids of its own, a crowd of birds, names that are left out."""
    ids = [[900, 900, 4, 4], [56, 14, 0, 900]]
    save_ids(folder / f"panoptic/{stem}.png", grown(ids))
    infos = [
        {"id": number, "category_id": category, "area": 64, "bbox": [0, 0, 8, 8], "iscrowd": crowd}
        for number, category, crowd in ((900, 1, 1), (4, 4, 0), (56, 56, 0), (14, 14, 0))
    ]
    classes = load_vocabulary("mapillary_vistas_65").classes
    content = {
        "info": {"description": "of the archive"},
        "images": [{"id": stem, "file_name": f"{stem}.jpg", "height": 16, "width": 32}],
        "annotations": [{"image_id": stem, "file_name": f"{stem}.png", "segments_info": infos}],
        "categories": [{"id": c.dataset_id, "isthing": int(c.isthing)} for c in classes],
    }
    path = folder / "panoptic/panoptic_2018.json"
    path.write_text(json.dumps(content))
    return path


def test_without_panoptic_files_they_are_made_of_the_instance_maps(folder):
    done = prepare(folder)
    assert done[1:4] == (1, 0, 0) and "were made of the instance maps" in str(done)
    content = json.loads((folder / "panoptic/panoptic_2018.json").read_text())
    (entry,) = content["annotations"]
    # Both numbers of the fence are one segment, the two birds are two; category ids count from 1.
    infos = [(i["id"], i["category_id"], i["area"]) for i in entry["segments_info"]]
    assert infos == [
        (1, 1, 128), (2, 1, 64), (3 * 256 + 1, 4, 128), (13 * 256 + 1, 14, 64), (55 * 256 + 3, 56, 64)
    ]  # fmt: skip
    ids = read_panoptic_png(folder / "panoptic/a-B_1.png")[::8, ::8]
    assert ids.tolist() == [[1, 2, 769, 769], [55 * 256 + 3, 13 * 256 + 1, 0, 1]]
    things = json.loads((folder / "instances_detectron2.json").read_text())
    assert [a["category_id"] for a in things["annotations"]] == [1, 1, 56]
    assert len(content["categories"]) == 65 and len(things["categories"]) == 37
    assert prepare(folder)[1:4] == (0, 1, 0)
    assert prepare(folder, overwrite=True)[1:4] == (1, 0, 0)


@pytest.mark.parametrize("archived", [False, True])
def test_label_maps_ignore_255_where_the_archive_says_65(folder, archived):
    if archived:
        write_archived(folder)
    prepare(folder)
    labels = np.asarray(Image.open(folder / "labels_detectron2/a-B_1.png"))
    assert labels[::8, ::8].tolist() == [[0, 0, 3, 3], [55, 13, 255, 0]]
    (record,) = panoptic_set_records(NAME, ["panoptic", "instances", "semantic"])
    assert record["file_name"] == str(folder / "images/a-B_1.jpg")
    assert record["sem_seg_file_name"] == str(folder / "labels_detectron2/a-B_1.png")
    assert read_panoptic_ids(record).shape == (16, 32)


def test_the_archives_panoptic_files_stay_and_give_the_instances(folder):
    path = write_archived(folder)
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    done = prepare(folder)
    assert done[1:4] == (1, 0, 0) and "are the archive's" in str(done)
    things = json.loads((folder / "instances_detectron2.json").read_text())["annotations"]
    found = [(a["category_id"], a["iscrowd"], a["area"], a["bbox"]) for a in things]
    assert found == [(1, 1, 192, [0, 0, 32, 16]), (56, 0, 64, [0, 8, 8, 8])]
    assert prepare(folder, overwrite=True)[1:4] == (1, 0, 0)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_other_versions_and_missing_files_are_refused_with_what_to_do(folder, tmp_path):
    path = write_archived(folder)
    content = json.loads(path.read_text())
    content["categories"].append({"id": 66, "isthing": 0})
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="66 categories, which are not the 65 .* has the id 66"):
        prepare(folder)
    content["categories"] = [c | {"isthing": 1} for c in content["categories"][:65]]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="differs has the id 3"):
        prepare(folder)
    write_archived(folder)
    (folder / "panoptic/a-B_1.png").unlink()
    with pytest.raises(InputError, match="panoptic PNG .*a-B_1.png is missing"):
        prepare(folder)
    path.unlink()
    write_vistas_image(tmp_path, values=[[66 * 256]])
    with pytest.raises(InputError, match="instances/a-B_1.png has the label 66, where v1.2 has 0 "):
        prepare(folder)
    (folder / "v1.2").mkdir()
    (folder / "labels").rename(folder / "v1.2/labels")
    with pytest.raises(InputError, match="of the archive v2.0.*: move what is in .*/v1.2 to"):
        prepare(folder)
    (folder / "v1.2/labels").rename(folder / "elsewhere")
    (folder / "v1.2").rmdir()
    with pytest.raises(InputError, match="labels is missing.*\n.*Mapillary Vistas v1.2"):
        prepare(folder)
