"""COCO-Stuff from the archive's values to indices: every pixel by the hand formula, on real files."""

from __future__ import annotations

import numpy as np

from clipself_seg.data.prepare.coco import prepare_coco_stuff
from clipself_seg.data.prepare.common import Options
from tests.prepared_maps import check_registered, pixels

# The 171 official ids without the 11 that no class has; index by counting.
COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


def test_coco_stuff(copy, tmp_path):
    folder = copy("coco-stuff")
    train, val = prepare_coco_stuff(Options(tmp_path, processes=2))
    assert train[1:4] == (60, 0, 0) and val[1:4] == (20, 0, 0)
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
