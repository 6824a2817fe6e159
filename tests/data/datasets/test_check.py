"""Every state that a data set can be in is told from the others, with what mends it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipself_seg.data.datasets.check import Options, check_datasets
from clipself_seg.data.datasets.table import DATASETS
from clipself_seg.data.prepare.ade import prepare_ade150
from clipself_seg.data.prepare.common import Options as PrepareOptions
from clipself_seg.errors import InputError
from tests.tiny import write_tiny_coco

ADE = "ade20k_150_test_sem_seg"
COUNT = 5


@pytest.fixture
def ade(tmp_path, monkeypatch):
    """The archive of a split of five images, which is the official number here."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    files = replace(DATASETS[ADE], official_count=COUNT)
    monkeypatch.setitem(DATASETS, ADE, files)
    folder = tmp_path / "ADEChallengeData2016"
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        for kind, suffix, shape in (
            ("images", "jpg", (20, 30, 3)),
            ("annotations", "png", (20, 30)),
        ):
            path = folder / kind / "validation" / f"ADE_val_{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(1, 151, shape, dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def prepared(ade, tmp_path):
    """The same, prepared; the folder of the label maps."""
    prepare_ade150(PrepareOptions(tmp_path))
    return ade / "annotations_detectron2/validation"


def check(name=ADE, **options):
    (finding,) = check_datasets([name], Options(**options))
    return finding


def label_map(values, folder, number):
    Image.fromarray(values.astype(np.uint8)).save(folder / f"ADE_val_{number}.png")


def test_complete(prepared):
    finding = check()
    assert finding.state == "complete" and finding.fine
    assert finding[2:] == (COUNT, COUNT, COUNT, COUNT, 0, 0, 0, (), "")


def test_absent_and_unprepared_name_the_way(ade):
    finding = check()
    assert finding.state == "unprepared" and finding.mend == "clipself-seg data prepare ade150"
    shutil.rmtree(ade / "images")
    finding = check()
    assert finding.state == "absent" and not finding.subset_allowed().fine
    assert (
        "ADEChallengeData2016.zip" in finding.mend
        and "clipself-seg data prepare ade150" in finding.mend
    )


def test_an_interrupted_preparation_is_incomplete_even_as_a_subset(prepared):
    (prepared / "ADE_val_3.png").unlink()
    finding = check()
    assert finding.state == "incomplete" and finding.mend == "clipself-seg data prepare ade150"
    assert "1 images without label map" in finding.notes
    assert not finding.fine and not finding.subset_allowed().fine


def test_a_subset_is_incomplete_and_fine_on_request(prepared, ade):
    (prepared / "ADE_val_3.png").unlink()
    (ade / "images/validation/ADE_val_3.jpg").unlink()
    finding = check()
    assert finding.state == "incomplete" and finding.notes == ("4 of 5 images",)
    assert not finding.fine and finding.subset_allowed().fine


def test_label_maps_without_image_count(prepared, ade):
    (ade / "images/validation/ADE_val_3.jpg").unlink()
    finding = check()
    assert finding.state == "incomplete" and "1 label maps without image" in finding.notes
    assert "ADEChallengeData2016.zip" in finding.mend and "prepare" not in finding.mend


@pytest.mark.parametrize(
    "values, words",
    [
        (np.full((20, 30), 150), "has the value 150: expected 0 to 149"),
        (np.zeros((20, 31)), "is 31 x 20, its image .* is 30 x 20"),
    ],
)
def test_label_maps_that_cannot_be_used_are_broken(prepared, values, words):
    label_map(values, prepared, 2)
    finding = check()
    assert finding.state == "broken" and finding.broken == 1 and finding.read == COUNT
    assert finding.mend == "clipself-seg data prepare ade150 --overwrite"
    (note,) = finding.notes
    assert re.search(f"ADE_val_2.png {words}", note)


def test_maps_of_an_archive_in_the_place_of_prepared_ones_are_broken(prepared, ade):
    for number in range(COUNT):
        label_map(np.full((20, 30), 150), prepared, number)
    finding = check()
    assert finding.broken == COUNT and len(finding.notes) == 4
    assert finding.notes[-1] == "and 2 more such files"


def test_blank_label_maps_are_counted_and_no_fault(prepared):
    label_map(np.full((20, 30), 255), prepared, 2)
    finding = check()
    assert finding.state == "complete" and finding.blank == 1
    assert finding.notes == ("1 of 5 label maps have no labelled pixel",)


def test_a_sample_is_spread_evenly_and_full_reads_all(prepared):
    label_map(np.full((20, 30), 255), prepared, 4)
    assert check(sample=2)[5:8] == (2, 0, 0)
    assert check(sample=0)[5:8] == (COUNT, 0, 1)


def test_a_cut_picture_is_broken(prepared, ade):
    path = ade / "images/validation/ADE_val_1.jpg"
    path.write_bytes(path.read_bytes()[:200])
    finding = check()
    assert finding.state == "broken" and "ADE_val_1.jpg cannot be decoded" in finding.notes[0]
    assert "ADEChallengeData2016.zip" in finding.mend and "prepare" not in finding.mend


def test_preparing_is_no_advice_without_what_it_reads(prepared, ade):
    raw = ade / "annotations/validation"
    (raw / "ADE_val_3.png").rename(ade / "ADE_val_3.png")
    (prepared / "ADE_val_3.png").unlink()
    finding = check()
    first, then = finding.mend.split("; then ")
    assert "ADEChallengeData2016.zip" in first and then == "clipself-seg data prepare ade150"
    assert finding.notes[:2] == (
        "1 images without label map",
        "1 of these lack what they are prepared from",
    )
    # A map whose archive's file is there, and one whose archive's file is not.
    (ade / "ADE_val_3.png").rename(raw / "ADE_val_3.png")
    assert check().mend == "clipself-seg data prepare ade150"
    (prepared / "ADE_val_2.png").write_bytes(b"")
    assert check().mend == "clipself-seg data prepare ade150 --overwrite"
    (raw / "ADE_val_2.png").unlink()
    assert check().mend.startswith("the archive is not whole: unpack ADEChallengeData2016.zip")
    shutil.rmtree(ade / "annotations")
    shutil.rmtree(prepared)
    finding = check()
    assert finding.state == "incomplete" and not finding.subset_allowed().fine
    assert any("annotations/validation is missing" in note for note in finding.notes)
    assert finding.mend.startswith("the archive is not whole: unpack ADEChallengeData2016.zip")


@pytest.fixture
def coco(data_dir, tmp_path, monkeypatch):
    """The real small validation split, which is the official number here."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in ("coco_2017_val_panoptic", "coco_2017_val"):
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], official_count=50))
    for folder in ("val2017", "panoptic_val2017"):
        shutil.copytree(
            data_dir / "coco" / folder, tmp_path / "coco" / folder, copy_function=shutil.copyfile
        )
    (tmp_path / "coco/annotations").mkdir()
    for kind in ("panoptic", "instances"):
        name = f"coco/annotations/{kind}_val2017.json"
        shutil.copyfile(data_dir / name, tmp_path / name)
    return tmp_path / "coco"


def test_cocos_formats(coco):
    finding = check("coco_2017_val_panoptic")
    assert finding[:9] == ("coco_2017_val_panoptic", "complete", 50, 50, 50, 50, 0, 0, 0)
    assert check("coco_2017_val").state == "complete"
    assert check("lvis_v1_train").state == "absent"
    path = sorted((coco / "panoptic_val2017").iterdir())[7]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])
    finding = check("coco_2017_val_panoptic")
    assert finding.state == "broken" and path.name in finding.notes[0]
    sorted((coco / "val2017").iterdir())[3].unlink()
    finding = check("coco_2017_val")
    assert finding.state == "incomplete" and "cocodataset.org" in finding.mend
    assert "1 images of the annotation file are not there" in finding.notes
    (coco / "annotations/instances_val2017.json").write_text("{")
    assert check("coco_2017_val").state == "broken"


def test_captions(tmp_path, monkeypatch):
    write_tiny_coco(tmp_path, images=2)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    finding = check("coco_2017_train_captions").subset_allowed()
    assert finding.fine and finding.images == 2


def test_boxes_with_nouns(tmp_path, monkeypatch):
    write_tiny_coco(tmp_path, images=2)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    finding = check("coco_2017_train_region_text")
    assert finding.state == "complete" and finding.images == 2
    path = tmp_path / "coco/annotations/coco_pseudo_4764.json"
    path.write_text(path.read_text().replace('"grass-merged"', '"cat"'))
    finding = check("coco_2017_train_region_text")
    assert finding.state == "broken" and "repeats the id or name" in finding.notes[0]
    path.unlink()
    finding = check("coco_2017_train_region_text")
    assert finding.state == "absent" and "clipself-seg data region-text" in finding.mend


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match=f'did you mean "{ADE}"'):
        check("ade20k_150_test")
