"""Which data sets are there and in order, and the command that mends each that is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from clipself_seg.data.builtin import distillation_records, region_records
from clipself_seg.data.check_files import FileFinding, SemSegJob, check_label_map, check_record
from clipself_seg.data.coco_sets import DATASETS, DatasetFiles
from clipself_seg.data.parallel import run_in_parallel
from clipself_seg.data.records import Record
from clipself_seg.data.sem_seg_sets import SEM_SEG_DATASETS, files_by_stem, pair_files
from clipself_seg.data.vocabulary import class_entries, load_vocabulary
from clipself_seg.errors import InputError, nearest

State = Literal["absent", "unprepared", "incomplete", "broken", "complete"]

NOTES = 3
"""So many broken files of a data set are described."""


WORTH_PROCESSES = 1000
"""Fewer pictures are read before other processes have started."""


class Options(NamedTuple):
    """How thoroughly to look.

    Attributes:
        sample: so many pictures of a data set, evenly spread, are read; 0 reads all.
        processes: to read in.
    """

    sample: int = 200
    processes: int = 1


class Finding(NamedTuple):
    """What was found about a data set.

    Attributes:
        state: "absent": the archive is not there. "unprepared": it is, but no label maps.
            "incomplete": pictures without ground truth, or fewer than the official split has.
            "broken": files that cannot be used. "complete": none of these.
        images: pictures that the folder or the annotation file has.
        labelled: pictures with ground truth.
        official: pictures of the official split, None where there is none.
        read: pictures that were read for this.
        broken: of those, how many cannot be used.
        blank: of those, how many have no labelled pixel.
        missing: pictures without the ground truth that they should have, or the reverse.
        notes: what is wrong.
        mend: what to do about it, "" if nothing.
    """

    name: str
    state: State
    images: int = 0
    labelled: int = 0
    official: int | None = None
    read: int = 0
    broken: int = 0
    blank: int = 0
    missing: int = 0
    notes: tuple[str, ...] = ()
    mend: str = ""

    def fine(self, allow_subset: bool = False) -> bool:
        """Whether it can be used.

        Args:
            allow_subset: fewer pictures than the official split are enough, if all have ground
                truth.
        """
        subset = self.state == "incomplete" and self.labelled > 0 and not self.missing
        return self.state == "complete" or (allow_subset and subset)


def all_names() -> list[str]:
    """The data sets that can be checked."""
    return [*DATASETS, *SEM_SEG_DATASETS]


def check_datasets(names: Sequence[str], options: Options) -> list[Finding]:
    """Check some data sets one after the other.

    Raises:
        InputError: an unknown name.
    """
    for name in names:
        if name not in all_names():
            raise InputError(f'no data set "{name}" to check: {nearest(name, all_names())}')
    return [
        (_check_sem_seg if name in SEM_SEG_DATASETS else _check_coco)(name, options)
        for name in names
    ]


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
    found = _read(check_label_map, jobs, name, options)
    prepare_again = f"{files.prepare} --overwrite"
    if not files.official_count:
        prepare_again = f"delete {files.sem_seg_root.parents[1]}, then {files.prepare}"
    fetch = f"{files.prepare}; if that adds none, the archive is not whole: {files.root.advice}"
    return _judge(finding, found, notes, (files.prepare, prepare_again, fetch))


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
    there = _existing(records)
    lost = len(records) - len(there)
    finding = finding._replace(images=len(there), labelled=len(there), missing=lost)
    notes = [f"{lost} images of the annotation file are not there"] * bool(lost)
    found = _read(check_record, there, name, options)
    return _judge(finding, found, notes, (advice, advice, advice))


def _records(name: str, files: DatasetFiles) -> list[Record]:
    if files.panoptic is None:
        return distillation_records([name], "proposals")
    assert files.vocabulary is not None
    return region_records(name, load_vocabulary(files.vocabulary))


def _existing(records: Sequence[Record]) -> list[Record]:
    """Records whose picture is there, by listing each folder once."""
    folders = {os.path.dirname(record["file_name"]) for record in records}
    names = {folder: set(os.listdir(folder)) for folder in folders if os.path.isdir(folder)}
    return [
        record
        for folder, file_name, record in ((*os.path.split(r["file_name"]), r) for r in records)
        if file_name in names.get(folder, ())
    ]


def _read(
    check: Callable[[Any], FileFinding], jobs: Sequence[Any], name: str, options: Options
) -> list[FileFinding]:
    """Read all, or an evenly spread sample."""
    if options.sample and len(jobs) > options.sample:
        jobs = [jobs[i * len(jobs) // options.sample] for i in range(options.sample)]
    processes = options.processes if len(jobs) > WORTH_PROCESSES else 1
    return run_in_parallel(check, jobs, processes=processes, label=name)


def _judge(
    finding: Finding, found: list[FileFinding], notes: list[str], mends: tuple[str, str, str]
) -> Finding:
    """Put counts and files together.

    Args:
        notes: what the counts say.
        mends: for what is missing, for what is broken, and for an archive that is not whole.
    """
    problems = [file.problem for file in found if file.problem]
    blank = sum(file.blank for file in found)
    few = finding.labelled < (finding.official or 0)
    notes = notes + [f"{finding.labelled} of {finding.official} images"] * few
    notes += problems[:NOTES]
    notes += [f"and {len(problems) - NOTES} more such files"] * (len(problems) > NOTES)
    notes += [f"{blank} of {len(found)} label maps have no labelled pixel"] * bool(blank)
    state: State = "complete"
    mend = ""
    if problems:
        state, mend = "broken", mends[1]
    elif finding.missing or few or not finding.labelled:
        state, mend = "incomplete", mends[0 if finding.missing else 2]
    return finding._replace(
        state=state,
        read=len(found),
        broken=len(problems),
        blank=blank,
        notes=tuple(notes),
        mend=mend,
    )
