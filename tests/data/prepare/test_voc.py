"""VOC from the archive's maps to indices: every pixel by the hand formula, on real files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clipself_seg.data.prepare.common import Options
from clipself_seg.data.prepare.pascal import prepare_voc20
from clipself_seg.errors import InputError
from tests.prepared_maps import check_registered, pixels


def test_voc_without_and_with_background(copy, tmp_path):
    folder = copy("VOCdevkit/VOC2012")
    # An image of background only: VOC-20 has no map of it.
    empty = folder / "SegmentationClassAug/2011_000099.png"
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(empty)
    with open(folder / "ImageSets/Segmentation/val.txt", "a") as file:
        file.write("2011_000099\n")
    Image.fromarray(np.zeros((1, 2, 3), np.uint8)).save(folder / "JPEGImages/2011_000099.jpg")
    without, with_background = prepare_voc20(Options(tmp_path))
    assert without[1:4] == (3, 0, 1) and with_background[1:4] == (4, 0, 0)
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
    assert prepare_voc20(Options(tmp_path))[1][1:4] == (0, 3, 0) and path.read_bytes() == b"mine"
    assert prepare_voc20(Options(tmp_path, overwrite=True))[1][1:4] == (3, 0, 0)
    assert path.read_bytes() == written


def test_maps_that_are_not_the_archives_are_refused(copy, tmp_path):
    folder = copy("VOCdevkit/VOC2012")
    Image.fromarray(np.full((2, 2), 21, np.uint8)).save(
        folder / "SegmentationClassAug/2011_000003.png"
    )
    with pytest.raises(InputError, match="2011_000003.png is not a map of VOC.*found \\[21\\]"):
        prepare_voc20(Options(tmp_path))
