"""Checks whether data sets are complete and readable, with the command that mends what is missing or broken.

First what a check says, then the check of a data set with an annotation file, then that of one with label maps alone,
which asks the preparation what the archive has. Images, panoptic PNGs and label maps are read as training and
evaluation read them: all, or an evenly spread sample.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

from clipself_seg.data.annotations import Record, image_records
from clipself_seg.data.datasets.own import read_files
from clipself_seg.data.datasets.records import (
    IMAGE_SUFFIX,
    detection_records,
    files_by_stem,
    pair_files,
    panoptic_set_records,
    region_records,
    standard_records,
)
from clipself_seg.data.datasets.table import (
    DATASETS,
    DataSet,
    DetectionSet,
    NeededPath,
    PanopticSet,
    SemSegSet,
)
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError, known
from lab.parallel import run_in_parallel
from lab.prepare.ade import ade150_jobs, ade847_jobs
from lab.prepare.coco import coco_stuff_jobs
from lab.prepare.common import FileJob, too_few_annotations
from lab.prepare.pascal import VocJob, context_59_jobs, context_459_jobs, nothing_left, voc20_jobs

State = Literal["absent", "unprepared", "incomplete", "broken", "subset", "complete"]

NOTES = 3
"""Most broken files of a data set that are described."""

WORTH_PROCESSES = 1000
"""Number of images up to which one process is done before others have started."""

EVALUATION = ("panoptic", "instances", "semantic")
FILES = ("pan_seg_file_name", "file_name", "sem_seg_file_name")


class Options(NamedTuple):
    """Thoroughness of a check.

    Attributes:
        sample: number of images of a data set, evenly spread, that are read; 0 reads all.
        processes: number of processes to read in.
    """

    sample: int = 200
    processes: int = 1


class Finding(NamedTuple):
    """Result of the check of a data set.

    Attributes:
        name: name of the data set.
        state: "absent": the archive is not there. "unprepared": it is, but no label maps.
            "incomplete": images without ground truth, or fewer than the official split has.
            "broken": files that cannot be used. "subset": fewer images than the official split has,
            on purpose (see `subset_allowed`). "complete": none of these.
        images: number of images in the folder or the annotation file.
        labelled: number of images with ground truth.
        official: number of images of the official split, None where there is no official split.
        read: number of images that were read for the check.
        broken: number of images read that cannot be used.
        blank: number of images read that have no labelled pixel.
        missing: number of images without the ground truth that they should have, or the reverse.
        notes: descriptions of what is wrong.
        mend: advice or command that corrects it, "" if nothing is wrong.
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

    @property
    def fine(self) -> bool:
        """True if the data set can be used."""
        return self.state in ("complete", "subset")

    def subset_allowed(self) -> Finding:
        """The result where fewer images than the official split has are enough, if all have ground truth."""
        if self.state != "incomplete" or self.missing or not self.labelled:
            return self
        return self._replace(state="subset", mend="")


def check_datasets(names: Sequence[str], options: Options) -> list[Finding]:
    """Results of the checks of some data sets, one after the other.

    Args:
        names: names of the table; none are all of them.
        options: thoroughness of the checks.

    Raises:
        InputError: an unknown name.
    """
    for name in names:
        known(name, DATASETS, "data set")
    findings = []
    for name in names or DATASETS:
        entry = DATASETS[name]
        if isinstance(entry, SemSegSet):
            findings.append(_check_label_maps(name, entry, options))
        else:
            findings.append(_check_annotated(name, entry, options))
    return findings


class FileFinding(NamedTuple):
    """Result of the check of an image and its ground truth.

    Attributes:
        problem: message of the error; "" if the files are in order.
        file: the file that it is about, by its entry in a record; "" if the files are in order.
        blank: no pixel has a label.
        image_id: id of the image.
    """

    problem: str
    file: str = ""
    blank: bool = False
    image_id: int | str = ""


class ImageJob(NamedTuple):
    """A record of an image, with the labels that its label map may hold, if it has one."""

    record: Record
    label_count: int = 0
    ignore_label: int = 255


def check_image(job: ImageJob) -> FileFinding:
    """Read an image, and its panoptic PNG and label map if it has them."""
    record = job.record
    try:
        return FileFinding("", blank=read_files(*job), image_id=record["image_id"])
    except InputError as error:
        message = str(error)
    keys = [key for key in FILES if record.get(key, "\0") in message]
    file = min(keys, key=lambda key: message.index(record[key]))  # the one that it names first
    return FileFinding(message, file, image_id=record["image_id"])


def _check_files(name: str, jobs: Sequence[ImageJob], options: Options) -> list[FileFinding]:
    """Results of `check_image` of all images of a data set, or of an evenly spread sample."""
    if options.sample and len(jobs) > options.sample:
        jobs = [jobs[i * len(jobs) // options.sample] for i in range(options.sample)]
    processes = options.processes if len(jobs) > WORTH_PROCESSES else 1
    return run_in_parallel(check_image, jobs, processes=processes, label=name)


def _judge(
    finding: Finding,
    files: Sequence[FileFinding],
    notes: Sequence[str],
    *,
    missing: str,
    broken: str,
    archive: str,
) -> Finding:
    """Result of the check of a data set, from its counts and the results of its files.

    Args:
        finding: result so far, with the counts of images.
        files: results of the files that were read.
        notes: descriptions of what the counts show to be wrong.
        missing: advice for missing files.
        broken: advice for broken files.
        archive: advice for an archive that is not whole.
    """
    problems = [file.problem for file in files if file.problem]
    blank = sum(file.blank for file in files)
    few = finding.labelled < (finding.official or 0)
    notes = [*notes, *[f"{finding.labelled} of {finding.official} images"] * few]
    notes += problems[:NOTES]
    notes += [f"and {len(problems) - NOTES} more such files"] * (len(problems) > NOTES)
    notes += [f"{blank} of {len(files)} label maps have no labelled pixel"] * bool(blank)
    state: State = "complete"
    mend = ""
    if problems:
        state = "broken"
        mend = broken
    elif finding.missing or few or not finding.labelled:
        state = "incomplete"
        mend = missing if finding.missing else archive
    return finding._replace(
        state=state,
        read=len(files),
        broken=len(problems),
        blank=blank,
        notes=tuple(notes),
        mend=mend,
    )


def _steps(steps: Sequence[str]) -> str:
    return "; then ".join(dict.fromkeys(steps))


def _check_annotated(name: str, entry: DataSet, options: Options) -> Finding:
    """Check a data set with an annotation file, its images, and panoptic PNGs and label maps where it has them."""
    finding = Finding(name, "complete", official=entry.official_count)
    missing = entry.missing(EVALUATION)
    if missing:
        return _absent(finding, entry, missing)
    try:
        records = _annotated_records(name, entry)
    except InputError as error:
        mend = _again(entry, entry.prepare)
        return finding._replace(state="broken", notes=(str(error),), mend=mend)
    advice = entry.root.advice
    prepare_sem_seg = entry.prepare_sem_seg if isinstance(entry, PanopticSet) else ""
    count = len(records)
    notes, mends = list[str](), list[str]()
    # Entry of a record, what is said where its file is missing, and the command that writes it.
    files = (
        ("file_name", "images of the annotation file are not there", ""),
        ("pan_seg_file_name", "images have no panoptic PNG", entry.prepare),
        ("sem_seg_file_name", "images have no label map", prepare_sem_seg),
    )
    for key, what, command in files:
        present = _existing(records, key)
        if lost := len(records) - len(present):
            notes.append(f"{lost} {what}")
            mends.append(command or advice)
        records = present
        if key == "file_name":
            finding = finding._replace(images=len(records))
    # A part of the images has a part of the annotations.
    whole = count >= (entry.official_count or 0)
    if few := too_few_annotations(entry) if whole else "":
        notes.append(few)
        mends.append(_again(entry, entry.prepare))
    finding = finding._replace(labelled=len(records), missing=count - len(records) + bool(few))
    if isinstance(entry, PanopticSet) and entry.captions_json:
        path = entry.path(entry.captions_json)
        if not path.exists():
            notes.append(
                f"no {path}, which only training on captions needs: {entry.prepare_captions}"
            )
    classes = len(Vocabulary.load(entry.vocabulary)) if isinstance(entry, PanopticSet) else 0
    results = _check_files(name, [ImageJob(record, classes) for record in records], options)
    broken = {file.file for file in results if file.problem}
    commands = [command for command in (entry.prepare, prepare_sem_seg) if command]
    archive = _steps([f"the archive is not whole: {advice}", *commands])
    mend = _steps([_again(entry, command) for key, _, command in files if key in broken])
    return _judge(finding, results, notes, missing=_steps(mends), broken=mend, archive=archive)


def _absent(finding: Finding, entry: DataSet, missing: Sequence[NeededPath]) -> Finding:
    """Result if files or folders are missing as a whole."""
    note = "missing: " + ", ".join(str(entry.path(need.relative)) for need in missing)
    lacking = {need.relative for need in missing}
    # A file with a command is not gone while what it is made of is there.
    made = not entry.archive or entry.path(entry.archive).exists()
    gone = {need.relative for need in missing if not (need.command and made)}
    commands = [need.command for need in missing if need.command]
    steps = [entry.root.advice] * bool(gone) + commands
    finding = finding._replace(missing=len(missing), notes=(note,), mend=_steps(steps))
    if (
        not entry.annotations
        or entry.annotations in gone
        or (gone and entry.annotations in lacking)
    ):
        return finding._replace(state="absent")
    return finding._replace(state="incomplete" if gone else "unprepared")


def _annotated_records(name: str, entry: DataSet) -> list[Record]:
    """Records of a data set with an annotation file, with what is read of it beside the images."""
    if isinstance(entry, PanopticSet):
        records = panoptic_set_records(name, EVALUATION)
        _check_instances(entry, records)
        return records
    if isinstance(entry, DetectionSet):
        return detection_records(name)
    if entry.panoptic_root:
        return region_records(name)[1]
    return standard_records(name)


def _check_instances(entry: PanopticSet, records: Sequence[Record]) -> None:
    path = entry.path(entry.instances_json)
    listed = {record["image_id"] for record in image_records(path, entry.path(entry.images))}
    # More images do no harm: those of the whole split, beside the panoptic JSON of a part of it.
    lacking = sorted({record["image_id"] for record in records} - listed, key=str)
    if lacking:
        raise InputError(
            f"{path} lacks images that {entry.path(entry.annotations)} lists, such as {lacking[0]}: "
            "take both from one release"
        )


def _existing(records: Sequence[Record], key: str) -> list[Record]:
    """Records whose file of an entry exists, or that have no such entry, by listing each folder once."""
    folders = {os.path.dirname(record[key]) for record in records if key in record}
    names = {folder: set(os.listdir(folder)) for folder in folders if os.path.isdir(folder)}
    present = []
    for record in records:
        folder, file_name = os.path.split(record.get(key, ""))
        if key not in record or file_name in names.get(folder, ()):
            present.append(record)
    return present


def _again(entry: DataSet, command: str) -> str:
    """The command that writes missing files, or their archive where there is none."""
    if not command:
        return entry.root.advice
    # A mini world is written as a whole.
    if entry.official_count is None and not entry.archive:
        return f"delete {entry.path(entry.images).parent}, then {command}"
    return f"{command} --overwrite"


class Gaps(NamedTuple):
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
        """Number of images of which a file is missing."""
        return len(self.without | self.extra | self.waiting)

    def notes(self) -> list[str]:
        """Descriptions of the gaps."""
        counts = {
            "images without label map": self.without,
            "label maps without image": self.extra,
            "images of the archive are not prepared": self.waiting - self.without - self.extra,
            "of these lack what they are prepared from": self.lost - self.extra,
        }
        return [f"{len(stems)} {what}" for what, stems in counts.items() if stems]


def _check_label_maps(name: str, entry: SemSegSet, options: Options) -> Finding:
    """Check images and label maps of a data set for semantic segmentation."""
    images, labels = files_by_stem(entry)
    both = images.keys() & labels.keys()
    finding = Finding(name, "complete", len(images), len(both), entry.official_count)
    archive = entry.path(entry.archive or entry.images)
    if not images and not (entry.archive and archive.is_dir()):
        note = f"no *{IMAGE_SUFFIX} in {archive}" if archive.is_dir() else f"{archive} is missing"
        mend = _steps([entry.root.advice] + [entry.prepare] * (not labels))
        return finding._replace(state="absent", notes=(note,), mend=mend)
    classes = cast(Sequence[str], entry.metadata()["stuff_classes"])
    records = pair_files(name, entry) if both else []
    jobs = [ImageJob(record, len(classes), entry.ignore_label) for record in records]
    results = _check_files(name, jobs, options) if jobs else []
    plan = Plan(name, entry.root.path)
    gaps = _gaps(entry, set(images), set(labels), plan)
    notes = gaps.notes()
    mend = _mend_label_maps(entry, gaps, results, plan)
    finding = finding._replace(missing=gaps.total())
    if both:
        return _judge(finding, results, notes, missing=mend, broken=mend, archive=mend)
    notes = [f"no label maps in {entry.path(entry.annotations)}"] * (not labels) + notes
    # Its first line says what is missing, a second one where to get it.
    notes += plan.problem.splitlines()
    state: State = "incomplete" if plan.problem else "unprepared"
    return finding._replace(state=state, notes=tuple(notes), mend=mend)


def _gaps(entry: SemSegSet, images: set[str], labels: set[str], plan: Plan) -> Gaps:
    both = images & labels
    without = set() if entry.images_without_labels else images - labels
    extra = labels - images
    waiting = set[str]()
    # A large archive need not be listed if no image is missing.
    if len(both) < (entry.official_count or 0):
        # Fewer images than the archive names are taken for a subset on purpose, unless the
        # preparation writes the images.
        waiting = plan.stems - both if entry.archive else plan.stems & images - labels
        if both:
            waiting = {stem for stem in waiting if not plan.left_out(stem)}
    unpaired = without | extra | waiting
    if entry.official_count is None:  # a mini world, which has no archive
        return Gaps(without, extra, waiting, set())
    completed = unpaired if entry.archive else unpaired - extra
    lost = unpaired - {stem for stem in completed if plan.possible(stem)}
    return Gaps(without, extra, waiting, lost)


def _mend_label_maps(
    entry: SemSegSet, gaps: Gaps, results: Collection[FileFinding], plan: Plan
) -> str:
    """Advice if something is wrong: unpack, prepare, or the one after the other."""
    if entry.official_count is None:  # a mini world, which is written as a whole
        return f"delete {entry.path(entry.annotations).parents[1]}, then {entry.prepare}"
    broken = [file for file in results if file.problem]
    # Files that the preparation wrote; the other broken ones are the archive's.
    written = [f for f in broken if f.file == "sem_seg_file_name" or bool(entry.archive)]
    unpack = bool(gaps.lost) or len(written) < len(broken)
    unpack |= not all(plan.possible(str(file.image_id)) for file in written)
    prepare = bool(gaps.without | gaps.waiting) or (bool(gaps.extra) and bool(entry.archive))
    if not gaps.total() and not broken:  # all is in order, but of a part of the archive
        unpack = prepare = True
    steps = [f"the archive is not whole: {entry.root.advice}"] * unpack
    if written or prepare:
        steps.append(entry.prepare + " --overwrite" * bool(written))
    return _steps(steps)


# Dry runs of preparations, by data set.
_JOBS: dict[str, Callable[[Path], Sequence[FileJob]]] = {
    "coco_2017_train_stuff_all_sem_seg": functools.partial(coco_stuff_jobs, split="train2017"),
    "coco_2017_test_stuff_all_sem_seg": functools.partial(coco_stuff_jobs, split="val2017"),
    "ade20k_150_test_sem_seg": functools.partial(ade150_jobs, split="validation"),
    "ade20k_full_sem_seg_freq_val_all": functools.partial(ade847_jobs, split="validation"),
    "context_59_test_sem_seg": context_59_jobs,
    "context_459_test_sem_seg": lambda root: context_459_jobs(root)[0],
    "voc_2012_test_sem_seg": functools.partial(voc20_jobs, name="annotations_detectron2"),
    "voc_2012_test_background_sem_seg": functools.partial(
        voc20_jobs, name="annotations_detectron2_bg"
    ),
}


@dataclass(frozen=True)
class Plan:
    """Jobs of the preparation of a data set, listed at the first question about them.

    Attributes:
        name: name of the data set; there are no jobs for one that has no preparation.
        root: folder of the data sets, which $DETECTRON2_DATASETS names.
    """

    name: str
    root: Path

    @functools.cached_property
    def _listed(self) -> tuple[dict[str, FileJob], str]:
        """Jobs by stem, and a message if the archive cannot be listed."""
        try:
            jobs = _JOBS[self.name](self.root) if self.name in _JOBS else ()
        except InputError as error:
            return {}, str(error)
        return {job.outputs[-1].stem: job for job in jobs}, ""

    @property
    def problem(self) -> str:
        """Message about a part of the archive without which nothing can be prepared; "" if none."""
        return self._listed[1]

    @property
    def stems(self) -> set[str]:
        """Stems of the images that the archive names as those of the data set."""
        return set(self._listed[0])

    def possible(self, stem: str) -> bool:
        """True if all files are there from which the label map of an image is made."""
        job = self._listed[0].get(stem)
        return job is not None and all(path.exists() for path in job.sources)

    def left_out(self, stem: str) -> bool:
        """True if the preparation writes no label map for an image that would have no label."""
        job = self._listed[0].get(stem)
        try:
            return isinstance(job, VocJob) and nothing_left(job)
        except InputError:  # a broken map, which the preparation refuses
            return False
