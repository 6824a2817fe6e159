"""Check of a data set for panoptic segmentation: whether it is complete and readable."""

from __future__ import annotations

from clipself_seg.data.check.files import FileFinding, PanopticJob, check_panoptic_record
from clipself_seg.data.check.findings import Finding, Options, existing, judge, read_files
from clipself_seg.data.datasets.panoptic import (
    PANOPTIC_DATASETS,
    NeededPath,
    PanopticFiles,
    panoptic_set_records,
)
from clipself_seg.data.records import Record, image_records
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError

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
