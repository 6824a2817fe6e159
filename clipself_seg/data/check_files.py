"""One picture and its ground truth, read as training and evaluation would."""

from __future__ import annotations

from typing import NamedTuple

from clipself_seg.data.images import read_image
from clipself_seg.data.label_maps import read_label_map
from clipself_seg.data.panoptic import read_segments
from clipself_seg.data.records import Record
from clipself_seg.errors import InputError


class FileFinding(NamedTuple):
    """What was found; `problem` is "" if the files are in order."""

    problem: str
    blank: bool = False


class SemSegJob(NamedTuple):
    """A picture and its label map, and which labels that may hold."""

    record: Record
    label_count: int
    ignore_label: int


def check_label_map(job: SemSegJob) -> FileFinding:
    """Read both; a map without any labelled pixel is blank."""
    record = job.record
    try:
        image = read_image(record["file_name"])
        labels = read_label_map(
            record["sem_seg_file_name"],
            num_classes=job.label_count,
            ignore_label=job.ignore_label,
            size=(image.shape[1], image.shape[0]),
            image=record["file_name"],
        )
    except InputError as error:
        return FileFinding(str(error))
    return FileFinding("", bool((labels == job.ignore_label).all()))


def check_record(record: Record) -> FileFinding:
    """Read a picture of an annotation file, and its panoptic PNG if it has one."""
    size = (record["width"], record["height"]) if "width" in record else None
    try:
        read_image(record["file_name"], size)
        if "pan_seg_file_name" not in record:
            return FileFinding("")
        # Which classes are things decides about boxes only, which are not looked at.
        segments = read_segments(record, frozenset())
    except InputError as error:
        return FileFinding(str(error))
    return FileFinding("", not segments.ids.any())
