"""From the archives' layout to indices: every pixel by the hand formula, on real files."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from clipself_seg.data.datasets.sem_seg import sem_seg_dataset, sem_seg_records
from clipself_seg.data.label_maps import read_label_map
from clipself_seg.data.prepare.ade import prepare_ade150, prepare_ade847
from clipself_seg.data.prepare.coco_stuff import prepare_coco_stuff
from clipself_seg.data.prepare.common import Options
from clipself_seg.data.prepare.voc import prepare_voc20
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture
def copy(data_dir, tmp_path, monkeypatch):
    """Copies a folder of the real data to where the data sets are looked for."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def copy_folder(name):
        for path in sorted((data_dir / name).rglob("*")):
            if path.is_file():
                target = tmp_path / path.relative_to(data_dir)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        return tmp_path / name

    return copy_folder


def check_registered(name, count):
    files = sem_seg_dataset(name)
    records, classes = sem_seg_records(name), len(load_vocabulary(files.vocabulary))
    assert len(records) == count
    for record in records:
        read_label_map(
            record["sem_seg_file_name"],
            num_classes=files.label_count(classes),
            ignore_label=files.ignore_label,
            size=Image.open(record["file_name"]).size,
        )


# The 171 official ids without the 11 that no class has; index by counting.
COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


def test_coco_stuff(copy, tmp_path):
    folder = copy("coco-stuff")
    train, val = prepare_coco_stuff(Options(tmp_path, processes=2))
    assert train[1:] == (60, 0, 0) and val[1:] == (20, 0, 0)
    used = [number for number in range(1, 183) if number not in COCO_UNUSED]
    assert len(used) == 171
    for path in sorted((folder / "annotations").rglob("*.png")):
        before = pixels(path)
        after = pixels(folder / "annotations_detectron2" / path.parent.name / path.name)
        assert after.dtype == np.uint8
        for value in np.unique(before).tolist():
            expected = used.index(value + 1) if value + 1 in used else 255
            assert (after[before == value] == expected).all()
    check_registered("coco_2017_train_stuff_all_sem_seg", 60)
    check_registered("coco_2017_test_stuff_all_sem_seg", 20)


def test_ade150(copy, tmp_path):
    folder = copy("ADEChallengeData2016")
    (done,) = prepare_ade150(Options(tmp_path))
    assert done[1:] == (17, 0, 0) and str(done).endswith("17 written, 0 there already")
    for path in (folder / "annotations/validation").iterdir():
        before = pixels(path)
        after = pixels(folder / "annotations_detectron2/validation" / path.name)
        assert after.tolist() == [[v - 1 if v else 255 for v in row] for row in before.tolist()]
    check_registered("ade20k_150_test_sem_seg", 17)


def test_ade847(copy, tmp_path):
    folder = copy("ADE20K_2021_17_01")
    with pytest.raises(InputError, match="images/ADE/validation is missing"):
        prepare_ade847(Options(tmp_path))
    (done,) = prepare_ade847(Options(tmp_path), ["training"])
    assert done[1:] == (1, 0, 0)
    source = next(folder.rglob("*_seg.png"))
    rgb, stem = pixels(source).astype(int), source.name.removesuffix("_seg.png")
    labels = Image.open(folder / f"annotations_detectron2/training/{stem}.tif")
    picture = Image.open(folder / f"images_detectron2/training/{stem}.jpg")
    height, width = rgb.shape[:2]
    assert picture.size == labels.size == shrunk(width, height)
    assert labels.mode == "I;16"
    index_of = load_vocabulary("ade20k_847").dataset_id_to_index
    object_ids = rgb[..., 0] // 10 * 256 + rgb[..., 1]
    whole = np.full((height, width), 65535)
    for number in np.unique(object_ids).tolist():
        whole[object_ids == number] = index_of.get(number, 65535)
    after = np.asarray(labels)
    if labels.size == (width, height):
        assert (after == whole).all()
    assert set(np.unique(after)) <= set(np.unique(whole)) and len(np.unique(after)) >= 13


def shrunk(width, height):
    scale = min(1, 512 / min(width, height))
    return round(width * scale), round(height * scale)


def write_ade_picture(root, width, height):
    """A validation picture whose left half is class 0 (wall), its right half an unknown object."""
    folder = root / "ADE20K_2021_17_01/images/ADE/validation/urban/street"
    folder.mkdir(parents=True)
    rgb = np.zeros((height, width, 3), np.uint8)
    number = load_vocabulary("ade20k_847").classes[0].dataset_id
    rgb[:, : width // 2] = number // 256 * 10 + 3, number % 256, 77
    Image.fromarray(rgb).save(folder / "ADE_val_00000001_seg.png")
    Image.fromarray(rgb).save(folder / "ADE_val_00000001.jpg", quality=98)


@pytest.mark.parametrize("size, expected", [((600, 1200), (512, 1024)), ((512, 700), (512, 700))])
def test_large_ade_pictures_are_reduced_with_their_labels(tmp_path, monkeypatch, size, expected):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_ade_picture(tmp_path, *size)
    prepare_ade847(Options(tmp_path))
    (record,) = sem_seg_records("ade20k_full_sem_seg_freq_val_all")
    assert Image.open(record["file_name"]).size == expected
    labels = pixels(record["sem_seg_file_name"])
    assert labels.dtype == np.uint16 and labels.shape[::-1] == expected
    assert (labels[:, : expected[0] // 2] == 0).all()
    assert (labels[:, expected[0] // 2 :] == 65535).all()


def test_voc_without_and_with_background(copy, tmp_path):
    folder = copy("VOCdevkit/VOC2012")
    # A picture of background only: VOC-20 has no map of it.
    empty = folder / "SegmentationClassAug/2011_000099.png"
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(empty)
    with open(folder / "ImageSets/Segmentation/val.txt", "a") as file:
        file.write("2011_000099\n")
    Image.fromarray(np.zeros((1, 2, 3), np.uint8)).save(folder / "JPEGImages/2011_000099.jpg")
    without, with_background = prepare_voc20(Options(tmp_path))
    assert without[1:] == (3, 0, 1) and with_background[1:] == (4, 0, 0)
    assert "1 without ground truth left out" in str(without)
    for path in (folder / "SegmentationClassAug").iterdir():
        before = pixels(path)
        for name, background in (
            ("annotations_detectron2", 255),
            ("annotations_detectron2_bg", 20),
        ):
            target = folder / name / "val" / path.name
            expected = np.where(before == 0, background, before.astype(int) - 1)
            expected[before == 255] = 255
            if target.exists():
                assert (pixels(target) == expected).all()
            else:
                assert (expected == 255).all() and path == empty
    check_registered("voc_2012_test_sem_seg", 3)
    check_registered("voc_2012_test_background_sem_seg", 4)


def test_a_second_run_keeps_what_is_there_and_overwrite_does_not(copy, tmp_path):
    folder = copy("VOCdevkit/VOC2012") / "annotations_detectron2_bg/val"
    prepare_voc20(Options(tmp_path))
    path = folder / "2011_000003.png"
    written = path.read_bytes()
    path.write_bytes(b"mine")
    assert prepare_voc20(Options(tmp_path))[1][1:] == (0, 3, 0) and path.read_bytes() == b"mine"
    assert prepare_voc20(Options(tmp_path, overwrite=True))[1][1:] == (3, 0, 0)
    assert path.read_bytes() == written


def test_maps_that_are_not_the_archives_are_refused(copy, tmp_path):
    folder = copy("VOCdevkit/VOC2012")
    Image.fromarray(np.full((2, 2), 21, np.uint8)).save(
        folder / "SegmentationClassAug/2011_000003.png"
    )
    with pytest.raises(InputError, match="2011_000003.png is not a map of VOC.*found \\[21\\]"):
        prepare_voc20(Options(tmp_path))
    folder = copy("ADEChallengeData2016") / "annotations/validation"
    path = sorted(folder.iterdir())[0]
    Image.fromarray(np.full((2, 2), 151, np.uint8)).save(path)
    with pytest.raises(InputError, match=f"{path.name} is not one of the challenge's maps"):
        prepare_ade150(Options(tmp_path))
    path.write_bytes(b"")
    with pytest.raises(InputError, match=f"{path.name} cannot be decoded .*unpack its archive"):
        prepare_ade150(Options(tmp_path))


def test_an_archive_that_is_not_there_is_named_with_its_address(tmp_path):
    for prepare, words in (
        (prepare_coco_stuff, "coco-stuff/annotations/train2017 is missing.*\n.*stuffthingmaps"),
        (prepare_ade150, "annotations/validation is missing.*\n.*ADEChallengeData2016.zip"),
        (prepare_ade847, "images/ADE/validation is missing.*\n.*ADE20K_2021_17_01"),
        (prepare_voc20, "val.txt is missing.*\n.*VOCtrainval_11-May-2012.tar"),
    ):
        with pytest.raises(InputError, match=words):
            prepare(Options(tmp_path))
