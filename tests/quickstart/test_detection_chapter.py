"""Pictures of the detection chapter: the boxes that files in COCO's format have for an image."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from clipself_seg.quickstart.quickstart import RUNS, _write_sheet
from clipself_seg.visualization.boxes import SEEN, UNSEEN


def _annotation(category: int, x: int, **more: float) -> dict:
    return {"id": 1, "image_id": 7, "category_id": category, "bbox": [x, 40, 60, 60]} | more


def _write(path, annotations, categories) -> None:
    path.parent.mkdir(parents=True)
    images = [{"id": 7, "file_name": "a/000007.jpg", "height": 300, "width": 500}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def test_each_column_has_the_boxes_of_its_run_and_the_truth_knows_what_is_seen(tmp_path):
    image = tmp_path / "worlds/mini/val/000007.jpg"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (500, 300), (128, 128, 128)).save(image)
    categories = [{"id": 1, "name": "red star"}, {"id": 2, "name": "blue ring"}]
    truth = tmp_path / "worlds/mini/annotations/instances_val.json"
    _write(truth, [_annotation(1, 10), _annotation(2, 400)], categories)
    known = [{**c, "seen": c["id"] == 1} for c in categories]
    for run, boxes in zip(
        RUNS, ([], [_annotation(1, 10, score=0.9)], [_annotation(2, 9, score=1)])
    ):
        _write(run.predicted(tmp_path, "mini") / "detections.json", boxes, known)
    _write_sheet("mini", tmp_path, tmp_path / "worlds")
    picture = np.asarray(Image.open(tmp_path / "detection_mini.png"))
    columns = np.array_split(picture, 4, axis=1)
    seen, unseen = ([(c == k).all(axis=-1).any() for c in columns] for k in (SEEN, UNSEEN))
    assert seen == [True, False, True, False] and unseen == [True, False, False, True]
