"""A journal of the images that are done, from which an interrupted prediction goes on.

A line of JSON for each image, behind one for the settings: its name, its file's state ("input"), the "files" of its
results with their "sizes" in bytes, and its "entry" of the index. A half-written line does not count. Whatever else
goes on where it was interrupted compares its settings by `require_same`, too.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypedDict

from clipself_seg.errors import InputError, shown
from clipself_seg.files import read_text
from clipself_seg.prediction.files import FILE_NAME, ImageFile
from clipself_seg.schema import ANYTHING, OBJECT, TEXT, WHOLE, Schema, check

LINE: Schema = {"name": TEXT, "input": ANYTHING, "files": [TEXT], "sizes": [WHOLE], "entry": OBJECT}
ADVICE = "give another --output, or leave out --skip-existing to begin anew (with --ray, empty the folder)"

Json = dict[str, object]
InputState = dict[str, str | int]


class Entry(TypedDict, total=False):
    """Contribution of an image or a video to the index; JSON."""

    size: list[int]  # height and width of an image in pixels
    fractions: dict[str, float]  # of the pixels of each class
    annotations: list[Json]  # of the task's own file in COCO's format
    regions: list[Json]  # annotations of coco.json
    masks: dict[str, Any]  # number of masks that somebody gave, and those that are lost
    frames: int  # number of frames of a video that were taken
    every: int  # one frame of so many was taken
    rate: float  # frames a second of the video
    presence: dict[str, float]  # of each word in the image, in standard deviations
    absent: list[str]  # the words that are not in it
    warning: str  # what the models do not know


class Written(NamedTuple):
    """The results that were written for an image.

    Attributes:
        files: paths of its results below the output folder.
        entry: its entry of the index.
    """

    files: list[str]
    entry: Entry


class Journal:
    """The file of an output folder that says which images are done, by which settings."""

    def __init__(self, folder: str | Path, settings: Mapping[str, object], resume: bool) -> None:
        """
        Args:
            folder: the output folder; a hidden file in it is the journal.
            settings: settings that decide results, beside the image; JSON.
            resume: go on where an earlier call with the same settings stopped, and not anew.
        """
        self.folder = Path(folder)
        self.settings = settings
        self.resume = resume
        self._done: dict[str, dict[str, Any]] = {}
        self._file: TextIO | None = None

    def open(self, provenance: Mapping[str, object]) -> Mapping[str, object]:
        """Reads what is done, or begins anew, and opens the file for `add`.

        Args:
            provenance: of this call; JSON.

        Returns:
            The provenance of the call that began, which is that of the index.

        Raises:
            InputError: the results that are there are of other settings.
            OSError: the file cannot be written.
        """
        path = self.folder / FILE_NAME
        lines = _lines(path) if self.resume else []
        match lines:
            case [{"settings": dict(settings), "provenance": dict(made_by)}, *images]:
                require_same(self.folder, settings, self.settings, ADVICE)
                for line in images:
                    with contextlib.suppress(InputError):
                        check(line, LINE, path)
                        self._done[line["name"]] = line
                self._file = open(path, "a", encoding="utf-8")
                self._file.write("\n")  # behind a line that a killed call left half-written
                return made_by
        self._file = open(path, "w", encoding="utf-8")
        self._write({"settings": self.settings, "provenance": provenance})
        return provenance

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def entries(self, images: Iterable[ImageFile]) -> dict[str, Entry]:
        """The entries of the index of the images that are done, by name.

        An image is done if its file is the same, by path, size and time of the last change, and its results have the
        sizes that were written.

        Args:
            images: images to look for.
        """
        done = {}
        for image in images:
            line = self._done.get(image.name)
            if line is not None and line["input"] == input_state(image.path):
                if line["sizes"] == self._sizes(line["files"]):
                    done[image.name] = line["entry"]
        return done

    def add(self, image: ImageFile, state: InputState | None, written: Written) -> None:
        """Notes that an image is done.

        Args:
            image: the image, whose results are written.
            state: `input_state` from before it was read.
            written: its results.

        Raises:
            OSError: the file cannot be written.
        """
        sizes = self._sizes(written.files)
        self._write({"name": image.name, "input": state, **written._asdict(), "sizes": sizes})

    def _sizes(self, files: Sequence[str]) -> list[int | None]:
        """Bytes of files below the folder; None of one that is not there."""
        paths = [self.folder / file for file in files]
        return [path.stat().st_size if path.is_file() else None for path in paths]

    def _write(self, line: Mapping[str, object]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def require_same(
    folder: str | Path, old: Mapping[str, object], new: Mapping[str, object], advice: str
) -> None:
    """Refuses to go on with results of other settings.

    Args:
        folder: folder of the results.
        old: settings that they were made with, as JSON gives them.
        new: settings of this call.
        advice: the way out, for the message.

    Raises:
        InputError: names the first setting that differs, with both values if they are short.
    """
    new = json.loads(json.dumps(new))
    for key in {**old, **new}:
        before, now = old.get(key), new.get(key)
        if before == now:
            continue
        values = "" if isinstance(before, list | dict) else f" ({shown(before)}, now {shown(now)})"
        raise InputError(
            f"{folder} has results of other settings: {key} has changed{values}: {advice}"
        )


def input_state(path: Path) -> InputState | None:
    """The state of a file, by its path, size in bytes and last change in ns; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return {"path": os.path.realpath(path), "size": status.st_size, "changed": status.st_mtime_ns}


def _lines(path: Path) -> list[Any]:
    """The whole lines of a journal; none of a file that is not there or no text."""
    whole = list[Any]()
    with contextlib.suppress(InputError):
        for text in read_text(path).splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                whole.append(json.loads(text))
    return whole
