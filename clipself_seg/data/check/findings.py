"""Result of the check of a data set, and reading of its files, or of a sample of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from clipself_seg.data.check.files import FileFinding, check_record
from clipself_seg.data.parallel import run_in_parallel
from clipself_seg.data.records import Record

State = Literal["absent", "unprepared", "incomplete", "broken", "subset", "complete"]

NOTES = 3
"""Most broken files of a data set that are described."""

WORTH_PROCESSES = 1000
"""Number of images up to which one process is done before others have started."""


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
        """Whether the data set can be used."""
        return self.state in ("complete", "subset")

    def subset_allowed(self) -> Finding:
        """The result where fewer images than the official split has are enough, if all have ground truth."""
        if self.state != "incomplete" or self.missing or not self.labelled:
            return self
        return self._replace(state="subset", mend="")


def existing(records: Sequence[Record], key: str = "file_name") -> list[Record]:
    """Records whose file of an entry exists, by listing each folder once.

    Args:
        records: records of a data set.
        key: entry that names the file.
    """
    folders = {os.path.dirname(record[key]) for record in records}
    names = {folder: set(os.listdir(folder)) for folder in folders if os.path.isdir(folder)}
    return [
        record
        for folder, file_name, record in ((*os.path.split(r[key]), r) for r in records)
        if file_name in names.get(folder, ())
    ]


def read_files(
    check: Callable[[Any], FileFinding], jobs: Sequence[Any], name: str, options: Options
) -> list[FileFinding]:
    """Results of a check of all files of a data set, or of an evenly spread sample.

    Args:
        check: check of one job, a function of `files.py`.
        jobs: its arguments, one for each image.
        name: name of the data set, for the progress bar.
        options: size of the sample, and number of processes.
    """
    if options.sample and len(jobs) > options.sample:
        jobs = [jobs[i * len(jobs) // options.sample] for i in range(options.sample)]
    processes = options.processes if len(jobs) > WORTH_PROCESSES else 1
    return run_in_parallel(check, jobs, processes=processes, label=name)


def judge(
    finding: Finding, files: list[FileFinding], notes: list[str], mends: tuple[str, str, str]
) -> Finding:
    """Result of the check of a data set, from its counts and the results of its files.

    Args:
        finding: result so far, with the counts of images.
        files: results of the files that were read.
        notes: descriptions of what the counts show to be wrong.
        mends: advice for missing files, for broken files, and for an archive that is not whole.
    """
    problems = [file.problem for file in files if file.problem]
    blank = sum(file.blank for file in files)
    few = finding.labelled < (finding.official or 0)
    notes = notes + [f"{finding.labelled} of {finding.official} images"] * few
    notes += problems[:NOTES]
    notes += [f"and {len(problems) - NOTES} more such files"] * (len(problems) > NOTES)
    notes += [f"{blank} of {len(files)} label maps have no labelled pixel"] * bool(blank)
    state: State = "complete"
    mend = ""
    if problems:
        state = "broken"
        mend = mends[1]
    elif finding.missing or few or not finding.labelled:
        state = "incomplete"
        mend = mends[0 if finding.missing else 2]
    return finding._replace(
        state=state,
        read=len(files),
        broken=len(problems),
        blank=blank,
        notes=tuple(notes),
        mend=mend,
    )


def check_images(
    finding: Finding, records: Sequence[Record], options: Options, advice: str
) -> Finding:
    """Result of the check of a data set whose ground truth is its annotation file alone.

    Args:
        finding: result so far.
        records: images of the annotation file.
        options: thoroughness of the check.
        advice: how to get the data set.
    """
    present = existing(records)
    lost = len(records) - len(present)
    finding = finding._replace(images=len(present), labelled=len(present), missing=lost)
    notes = [f"{lost} images of the annotation file are not there"] * bool(lost)
    results = read_files(check_record, present, finding.name, options)
    return judge(finding, results, notes, (advice, advice, advice))
