"""Checks of one image and its ground truth, which are read as training and evaluation read them."""

from __future__ import annotations

from typing import Any, NamedTuple

from clipself_seg.data.images import read_image
from clipself_seg.data.masks import read_labels_of, read_panoptic_ids
from clipself_seg.data.records import Record
from clipself_seg.data.regions import read_segments
from clipself_seg.errors import InputError


class FileFinding(NamedTuple):
    """Result of the check of an image and its ground truth.

    Attributes:
        problem: message of the error; "" if the files are in order.
        blank: whether no pixel has a label.
        label_map: whether the problem is the label map, and not the image or the panoptic PNG.
        image_id: id of the image, if the data set is one for semantic segmentation.
    """

    problem: str
    blank: bool = False
    label_map: bool = False
    image_id: Any = ""


class SemSegJob(NamedTuple):
    """A record of an image and its label map, with the labels that the map may hold."""

    record: Record
    label_count: int
    ignore_label: int


class PanopticJob(NamedTuple):
    """A record of `datasets.panoptic.panoptic_set_records`, with the number of classes."""

    record: Record
    classes: int


def check_panoptic_record(job: PanopticJob) -> FileFinding:
    """Read image, panoptic PNG and label map; a PNG without any segment is blank."""
    record = job.record
    try:
        ids = read_panoptic_ids(record)
        size = (ids.shape[1], ids.shape[0])
        read_image(record["file_name"], size)
    except InputError as error:
        return FileFinding(str(error))
    try:
        read_labels_of(record, num_classes=job.classes, ignore_label=255, size=size)
    except InputError as error:
        return FileFinding(str(error), label_map=True)
    return FileFinding("", not ids.any())


def check_label_map(job: SemSegJob) -> FileFinding:
    """Read image and label map; a map without any labelled pixel is blank."""
    record = job.record
    try:
        image = read_image(record["file_name"])
    except InputError as error:
        return FileFinding(str(error), image_id=record["image_id"])
    try:
        labels = read_labels_of(
            record,
            num_classes=job.label_count,
            ignore_label=job.ignore_label,
            size=(image.shape[1], image.shape[0]),
        )
    except InputError as error:
        return FileFinding(str(error), label_map=True, image_id=record["image_id"])
    return FileFinding("", bool((labels == job.ignore_label).all()))


def check_record(record: Record) -> FileFinding:
    """Read the image of a record of an annotation file, and its panoptic PNG if it has one."""
    size = (record["width"], record["height"]) if "width" in record else None
    try:
        read_image(record["file_name"], size)
        if "pan_seg_file_name" not in record:
            return FileFinding("")
        # Whether a class is a thing decides about boxes only, which are not used here.
        segments = read_segments(record, frozenset())
    except InputError as error:
        return FileFinding(str(error))
    return FileFinding("", not segments.ids.any())
