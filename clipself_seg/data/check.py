"""Which data sets are there and in order, and the command that mends each that is not."""

from __future__ import annotations

from collections.abc import Sequence

from clipself_seg.data.builtin import distillation_records, region_records
from clipself_seg.data.check_files import SemSegJob, check_label_map, check_record
from clipself_seg.data.check_findings import (
    Finding,
    Options,
    State,
    existing,
    judge,
    read_files,
)
from clipself_seg.data.check_panoptic import check_panoptic
from clipself_seg.data.coco_sets import DATASETS, DatasetFiles
from clipself_seg.data.panoptic_sets import PANOPTIC_DATASETS
from clipself_seg.data.records import Record
from clipself_seg.data.sem_seg_sets import SEM_SEG_DATASETS, files_by_stem, pair_files
from clipself_seg.data.vocabulary import class_entries, load_vocabulary
from clipself_seg.errors import InputError, nearest


def all_names() -> list[str]:
    """The data sets that can be checked."""
    return [*DATASETS, *SEM_SEG_DATASETS, *PANOPTIC_DATASETS]


def check_datasets(names: Sequence[str], options: Options) -> list[Finding]:
    """Check some data sets one after the other.

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
    return (_check_sem_seg if name in SEM_SEG_DATASETS else _check_coco)(name, options)


def _check_sem_seg(name: str, options: Options) -> Finding:
    files = SEM_SEG_DATASETS[name]
    images, labels = (paths.keys() for paths in files_by_stem(files))
    finding = Finding(name, "complete", len(images), len(labels), files.official_count)
    assert files.root is not None
    if not images and not files.archive_root.is_dir():
        note, mend = (
            f"{files.archive_root} is missing",
            f"{files.root.advice}; then {files.prepare}",
        )
        return finding._replace(state="absent", notes=(note,), mend=mend)
    if not images & labels:
        note = f"no label maps in {files.sem_seg_root}"
        return finding._replace(state="unprepared", notes=(note,), mend=files.prepare)
    without = 0 if files.images_without_labels else len(images - labels)
    extra = len(labels - images)
    finding = finding._replace(labelled=len(images & labels), missing=without + extra)
    notes = [f"{without} images without label map"] * bool(without)
    notes += [f"{extra} label maps without image"] * bool(extra)
    classes = len(class_entries(files.vocabulary))
    jobs = [
        SemSegJob(record, files.label_count(classes), files.ignore_label)
        for record in pair_files(name, files)
    ]
    found = read_files(check_label_map, jobs, name, options)
    prepare_again = f"{files.prepare} --overwrite"
    if not files.official_count:
        prepare_again = f"delete {files.sem_seg_root.parents[1]}, then {files.prepare}"
    fetch = f"{files.prepare}; if that adds none, the archive is not whole: {files.root.advice}"
    return judge(finding, found, notes, (files.prepare, prepare_again, fetch))


def _check_coco(name: str, options: Options) -> Finding:
    files = DATASETS[name]
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
    there = existing(records)
    lost = len(records) - len(there)
    finding = finding._replace(images=len(there), labelled=len(there), missing=lost)
    notes = [f"{lost} images of the annotation file are not there"] * bool(lost)
    found = read_files(check_record, there, name, options)
    return judge(finding, found, notes, (advice, advice, advice))


def _records(name: str, files: DatasetFiles) -> list[Record]:
    if files.panoptic is None:
        return distillation_records([name], "proposals")
    assert files.vocabulary is not None
    return region_records(name, load_vocabulary(files.vocabulary))
