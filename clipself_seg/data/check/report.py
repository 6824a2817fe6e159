"""Checks of data sets by name, with the command that mends what is missing or broken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from clipself_seg.data.check.files import (
    FileFinding,
    PanopticJob,
    SemSegJob,
    check_label_map,
    check_panoptic_record,
)
from clipself_seg.data.check.findings import (
    Finding,
    Options,
    State,
    check_images,
    existing,
    judge,
    read_files,
)
from clipself_seg.data.datasets.coco import (
    COCO_DATASETS,
    CocoFiles,
    catalogue_records,
    region_records,
)
from clipself_seg.data.datasets.detection import DETECTION_DATASETS, detection_records
from clipself_seg.data.datasets.panoptic import (
    PANOPTIC_DATASETS,
    NeededPath,
    PanopticFiles,
    panoptic_set_records,
)
from clipself_seg.data.datasets.sem_seg import (
    SEM_SEG_DATASETS,
    SemSegFiles,
    files_by_stem,
    pair_files,
)
from clipself_seg.data.images import PUBLISHED_QUALITY, describe_jpegs
from clipself_seg.data.prepare.plans import Plan
from clipself_seg.data.records import Record, image_records
from clipself_seg.data.vocabulary import class_entries, load_vocabulary
from clipself_seg.errors import InputError, nearest


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
        return _absent_sem_seg(finding, files, bool(labels))
    results = _read(name, files, options) if both else []
    plan = Plan(name, files.root.path)
    gaps = _gaps(files, set(images), set(labels), plan)
    notes = gaps.notes()
    mend = _mend_sem_seg(files, gaps, results, plan)
    finding = finding._replace(missing=gaps.total())
    if both:
        if files.prepares_images:
            written = describe_jpegs(images[stem] for stem in sorted(both))
            notes.append(
                f"images of {written}; those of published numbers have {PUBLISHED_QUALITY}"
            )
        return judge(finding, results, notes, (mend, mend, mend))
    notes = [f"no label maps in {files.sem_seg_root}"] * (not labels) + notes
    # Its first line says what is missing, a second one where to get it.
    notes += plan.problem.splitlines()
    state: State = "incomplete" if plan.problem else "unprepared"
    return finding._replace(state=state, notes=tuple(notes), mend=mend)


def _absent_sem_seg(finding: Finding, files: SemSegFiles, labels: bool) -> Finding:
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


def _mend_sem_seg(
    files: SemSegFiles, gaps: _Gaps, results: Sequence[FileFinding], plan: Plan
) -> str:
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


EVALUATION = ("panoptic", "instances", "semantic")


def check_panoptic(name: str, options: Options) -> Finding:
    """Check images, panoptic PNGs and JSON, label maps and instances of a data set.

    Args:
        name: data set of `PANOPTIC_DATASETS`.
        options: thoroughness of the check.
    """
    files = PANOPTIC_DATASETS[name]
    finding = Finding(name, "complete", official=files.official_count)
    missing = [need for need in files.needed(EVALUATION) if not _there(files, need)]
    if missing:
        return _absent(finding, files, missing)
    try:
        records = panoptic_set_records(name, EVALUATION)
        _check_instances(files, records)
    except InputError as error:
        mend = _again(files, files.prepare)
        return finding._replace(state="broken", notes=(str(error),), mend=mend)
    with_image = existing(records)
    with_segments = existing(with_image, "pan_seg_file_name")
    complete = existing(with_segments, "sem_seg_file_name")
    counts = [len(listed) for listed in (records, with_image, with_segments, complete)]
    lost = [before - after for before, after in zip(counts, counts[1:])]
    notes = []
    mends = []
    advice = files.root.advice
    for count, what, command in (
        (lost[0], "images of the annotation file are not there", advice),
        (lost[1], "images have no panoptic PNG", files.prepare or advice),
        (lost[2], "images have no label map", files.prepare_sem_seg),
    ):
        notes += [f"{count} {what}"] * bool(count)
        mends += [command] * (count > 0 and command not in mends)
    notes += _note_captions(files)
    finding = finding._replace(images=counts[1], labelled=counts[3], missing=sum(lost))
    classes = len(load_vocabulary(files.vocabulary))
    jobs = [PanopticJob(record, classes) for record in complete]
    results = read_files(check_panoptic_record, jobs, name, options)
    fetch = "; then ".join([f"the archive is not whole: {advice}", *_commands(files)])
    return judge(finding, results, notes, ("; then ".join(mends), _mend(files, results), fetch))


def _there(files: PanopticFiles, need: NeededPath) -> bool:
    return files.path(need.relative).exists()


def _absent(finding: Finding, files: PanopticFiles, missing: list[NeededPath]) -> Finding:
    """Result if files or folders are missing as a whole."""
    note = "missing: " + ", ".join(str(files.path(need.relative)) for need in missing)
    gone = {need.relative for need in missing if not need.command}
    commands = [need.command for need in missing if need.command]
    steps = list(dict.fromkeys(([files.root.advice] if gone else []) + commands))
    finding = finding._replace(missing=len(missing), notes=(note,), mend="; then ".join(steps))
    if files.images in gone or files.panoptic_json in gone:
        return finding._replace(state="absent")
    return finding._replace(state="incomplete" if gone else "unprepared")


def _check_instances(files: PanopticFiles, records: list[Record]) -> None:
    path = files.path(files.instances_json)
    listed = {record["image_id"] for record in image_records(path, files.path(files.images))}
    # More images do no harm: those of the whole split, beside the panoptic JSON of a part of it.
    lacking = sorted({record["image_id"] for record in records} - listed, key=str)
    if lacking:
        raise InputError(
            f"{path} lacks images that {files.path(files.panoptic_json)} lists, such as {lacking[0]}: "
            "take both from one release"
        )


def _note_captions(files: PanopticFiles) -> list[str]:
    path = files.path(files.captions_json)
    if not files.captions_json or path.exists():
        return []
    return [f"no {path}, which only training on captions needs: {files.prepare_captions}"]


def _mend(files: PanopticFiles, results: list[FileFinding]) -> str:
    """Advice for files that were read and cannot be used."""
    steps = []
    if any(file.problem and not file.label_map for file in results):
        steps.append(_again(files, files.prepare))
    if any(file.problem and file.label_map for file in results):
        steps.append(_again(files, files.prepare_sem_seg))
    return "; then ".join(dict.fromkeys(steps))


def _again(files: PanopticFiles, command: str) -> str:
    if not command:
        return files.root.advice
    if files.official_count is None:  # a mini world, which is written as a whole
        return f"delete {files.path(files.images).parent}, then {command}"
    return f"{command} --overwrite"


def _commands(files: PanopticFiles) -> list[str]:
    return [command for command in (files.prepare, files.prepare_sem_seg) if command]


def check_detection(name: str, options: Options) -> Finding:
    """Check the annotation file and the images that it lists.

    Args:
        name: data set of `DETECTION_DATASETS`.
        options: thoroughness of the check.
    """
    files = DETECTION_DATASETS[name]
    advice = files.root.advice
    finding = Finding(name, "complete", official=files.official_count)
    images, annotations = files.path(files.images), files.path(files.annotations)
    missing = [path for path in (images, annotations) if not path.exists()]
    if missing:
        note = f"missing: {', '.join(map(str, missing))}"
        finding = finding._replace(missing=len(missing), notes=(note,), mend=advice)
        if annotations.exists():
            return finding._replace(state="incomplete")
        if files.archive and files.path(files.archive).exists():
            return finding._replace(state="unprepared", mend=files.prepare)
        return finding._replace(state="absent")
    try:
        records = detection_records(name)
    except InputError as error:
        mend = files.prepare or advice
        return finding._replace(state="broken", notes=(str(error),), mend=mend)
    return check_images(finding, records, options, advice)


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
