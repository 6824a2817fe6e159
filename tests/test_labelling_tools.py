"""docs/examples/label_studio.py: what `predict` writes becomes tasks of Label Studio, and its export label maps."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location(
    "label_studio", ROOT / "docs/examples/label_studio.py"
)
label_studio = importlib.util.module_from_spec(spec)
spec.loader.exec_module(label_studio)

SKY = np.zeros((300, 90), np.uint8)
SKY[:200] = 1  # one run of more than 2^16 bytes
DOG = np.zeros((300, 90), np.uint8)
DOG[150:220, 10:30] = 1
IMAGE = {"id": 7, "file_name": "sub/one.jpg", "height": 300, "width": 90}


def coco_file(folder, *annotations):
    categories = [{"id": 0, "name": "sky"}, {"id": 1, "name": "dog"}]
    content = {"images": [IMAGE], "categories": categories, "annotations": annotations}
    path = folder / "coco.json"
    path.write_text(json.dumps(content))
    return path


def code(mask):
    made = coco_mask.encode(np.asfortranarray(mask))
    return made | {"counts": made["counts"].decode()}


@pytest.mark.parametrize("folder", ["photos", "photos/"])
def test_masks_of_predictions_become_strokes_and_an_export_of_them_label_maps(tmp_path, folder):
    masks = [{"segmentation": code(m), "bbox": [0, 0, 1, 1]} for m in (SKY, DOG)]
    entries = [{"image_id": 7, "category_id": i, **mask} for i, mask in enumerate(masks)]
    label_studio.to_tasks(coco_file(tmp_path, *entries), tmp_path / "tasks.json", folder)
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"] == {"image": "/data/local-files/?d=photos/sub/one.jpg"}
    (prediction,) = task["predictions"]
    for part, name in zip(prediction["result"], ("sky", "dog"), strict=True):
        assert part["type"] == "brushlabels" and part["value"]["brushlabels"] == [name]
        assert (part["from_name"], part["to_name"]) == ("mask", "image")
        assert (part["original_width"], part["original_height"]) == (90, 300)
        assert part["value"]["format"] == "rle"
        assert all(type(byte) is int and 0 <= byte < 256 for byte in part["value"]["rle"])
    task["annotations"] = task.pop("predictions")
    (tmp_path / "export.json").write_text(json.dumps([task]))
    label_studio.from_export(tmp_path / "export.json", tmp_path / "masks", "sky, dog")
    expected = np.where(DOG, 1, np.where(SKY, 0, 255))
    assert (np.asarray(Image.open(tmp_path / "masks/one.png")) == expected).all()


def test_boxes_of_predictions_become_rectangles_in_percent(tmp_path):
    entry = {"image_id": 7, "category_id": 1, "bbox": [9, 30, 45, 150], "score": 0.5}
    label_studio.to_tasks(coco_file(tmp_path, entry), tmp_path / "tasks.json", "")
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    (part,) = task["predictions"][0]["result"]
    assert part["type"] == "rectanglelabels" and part["score"] == 0.5
    sides = [part["value"][key] for key in ("x", "y", "width", "height")]
    assert sides == pytest.approx([10, 10, 50, 50])


def test_strokes_with_values_in_place_of_runs_are_read():
    """What Label Studio writes has both; these are its bytes of four pixels, of which two are painted."""
    pixels = [0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 1, 2, 3, 255]
    bits = f"{16:032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in (3, 4, 8, 16))
    bits += "0" + "01" + f"{15:04b}" + "".join(f"{value:08b}" for value in pixels)
    bits += "0" * (-len(bits) % 8)
    stroke = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert label_studio.painted(stroke, 2, 2).tolist() == [[False, True], [False, True]]
