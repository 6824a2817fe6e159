"""Answers: overlays with room for names, and no memory that grows with what is asked."""

from __future__ import annotations

import numpy as np
import pytest

from clipself_seg.clip import load_clip
from clipself_seg.data.vocabulary import own_words
from clipself_seg.errors import InputError
from clipself_seg.explore import answers
from clipself_seg.explore.asked import Asked
from clipself_seg.prediction.detection import Detections
from clipself_seg.prediction.semantic import Segmentation

IMAGE = np.full((40, 60, 3), 120, np.uint8)


def test_texts_of_earlier_words_go(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_CACHE", str(tmp_path))
    monkeypatch.setattr(answers, "MOST_TEXTS", 3)
    served = answers.Answers(clips={"a": load_clip("ViT-Mini-8", None)}, side=64, texts=tmp_path)
    counts = []
    for number in range(7):
        said = served.answer("maps", Asked(IMAGE, own_words([f"word {number}"]), None))
        counts.append(len(list(tmp_path.glob("text/*.safetensors"))))
        assert said["models"]["words"] == [[f"word {number}"]]
    assert counts == [1, 2, 1, 2, 3, 1, 2]
    with pytest.raises(InputError, match="no model for boxes"):
        served.answer("boxes", Asked(IMAGE, own_words(["x"]), None))


def test_a_small_result_is_enlarged_with_all_that_belongs_to_its_pixels():
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 30:] = 1
    result = Segmentation(
        labels=labels,
        names=("a", "b"),
        class_scores=np.ones(2),
        category_ids=(0, 1),
        background=None,
        image=IMAGE,
    )
    large = answers._enlarged(result)
    assert large.image.shape == (400, 600, 3) and large.fractions() == result.fractions()
    found = Detections(
        boxes=np.array([[1, 2, 3, 4]], np.float32),
        scores=np.ones(1, np.float32),
        labels=np.zeros(1, np.int64),
        masks=labels[None] > 0,
        names=("a",),
        category_ids=(0,),
        seen=np.ones(1, bool),
        image=IMAGE,
    )
    large = answers._enlarged(found)
    assert large.boxes.tolist() == [[10, 20, 30, 40]] and large.masks.shape == (1, 400, 600)
    assert large.labels.tolist() == [0] and large.masks.mean() == 0.5
