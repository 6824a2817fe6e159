"""ADE20K from the archives' values to indices: every pixel by the hand formula, on real files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipself_seg.data.datasets.records import sem_seg_records
from clipself_seg.data.images import jpeg_quality
from clipself_seg.data.prepare.ade import prepare_ade150, prepare_ade847
from clipself_seg.data.prepare.common import Options
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError
from tests.archives import check_registered, pixels


def test_ade150(copy, tmp_path):
    folder = copy("ADEChallengeData2016")
    (done,) = prepare_ade150(Options(tmp_path))
    assert done[1:4] == (17, 0, 0) and str(done).endswith("17 written, 0 there already")
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
    assert done[1:4] == (1, 0, 0)
    source = next(folder.rglob("*_seg.png"))
    rgb, stem = pixels(source).astype(int), source.name.removesuffix("_seg.png")
    labels = Image.open(folder / f"annotations_detectron2/training/{stem}.tif")
    image = Image.open(folder / f"images_detectron2/training/{stem}.jpg")
    height, width = rgb.shape[:2]
    assert image.size == labels.size == shrunk(width, height)
    assert labels.mode == "I;16"
    # Pillow's default, as published; OpenCV's would have 210 kB.
    path = Path(image.filename)
    assert jpeg_quality(path) == 75 and 85_000 < path.stat().st_size < 105_000
    prepare_ade847(Options(tmp_path, overwrite=True), ["training"], quality=95)
    assert jpeg_quality(path) == 95
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


def write_ade_image(root, width, height):
    """A validation image whose left half is class 0 (wall), its right half an unknown object."""
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
    write_ade_image(tmp_path, *size)
    prepare_ade847(Options(tmp_path))
    (record,) = sem_seg_records("ade20k_full_sem_seg_freq_val_all")
    assert Image.open(record["file_name"]).size == expected
    labels = pixels(record["sem_seg_file_name"])
    assert labels.dtype == np.uint16 and labels.shape[::-1] == expected
    assert (labels[:, : expected[0] // 2] == 0).all()
    assert (labels[:, expected[0] // 2 :] == 65535).all()


def test_maps_that_are_not_the_archives_are_refused(copy, tmp_path):
    folder = copy("ADEChallengeData2016") / "annotations/validation"
    path = sorted(folder.iterdir())[0]
    Image.fromarray(np.full((2, 2), 151, np.uint8)).save(path)
    with pytest.raises(InputError, match=f"{path.name} is not one of the challenge's maps"):
        prepare_ade150(Options(tmp_path))
    path.write_bytes(b"")
    with pytest.raises(InputError, match=f"{path.name} cannot be decoded .*unpack its archive"):
        prepare_ade150(Options(tmp_path))
