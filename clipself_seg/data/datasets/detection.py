"""Data sets for open-vocabulary detection.

First the table of their files and vocabularies, then their records and their entries in Detectron2's
catalogue. Files with a command in the table are written by it from the official ones; names of files are
those of the published detectors' configurations.

`DETECTION_DATASETS` is registered when this module is imported, with records and metadata of Detectron2's
standard. This project itself reads `detection_records`. A data set of your own works under its name if it
is registered with Detectron2's `register_coco_instances` and has "vocabulary" in its metadata.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from clipself_seg.data.datasets.coco import COCO_DATASETS, COUNTS, require_entries
from clipself_seg.data.datasets.panoptic import REGISTERED
from clipself_seg.data.datasets.roots import COCO, LVIS, MINI, OBJECTS365, DataRoot
from clipself_seg.data.instances import (
    annotated_ids,
    category_indices,
    instance_records,
    names_from_urls,
    require_base_classes,
    require_same_classes,
)
from clipself_seg.data.records import Record, read_coco_json
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.errors import InputError, MissingFiles, nearest

logger = logging.getLogger(__name__)

TRAINING_MIN_SIDE = 32
"""Smallest side in pixels of an image that is trained on, as in the official code."""


class DetectionFiles(NamedTuple):
    """Where the files of one data set lie, and how they are read. Paths are relative to the root.

    Attributes:
        root: folder of the data set's family, with advice how to get its files.
        images: folder to which the file names of `annotations` are relative.
        annotations: file in COCO's instances format, or LVIS's.
        vocabulary: name of its vocabulary, for `vocabulary.load_vocabulary`.
        evaluator: Detectron2's evaluator_type; None for a data set that is only trained on, which then
            may annotate base classes alone.
        archive: official file that `annotations` is made of; "" if it is official itself.
        prepare: command that writes `annotations`; "" if it is part of an archive.
        from_urls: whether file names follow from "coco_url", as in LVIS.
        by_order: whether the classes are the categories of the file by ascending id, see
            `instances.category_indices`.
        official_count: number of images of the official file; None where it is not certain.
    """

    root: DataRoot
    images: str
    annotations: str
    vocabulary: str
    evaluator: str | None = "coco"
    archive: str = ""
    prepare: str = ""
    from_urls: bool = False
    by_order: bool = False
    official_count: int | None = None

    def path(self, relative: str) -> Path:
        """Path on this machine of one of the paths above, with the root that the environment names now."""
        return self.root.path / relative


def _ov_coco(split: str, file: str, evaluator: str | None) -> DetectionFiles:
    return DetectionFiles(
        COCO,
        f"coco/{split}2017",
        f"coco/zero-shot/{file}",
        "ov_coco_65",
        evaluator,
        f"coco/annotations/instances_{split}2017.json",
        f"clipself-seg data prepare ov_coco --splits {split}2017",
    )


def _mini(world: str, split: str, evaluator: str | None = "coco") -> DetectionFiles:
    return DetectionFiles(
        MINI,
        f"{world}/{split}",
        f"{world}/annotations/instances_{split}.json",
        f"{world}_things",
        evaluator,
    )


DETECTION_DATASETS: dict[str, DetectionFiles] = {
    "ov_coco_train": _ov_coco("train", "instances_train2017_seen_2_65_cat.json", None),
    "ov_coco_val": _ov_coco("val", "instances_val2017_all_2.json", "coco"),
    "ov_lvis_train": DetectionFiles(
        LVIS,
        "coco/",
        "lvis/lvis_v1_train_seen_1203_cat.json",
        "lvis_v1_1203",
        None,
        "lvis/lvis_v1_train.json",
        "clipself-seg data prepare ov_lvis",
        from_urls=True,
        official_count=100170,
    ),
    "ov_lvis_val": DetectionFiles(
        LVIS,
        "coco/",
        "lvis/lvis_v1_val.json",
        "lvis_v1_1203",
        "lvis",
        from_urls=True,
        official_count=19809,
    ),
    "transfer_coco_val": DetectionFiles(
        COCO,
        "coco/val2017",
        "coco/annotations/instances_val2017.json",
        "coco_80",
        official_count=COUNTS["val"],
    ),
    "transfer_objects365_val": DetectionFiles(
        OBJECTS365,
        "Objects365v1/val",
        "Objects365v1/objects365_reorder_val.json",
        "objects365_v1",
        archive="Objects365v1/objects365_val.json",
        prepare="clipself-seg data prepare objects365",
        by_order=True,
    ),
    # Images that show seen classes only; those of the split val show all.
    "mini_base_boxes": _mini("mini", "base", None),
    "mini_val_boxes": _mini("mini", "val"),
    "mini2_val_boxes": _mini("mini2", "val"),
}


def detection_dataset(name: str) -> DetectionFiles:
    """Files and vocabulary of a data set for detection.

    Args:
        name: data set of `DETECTION_DATASETS` or of Detectron2's catalogue.

    Raises:
        InputError: the data set is unknown, or its metadata lacks an entry.
    """
    if name in DETECTION_DATASETS:
        return DETECTION_DATASETS[name]
    metadata = MetadataCatalog.get(name).as_dict() if name in DatasetCatalog.list() else {}
    if name in COCO_DATASETS or not metadata.get("json_file") or metadata.get("panoptic_json"):
        raise InputError(f'no data set "{name}" for detection: {nearest(name, DETECTION_DATASETS)}')
    require_entries(name, metadata, ("image_root", "vocabulary"))
    return DetectionFiles(
        REGISTERED,
        str(metadata["image_root"]),
        str(metadata["json_file"]),
        str(metadata["vocabulary"]),
        str(metadata.get("evaluator_type") or "coco"),
    )


def detection_records(name: str, *, training: bool = False, masks: bool = False) -> list[Record]:
    """Records of the images of a data set with their objects, in the order of its file.

    Args:
        name: data set of `DETECTION_DATASETS` or of Detectron2's catalogue.
        training: leave out images with a side below `TRAINING_MIN_SIDE`, and those without an annotation
            of a class; one that has only crowds stays, and has no objects.
        masks: whether objects have a "segmentation".

    Returns:
        Records as of `instances.instance_records`.

    Raises:
        InputError: as `detection_dataset`; files are missing (the message names the command that
            writes them) or broken; in training, annotations of classes that are not base.
    """
    files = detection_dataset(name)
    path = _existing_annotations(name, files)
    vocabulary = load_vocabulary(files.vocabulary)
    content = read_coco_json(path)
    if files.from_urls:
        names_from_urls(content, path)
    if files.root is REGISTERED:
        require_same_classes(content, vocabulary, path)
    index_of = category_indices(content, vocabulary, path, files.by_order)
    if training or files.evaluator is None:
        require_base_classes(content, index_of, vocabulary, path, _remedy(files))
    min_side = TRAINING_MIN_SIDE if training else 1
    images = files.path(files.images)
    records = instance_records(content, path, images, index_of, masks=masks, min_side=min_side)
    if not training:
        return records
    wanted = annotated_ids(content, index_of, path)
    kept = [record for record in records if record["image_id"] in wanted]
    if len(kept) < len(records):
        logger.info(
            "%s: %d images have no annotation and are left out", path, len(records) - len(kept)
        )
    return kept


def _existing_annotations(name: str, files: DetectionFiles) -> Path:
    """Path of the annotation file, once it and the folder of the images are known to be there."""
    for relative in (files.images, files.annotations):
        path = files.path(relative)
        if not path.exists():
            prepare = files.prepare if relative == files.annotations else ""
            raise MissingFiles(f'data set "{name}": {path} is missing; {_advice(files, prepare)}')
    return path


def _advice(files: DetectionFiles, prepare: str) -> str:
    if files.root is REGISTERED:
        return files.root.advice
    where = f"set {files.root.variable} (now {files.root.path}), or: {files.root.advice}"
    if not prepare:
        return where
    return f"run `{prepare}` once {files.path(files.archive)} is there\nTo get that, {where}"


def _remedy(files: DetectionFiles) -> str:
    if files.prepare:
        return f"run `{files.prepare} --overwrite`, which leaves them out"
    return "train on a file without them"


def standard_records(name: str) -> list[Record]:
    """Records of `detection_records` in Detectron2's standard, for its tools and the mappers of others.

    Raises:
        InputError: as `detection_records`.
    """
    records = detection_records(name, masks=True)
    for record in records:
        record["annotations"] = [_standard(entry) for entry in record["annotations"]]
    return records


def _standard(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "bbox": list(entry["bbox"]),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": entry["label"],
        "segmentation": entry["segmentation"],
        "iscrowd": 0,
    }


def register_detection_datasets() -> None:
    """Add `DETECTION_DATASETS` to Detectron2's catalogue, except for names that it has already."""
    known = set(DatasetCatalog.list())
    for name, files in DETECTION_DATASETS.items():
        if name not in known:
            DatasetCatalog.register(name, functools.partial(standard_records, name))
            MetadataCatalog.get(name).set(
                image_root=str(files.path(files.images)),
                json_file=str(files.path(files.annotations)),
                evaluator_type=files.evaluator,
                **_class_metadata(files, load_vocabulary(files.vocabulary)),
            )


def _class_metadata(files: DetectionFiles, vocabulary: Vocabulary) -> dict[str, Any]:
    """Metadata of the classes that Detectron2's evaluators read."""
    classes: dict[str, Any] = {"thing_classes": list(vocabulary.names)}
    if not files.by_order:  # only the file knows its ids
        classes["thing_dataset_id_to_contiguous_id"] = dict(vocabulary.dataset_id_to_index)
    return classes


register_detection_datasets()
