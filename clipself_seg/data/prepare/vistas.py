"""Mapillary Vistas v1.2: label maps and instances of its 65 classes, and panoptic files where the archive has none.

The archive has panoptic files, panoptic_2018.json with category ids from 1, which published numbers are measured on:
they stay as they are. Without them they are made of the instance maps, whose 16 bits are 256 * label + number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clipself_seg.data.annotations import (
    Record,
    category_labels,
    coco_info,
    coco_list,
    panoptic_records,
    read_coco_json,
)
from clipself_seg.data.datasets.table import VISTAS
from clipself_seg.data.masks import read_indices, read_panoptic_ids
from clipself_seg.data.prepare.common import Options, Prepared, files_in, preparation, require
from clipself_seg.data.prepare.panoptic_files import (
    MADE_OF,
    WAITING,
    ImageTruth,
    PanopticJob,
    Segment,
    SplitFiles,
    listed_categories,
    prepare_panoptic_split,
)
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.errors import InputError

SPLITS = ("training", "validation")

UNLABELLED = 65
IGNORED = 255
Reader = Callable[..., ImageTruth]


@preparation("mapillary_vistas", SPLITS)
def prepare_vistas(options: Options, splits: Sequence[str] = ("validation",)) -> list[Prepared]:
    """Panoptic and instance labels and label maps of Mapillary Vistas v1.2, 65 classes.

        clipself-seg data prepare mapillary_vistas
        clipself-seg data prepare mapillary_vistas --root /data/datasets --processes 8 --splits validation

    Reads images, labels and panoptic of mapillary_vistas/{training,validation} and writes labels_detectron2 and
    instances_detectron2.json beside them; without the archive's panoptic/panoptic_2018.json, panoptic is made of
    the folder instances.
    What is there already is kept; an interrupted run is completed by the next.
    """
    return [_prepare_split(options, split) for split in splits]


def _prepare_split(options: Options, split: str) -> Prepared:
    folder = options.root / "mapillary_vistas" / split
    nested = folder / "v1.2"
    if nested.exists() and not (folder / "labels").exists():
        raise InputError(
            f"{folder} is of the archive v2.0, which has v1.2 in a folder of its own: move what is in {nested} to "
            f"{folder}"
        )
    for name in ("images", "labels"):
        require(folder / name, VISTAS)
    panoptic = folder / "panoptic/panoptic_2018.json"
    files = SplitFiles(
        panoptic.parent, panoptic, folder / "instances_detectron2.json", _is_archived(panoptic)
    )
    reads = _archived(folder, files) if files.archived else _own(folder)
    target = folder / "labels_detectron2"
    jobs = [
        PanopticJob(
            stem,
            folder / "images" / f"{stem}.jpg",
            f"{stem}.jpg",
            (source, folder / "labels" / f"{stem}.png"),
            read,
            files.pngs / source.name,
            target / f"{stem}.png",
            target / WAITING / f"{stem}.json",
            options.overwrite and not files.archived,
        )
        for stem, (source, read) in reads.items()
    ]
    done = prepare_panoptic_split(files, jobs, listed_categories(_vocabulary()), options)
    origin = "are the archive's" if files.archived else "were made of the instance maps"
    return done._replace(folder=target, notes=(f"panoptic files {origin}: {files.panoptic}",))


def _is_archived(json_file: Path) -> bool:
    """Whether there is a panoptic JSON, and this preparation did not write it."""
    return json_file.exists() and coco_info(read_coco_json(json_file)).get("made_of") != MADE_OF


def _own(folder: Path) -> dict[str, tuple[Path, Reader]]:
    maps = files_in(folder / "instances", "*.png", VISTAS)
    return {path.stem: (path, read_truth) for path in maps}


def _archived(folder: Path, files: SplitFiles) -> dict[str, tuple[Path, Reader]]:
    _check_version(files.panoptic)
    records = panoptic_records(files.panoptic, folder / "images", files.pngs)
    return {
        str(record["image_id"]): (
            Path(record["pan_seg_file_name"]),
            functools.partial(read_archived, record),
        )
        for record in records
    }


def _check_version(json_file: Path) -> None:
    """Refuse a panoptic JSON of other classes, such as the 124 of v2.0."""
    vocabulary = _vocabulary()
    listed = {
        entry.get("id"): bool(entry.get("isthing"))
        for entry in coco_list(read_coco_json(json_file), "categories", json_file)
    }
    wanted = {entry.dataset_id: bool(entry.isthing) for entry in vocabulary.classes}
    wrong = [number for number in wanted if listed.get(number) != wanted[number]]
    more = listed.keys() - wanted.keys()
    if wrong or more:
        raise InputError(
            f"{json_file} has {len(listed)} categories, which are not the {len(wanted)} of v1.2 with the same things "
            f"(the first that differs has the id {[*wrong, *more][0]}): take the panoptic folder of v1.2"
        )


def read_truth(instances: Path, labels: Path) -> ImageTruth:
    """Ground truth of an image by its instance map.

    Args:
        instances: map of 256 * label + number.
        labels: map of labels.

    Raises:
        InputError: a file is missing or broken, or has values that no map of v1.2 has.
    """
    thing = _vocabulary().thing
    values = read_indices(instances, archive=True).astype(np.int32)
    label_of = values // 256
    _check_labels(label_of, instances)
    # Stuff is one segment whatever its numbers are.
    merged = np.where(np.append(thing, False)[label_of], values, label_of * 256)
    ids = np.where(label_of == UNLABELLED, 0, merged + 1).astype(np.int32)
    segments = []
    for number in np.unique(ids[ids > 0]).tolist():
        label = (number - 1) // 256
        category = _vocabulary().classes[label].dataset_id
        segments.append(Segment(number, category, bool(thing[label])))
    return ImageTruth(ids, segments, _labels(labels))


def read_archived(record: Record, _: Path, labels: Path) -> ImageTruth:
    """Ground truth of an image by the archive's panoptic files.

    Args:
        record: record of `annotations.panoptic_records`.
        _: its panoptic PNG, which the record names.
        labels: map of labels.

    Raises:
        InputError: a file is missing or broken, PNG and JSON disagree, or there is a class that v1.2 lacks.
    """
    infos = record["segments_info"]
    categories = np.array([info["category_id"] for info in infos], np.int64)
    index_of = _vocabulary().dataset_id_to_index
    things = _vocabulary().thing[category_labels(categories, index_of, record["panoptic_json"])]
    segments = [
        Segment(info["id"], info["category_id"], thing, bool(info.get("iscrowd")))
        for info, thing in zip(infos, things.tolist(), strict=True)
    ]
    return ImageTruth(read_panoptic_ids(record), segments, _labels(labels))


def _labels(path: Path) -> np.ndarray:
    values = read_indices(path, archive=True)
    _check_labels(values, path)
    return np.where(values == UNLABELLED, IGNORED, values).astype(np.uint8)


def _check_labels(labels: np.ndarray, path: Path) -> None:
    if labels.max() > UNLABELLED or labels.min() < 0:
        raise InputError(
            f"{path} has the label {labels.max()}, where v1.2 has 0 to {UNLABELLED}: take the folders instances and "
            "labels of v1.2"
        )


@functools.cache
def _vocabulary() -> Vocabulary:
    return load_vocabulary("mapillary_vistas_65")
