"""Checks of data sets by name, with the command that mends what is missing or broken."""

from __future__ import annotations

from collections.abc import Sequence

from clipself_seg.data.check.detection import check_detection
from clipself_seg.data.check.findings import (
    Finding,
    Options,
    State,
    check_images,
)
from clipself_seg.data.check.panoptic import check_panoptic
from clipself_seg.data.check.sem_seg import check_sem_seg
from clipself_seg.data.datasets.coco import (
    COCO_DATASETS,
    CocoFiles,
    catalogue_records,
    region_records,
)
from clipself_seg.data.datasets.detection import DETECTION_DATASETS
from clipself_seg.data.datasets.panoptic import PANOPTIC_DATASETS
from clipself_seg.data.datasets.sem_seg import SEM_SEG_DATASETS
from clipself_seg.data.records import Record
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError, nearest


def all_names() -> list[str]:
    """Names of the data sets that can be checked."""
    return [*COCO_DATASETS, *SEM_SEG_DATASETS, *PANOPTIC_DATASETS, *DETECTION_DATASETS]


def check_datasets(names: Sequence[str], options: Options) -> list[Finding]:
    """Results of the checks of some data sets, one after the other.

    Args:
        names: names of `all_names`.
        options: thoroughness of the checks.

    Raises:
        InputError: an unknown name.
    """
    for name in names:
        if name not in all_names():
            raise InputError(f'no data set "{name}" to check: {nearest(name, all_names())}')
    return [_check(name, options) for name in names]


def _check(name: str, options: Options) -> Finding:
    if name in PANOPTIC_DATASETS:
        return check_panoptic(name, options)
    if name in DETECTION_DATASETS:
        return check_detection(name, options)
    return (check_sem_seg if name in SEM_SEG_DATASETS else _check_coco)(name, options)


def _check_coco(name: str, options: Options) -> Finding:
    files = COCO_DATASETS[name]
    advice = files.root.advice
    finding = Finding(name, "complete", official=files.official_count)
    wanted = [files.images, files.annotations, *([files.panoptic] if files.panoptic else [])]
    missing = [
        str(files.root.path / path) for path in wanted if not (files.root.path / path).exists()
    ]
    if missing:
        note = f"missing: {', '.join(missing)}"
        listed = (files.root.path / files.annotations).exists()
        state: State = "incomplete" if listed else "absent"
        return finding._replace(state=state, missing=len(missing), notes=(note,), mend=advice)
    try:
        records = _records(name, files)
    except InputError as error:
        return finding._replace(state="broken", notes=(str(error),), mend=advice)
    return check_images(finding, records, options, advice)


def _records(name: str, files: CocoFiles) -> list[Record]:
    if files.panoptic is None:
        return catalogue_records(name)
    assert files.vocabulary is not None
    return region_records(name, load_vocabulary(files.vocabulary))
