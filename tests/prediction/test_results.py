"""Results as overlays, in COCO's formats, and as the types of supervision and FiftyOne."""

import dataclasses
import io
import sys
import tracemalloc
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import MissingPackage
from clipself_seg.evaluation.panoptic.quality import panoptic_map
from clipself_seg.prediction.results import (
    Detections,
    PanopticSegmentation,
    Segmentation,
    colours_of,
    label_image,
)

# Two rows of one class, one of another, one of the background; rows are 6 pixels.
LABELS = np.array([[0], [0], [1], [2]], np.uint8).repeat(6, axis=1)
IMAGE = np.full((4, 6, 3), 90, np.uint8)
WORDS = Vocabulary.of(["dog", "grass"])


def semantic():
    return Segmentation(
        LABELS,
        names=("dog", "grass", "none"),
        class_scores=np.array([0.75, 0.5, 0.25]),
        category_ids=(18, 193),
        background=2,
        image=IMAGE,
    )


def panoptic():
    segments = [
        {"id": 1, "category_id": 1, "isthing": False, "score": 0.5},
        {"id": 2, "category_id": 0, "isthing": True, "score": 0.75},
    ]
    common = {"names": WORDS.first_names, "category_ids": (0, 1), "image": IMAGE}
    return PanopticSegmentation.of_segments(np.array([2, 1, 0])[LABELS], segments, **common)


def detections(masks=True):
    return Detections(
        np.array([[0, 0, 6, 2], [0, 1.5, 5.9, 3]], np.float32),
        np.array([0.75, 0.5], np.float32),
        np.array([0, 1]),
        np.stack([LABELS == 0, LABELS == 1]) if masks else None,
        names=("dog", "grass"),
        category_ids=(18, 193),
        seen=np.array([True, False]),
        image=IMAGE,
    )


RESULTS = {"semantic": semantic, "panoptic": panoptic, "detections": detections}


@pytest.mark.parametrize("make", RESULTS.values(), ids=RESULTS.keys())
def test_every_result_has_regions_and_an_overlay(make):
    boxes, labels, scores, masks = make().regions()
    assert boxes.dtype == np.float32 and labels.tolist() == [0, 1]
    assert scores.tolist() == [0.75, 0.5]
    assert boxes[0].tolist() == [0, 0, 6, 2] and boxes[1, 3] == 3
    assert np.array_equal(masks, [LABELS == 0, LABELS == 1])
    drawn = make().overlay()
    assert drawn.mode == "RGB" and drawn.height > 200
    assert "image" not in repr(make())
    assert make() not in [make()] and len({make(), make()}) == 2


def test_detections_and_classes_are_cocos_results():
    for result in (detections(), semantic()):
        entries = result.to_coco(42)
        assert [entry["image_id"] for entry in entries] == [42, 42]
        assert [entry["category_id"] for entry in entries] == [18, 193]
        assert [entry["score"] for entry in entries] == [0.75, 0.5]
        for label, entry in enumerate(entries):
            assert isinstance(entry["segmentation"]["counts"], str)
            assert np.array_equal(rle.decode(entry["segmentation"]), LABELS == label)
    assert "segmentation" not in detections(masks=False).to_coco()[0]
    assert detections().to_coco()[0]["bbox"] == [0, 0, 6, 2]


def test_the_area_of_a_class_that_pycocotools_loads_is_that_of_its_mask():
    truth = COCO()
    truth.dataset = {"images": [{"id": 42}], "categories": [{"id": 18}, {"id": 193}]}
    truth.createIndex()
    result = dataclasses.replace(semantic(), labels=np.tri(4, 6, dtype=np.uint8))
    loaded = truth.loadRes(result.to_coco(image_id=42)).loadAnns([1, 2])
    assert [entry["area"] for entry in loaded] == [14, 10]  # the boxes have 20 and 16 pixels


def test_cocos_results_of_a_map_are_made_one_mask_after_the_other():
    labels = np.arange(40, dtype=np.uint8).repeat(5000).reshape(400, 500)
    result = Segmentation(
        labels,
        names=tuple(map(str, range(40))),
        class_scores=np.ones(40),
        category_ids=range(40),
        background=None,
        image=np.zeros((400, 500, 3), np.uint8),
    )
    tracemalloc.start()
    try:
        entries = result.to_coco()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * labels.size  # bytes; all masks together have 40
    masks = result.regions().masks
    assert np.array_equal([rle.decode(entry["segmentation"]) for entry in entries], masks)


def test_segments_are_cocos_panoptic_annotation_and_its_png():
    annotation, png = panoptic().to_coco(42)
    infos = annotation.pop("segments_info")
    assert annotation == {"image_id": 42, "file_name": "000000000042.png"}
    assert [(info["category_id"], info["area"], info["score"]) for info in infos] == [
        (0, 12, 0.75),
        (1, 6, 0.5),
    ]
    ids = png.astype(np.int64) @ [1, 256, 65536]
    assert (ids[LABELS == 2] == 0).all()
    assert all((ids[LABELS == label] == info["id"]).all() for label, info in enumerate(infos))
    assert panoptic_map(ids, infos, {0: 0, 1: 1}, "").classes.tolist() == [0, 1]


# Attributes that the documentation of supervision and FiftyOne names.
DOCUMENTED = "xyxy mask confidence class_id data detections label bounding_box".split()
Documented = dataclasses.make_dataclass(
    "Documented", [(name, Any, dataclasses.field(default=None)) for name in DOCUMENTED]
)


@pytest.fixture(params=["documented", pytest.param("installed", marks=pytest.mark.heavy)])
def package(request, monkeypatch):
    """Gives a package by its name: a stand-in, or the real one where it is installed."""

    def given(name):
        if request.param == "installed":
            return pytest.importorskip(name, reason=f"needs {name} (the extra [{name}])")
        attributes = dict.fromkeys(("Detections", "Detection", "Segmentation"), Documented)
        module = types.SimpleNamespace(**attributes)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return given


def test_results_are_detections_of_supervision(package):
    supervision = package("supervision")
    for make in RESULTS.values():
        result = make().to_supervision()
        assert isinstance(result, supervision.Detections)
        assert result.xyxy.shape == (2, 4) and result.class_id.tolist() == [0, 1]
        assert result.confidence.tolist() == [0.75, 0.5]
        assert result.data["class_name"].tolist() == ["dog", "grass"]
        assert np.array_equal(result.mask, [LABELS == 0, LABELS == 1])
    assert detections(masks=False).to_supervision().mask is None


def test_detections_and_segments_are_detections_of_fiftyone(package):
    fiftyone = package("fiftyone")
    for make in (detections, panoptic):
        result = make().to_fiftyone()
        assert isinstance(result, fiftyone.Detections)
        first, second = result.detections
        assert (first.label, second.label) == ("dog", "grass")
        assert (first.confidence, second.confidence) == (0.75, 0.5)
        assert first.bounding_box == [0, 0, 1, 0.5]
        assert first.mask.shape == (2, 6) and first.mask.all()
    assert second.bounding_box == [0, 0.5, 1, 0.25] and second.mask.shape == (1, 6)
    assert detections(masks=False).to_fiftyone().detections[1].mask is None
    *_, other = detections().to_fiftyone().detections
    np.testing.assert_allclose(other.bounding_box, [0, 0.375, 5.9 / 6, 0.375], rtol=1e-6)
    # Corners are rounded, halves to even, as FiftyOne cuts COCO's masks.
    assert other.mask.shape == (1, 6) and other.mask.all()


def test_a_label_map_is_a_segmentation_of_fiftyone_whose_background_is_0(package):
    fiftyone = package("fiftyone")
    result = semantic().to_fiftyone()
    assert isinstance(result, fiftyone.Segmentation)
    assert result.mask.dtype == np.uint8 and result.mask[:, 0].tolist() == [1, 1, 2, 0]
    whole = dataclasses.replace(semantic(), background=None).to_fiftyone()
    assert whole.mask[:, 0].tolist() == [1, 1, 2, 3]


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch):
    for name in ("supervision", "fiftyone"):
        monkeypatch.setitem(sys.modules, name, None)
        for make in RESULTS.values():
            with pytest.raises(MissingPackage, match=rf"pip install .clipself_seg\[{name}\]"):
                getattr(make(), f"to_{name}")()


def test_label_images_keep_their_values_and_have_the_colours_of_the_classes():
    names = ("sky", "grass", "dog")
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    content = io.BytesIO()
    label_image(labels, names).save(content, "PNG")
    read = Image.open(content)
    assert read.mode == "P" and (np.asarray(read) == labels).all()
    shown = np.asarray(read.convert("RGB"))
    assert (shown[[0, 0, 1], [0, 1, 0]] == colours_of(names)).all() and not shown[1, 1].any()
    assert (np.asarray(label_image(labels.astype(np.uint16), names)) == labels).all()
