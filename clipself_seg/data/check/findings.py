"""What a check finds about a data set, and how pictures are read for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from clipself_seg.data.check.files import FileFinding
from clipself_seg.data.parallel import run_in_parallel
from clipself_seg.data.records import Record

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


def existing(records: Sequence[Record], key: str = "file_name") -> list[Record]:
    """Records of which a file is there, by listing each folder once."""
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
    """Read all, or an evenly spread sample."""
    if options.sample and len(jobs) > options.sample:
        jobs = [jobs[i * len(jobs) // options.sample] for i in range(options.sample)]
    processes = options.processes if len(jobs) > WORTH_PROCESSES else 1
    return run_in_parallel(check, jobs, processes=processes, label=name)


def judge(
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
