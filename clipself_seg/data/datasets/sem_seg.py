"""Data sets for semantic segmentation.

First the table of their folders, vocabularies and ignore labels, then their records, which pair
images with label maps, and their entries in Detectron2's catalogue. Names and folders are CAT-Seg's.
Label maps are written by the table's commands from the official archives; labels are indices into the
vocabulary.

A name that Detectron2 already has keeps its entry, the others are registered when this module is
imported. A data set of your own works under its name if it is in Detectron2's catalogue with
"image_root", "sem_seg_root", "ignore_label" and "vocabulary" in its metadata.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_seg.data.datasets.coco import COCO_DATASETS, COUNTS, registered_metadata
from clipself_seg.data.datasets.roots import (
    ADE_150,
    ADE_847,
    COCO_STUFF,
    MINI,
    PASCAL_CONTEXT,
    VOC_2012,
    DataRoot,
)
from clipself_seg.data.records import Record
from clipself_seg.data.vocabulary import class_entries
from clipself_seg.errors import InputError, MissingFiles, nearest

logger = logging.getLogger(__name__)


class SemSegFiles(NamedTuple):
    """Where the files of one data set lie, and how they are read.

    Attributes:
        images: folder of the images, relative to the root.
        labels: folder of the label maps, relative to the root; an image and its map have the same
            stem.
        vocabulary: name of its vocabulary, for `vocabulary.load_vocabulary`.
        ignore_label: value of pixels without ground truth.
        background: None, or the label of the background: then the classes of the vocabulary from
            this index on are names for background, evaluation counts a prediction of any of them as
            background and has `background` + 1 classes.
        image_suffix: suffix of the images.
        label_suffix: suffix of the label maps.
        prepare: command that writes the label maps.
        images_without_labels: whether the folder of the images is meant to hold other images, too.
        official_count: number of images of the official split; None where there is no official split.
        archive: folder that shows that the archive is there, where that is not `images`.
        root: None for a data set of Detectron2's catalogue, whose folders are complete paths.
    """

    images: str
    labels: str
    vocabulary: str
    ignore_label: int = 255
    background: int | None = None
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"
    prepare: str = ""
    images_without_labels: bool = False
    official_count: int | None = None
    archive: str = ""
    root: DataRoot | None = None

    @property
    def image_root(self) -> Path:
        """Folder of the images, with the root that the environment names now."""
        return self._below(self.images)

    @property
    def sem_seg_root(self) -> Path:
        """Folder of the label maps, with the root that the environment names now."""
        return self._below(self.labels)

    @property
    def archive_root(self) -> Path:
        """Folder of the archive, with the root that the environment names now."""
        return self._below(self.archive or self.images)

    @property
    def prepares_images(self) -> bool:
        """Whether `prepare` writes the images, too."""
        return bool(self.archive)

    @property
    def evaluator(self) -> str:
        """Detectron2's evaluator_type."""
        return "sem_seg" if self.background is None else "sem_seg_background"

    def _below(self, folder: str) -> Path:
        return Path(folder) if self.root is None else self.root.path / folder

    def label_count(self, vocabulary_size: int) -> int:
        """Number of labels that the maps may hold besides `ignore_label`."""
        return vocabulary_size if self.background is None else self.background + 1


def _coco_stuff(split: str) -> SemSegFiles:
    return SemSegFiles(
        f"coco-stuff/images/{split}2017",
        f"coco-stuff/annotations_detectron2/{split}2017",
        "coco_stuff_171",
        prepare=f"clipself-seg data prepare coco_stuff --splits {split}2017",
        official_count=COUNTS[split],
        root=COCO_STUFF,
    )


def _context(classes: int, suffix: str, ignore_label: int) -> SemSegFiles:
    return SemSegFiles(
        "VOCdevkit/VOC2010/JPEGImages",
        f"VOCdevkit/VOC2010/annotations_detectron2/pc{classes}_val",
        f"pascal_context_{classes}",
        ignore_label,
        label_suffix=suffix,
        prepare=f"clipself-seg data prepare pascal_context_{classes}",
        images_without_labels=True,
        official_count=5104,
        root=PASCAL_CONTEXT,
    )


def _voc(labels: str, vocabulary: str, background: int | None) -> SemSegFiles:
    return SemSegFiles(
        "VOCdevkit/VOC2012/JPEGImages",
        f"VOCdevkit/VOC2012/{labels}/val",
        vocabulary,
        background=background,
        prepare="clipself-seg data prepare voc20",
        images_without_labels=True,
        official_count=1449,
        root=VOC_2012,
    )


def _mini(world: str, images: str, labels: str, vocabulary: str) -> SemSegFiles:
    return SemSegFiles(
        f"{world}/{images}",
        f"{world}/stuffthingmaps/{labels}",
        vocabulary,
        prepare="clipself-seg data mini-world",
        root=MINI,
    )


SEM_SEG_DATASETS: dict[str, SemSegFiles] = {
    "coco_2017_train_stuff_all_sem_seg": _coco_stuff("train"),
    "coco_2017_test_stuff_all_sem_seg": _coco_stuff("val"),
    "ade20k_150_test_sem_seg": SemSegFiles(
        "ADEChallengeData2016/images/validation",
        "ADEChallengeData2016/annotations_detectron2/validation",
        "ade20k_150",
        prepare="clipself-seg data prepare ade150",
        official_count=2000,
        root=ADE_150,
    ),
    "ade20k_full_sem_seg_freq_val_all": SemSegFiles(
        "ADE20K_2021_17_01/images_detectron2/validation",
        "ADE20K_2021_17_01/annotations_detectron2/validation",
        "ade20k_847",
        65535,
        label_suffix=".tif",
        archive="ADE20K_2021_17_01/images/ADE/validation",
        prepare="clipself-seg data prepare ade847",
        official_count=2000,
        root=ADE_847,
    ),
    "context_59_test_sem_seg": _context(59, ".png", 255),
    "context_459_test_sem_seg": _context(459, ".tif", 459),
    "voc_2012_test_sem_seg": _voc("annotations_detectron2", "voc_20", None),
    "voc_2012_test_background_sem_seg": _voc("annotations_detectron2_bg", "voc_20b_prompts", 20),
    **{
        f"{world}_{split}_sem_seg": _mini(world, split, split, world)
        for world in ("mini", "mini2")
        for split in ("train", "val")
    },
    # Pixels of unseen classes are ignored, so that training does not show them.
    "mini_train_base_sem_seg": _mini("mini", "train", "train_base", "mini_base"),
}


def sem_seg_dataset(name: str) -> SemSegFiles:
    """Folders, vocabulary, ignore label and background of a data set for semantic segmentation.

    Raises:
        InputError: the data set is unknown, or its metadata lacks an entry.
    """
    if name in SEM_SEG_DATASETS:
        return SEM_SEG_DATASETS[name]
    if name in COCO_DATASETS or name not in DatasetCatalog.list():
        raise InputError(
            f'no data set "{name}" for semantic segmentation: {nearest(name, SEM_SEG_DATASETS)}'
        )
    metadata = registered_metadata(name)
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
    """Images and label maps of a data set for semantic segmentation, sorted by file name.

    Args:
        name: data set of `SEM_SEG_DATASETS` or of Detectron2's catalogue.

    Returns:
        Records with "file_name", "sem_seg_file_name" and "image_id", the file's stem.

    Raises:
        InputError: as `sem_seg_dataset`; files are missing (the message names the command that
            prepares them).
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


def pair_files(name: str, files: SemSegFiles) -> list[Record]:
    """Images of a data set that have a label map, sorted by file name.

    Images without a map and maps without an image are left out, with a logged count.

    Args:
        name: name of the data set, for messages.
        files: its entry in the table.

    Returns:
        Records with "file_name", "sem_seg_file_name" and "image_id", the file's stem.

    Raises:
        InputError: a folder is missing, or no image has a map; the message names the command to run.
    """
    for folder in (files.image_root, files.sem_seg_root):
        if not folder.is_dir():
            raise MissingFiles(f'data set "{name}": {folder} is missing; {_advice(files)}')
    images, labels = files_by_stem(files)
    both = sorted(images.keys() & labels.keys())
    if not both:
        raise InputError(
            f'data set "{name}": no *{files.image_suffix} of {files.image_root} has a label map '
            f"*{files.label_suffix} in {files.sem_seg_root}; {_advice(files)}"
        )
    without = len(images) - len(both)
    if len(labels) > len(both) or (without and not files.images_without_labels):
        logger.warning(
            'data set "%s": %d images have no label map and %d label maps no image; %d pairs remain',
            name,
            without,
            len(labels) - len(both),
            len(both),
        )
    return [
        {"file_name": images[stem], "sem_seg_file_name": labels[stem], "image_id": stem}
        for stem in both
    ]


def files_by_stem(files: SemSegFiles) -> tuple[dict[str, str], dict[str, str]]:
    """Paths by stem of all images and of all label maps; empty where there is no such folder."""
    return (
        _files_with(files.image_root, files.image_suffix),
        _files_with(files.sem_seg_root, files.label_suffix),
    )


def _files_with(folder: Path, suffix: str) -> dict[str, str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return {}
    # Hidden files are leftovers of an interrupted preparation.
    return {
        name.removesuffix(suffix): str(folder / name)
        for name in names
        if name.endswith(suffix) and not name.startswith(".")
    }


def _advice(files: SemSegFiles) -> str:
    if files.root is None:
        return "correct its registration or restore the files"
    variable, _, advice = files.root
    return (
        f"run `{files.prepare}` once the files are unpacked\n"
        f"To get them, set {variable} (now {files.root.path}), or: {advice}"
    )


def register_sem_seg_datasets() -> None:
    """Add `SEM_SEG_DATASETS` to Detectron2's catalogue, except for names that it has already."""
    known = set(DatasetCatalog.list())
    for name, files in SEM_SEG_DATASETS.items():
        if name not in known:
            _register(name, files)


def _register(name: str, files: SemSegFiles) -> None:
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


register_sem_seg_datasets()
