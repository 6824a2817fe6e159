"""Cityscapes' 19 classes and Mapillary Vistas' 65: panoptic PNGs and JSON, instances, and label maps.

An instance map of Cityscapes has 16 bits a pixel: 1000 * label id + number for an instance, the label id alone for
stuff and for a group of things that nobody told apart. Files have the names and the content that cityscapesscripts
gives them.

The archive of Vistas v1.2 has panoptic files, panoptic_2018.json with category ids from 1, which published numbers are
measured on: they stay as they are. Without them they are made of the instance maps, whose 16 bits are
256 * label + number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clipself_seg.data.annotations import (
    Record,
    category_labels,
    coco_list,
    panoptic_records,
    read_coco_json,
)
from clipself_seg.data.datasets.table import ROOTS
from clipself_seg.data.masks import read_indices, read_panoptic_ids
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from lab.prepare.common import Options, Prepared, files_in, lookup_table, preparation, require
from lab.prepare.panoptic_files import (
    WAITING,
    ImageTruth,
    PanopticJob,
    Segment,
    SplitFiles,
    is_ours,
    listed_categories,
    prepare_panoptic_split,
)

CITY_SPLITS = ("train", "val")
CITY_CLASSES = "openseg_cityscapes_19"
INSTANCES = "_gtFine_instanceIds.png"
# From this number on, a value of an instance map is an instance.
FIRST_INSTANCE = 1000
LABEL_IDS = 34
IGNORED = 255


@preparation("cityscapes_panoptic", CITY_SPLITS)
def prepare_cityscapes(options: Options, splits: Sequence[str] = CITY_SPLITS) -> list[Prepared]:
    """Panoptic and instance labels and label maps of Cityscapes' 19 classes.

        python tools/prepare.py cityscapes_panoptic
        python tools/prepare.py cityscapes_panoptic --root /data/datasets --processes 8 --splits val

    Reads cityscapes/leftImg8bit and cityscapes/gtFine ({instanceIds,labelIds}.png) and writes
    cityscapes/gtFine/cityscapes_panoptic_{train,val}, its JSON and cityscapes_instances_{train,val}.json, and
    labelTrainIds.png beside the archive's. Panoptic files that cityscapesscripts wrote are kept.
    What is there already is kept; an interrupted run is completed by the next.
    """
    return [_prepare_city_split(options, split) for split in splits]


def _prepare_city_split(options: Options, split: str) -> Prepared:
    truth = options.root / "cityscapes/gtFine"
    pngs = truth / f"cityscapes_panoptic_{split}"
    jobs = []
    for source in files_in(truth / split, f"*{INSTANCES}", ROOTS["CITYSCAPES"]):
        stem = source.name.removesuffix(INSTANCES)
        city = options.root / "cityscapes/leftImg8bit" / split / source.parent.name
        jobs.append(
            PanopticJob(
                stem,
                city / f"{stem}_leftImg8bit.png",
                # The name that cityscapesscripts writes, which no file has.
                f"{stem}_gtFine_leftImg8bit.png",
                (source, source.with_name(f"{stem}_gtFine_labelIds.png")),
                read_city,
                pngs / f"{stem}_gtFine_panoptic.png",
                source.with_name(f"{stem}_gtFine_labelTrainIds.png"),
                pngs / WAITING / f"{stem}.json",
                options.overwrite,
            )
        )
    files = SplitFiles(
        pngs, pngs.with_suffix(".json"), truth / f"cityscapes_instances_{split}.json"
    )
    return prepare_panoptic_split(
        files, jobs, listed_categories(Vocabulary.load(CITY_CLASSES)), options
    )


def read_city(instances: Path, labels: Path) -> ImageTruth:
    """Ground truth of an image.

    Args:
        instances: map of instance ids.
        labels: map of label ids.

    Raises:
        InputError: a file is missing or broken, or has values that no map of Cityscapes has.
    """
    index_of = Vocabulary.load(CITY_CLASSES).dataset_id_to_index
    thing = Vocabulary.load(CITY_CLASSES).thing
    values = read_indices(instances).astype(np.int32)
    segments = []
    for value in np.unique(values).tolist():
        label = value // FIRST_INSTANCE if value >= FIRST_INSTANCE else value
        _check_city_label(label, instances)
        if label in index_of:
            isthing = bool(thing[index_of[label]])
            segments.append(Segment(value, label, isthing, isthing and value < FIRST_INSTANCE))
    ids = np.where(np.isin(values, [segment.id for segment in segments]), values, 0)
    return ImageTruth(ids.astype(np.int32), segments, _city_labels(labels))


def _city_labels(path: Path) -> np.ndarray:
    values = read_indices(path)
    _check_city_label(int(values.max()), path)
    index_of = Vocabulary.load(CITY_CLASSES).dataset_id_to_index
    return lookup_table(index_of, LABEL_IDS, IGNORED, np.uint8)[values]


def _check_city_label(label: int, path: Path) -> None:
    if not 0 <= label < LABEL_IDS:
        raise InputError(
            f"{path} has the label id {label}, Cityscapes has 0 to {LABEL_IDS - 1}: unpack "
            "gtFine_trainvaltest.zip again"
        )


VISTAS_SPLITS = ("training", "validation")
VISTAS_CLASSES = "mapillary_vistas_65"
UNLABELLED = 65
Reader = Callable[..., ImageTruth]


@preparation("mapillary_vistas", VISTAS_SPLITS)
def prepare_vistas(options: Options, splits: Sequence[str] = ("validation",)) -> list[Prepared]:
    """Panoptic and instance labels and label maps of Mapillary Vistas v1.2, 65 classes.

        python tools/prepare.py mapillary_vistas
        python tools/prepare.py mapillary_vistas --root /data/datasets --processes 8 --splits validation

    Reads images, labels and panoptic of mapillary_vistas/{training,validation} and writes labels_detectron2 and
    instances_detectron2.json beside them; without the archive's panoptic/panoptic_2018.json, panoptic is made of
    the folder instances.
    What is there already is kept; an interrupted run is completed by the next.
    """
    return [_prepare_vistas_split(options, split) for split in splits]


def _prepare_vistas_split(options: Options, split: str) -> Prepared:
    folder = options.root / "mapillary_vistas" / split
    for name in ("images", "labels"):
        require(folder / name, ROOTS["VISTAS"])
    panoptic = folder / "panoptic/panoptic_2018.json"
    archived = panoptic.exists() and not is_ours(panoptic)
    instances = folder / "instances_detectron2.json"
    files = SplitFiles(panoptic.parent, panoptic, instances, archived)
    reads = _archived(folder, files) if files.archived else _unarchived(folder)
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
    done = prepare_panoptic_split(
        files, jobs, listed_categories(Vocabulary.load(VISTAS_CLASSES)), options
    )
    origin = "are the archive's" if files.archived else "were made of the instance maps"
    return done._replace(folder=target, notes=(f"panoptic files {origin}: {files.panoptic}",))


def _unarchived(folder: Path) -> dict[str, tuple[Path, Reader]]:
    maps = files_in(folder / "instances", "*.png", ROOTS["VISTAS"])
    return {path.stem: (path, read_vistas) for path in maps}


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
    vocabulary = Vocabulary.load(VISTAS_CLASSES)
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


def read_vistas(instances: Path, labels: Path) -> ImageTruth:
    """Ground truth of an image by its instance map.

    Args:
        instances: map of 256 * label + number.
        labels: map of labels.

    Raises:
        InputError: a file is missing or broken, or has values that no map of v1.2 has.
    """
    thing = Vocabulary.load(VISTAS_CLASSES).thing
    values = read_indices(instances).astype(np.int32)
    label_of = values // 256
    _check_vistas_labels(label_of, instances)
    # Stuff is one segment whatever its numbers are.
    merged = np.where(np.append(thing, False)[label_of], values, label_of * 256)
    ids = np.where(label_of == UNLABELLED, 0, merged + 1).astype(np.int32)
    segments = []
    for number in np.unique(ids[ids > 0]).tolist():
        label = (number - 1) // 256
        category = Vocabulary.load(VISTAS_CLASSES).classes[label].dataset_id
        segments.append(Segment(number, category, bool(thing[label])))
    return ImageTruth(ids, segments, _vistas_labels(labels))


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
    index_of = Vocabulary.load(VISTAS_CLASSES).dataset_id_to_index
    things = Vocabulary.load(VISTAS_CLASSES).thing[
        category_labels(categories, index_of, record["panoptic_json"])
    ]
    segments = [
        Segment(info["id"], info["category_id"], thing, bool(info.get("iscrowd")))
        for info, thing in zip(infos, things.tolist(), strict=True)
    ]
    return ImageTruth(read_panoptic_ids(record), segments, _vistas_labels(labels))


def _vistas_labels(path: Path) -> np.ndarray:
    values = read_indices(path)
    _check_vistas_labels(values, path)
    return np.where(values == UNLABELLED, IGNORED, values).astype(np.uint8)


def _check_vistas_labels(labels: np.ndarray, path: Path) -> None:
    if labels.max() > UNLABELLED or labels.min() < 0:
        raise InputError(
            f"{path} has the label {labels.max()}, where v1.2 has 0 to {UNLABELLED}: take the folders instances and "
            "labels of v1.2"
        )
