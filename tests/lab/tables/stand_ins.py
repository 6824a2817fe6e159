"""Stand-ins for all data sets in the official layouts: two images of noise, each three things on another class."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipself_seg.data.datasets.table import (
    DATASETS,
    CocoSet,
    DataSet,
    DetectionSet,
    ImageSet,
    PanopticSet,
    SemSegSet,
)
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass

WIDTH, HEIGHT = 128, 96
# Left, top, width and height of three things: large, medium and small by COCO's areas.
BOXES = ((2, 1, 100, 94), (10, 10, 40, 40), (106, 4, 20, 20))
IDS = (139, 285)  # of the images
KINDS = (
    PanopticSet,
    DetectionSet,
    CocoSet,
    SemSegSet,
    ImageSet,
)  # those that know the classes of a file first


def write_data(names: Iterable[str]) -> None:
    """Write the files of data sets of the table, where the environment's folders are."""
    order = sorted((DATASETS[name] for name in names), key=lambda one: KINDS.index(type(one)))
    for data in order:
        if isinstance(data, ImageSet):
            for name in ("dog", "cat"):
                _image(data.path(data.images) / name / "1.png", _noise(0))
            continue
        folder = data.path(data.images) / ("train2017" if _is_lvis(data) else "")
        for number in IDS:
            _image(folder / f"{number:012d}.jpg", _noise(number))
        if isinstance(data, SemSegSet):
            _label_maps(data, data.path(data.annotations), data.label_suffix)
        elif data.panoptic_root:
            _panoptic(data)
        else:
            path = data.path(data.annotations)
            content = data.content if isinstance(data, CocoSet) else "boxes"
            _json(path, _captions() if content == "captions" else _objects(data))


def _noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def _image(path: Path, array: np.ndarray) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def _json(path: Path, content: dict[str, Any]) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def _is_lvis(data: DataSet) -> bool:
    return data.images == "coco/"


def _images(lvis: bool = False) -> list[dict[str, Any]]:
    """Images as a file lists them; LVIS's have addresses in the place of names."""
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    return [
        {"id": number, "width": WIDTH, "height": HEIGHT}
        | ({"coco_url": f"http://coco/train2017/{number:012d}.jpg", **lists} if lvis else {})
        | ({} if lvis else {"file_name": f"{number:012d}.jpg"})
        for number in IDS
    ]


def _classes(data: DataSet) -> tuple[VocabularyClass, ...]:
    return Vocabulary.load(data.vocabulary or "coco_80").classes


def _shown(data: DataSet) -> list[VocabularyClass]:
    """Classes of the boxes: seen ones and, but for training, one that is not, as far as there are such.

    LVIS's are one of each frequency, the rare ones being those that are not seen.
    """
    things = [one for one in _classes(data) if one.isthing is not False]
    seen = [one for one in things if one.seen is not False]
    novel = [one for one in things if one.seen is False and data.evaluator]
    common = [one for one in seen if one.frequency == "c"]
    frequent = [one for one in seen if one.frequency == "f"]
    return [(frequent or seen)[0], (common or seen)[1], (novel or seen)[-1]]


def _objects(data: DataSet, things_alone: bool = False) -> dict[str, Any]:
    annotations = []
    for image in IDS:
        for entry, (x, y, w, h) in zip(_shown(data), BOXES):
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": entry.dataset_id}
                | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [polygon]}
            )
    categories = [
        {"id": one.dataset_id, "name": one.names[0], "frequency": one.frequency or "f"}
        | {"isthing": int(one.isthing is not False), "image_count": 1, "instance_count": 1}
        for one in _classes(data)
        if not things_alone or one.isthing
    ]
    return {
        "info": {},
        "images": _images(_is_lvis(data)),
        "annotations": annotations,
        "categories": categories,
    }


def _captions() -> dict[str, Any]:
    texts = [{"id": n, "image_id": n, "caption": "a cat and a dog on grass"} for n in IDS]
    return {"images": _images(), "annotations": texts}


def _label_maps(data: DataSet, folder: Path, suffix: str, label: int = 0) -> None:
    labels = np.full((HEIGHT, WIDTH), label, np.uint16 if suffix == ".tif" else np.uint8)
    for value, (x, y, w, h) in enumerate(BOXES, label + 1):
        labels[y : y + h, x : x + w] = value
    for number in IDS:
        _image(folder / f"{number:012d}{suffix}", labels)


def _panoptic(data: DataSet) -> None:
    stuff = next(one for one in _classes(data) if one.isthing is False)
    areas = [(stuff, (0, 0, WIDTH, HEIGHT)), *zip(_shown(data), BOXES)]
    ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    segments = []
    for number, (entry, (x, y, w, h)) in enumerate(areas, 1):
        ids[y : y + h, x : x + w, 0] = number
        segments.append({"id": number, "category_id": entry.dataset_id, "bbox": [x, y, w, h]})
    for segment in segments:
        segment |= {"area": int((ids[..., 0] == segment["id"]).sum()), "iscrowd": 0}
    for number in IDS:
        _image(data.path(data.panoptic_root) / f"{number:012d}.png", ids)
    parts = [{"image_id": n, "file_name": f"{n:012d}.png", "segments_info": segments} for n in IDS]
    _json(data.path(data.annotations), _objects(data) | {"annotations": parts})
    if isinstance(data, PanopticSet):
        _json(data.path(data.instances_json), _objects(data, things_alone=True))
        _label_maps(data, data.path(data.sem_seg_root), ".png")
