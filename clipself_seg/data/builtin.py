"""The data sets that have a name here: one table of files, vocabulary and evaluator.

Names and folders are Detectron2's. Files lie below `$DETECTRON2_DATASETS` (default `datasets`),
those of the mini worlds below `$CLIPSELF_SEG_MINI` (default `output/mini_world`). Names that
Detectron2 already has keep their entry in its catalogue, new ones are registered when this module
is imported. A data set of your own, registered with Detectron2's `register_coco_instances` or
`register_coco_panoptic`, works under its name as well.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_seg.data.panoptic import category_labels
from clipself_seg.data.records import Record, image_records, panoptic_records, proposal_records
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError, nearest

RegionSource = Literal["grid", "proposals"]


class DataRoot(NamedTuple):
    """Where a family of data sets lies, and how to get its files."""

    variable: str
    default: str
    advice: str

    @property
    def path(self) -> Path:
        """The folder, as the environment says now."""
        return Path(os.environ.get(self.variable) or self.default).expanduser()


COCO = DataRoot(
    "DETECTRON2_DATASETS",
    "datasets",
    "unpack images and annotations from https://cocodataset.org there",
)
LVIS = DataRoot(
    "DETECTRON2_DATASETS",
    "datasets",
    "LVIS v1 is at https://www.lvisdataset.org, its images are COCO's",
)
PROPOSALS = DataRoot(
    "DETECTRON2_DATASETS",
    "datasets",
    "CLIPSelf's authors give coco_proposals.json; any COCO-format JSON with boxes will do",
)
MINI = DataRoot(
    "CLIPSELF_SEG_MINI", "output/mini_world", "`make quickstart` writes the mini worlds"
)


class DatasetFiles(NamedTuple):
    """Where one data set lies and what it is for. Paths are relative to the root.

    Attributes:
        images: folder to which the file names of `annotations` are relative.
        annotations: COCO-format JSON (instances, LVIS, proposals or panoptic).
        panoptic: folder of the panoptic PNGs; then `annotations` is the panoptic JSON.
        vocabulary: name of the class list, for `vocabulary.load_vocabulary`.
        evaluator: Detectron2's evaluator_type; None for what is only trained on.
    """

    root: DataRoot
    images: str
    annotations: str
    panoptic: str | None = None
    vocabulary: str | None = None
    evaluator: str | None = None


def _coco(split: str) -> dict[str, DatasetFiles]:
    images, words = f"coco/{split}2017", "coco_panoptic_133"
    return {
        f"coco_2017_{split}": DatasetFiles(
            COCO, images, f"coco/annotations/instances_{split}2017.json", None, None, "coco"
        ),
        f"coco_2017_{split}_panoptic": DatasetFiles(
            COCO,
            images,
            f"coco/annotations/panoptic_{split}2017.json",
            f"coco/panoptic_{split}2017",
            words,
            "coco_panoptic_seg",
        ),
    }


def _mini(world: str, split: str) -> dict[str, DatasetFiles]:
    name, images, annotations = f"{world}_{split}", f"{world}/{split}", f"{world}/annotations"
    return {
        name: DatasetFiles(
            MINI, images, f"{annotations}/instances_{split}.json", None, world, "coco"
        ),
        f"{name}_panoptic": DatasetFiles(
            MINI,
            images,
            f"{annotations}/panoptic_{split}.json",
            f"{world}/panoptic_{split}",
            world,
            "coco_panoptic_seg",
        ),
        f"{name}_proposals": DatasetFiles(MINI, images, f"{annotations}/proposals_{split}.json"),
    }


DATASETS: dict[str, DatasetFiles] = {
    **_coco("train"),
    **_coco("val"),
    "coco_2017_train_proposals": DatasetFiles(
        PROPOSALS, "coco/train2017", "coco/annotations/coco_proposals.json"
    ),
    "lvis_v1_train": DatasetFiles(
        LVIS, "coco/", "lvis/lvis_v1_train.json", None, "lvis_v1_1203", "lvis"
    ),
    **_mini("mini", "train"),
    **_mini("mini", "val"),
    **_mini("mini2", "train"),
    **_mini("mini2", "val"),
}


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
        InputError: an unknown name, or files that are missing or broken.
    """
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


def vocabulary_name(name: str) -> str:
    """The class list of a data set, for `load_vocabulary`.

    For a data set of your own it is the entry "vocabulary" of Detectron2's metadata.

    Raises:
        InputError: the data set is unknown or has no class list here.
    """
    if name in DATASETS:
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
            raise InputError(f'data set "{name}": {path} is missing; {advice}')
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


register_datasets()
