"""Words that are found where they are not are counted, before and after they are dropped, and by SA-Co's measures."""

import json

import absent_words
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from clipself_seg.data.masks import encode_masks
from clipself_seg.prediction.results import Regions
from lab.mini.concepts import WORLDS
from lab.mini.scenes import draw_scene

CLIPSELF = "without training, CLIPSelf"


def test_counts_of_scenes(monkeypatch):
    scene = draw_scene(np.random.default_rng(0), WORLDS["mini"])
    truth = {}
    for segment in scene.segments:
        ids = 1 + WORLDS["mini"].concepts.index(segment.concept)
        truth.setdefault(ids, []).extend(encode_masks([scene.segment_map == segment.id]))
    drawn = absent_words.Scene(scene.image, truth)
    monkeypatch.setattr(absent_words, "scenes_of", lambda _, n, seed: [drawn] * n)
    monkeypatch.setattr(absent_words, "MODELS", {CLIPSELF: absent_words.MODELS[CLIPSELF]})
    every, dropped, calibrated = absent_words.rows_of_worlds(1, 1)[:3]
    assert every[:3] == ["mini", CLIPSELF, "all words"] and every[4] == "100.0"
    assert float(every[3]) > float(dropped[3]) >= float(calibrated[3])
    assert float(every[6]) < float(dropped[6])
    assert absent_words.spread([1.0, 2.0, 3.0], 1) == "2.0 \u00b1 1.0"


def test_masks_are_compared_with_masks_and_boxes_with_boxes():
    left = np.zeros((10, 10), bool)
    left[:, :5] = True
    corner = np.zeros((10, 10), bool)
    corner[:5, :5] = True
    masks = np.stack([left, ~left])
    boxes = np.array([[0, 0, 5, 10], [5, 0, 10, 10]], np.float32)
    labels, scores = np.array([3, 4]), np.ones(2)
    truth = encode_masks([corner, left])
    for of in (masks, None):
        ious = absent_words.overlaps(Regions(boxes, labels, scores, of), 3, truth)
        assert ious == pytest.approx(np.array([[0.5], [1.0]]))
    regions = Regions(boxes, labels, scores, masks)
    assert absent_words.overlaps(regions, 7, truth).shape == (2, 0)
    assert absent_words.overlaps(regions, 3, ()).shape == (0, 1)


def test_a_missing_file_is_named_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(absent_words, "load", lambda *_, **__: None)
    assert absent_words.main(["--lvis", "nosuch.json"]) == 2
    assert "error: " in (said := capsys.readouterr().err) and "nosuch.json" in said


def test_words_of_lvis_are_those_known_to_be_there_in_full_or_absent(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png")
    image = {"id": 1, "file_name": "1.png", "height": 30, "width": 40}
    image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": [2]}
    box = [0, 0, 20, 30]
    square = {
        "image_id": 1,
        "bbox": box,
        "area": 600,
        "segmentation": [[0, 0, 20, 0, 20, 30, 0, 30]],
    }
    content = {"images": [image], "categories": [{"id": k, "name": str(k)} for k in range(1, 1204)]}
    content["annotations"] = [square | {"id": k, "category_id": k} for k in (1, 2)]
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    ((scene, words),) = absent_words.lvis_scenes(str(tmp_path / "lvis.json"), str(tmp_path))
    assert [entry.dataset_id for entry in words.classes] == [1, 3] and [*scene.truth] == [1]
    assert rle.area(scene.truth[1][0]) == 600
