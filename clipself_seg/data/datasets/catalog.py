"""The data sets that have a name here: their records, class lists and entries in the catalogue.

The tables are `coco_sets` for recognition and distillation and `sem_seg_sets` for semantic
segmentation. Names and folders are Detectron2's and CAT-Seg's. Files lie below
`$DETECTRON2_DATASETS` (default `datasets`), those of the mini worlds below `$CLIPSELF_SEG_MINI`
(default `output/mini_world`). Names that Detectron2 already has keep their entry in its catalogue,
new ones are registered when this module is imported.

A data set of your own works under its name as well: registered with Detectron2's
`register_coco_instances` or `register_coco_panoptic`, or, for semantic segmentation, with
"image_root", "sem_seg_root", "ignore_label" and "vocabulary" in its metadata.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_seg.data.datasets.coco import DATASETS
from clipself_seg.data.datasets.sem_seg import SEM_SEG_DATASETS, SemSegFiles, pair_files
from clipself_seg.data.panoptic import category_labels
from clipself_seg.data.records import Record, image_records, panoptic_records, proposal_records
from clipself_seg.data.vocabulary import Vocabulary, class_entries
from clipself_seg.errors import InputError, MissingFiles, nearest

RegionSource = Literal["grid", "proposals"]


class _Paths(NamedTuple):
    images: str
    annotations: str
    panoptic: str | None


def distillation_records(names: Sequence[str], source: RegionSource) -> list[Record]:
    """The pictures of some data sets, one after the other, for distillation.

    Args:
        names: of this table or of Detectron2's catalogue.
        source: "grid" reads the list of images only; "proposals" also each annotation's box.

    Raises:
        InputError: an unknown name; files that are missing or broken; proposals of a panoptic data
            set, whose annotations are segments.
    """
    if source == "proposals":
        for name in names:
            _refuse_panoptic(name)
    read = {"grid": image_records, "proposals": proposal_records}[source]
    return [record for name in names for record in _read(name, read)]


def region_records(name: str, vocabulary: Vocabulary) -> list[Record]:
    """The pictures and segments of a panoptic data set, for region recognition.

    Raises:
        InputError: an unknown name; files that are missing or broken; a data set without panoptic
            PNGs; a category that the vocabulary does not have.
    """
    paths = _paths(name)
    panoptic = paths.panoptic
    if panoptic is None:
        raise InputError(
            f'"{name}" has no panoptic PNGs, which region recognition reads: {_panoptic_hint(name)}'
        )
    records = panoptic_records(paths.annotations, paths.images, panoptic)
    categories = [info["category_id"] for record in records for info in record["segments_info"]]
    category_labels(np.unique(categories), vocabulary.dataset_id_to_index, paths.annotations)
    return records


def sem_seg_dataset(name: str) -> SemSegFiles:
    """Folders, vocabulary, ignore label and background of a data set for semantic segmentation.

    Raises:
        InputError: the data set is unknown, or its metadata lacks an entry.
    """
    if name in SEM_SEG_DATASETS:
        return SEM_SEG_DATASETS[name]
    if name in DATASETS or name not in DatasetCatalog.list():
        raise InputError(
            f'no data set "{name}" for semantic segmentation: {nearest(name, SEM_SEG_DATASETS)}'
        )
    metadata = _metadata(name)
    for key in ("image_root", "sem_seg_root", "ignore_label", "vocabulary"):
        if metadata.get(key) is None:
            raise InputError(
                f'data set "{name}" has no "{key}" in its metadata: '
                f'set MetadataCatalog.get("{name}").{key}'
            )
    return SemSegFiles(
        str(metadata["image_root"]),
        str(metadata["sem_seg_root"]),
        metadata["vocabulary"],
        metadata["ignore_label"],
        metadata.get("background"),
    )


def sem_seg_records(name: str) -> list[Record]:
    """The pictures and label maps of a data set for semantic segmentation, sorted by name.

    Returns:
        Records with "file_name", "sem_seg_file_name" and "image_id", the file's stem.

    Raises:
        InputError: as `sem_seg_dataset`; files are missing (names the command that prepares them).
    """
    files = sem_seg_dataset(name)
    if files.root is not None:
        return pair_files(name, files)
    for folder in (files.image_root, files.sem_seg_root):
        if not folder.is_dir():
            raise MissingFiles(
                f'data set "{name}": {folder} is missing; '
                "correct its registration or restore the files"
            )
    records: list[Record] = DatasetCatalog.get(name)
    if not records or any("sem_seg_file_name" not in record for record in records):
        raise InputError(
            f'data set "{name}": its records need "file_name" and "sem_seg_file_name": '
            "register a function that gives them, such as Detectron2's load_sem_seg"
        )
    return sorted(
        ({"image_id": Path(record["file_name"]).stem, **record} for record in records),
        key=lambda record: record["file_name"],
    )


def vocabulary_name(name: str) -> str:
    """The class list of a data set, for `load_vocabulary`.

    For a data set of your own it is the entry "vocabulary" of Detectron2's metadata.

    Raises:
        InputError: the data set is unknown or has no class list here.
    """
    words: str | None
    if name in SEM_SEG_DATASETS:
        words = SEM_SEG_DATASETS[name].vocabulary
    elif name in DATASETS:
        words = DATASETS[name].vocabulary
        if words is None:
            raise InputError(f'data set "{name}" has no vocabulary here: {_panoptic_hint(name)}')
    else:
        words = _metadata(name).get("vocabulary")
    if words is None:
        raise InputError(
            f'data set "{name}" has no vocabulary: '
            f'set MetadataCatalog.get("{name}").vocabulary to a name or a .json file'
        )
    return words


def _read(name: str, read: Callable[[str, str], list[Record]]) -> list[Record]:
    paths = _paths(name)
    return read(paths.annotations, paths.images)


def _refuse_panoptic(name: str) -> None:
    if name in DATASETS:
        is_panoptic = DATASETS[name].panoptic is not None
    else:
        is_panoptic = _registered_paths(name).panoptic is not None
    if not is_panoptic:
        return
    boxes = name.removesuffix("_panoptic")
    known = [other for other in (boxes, f"{boxes}_proposals") if other in DATASETS]
    way = " or ".join(f'"{other}"' for other in known if other != name)
    raise InputError(
        f'data set "{name}" is panoptic, and a panoptic JSON has no list of boxes for proposals: take '
        + (way or "one that register_coco_instances made of a JSON of instances or proposals")
    )


def _paths(name: str) -> _Paths:
    """Absolute or working-directory paths of a data set, checked to exist."""
    if name in DATASETS:
        files = DATASETS[name]
        root = files.root
        panoptic = None if files.panoptic is None else str(root.path / files.panoptic)
        paths = _Paths(str(root.path / files.images), str(root.path / files.annotations), panoptic)
        advice = f"set {root.variable} (now {root.path}) or get the files: {root.advice}"
    else:
        paths = _registered_paths(name)
        advice = "correct its registration or restore the files"
    for path in paths:
        if path is not None and not os.path.exists(path):
            raise MissingFiles(f'data set "{name}": {path} is missing; {advice}')
    return paths


def _metadata(name: str) -> dict[str, Any]:
    """What Detectron2's catalogue knows about a registered data set."""
    if name not in DatasetCatalog.list():
        raise InputError(f'unknown data set "{name}": {nearest(name, DatasetCatalog.list())}')
    return MetadataCatalog.get(name).as_dict()


def _registered_paths(name: str) -> _Paths:
    metadata = _metadata(name)
    annotations = metadata.get("panoptic_json") or metadata.get("json_file")
    if "image_root" not in metadata or not annotations:
        raise InputError(
            f'data set "{name}" has no image_root and json_file in its metadata: '
            "register it with register_coco_instances or register_coco_panoptic"
        )
    panoptic = metadata.get("panoptic_root") if metadata.get("panoptic_json") else None
    return _Paths(metadata["image_root"], annotations, panoptic)


def _panoptic_hint(name: str) -> str:
    panoptic = [other for other, files in DATASETS.items() if files.panoptic]
    return nearest(f"{name}_panoptic", panoptic)


def _load(name: str) -> list[Record]:
    """What Detectron2's catalogue returns for a name that is ours."""
    paths = _paths(name)
    if paths.panoptic is not None:
        return panoptic_records(paths.annotations, paths.images, paths.panoptic)
    return proposal_records(paths.annotations, paths.images)


def register_datasets() -> None:
    """Add the table's names to Detectron2's catalogue, except those that it has already."""
    known = set(DatasetCatalog.list())
    for name, files in DATASETS.items():
        if name in known:
            continue
        DatasetCatalog.register(name, functools.partial(_load, name))
        MetadataCatalog.get(name).set(evaluator_type=files.evaluator)
    for name, semantic in SEM_SEG_DATASETS.items():
        if name not in known:
            _register_sem_seg(name, semantic)


def _register_sem_seg(name: str, files: SemSegFiles) -> None:
    DatasetCatalog.register(name, functools.partial(sem_seg_records, name))
    classes = [entry["names"][0] for entry in class_entries(files.vocabulary)]
    if files.background is not None:
        classes = [*classes[: files.background], "background"]
    MetadataCatalog.get(name).set(
        image_root=str(files.image_root),
        sem_seg_root=str(files.sem_seg_root),
        ignore_label=files.ignore_label,
        evaluator_type=files.evaluator,
        stuff_classes=classes,
    )


register_datasets()
