"""Formats that configurations, class names and annotations have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from clipself_seg.config import load_config
from clipself_seg.data.annotations import (
    category_indices,
    category_labels,
    instance_records,
    panoptic_records,
    proposal_records,
    read_coco_json,
    read_region_text,
)
from clipself_seg.data.captions import read_phrases
from clipself_seg.data.mappers.detection import DetectionTrainMapper
from clipself_seg.data.mappers.distill import DistillMapper, RegionTextMapper
from clipself_seg.data.mappers.panoptic import PanopticTrainMapper
from clipself_seg.data.mappers.regions import RegionMapper
from clipself_seg.data.masks import encode_masks
from clipself_seg.data.vocabulary import (
    as_vocabulary,
    load_vocabulary,
    read_class_json,
    read_label_file,
)
from clipself_seg.evaluation.coco_ap import object_quality
from clipself_seg.evaluation.coco_objects import (
    ImageDetections,
    read_true_instances,
    read_true_objects,
)
from clipself_seg.evaluation.panoptic.files import PanopticFolder, evaluate_files
from tests.conftest import ROOT
from tests.detection_worlds import WORDS as TOYS
from tests.detection_worlds import annotation, write_objects
from tests.fuzz.readers import Reader, make_text, partial
from tests.tiny import write_tiny_coco

COCO_133 = load_vocabulary("coco_panoptic_133")


def _make_config(folder: Path) -> Path:
    text = (ROOT / "configs/mini/semseg_original.yaml").read_text()
    # A key of distillation, which is refused in a file that does not come with the package.
    text = text.replace("  REGIONS:\n    STUDENT_SIZE: 128\n", "")
    (folder / "semseg_original.yaml").write_text(text)
    (folder / "run.yaml").write_text(f"_BASE_: semseg_original.yaml\n{text}")
    return folder / "run.yaml"


CLASSES = {
    "name": "own",
    "about": "three",
    "classes": [
        {"index": 0, "dataset_id": 5, "names": ["cat", "kitten"], "isthing": True, "seen": True},
        {"index": 1, "dataset_id": 6, "names": ["dog"], "isthing": True, "frequency": "r"},
        {
            "index": 2,
            "dataset_id": 9,
            "names": ["sky"],
            "isthing": False,
            "catseg_name": "sky, air",
        },
    ],
}


def _use_vocabulary(path: Path) -> None:
    vocabulary = as_vocabulary(str(path))
    _ = vocabulary.names, vocabulary.dataset_id_to_index


# Annotations, each with what reads them on the way to a sample.


def _make_coco(name: str, folder: Path) -> Path:
    write_tiny_coco(folder, images=2)
    return folder / name


def _records_of(path: Path, folder: str) -> tuple[str, str]:
    return str(path), str(path.parents[1] / folder)


def _read_proposals(path: Path) -> None:
    mapper = DistillMapper(source="proposals", student_size=32, crop_size=32, seed=0)
    for record in proposal_records(path, path.parent / "../train2017"):
        mapper(record, 0)


def _read_region_text(path: Path) -> None:
    mapper = RegionTextMapper(student_size=32, seed=0, crop_size=32)
    records = read_region_text(path, path.parent / "../train2017").records
    for record in records:
        mapper(record | {"captions": [*record["captions"], "a cat"]}, 0)


def _read_lvis(path: Path) -> None:
    proposal_records(path, path.parent / "../coco")


def _panoptic_records(path: Path) -> list[dict[str, Any]]:
    coco = path.parents[1]
    return panoptic_records(path, coco / "val2017", coco / "panoptic_val2017")


def _read_panoptic(path: Path) -> None:
    regions = RegionMapper(image_size=32, crop_size=32, stride=8, vocabulary=COCO_133)
    train = PanopticTrainMapper(seed=0, vocabulary=COCO_133, size=32, scales=(0.5, 1.0))
    for record in _panoptic_records(path):
        ids = np.unique([info["category_id"] for info in record["segments_info"]])
        category_labels(ids, COCO_133.dataset_id_to_index, path)  # as `region_records` does
        regions(record)
        train(record, 0)


def _read_panoptic_png(path: Path) -> None:
    _read_panoptic(path.parents[1] / "annotations/panoptic_val2017.json")


def _read_captions(path: Path) -> None:
    phrases = read_phrases(path)
    mapper = PanopticTrainMapper(seed=0, vocabulary=COCO_133, size=32, scales=(0.5, 1.0), words=4)
    for record in _panoptic_records(path.parent / "panoptic_val2017.json"):
        words = mapper(record | {"captions": phrases.get(record["image_id"], [])}, 0)["words"]
        ", ".join(words)


def _make_objects(folder: Path) -> Path:
    """LVIS's format, with the images beside it."""
    objects = [annotation(1, "a", 30, [3, 4, 27, 16]), annotation(2, "b", 7, [0, 0, 9, 50])]
    for image in "ab":
        Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(folder / f"{image}.png")
    lists = {"neg_category_ids": {"a": [9]}, "not_exhaustive_category_ids": {"b": [7]}}
    return write_objects(folder, objects, ["a", "b"], **lists)


def _read_objects(path: Path) -> None:
    truth = read_true_objects(path, TOYS, masks=True, federated=True)
    boxes = np.array([[3.0, 4.0, 27.0, 16.0]])
    detections = ImageDetections(boxes, np.array([0.5]), np.array([0]), None)
    predicted = dict.fromkeys(truth.image_ids, detections)
    object_quality(truth, predicted, "bbox", "detectron2")
    content = read_coco_json(path)
    index_of = category_indices(content, TOYS, path)
    mapper = DetectionTrainMapper(seed=0, side=32, masks=True)
    for record in instance_records(content, path, path.parent, index_of, masks=True):
        mapper(record, 0)


def _make_instances(folder: Path) -> Path:
    masks = np.zeros((2, 40, 57), bool)
    masks[0, 3:20, 5:30] = True
    masks[1, 10:40, 20:57] = True
    coded = [{**mask, "counts": mask["counts"].decode()} for mask in encode_masks(masks)]
    runs = {"size": [4, 3], "counts": [2, 5, 5]}
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 40, "width": 57} for n in (1, "a")]
    images.append({"id": 3, "file_name": "3.jpg", "height": 4, "width": 3})
    segmentations = [coded[0], coded[1], [[3.0, 4.0, 30.0, 4.0, 30.0, 20.0]], runs]
    annotations = [
        {"id": n, "image_id": image, "category_id": 17 + n % 2, "segmentation": segmentation}
        | {"area": 400.0, "bbox": [3, 4, 27, 16], "iscrowd": int(isinstance(segmentation, dict))}
        for n, (image, segmentation) in enumerate(zip((1, "a", 1, 3), segmentations))
    ]
    content = {"images": images, "annotations": annotations, "categories": []}
    return make_text("instances.json", content, folder)


def _read_instances(path: Path) -> None:
    truth = read_true_instances(path, COCO_133)
    predicted = {
        image_id: ImageDetections(
            np.zeros((1, 0)), np.array([0.5]), np.array([0]), _box_masks(*size)
        )
        for image_id, size in zip(truth.image_ids, truth.sizes)
    }
    object_quality(truth, predicted, "segm", (1, 10, 100))


def _box_masks(height: int, width: int) -> list[dict[str, Any]]:
    """A small mask in images of the sizes that the file states; models give masks of real sizes."""
    if max(height, width) >= 100:
        height, width = 40, 57
    mask = np.zeros((max(1, int(height)), max(1, int(width))), np.uint8, order="F")
    mask[:3, :3] = 1
    return [rle.encode(mask)]


def _read_prediction(path: Path) -> None:
    coco = path.parents[1]
    truth = PanopticFolder(
        coco / "annotations/panoptic_train2017.json", coco / "panoptic_train2017"
    )
    evaluate_files(truth, PanopticFolder(path, coco / "panoptic_val2017"))


def _read_truth(path: Path) -> None:
    coco = path.parents[1]
    given = PanopticFolder(coco / "annotations/panoptic_val2017.json", coco / "panoptic_val2017")
    evaluate_files(PanopticFolder(path, coco / "panoptic_train2017"), given)


DATA_READERS = {
    "config_yaml": Reader(_make_config, lambda path: load_config(path), "yaml"),
    "vocabulary_txt": Reader(
        partial(make_text, "own.txt", "# mine\ncat|kitten\ndog, sky\ngrass|lawn,\n"),
        _use_vocabulary,
        "lines",
    ),
    "label_file_txt": Reader(
        partial(make_text, "own.txt", "0:invalid_class_id\n1:cat,kitten\n2:sky\n"),
        lambda path: read_label_file(path, as_vocabulary(["cat", "sky"])),
        "lines",
    ),
    "vocabulary_json": Reader(partial(make_text, "own.json", CLASSES), _use_vocabulary, "json"),
    "class_list_json": Reader(
        partial(make_text, "own.json", ["cat, kitten", "dog", "sky"]),
        lambda path: (_use_vocabulary(path), read_class_json(path)),
        "json",
    ),
    "coco_region_text_json": Reader(
        partial(_make_coco, "coco/annotations/coco_pseudo_4764.json"), _read_region_text, "json"
    ),
    "coco_proposals_json": Reader(
        partial(_make_coco, "coco/annotations/coco_proposals.json"), _read_proposals, "json"
    ),
    "lvis_json": Reader(partial(_make_coco, "lvis/lvis_v1_train.json"), _read_lvis, "json"),
    "coco_panoptic_json": Reader(
        partial(_make_coco, "coco/annotations/panoptic_val2017.json"), _read_panoptic, "json"
    ),
    "coco_captions_json": Reader(
        partial(_make_coco, "coco/annotations/panoptic_caption_train2017.json"),
        _read_captions,
        "json",
    ),
    "detection_json": Reader(_make_objects, _read_objects, "json"),
    "coco_instances_json": Reader(_make_instances, _read_instances, "json"),
    "panoptic_prediction_json": Reader(
        partial(_make_coco, "coco/annotations/panoptic_val2017.json"), _read_prediction, "json"
    ),
    "panoptic_truth_json": Reader(
        partial(_make_coco, "coco/annotations/panoptic_train2017.json"), _read_truth, "json"
    ),
    "panoptic_png": Reader(
        partial(_make_coco, "coco/panoptic_val2017/000000000001.png"), _read_panoptic_png, "png"
    ),
}
