"""Every state of a panoptic data set is told from the others, with what mends it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipself_seg.data.captions import read_phrases
from clipself_seg.data.datasets.check import Options, check_datasets
from clipself_seg.data.datasets.table import DATASETS
from clipself_seg.data.prepare.cityscapes import prepare_cityscapes
from clipself_seg.data.prepare.coco import prepare_coco_panoptic_semseg
from clipself_seg.data.prepare.common import Options as PrepareOptions
from clipself_seg.data.prepare.vistas import prepare_vistas
from clipself_seg.errors import InputError
from tests.small_coco import write_small_coco
from tests.street_worlds import write_city_image, write_vistas_image

COCO, ADE = "coco_2017_val_panoptic_with_sem_seg", "ade20k_panoptic_val"
COUNT = 4


@pytest.fixture
def coco(data_dir, tmp_path, monkeypatch):
    """Four images of the real validation split, which is the official number here."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    files = replace(DATASETS[COCO], official_count=COUNT)
    monkeypatch.setitem(DATASETS, COCO, files)
    return write_small_coco(data_dir, tmp_path, COUNT)


@pytest.fixture
def prepared(coco):
    prepare_coco_panoptic_semseg(PrepareOptions(coco.parent), ["val2017"])
    return coco


def check(name=COCO, **options):
    (finding,) = check_datasets([name], Options(**options))
    return finding


def pngs(folder, kind):
    return sorted((folder / f"{kind}_val2017").iterdir())


def test_complete_without_captions_which_are_a_note(prepared):
    finding = check()
    assert finding[:9] == (COCO, "complete", COUNT, COUNT, COUNT, COUNT, 0, 0, 0)
    (note,) = finding.notes
    assert "panoptic_caption_val2017.json, which only training on captions needs" in note
    assert finding.fine and finding.mend == ""
    assert check(sample=2).read == 2


def test_unprepared_names_the_command(coco):
    finding = check()
    assert finding.state == "unprepared" and "panoptic_semseg_val2017" in finding.notes[0]
    command = "clipself-seg data prepare coco_panoptic_semseg --splits val2017"
    assert finding.mend == command and not finding.subset_allowed().fine


def test_what_is_missing_of_the_archive_is_told_from_no_archive(prepared):
    (prepared / "annotations/instances_val2017.json").unlink()
    finding = check()
    assert finding.state == "incomplete" and "instances_val2017.json" in finding.notes[0]
    assert "cocodataset.org" in finding.mend
    (prepared / "annotations/panoptic_val2017.json").unlink()
    assert check().state == "absent"


def test_single_files_that_are_missing_are_counted_with_what_brings_them(prepared):
    images = sorted((prepared / "val2017").iterdir())
    images[0].unlink()
    pngs(prepared, "panoptic")[1].unlink()
    pngs(prepared, "panoptic_semseg")[2].unlink()
    finding = check()
    assert finding.state == "incomplete" and finding[2:4] == (3, 1) and finding.missing == 3
    assert finding.notes[:3] == (
        "1 images of the annotation file are not there",
        "1 images have no panoptic PNG",
        "1 images have no label map",
    )
    assert "cocodataset.org" in finding.mend and "prepare coco_panoptic_semseg" in finding.mend
    assert not finding.subset_allowed().fine


def test_a_subset_is_fine_on_request(prepared, monkeypatch):
    files = replace(DATASETS[COCO], official_count=5000)
    monkeypatch.setitem(DATASETS, COCO, files)
    finding = check()
    assert finding.state == "incomplete" and f"{COUNT} of 5000 images" in finding.notes
    assert finding.subset_allowed().fine and not finding.fine
    assert "the archive is not whole" in finding.mend


def test_broken_label_maps_and_broken_pngs_have_their_own_remedy(prepared):
    path = pngs(prepared, "panoptic_semseg")[1]
    Image.fromarray(np.full((7, 9), 133, np.uint8)).save(path)
    finding = check()
    assert finding.state == "broken" and f"label map {path} is 9 x 7" in finding.notes[1]
    again = "clipself-seg data prepare coco_panoptic_semseg --splits val2017 --overwrite"
    assert finding.mend == again
    Image.fromarray(np.zeros((7, 9, 3), np.uint8)).save(pngs(prepared, "panoptic")[0])
    finding = check()
    assert finding.broken == 2 and "cocodataset.org" in finding.mend and again in finding.mend
    assert "disagree" in finding.notes[1]


def test_a_panoptic_json_of_a_part_is_a_subset_beside_the_whole_splits_instances(prepared):
    path = prepared / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["images"] = content["images"][1:]
    wanted = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in wanted]
    path.write_text(json.dumps(content))
    finding = check()
    assert finding.state == "incomplete" and finding.mend
    allowed = finding.subset_allowed()
    assert (allowed.state, allowed.mend, allowed.labelled) == ("subset", "", COUNT - 1)
    assert allowed.fine


def test_annotation_files_that_do_not_fit_are_broken(prepared):
    path = prepared / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["id"] = 77
    path.write_text(json.dumps(content))
    finding = check()
    assert finding.state == "broken" and "lacks images that" in finding.notes[0]
    (prepared / "annotations/panoptic_val2017.json").write_text("{")
    assert "cannot be read" in check().notes[0]


def test_ade_that_is_absent_or_unprepared_says_all_that_is_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    finding = check(ADE)
    assert finding.state == "absent" and "ADEChallengeData2016.zip" in finding.mend
    (tmp_path / "ade/ADEChallengeData2016/images/validation").mkdir(parents=True)
    finding = check(ADE)
    assert finding.state == "unprepared" and "ade/ADEChallengeData2016" in finding.notes[0]
    assert finding.mend == (
        "clipself-seg data prepare ade20k_panoptic --splits validation; then "
        "clipself-seg data prepare ade150 --splits validation"
    )


def test_captions_without_phrases_say_how_to_get_them(tmp_path):
    path = tmp_path / "captions.json"
    entries = [{"image_id": 3, "phrases": ["a dog"]}, {"image_id": 4, "phrases": []}]
    entries.append({"image_id": 3, "phrases": ["grass", "sky"]})
    path.write_text(json.dumps({"annotations": entries}))
    assert read_phrases(path) == {3: [["a dog"], ["grass", "sky"]], 4: [[]]}
    path.write_text(json.dumps({"annotations": [{"image_id": 3, "caption": "A dog."}]}))
    with pytest.raises(InputError, match="captions.json: a caption needs .*prepare coco_captions"):
        read_phrases(path)


@pytest.mark.parametrize(
    "name, write, prepare, split",
    [
        ("cityscapes_fine_panoptic_val", write_city_image, prepare_cityscapes, "val"),
        ("mapillary_vistas_panoptic_val", write_vistas_image, prepare_vistas, "validation"),
    ],
)
def test_streets_are_absent_unprepared_or_as_large_as_they_are(
    tmp_path, monkeypatch, name, write, prepare, split
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    command = DATASETS[name].prepare
    assert check(name).state == "absent" and check(name).mend.endswith(command)
    write(tmp_path)
    finding = check(name)
    assert (finding.state, finding.mend) == ("unprepared", command)
    prepare(PrepareOptions(tmp_path), [split])
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], official_count=1))
    finding = check(name)
    assert finding.state == "complete" and (finding.images, finding.labelled) == (1, 1)
    for label_map in tmp_path.rglob("*_labelTrainIds.png"):
        label_map.unlink()
    for label_map in tmp_path.rglob("labels_detectron2/*.png"):
        label_map.unlink()
    assert check(name).mend == command and not check(name).fine
