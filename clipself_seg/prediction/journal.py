"""A journal of the images that are done, from which an interrupted prediction goes on.

A line for each image, behind one for the settings; each has a digest, and a line that is not as it was written
does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from clipself_seg.errors import InputError, shown
from clipself_seg.files import read_text
from clipself_seg.prediction.files import ImageFile

FILE_NAME = ".predict.jsonl"
DIGITS = 16  # of a digest


class Written(NamedTuple):
    """The results that were written for an image.

    Attributes:
        files: paths of its results below the output folder.
        entry: what it contributes to the index; JSON.
    """

    files: list[str]
    entry: dict[str, Any]


class Journal:
    """The file of an output folder that says which images are done, by which settings."""

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], resume: bool) -> None:
        """
        Args:
            folder: the output folder; a hidden file in it is the journal.
            settings: what results depend on beside the image; JSON.
            resume: go on where an earlier call with the same settings stopped, and not anew.
        """
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))
        self.resume = resume
        self._done: dict[str, dict[str, Any]] = {}
        self._file: TextIO | None = None

    def open(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """Read what is done, or begin anew, and open the file for `add`.

        Args:
            provenance: of this call; JSON.

        Returns:
            The provenance of the call that began, which is that of the index.

        Raises:
            InputError: the results that are there are of other settings.
            OSError: the file cannot be written.
        """
        path = self.folder / FILE_NAME
        lines = list(_whole_lines(path)) if self.resume else []
        if not lines or "settings" not in lines[0]:
            self._file = open(path, "w", encoding="utf-8")
            self._write({"settings": self.settings, "provenance": dict(provenance)})
            return dict(provenance)
        first, *images = lines
        self._require_same(first["settings"])
        self._done = {line["name"]: line for line in images if "name" in line}
        self._file = open(path, "a", encoding="utf-8")
        self._file.write("\n")  # behind a line that a killed call left half-written
        begun: dict[str, Any] = first["provenance"]
        return begun

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def entries(self, images: Iterable[ImageFile]) -> dict[str, dict[str, Any]]:
        """What the images that are done contribute to the index, by name.

        An image is done if its file is the same, by path, size and time of the last change, and its results are
        there.

        Args:
            images: those to look for.
        """
        done = {}
        for image in images:
            line = self._done.get(image.name)
            if line is not None and line["input"] == input_state(image.path):
                if all((self.folder / name).is_file() for name in line["files"]):
                    done[image.name] = line["entry"]
        return done

    def add(self, image: ImageFile, state: Mapping[str, Any] | None, written: Written) -> None:
        """Note that an image is done.

        Args:
            image: the image, whose results are written.
            state: `input_state` from before it was read.
            written: its results.

        Raises:
            OSError: the file cannot be written.
        """
        files, entry = written
        self._write({"name": image.name, "input": state, "files": files, "entry": entry})

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        text = json.dumps(line)
        self._file.write(f"{_digest(text)} {text}\n")
        self._file.flush()

    def _require_same(self, settings: Mapping[str, Any]) -> None:
        for key in sorted(settings.keys() | self.settings.keys()):
            old, new = settings.get(key), self.settings.get(key)
            if old != new:
                values = (
                    "" if isinstance(old, list | dict) else f" ({shown(old)}, now {shown(new)})"
                )
                raise InputError(
                    f"{self.folder} has results of other settings: {key} has changed{values}: give another "
                    "--output, or leave out --skip-existing to begin anew"
                )


def input_state(path: Path) -> dict[str, Any] | None:
    """What changes with the content of a file: its path, size in bytes and last change in ns; None without one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return {
        "path": os.path.realpath(path),
        "size": status.st_size,
        "changed": status.st_mtime_ns,
    }


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal that are as they were written; none of a file that is not there or no text."""
    try:
        text = read_text(path)
    except InputError:
        return []
    whole = []
    for line in text.splitlines():
        digest, _, content = line.partition(" ")
        if digest == _digest(content):
            whole.append(json.loads(content))
    return whole


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
