"""Check of a data set for semantic segmentation: whether it is complete and readable.

The advice depends on what is wrong: label maps can be prepared again as long as the archive has the
files that they are made of; those files, and images of the archive, have to be unpacked again.
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
from clipself_seg.data.jpeg import PUBLISHED, describe_jpegs
from clipself_seg.data.prepare.plans import Plan
from clipself_seg.data.vocabulary import class_entries


class _Gaps(NamedTuple):
    """Stems of images of which a file is missing.

    Attributes:
        without: there is an image, but not the label map that it should have.
        extra: there is a label map, but no image.
        waiting: the archive names the image, and it is not prepared.
        lost: stems of these three that no preparation completes.
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
            "images of the archive are not prepared": self.waiting - self.without - self.extra,
            "of these lack what they are prepared from": self.lost - self.extra,
        }
        return [f"{len(stems)} {what}" for what, stems in counts.items() if stems]


def check_sem_seg(name: str, options: Options) -> Finding:
    """Check images and label maps of a data set.

    Args:
        name: data set of `SEM_SEG_DATASETS`.
        options: thoroughness of the check.
    """
    files = SEM_SEG_DATASETS[name]
    assert files.root is not None
    images, labels = files_by_stem(files)
    both = images.keys() & labels.keys()
    finding = Finding(name, "complete", len(images), len(both), files.official_count)
    if not images and not (files.prepares_images and files.archive_root.is_dir()):
        return _absent(finding, files, bool(labels))
    results = _read(name, files, options) if both else []
    plan = Plan(name, files.root.path)
    gaps = _gaps(files, set(images), set(labels), plan)
    notes = gaps.notes()
    mend = _mend(files, gaps, results, plan)
    finding = finding._replace(missing=gaps.total())
    if both:
        if files.prepares_images:
            written = describe_jpegs(images[stem] for stem in sorted(both))
            notes.append(f"images of {written}; those of published numbers have {PUBLISHED}")
        return judge(finding, results, notes, (mend, mend, mend))
    notes = [f"no label maps in {files.sem_seg_root}"] * (not labels) + notes
    # Its first line says what is missing, a second one where to get it.
    notes += plan.problem.splitlines()
    state: State = "incomplete" if plan.problem else "unprepared"
    return finding._replace(state=state, notes=tuple(notes), mend=mend)


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
    extra = labels - images
    waiting = set[str]()
    # A large archive need not be listed if no image is missing.
    if len(both) < (files.official_count or 0):
        # Fewer images than the archive names are taken for a subset on purpose, unless the
        # preparation writes the images.
        waiting = plan.stems - both if files.prepares_images else plan.stems & images - labels
        if both:
            waiting = {stem for stem in waiting if not plan.left_out(stem)}
    unpaired = without | extra | waiting
    if files.official_count is None:  # a mini world, which has no archive
        return _Gaps(without, extra, waiting, set())
    completed = unpaired if files.prepares_images else unpaired - extra
    lost = unpaired - {stem for stem in completed if plan.possible(stem)}
    return _Gaps(without, extra, waiting, lost)


def _mend(files: SemSegFiles, gaps: _Gaps, results: Sequence[FileFinding], plan: Plan) -> str:
    """Advice if something is wrong: unpack, prepare, or the one after the other."""
    assert files.root is not None
    if files.official_count is None:  # a mini world, which is written as a whole
        return f"delete {files.sem_seg_root.parents[1]}, then {files.prepare}"
    broken = [file for file in results if file.problem]
    # Files that the preparation wrote; the other broken ones are the archive's.
    written = [file for file in broken if file.label_map or files.prepares_images]
    unpack = bool(gaps.lost) or len(written) < len(broken)
    unpack |= not all(plan.possible(file.image_id) for file in written)
    prepare = bool(gaps.without | gaps.waiting) or (bool(gaps.extra) and files.prepares_images)
    if not gaps.total() and not broken:  # all is in order, but of a part of the archive
        unpack = prepare = True
    steps = [f"the archive is not whole: {files.root.advice}"] * unpack
    if written or prepare:
        steps.append(files.prepare + " --overwrite" * bool(written))
    return "; then ".join(steps)
