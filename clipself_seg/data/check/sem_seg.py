"""Whether a data set for semantic segmentation is there and in order.

What mends it depends on what is wrong: label maps can be prepared again as long as the archive has
what they are made of; that, and pictures that are the archive's own, has to be unpacked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from clipself_seg.data.check.files import FileFinding, SemSegJob, check_label_map
from clipself_seg.data.check.findings import Finding, Options, State, judge, read_files
from clipself_seg.data.datasets.sem_seg import (
    SEM_SEG_DATASETS,
    SemSegFiles,
    files_by_stem,
    pair_files,
)
from clipself_seg.data.prepare.plans import Plan
from clipself_seg.data.vocabulary import class_entries


class _Gaps(NamedTuple):
    """Pictures, by stem, of which something is missing.

    Attributes:
        without: with a picture, without the label map that it should have.
        extra: with a label map, without a picture.
        waiting: named by the archive, and not prepared.
        lost: those of them that no preparation completes.
    """

    without: set[str]
    extra: set[str]
    waiting: set[str]
    lost: set[str]

    def total(self) -> int:
        return len(self.without | self.extra | self.waiting)

    def notes(self) -> list[str]:
        counts = {
            "images without label map": self.without,
            "label maps without image": self.extra,
            "pictures of the archive are not prepared": self.waiting - self.without - self.extra,
            "of these lack what they are prepared from": self.lost - self.extra,
        }
        return [f"{len(stems)} {what}" for what, stems in counts.items() if stems]


def check_sem_seg(name: str, options: Options) -> Finding:
    """Check pictures and label maps of a known data set."""
    files = SEM_SEG_DATASETS[name]
    assert files.root is not None
    images, labels = (set(paths) for paths in files_by_stem(files))
    both = images & labels
    finding = Finding(name, "complete", len(images), len(both), files.official_count)
    if not images and not (_pictures_prepared(files) and files.archive_root.is_dir()):
        return _absent(finding, files, bool(labels))
    found = _read(name, files, options) if both else []
    plan = Plan(name, files.root.path)
    gaps = _gaps(files, images, labels, plan)
    notes, mend = gaps.notes(), _mend(files, gaps, found, plan)
    finding = finding._replace(missing=gaps.total())
    if both:
        return judge(finding, found, notes, (mend, mend, mend))
    notes = [f"no label maps in {files.sem_seg_root}"] * (not labels) + notes
    # Its first line says what is missing, a second one where it is to be had.
    notes += plan.problem.splitlines()
    state: State = "incomplete" if plan.problem else "unprepared"
    return finding._replace(state=state, notes=tuple(notes), mend=mend)


def _pictures_prepared(files: SemSegFiles) -> bool:
    """Whether the preparation writes the pictures, too."""
    return bool(files.archive)


def _absent(finding: Finding, files: SemSegFiles, labels: bool) -> Finding:
    assert files.root is not None
    folder = files.archive_root
    note = f"no *{files.image_suffix} in {folder}" if folder.is_dir() else f"{folder} is missing"
    steps = [files.root.advice] + [files.prepare] * (not labels)
    return finding._replace(state="absent", notes=(note,), mend="; then ".join(steps))


def _read(name: str, files: SemSegFiles, options: Options) -> list[FileFinding]:
    classes = len(class_entries(files.vocabulary))
    jobs = [
        SemSegJob(record, files.label_count(classes), files.ignore_label)
        for record in pair_files(name, files)
    ]
    return read_files(check_label_map, jobs, name, options)


def _gaps(files: SemSegFiles, images: set[str], labels: set[str], plan: Plan) -> _Gaps:
    both = images & labels
    without = set() if files.images_without_labels else images - labels
    extra, waiting = labels - images, set[str]()
    # All of a large archive need not be listed to see that nothing is missing.
    if len(both) < (files.official_count or 0):
        # A subset of the pictures is meant to be one, unless the pictures are to be prepared.
        waiting = plan.stems - both if _pictures_prepared(files) else plan.stems & images - labels
        if both:
            waiting = {stem for stem in waiting if not plan.left_out(stem)}
    unpaired = without | extra | waiting
    if files.official_count is None:  # a mini world, which has no archive
        return _Gaps(without, extra, waiting, set())
    completed = unpaired if _pictures_prepared(files) else unpaired - extra
    lost = unpaired - {stem for stem in completed if plan.possible(stem)}
    return _Gaps(without, extra, waiting, lost)


def _mend(files: SemSegFiles, gaps: _Gaps, found: Sequence[FileFinding], plan: Plan) -> str:
    """What to do if something is wrong: unpack, prepare, or the one after the other."""
    assert files.root is not None
    if files.official_count is None:  # a mini world, which is written as a whole
        return f"delete {files.sem_seg_root.parents[1]}, then {files.prepare}"
    broken = [file for file in found if file.problem]
    # What the preparation wrote, and what the archive brought.
    written = [file for file in broken if file.label_map or _pictures_prepared(files)]
    unpack = bool(gaps.lost) or len(written) < len(broken)
    unpack |= not all(plan.possible(file.image_id) for file in written)
    prepare = bool(gaps.without | gaps.waiting) or (bool(gaps.extra) and _pictures_prepared(files))
    if not gaps.total() and not broken:  # all is in order, but of a part of the archive
        unpack = prepare = True
    steps = [f"the archive is not whole: {files.root.advice}"] * unpack
    if written or prepare:
        steps.append(files.prepare + " --overwrite" * bool(written))
    return "; then ".join(steps)
