"""Writes a file in COCO's format annotation by annotation: files of proposals have millions of boxes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TextIO


class CocoStream:
    """A file whose parts are written in the order in which they are known: the list of images comes last.

    Attributes:
        count: number of annotations so far, which is the id of the last one.
    """

    def __init__(
        self, file: TextIO, info: Mapping[str, Any], categories: Sequence[Mapping[str, Any]]
    ) -> None:
        """
        Args:
            file: open to be written, and empty.
            info: what the file says of itself; JSON.
            categories: with "id" and "name".
        """
        self.file = file
        self.count = 0
        begin = json.dumps({"info": info, "categories": categories}).removesuffix("}")
        file.write(f'{begin},\n"annotations": [')

    def add(self, annotation: dict[str, Any]) -> None:
        """Write an annotation; its id is its number, from 1.

        Raises:
            OSError: the file cannot be written.
        """
        self.count += 1
        comma = "," if self.count > 1 else ""
        self.file.write(f"{comma}\n{json.dumps(annotation | {'id': self.count})}")

    def finish(self, images: Sequence[Mapping[str, Any]]) -> None:
        """Write the list of images, after which the file is whole.

        Raises:
            OSError: the file cannot be written.
        """
        self.file.write(f'\n],\n"images": {json.dumps(images)}}}\n')
