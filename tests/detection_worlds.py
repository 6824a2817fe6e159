"""Small data sets for detection: files in COCO's and LVIS's format, and detections that are partly right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.evaluation.coco_objects import ImageDetections, image_detections

SIZE = (60, 90)  # height and width of every image
# Category ids fall; dog is novel, and cow is in no image.
WORDS = Vocabulary(
    "tiny",
    tuple(
        VocabularyClass((name,), number, seen=seen, frequency=frequency)
        for name, number, seen, frequency in [
            ("cat", 30, True, "f"),
            ("dog", 9, False, "r"),
            ("cup", 7, True, "c"),
            ("cow", 4, True, "c"),
        ]
    ),
)
CATEGORIES = [
    {"id": entry.dataset_id, "name": entry.names[0], "frequency": entry.frequency}
    for entry in WORDS.classes
]


def annotation(number: int, image: Any, category: int, box: list[float], **others: Any) -> dict:
    """An object that fills its box (XYWH)."""
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    entry = {"id": number, "image_id": image, "category_id": category, "bbox": box}
    return entry | {"area": w * h, "iscrowd": 0, "segmentation": [polygon]} | others


def write_objects(folder: Path, annotations: list[dict], images: list[Any], **lists: dict) -> Path:
    """A file of objects.

    Args:
        lists: for LVIS's lists of categories of an image, such as "neg_category_ids", image -> list.
    """
    listed = [
        {"id": image, "file_name": f"{image}.png", "height": SIZE[0], "width": SIZE[1]}
        | {key: by_image.get(image, []) for key, by_image in lists.items()}
        for image in images
    ]
    content = {"images": listed, "annotations": annotations, "categories": CATEGORIES}
    (folder / "objects.json").write_text(json.dumps(content))
    return folder / "objects.json"


def detected(boxes: Any, scores: Any, classes: Any, size: tuple[int, int] = SIZE) -> dict:
    """What a model gives: boxes are XYWH, and each mask fills its box."""
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    instances = Instances(size)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    instances.pred_boxes = Boxes(torch.from_numpy(corners))
    instances.scores = torch.tensor(np.array(scores), dtype=torch.float32)
    instances.pred_classes = torch.tensor(np.array(classes), dtype=torch.int64)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, corners.clip(0).astype(int).tolist()):
        mask[top:bottom, left:right] = True
    instances.pred_masks = masks
    return {"instances": instances}


def kept(outputs: dict[Any, dict]) -> dict[Any, ImageDetections]:
    """Detections of each image with their masks, as evaluations keep them."""
    return {
        image: image_detections(output["instances"], masks=True, source=f"{image}.png")
        for image, output in outputs.items()
    }


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes (n, 4) XYWH of whole pixels inside the image."""
    corners = rng.integers(0, (SIZE[1] - 40, SIZE[0] - 36), (count, 2))
    return np.concatenate([corners, rng.integers(3, (40, 36), (count, 2))], axis=1)


def random_world(
    folder: Path, seed: int, images: list[Any], per_image: int = 9, whole: bool = False
) -> tuple[Path, dict[Any, dict]]:
    """A file of objects, and shifted, mislabelled and wholly wrong detections with equal scores.

    Args:
        whole: detections have whole pixels, so that a mask and its box have equal overlaps.
    """
    rng = np.random.default_rng(seed)
    annotations: list[dict] = []
    outputs = {}
    negatives: dict[Any, list[int]] = {}
    not_exhaustive: dict[Any, list[int]] = {}
    for image in images:
        boxes = random_boxes(rng, 6)
        classes = rng.integers(0, 3, 6)
        for box, label in zip(boxes.tolist(), classes.tolist()):
            others = {"iscrowd": int(rng.random() < 0.15)}
            if rng.random() < 0.1:
                others["area"] = 0
            number = len(annotations) + 1
            category = WORDS.classes[label].dataset_id
            annotations.append(annotation(number, image, category, box, **others))
        source = rng.integers(0, 6, per_image)
        moved = boxes[source] + rng.integers(-3, 4, (per_image, 4)) * (1 if whole else 0.7)
        given = np.where(rng.random((per_image, 1)) < 0.8, moved, random_boxes(rng, per_image))
        given = np.concatenate([given[:, :2].clip(0), given[:, 2:].clip(0)], axis=1)
        labels = np.where(
            rng.random(per_image) < 0.7, classes[source], rng.integers(0, 4, per_image)
        )
        outputs[image] = detected(given, rng.integers(1, 9, per_image) / 9, labels)
        absent = [entry["id"] for entry in CATEGORIES if rng.random() < 0.4]
        negatives[image] = absent
        not_exhaustive[image] = [e["id"] for e in CATEGORIES if rng.random() < 0.3]
    lists = {"neg_category_ids": negatives, "not_exhaustive_category_ids": not_exhaustive}
    return write_objects(folder, annotations, images, **lists), outputs


def detectron2_results(
    json_file: Path, outputs: dict[Any, dict], vocabulary: Vocabulary
) -> dict[str, dict[str, float]]:
    """Numbers of Detectron2's `COCOEvaluator`: "bbox" and "segm" -> name -> percent."""
    name = f"objects_of_{json_file.parent.name}"
    contiguous = vocabulary.dataset_id_to_index
    MetadataCatalog.get(name).set(
        json_file=str(json_file), thing_dataset_id_to_contiguous_id=contiguous
    )
    theirs = COCOEvaluator(name, tasks=("bbox", "segm"), distributed=False)
    theirs.reset()
    for image, output in outputs.items():
        theirs.process([{"image_id": image}], [output])
    results = theirs.evaluate()
    MetadataCatalog.remove(name)
    return {
        kind: {key: value for key, value in numbers.items() if value == value}
        for kind, numbers in results.items()
    }
