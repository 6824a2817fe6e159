"""Data sets in COCO's formats, for distillation and for the recognition of regions.

First the table of their files, vocabularies and evaluators, then their records and their entries in
Detectron2's catalogue. Names and folders are Detectron2's; a name that Detectron2 already has keeps
its entry, the others are registered when this module is imported. A data set of your own works under
its name if it is registered with `register_coco_instances` or `register_coco_panoptic`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_seg.data.captions import caption_records
from clipself_seg.data.datasets.roots import (
    COCO,
    LVIS,
    MINI,
    MINI_REGION_TEXT,
    PROPOSALS,
    REGION_TEXT,
    DataRoot,
)
from clipself_seg.data.records import (
    Record,
    RegionText,
    category_labels,
    image_records,
    panoptic_records,
    proposal_records,
    read_coco_json,
    read_region_text,
)
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError, MissingFiles, nearest

RegionSource = Literal["grid", "proposals"]

COUNTS = {"train": 118287, "val": 5000}
"""Number of images of COCO's splits of 2017."""


class CocoFiles(NamedTuple):
    """Where the files of one data set lie, and what it is used for. Paths are relative to the root.

    Attributes:
        root: folder of the data set's family, with advice how to get its files.
        images: folder to which the file names of `annotations` are relative.
        annotations: COCO-format JSON (instances, LVIS, proposals, captions or panoptic).
        panoptic: folder of the panoptic PNGs; then `annotations` is the panoptic JSON.
        vocabulary: name of its vocabulary, for `vocabulary.load_vocabulary`.
        evaluator: Detectron2's evaluator_type; None for a data set that is only trained on.
        official_count: number of images of the official split; None where there is no official split.
        captions: whether the annotations are captions, without boxes.
        nouns: whether the categories of boxes are nouns, see `data.region_text`.
    """

    root: DataRoot
    images: str
    annotations: str
    panoptic: str | None = None
    vocabulary: str | None = None
    evaluator: str | None = None
    official_count: int | None = None
    captions: bool = False
    nouns: bool = False


def _coco(split: str) -> dict[str, CocoFiles]:
    images = f"coco/{split}2017"
    count = COUNTS[split]
    return {
        f"coco_2017_{split}": CocoFiles(
            COCO, images, f"coco/annotations/instances_{split}2017.json", None, None, "coco", count
        ),
        f"coco_2017_{split}_panoptic": CocoFiles(
            COCO,
            images,
            f"coco/annotations/panoptic_{split}2017.json",
            f"coco/panoptic_{split}2017",
            "coco_panoptic_133",
            "coco_panoptic_seg",
            count,
        ),
    }


def _mini(world: str, split: str) -> dict[str, CocoFiles]:
    images = f"{world}/{split}"
    annotations = f"{world}/annotations"
    return {
        f"{world}_{split}": CocoFiles(
            MINI, images, f"{annotations}/instances_{split}.json", None, world, "coco"
        ),
        f"{world}_{split}_panoptic": CocoFiles(
            MINI,
            images,
            f"{annotations}/panoptic_{split}.json",
            f"{world}/panoptic_{split}",
            world,
            "coco_panoptic_seg",
        ),
        f"{world}_{split}_proposals": CocoFiles(
            MINI, images, f"{annotations}/proposals_{split}.json"
        ),
        f"{world}_{split}_captions": CocoFiles(
            MINI, images, f"{annotations}/captions_{split}.json", captions=True
        ),
    }


COCO_DATASETS: dict[str, CocoFiles] = {
    **_coco("train"),
    **_coco("val"),
    "coco_2017_train_proposals": CocoFiles(
        PROPOSALS,
        "coco/train2017",
        "coco/annotations/coco_proposals.json",
        official_count=COUNTS["train"],
    ),
    "coco_2017_train_captions": CocoFiles(
        COCO,
        "coco/train2017",
        "coco/annotations/captions_train2017.json",
        official_count=COUNTS["train"],
        captions=True,
    ),
    "coco_2017_train_region_text": CocoFiles(
        REGION_TEXT, "coco/train2017", "coco/annotations/coco_pseudo_4764.json", nouns=True
    ),
    "mini_train_region_text": CocoFiles(
        MINI_REGION_TEXT, "mini/train", "mini/annotations/region_text_train.json", nouns=True
    ),
    # The authors published no proposals for LVIS: boxes of a class-agnostic detector of your own.
    "lvis_v1_train_proposals": CocoFiles(
        PROPOSALS, "coco/", "lvis/lvis_v1_train_proposals.json", None, None, None, 100170
    ),
    "lvis_v1_train": CocoFiles(
        LVIS, "coco/", "lvis/lvis_v1_train.json", None, "lvis_v1_1203", "lvis", 100170
    ),
    **_mini("mini", "train"),
    **_mini("mini", "val"),
    **_mini("mini2", "train"),
    **_mini("mini2", "val"),
    # Boxes of an RPN, see docs/detection.md; mini_train_proposals has those that the world came with.
    "mini_train_rpn_proposals": CocoFiles(
        MINI, "mini/train", "mini/annotations/rpn_proposals_train.json"
    ),
}


class _Paths(NamedTuple):
    images: str
    annotations: str
    panoptic: str | None


def distillation_records(names: Sequence[str], source: RegionSource) -> list[Record]:
    """Records of the images of some data sets, one data set after the other, for distillation.

    Args:
        names: data sets of `COCO_DATASETS` or of Detectron2's catalogue.
        source: "grid" reads the list of images only; "proposals" also the box of each annotation.

    Raises:
        InputError: an unknown name; files that are missing or broken; proposals of a panoptic data
            set, whose annotations are segments.
    """
    if source == "proposals":
        for name in names:
            _refuse_panoptic(name)
    read = {"grid": image_records, "proposals": proposal_records}[source]
    return [record for name in names for record in _read(name, read)]


def captioned_records(names: Sequence[str]) -> list[Record]:
    """Records of the images of some data sets with their captions, one data set after the other.

    Args:
        names: data sets of captions of `COCO_DATASETS`, or of Detectron2's catalogue.

    Raises:
        InputError: an unknown name; one of the table without captions; files that are missing or broken,
            see `caption_records`.
    """
    known = [name for name, files in COCO_DATASETS.items() if files.captions]
    for name in names:
        if name in COCO_DATASETS and name not in known:
            hint = nearest(f"{name}_captions", known)
            raise InputError(f'data set "{name}" has no captions: {hint}')
    return [record for name in names for record in _read(name, caption_records)]


def region_text_records(names: Sequence[str]) -> RegionText:
    """Images of some data sets, one data set after the other, with boxes and their nouns.

    Args:
        names: data sets of `COCO_DATASETS` or of Detectron2's catalogue, whose categories are the nouns.

    Raises:
        InputError: an unknown name; one of the table whose boxes have neither nouns nor classes; files that
            are missing or broken; data sets whose nouns differ.
    """
    # What is evaluated has classes, which are nouns; the one category of proposals is none.
    known = [name for name, files in COCO_DATASETS.items() if files.nouns or files.evaluator]
    parts = []
    for name in names:
        _refuse_panoptic(name)
        _require_nouns(name, known)
        paths = _paths(name)
        content = read_coco_json(paths.annotations)
        parts.append(read_region_text(content, paths.annotations, paths.images))
        if parts[-1].nouns != parts[0].nouns:
            raise InputError(
                f'the nouns of "{name}" are not those of "{names[0]}", or in another order: label all '
                "with one list (clipself-seg data region-text --nouns)"
            )
    nouns = parts[0].nouns if parts else ()
    return RegionText([record for part in parts for record in part.records], nouns)


class RegionTextFiles(NamedTuple):
    """Where boxes with nouns of a data set are, or are to be written.

    Attributes:
        annotations: path of the file.
        images: folder of its images, which is there.
    """

    annotations: str
    images: str


def region_text_files(name: str) -> RegionTextFiles:
    """Files of a data set of boxes with nouns, for those who write them.

    Args:
        name: data set of `COCO_DATASETS` or of Detectron2's catalogue.

    Raises:
        InputError: an unknown name; one of the table whose boxes have no nouns; images that are missing.
    """
    if name in COCO_DATASETS:
        _require_nouns(name, [other for other, files in COCO_DATASETS.items() if files.nouns])
        files = COCO_DATASETS[name]
        annotations, images = files.root.path / files.annotations, files.root.path / files.images
        advice = f"set {files.root.variable} (now {files.root.path}) to the folder of its images"
    else:
        paths = _registered_paths(name)
        annotations, images = Path(paths.annotations), Path(paths.images)
        advice = "correct its registration"
    if not images.exists():
        raise MissingFiles(f'data set "{name}": {images} is missing; {advice}')
    return RegionTextFiles(str(annotations), str(images))


def image_folder(name: str) -> str:
    """Folder to which the file names of a data set are relative.

    Args:
        name: data set of `COCO_DATASETS` or of Detectron2's catalogue.

    Raises:
        InputError: an unknown name; files that are missing.
    """
    return _paths(name).images


def annotation_file(name: str) -> str:
    """File of a data set's images and annotations.

    Args:
        name: data set of `COCO_DATASETS` or of Detectron2's catalogue.

    Raises:
        InputError: an unknown name; files that are missing.
    """
    return _paths(name).annotations


def region_records(name: str, vocabulary: Vocabulary) -> list[Record]:
    """Records of the images of a panoptic data set with their segments, for region recognition.

    Args:
        name: data set of `COCO_DATASETS` or of Detectron2's catalogue.
        vocabulary: classes of the data set; its dataset ids are the category ids of the file.

    Raises:
        InputError: an unknown name; files that are missing or broken; a data set without panoptic
            PNGs; a category that the vocabulary does not have.
    """
    paths = _paths(name)
    panoptic = paths.panoptic
    if panoptic is None:
        raise InputError(
            f'"{name}" has no panoptic PNGs, which region recognition reads: {panoptic_hint(name)}'
        )
    records = panoptic_records(paths.annotations, paths.images, panoptic)
    categories = [info["category_id"] for record in records for info in record["segments_info"]]
    category_labels(np.unique(categories), vocabulary.dataset_id_to_index, paths.annotations)
    return records


def registered_metadata(name: str) -> dict[str, Any]:
    """Metadata of a data set in Detectron2's catalogue.

    Raises:
        InputError: the catalogue has no data set of this name.
    """
    if name not in DatasetCatalog.list():
        raise InputError(f'unknown data set "{name}": {nearest(name, DatasetCatalog.list())}')
    return MetadataCatalog.get(name).as_dict()


def require_entries(name: str, metadata: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuse a registered data set that does not say what it has to.

    Args:
        name: name of the data set, for the message.
        metadata: its metadata in Detectron2's catalogue.
        keys: entries that must be there, and not empty.

    Raises:
        InputError: names the first that is missing.
    """
    for key in keys:
        if not metadata.get(key):
            raise InputError(
                f'data set "{name}" has no "{key}" in its metadata: '
                f'set MetadataCatalog.get("{name}").{key}'
            )


def panoptic_hint(name: str) -> str:
    """End of a message that names the panoptic data sets which were probably meant by `name`."""
    panoptic = [other for other, files in COCO_DATASETS.items() if files.panoptic]
    return nearest(f"{name}_panoptic", panoptic)


def _read(name: str, read: Callable[[str, str], list[Record]]) -> list[Record]:
    paths = _paths(name)
    return read(paths.annotations, paths.images)


def _refuse_panoptic(name: str) -> None:
    if name in COCO_DATASETS:
        is_panoptic = COCO_DATASETS[name].panoptic is not None
    else:
        is_panoptic = _registered_paths(name).panoptic is not None
    if not is_panoptic:
        return
    boxes = name.removesuffix("_panoptic")
    known = [other for other in (boxes, f"{boxes}_proposals") if other in COCO_DATASETS]
    alternatives = " or ".join(f'"{other}"' for other in known if other != name)
    raise InputError(
        f'data set "{name}" is panoptic, and a panoptic JSON has no list of boxes for proposals: take '
        + (
            alternatives
            or "one that register_coco_instances made of a JSON of instances or proposals"
        )
    )


def _require_nouns(name: str, known: Sequence[str]) -> None:
    if name in COCO_DATASETS and name not in known:
        raise InputError(f'"{name}" is no data set of boxes with nouns: {nearest(name, known)}')


def _paths(name: str) -> _Paths:
    """Absolute or working-directory paths of a data set, checked to exist."""
    if name in COCO_DATASETS:
        files = COCO_DATASETS[name]
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


def _registered_paths(name: str) -> _Paths:
    metadata = registered_metadata(name)
    annotations = metadata.get("panoptic_json") or metadata.get("json_file")
    if "image_root" not in metadata or not annotations:
        raise InputError(
            f'data set "{name}" has no image_root and json_file in its metadata: '
            "register it with register_coco_instances or register_coco_panoptic"
        )
    panoptic = metadata.get("panoptic_root") if metadata.get("panoptic_json") else None
    return _Paths(metadata["image_root"], annotations, panoptic)


def register_coco_datasets() -> None:
    """Add `COCO_DATASETS` to Detectron2's catalogue, except for names that it has already."""
    known = set(DatasetCatalog.list())
    for name, files in COCO_DATASETS.items():
        if name not in known:
            DatasetCatalog.register(name, functools.partial(catalogue_records, name))
            MetadataCatalog.get(name).set(evaluator_type=files.evaluator)


def catalogue_records(name: str) -> list[Record]:
    """Records that Detectron2's catalogue returns for a name of the table, with all that its file is for.

    Args:
        name: data set of `COCO_DATASETS`.

    Raises:
        InputError: files that are missing or broken.
    """
    if COCO_DATASETS[name].nouns:
        return region_text_records([name]).records
    paths = _paths(name)
    if paths.panoptic is not None:
        return panoptic_records(paths.annotations, paths.images, paths.panoptic)
    read = caption_records if COCO_DATASETS[name].captions else proposal_records
    return read(paths.annotations, paths.images)


register_coco_datasets()
