"""Writes labels of proposals by shards of a thousand images, so that a killed run is resumed, and joins them.

A shard holds the labels of the images of one part of the list, and what they depend on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipself_seg.errors import InputError
from clipself_seg.files import read_json, remove_leftovers, write_json

# Index of the noun, -1 for none, and its score in [0, 1], for each proposal of an image.
ImageLabels = list[tuple[int, float]]


class LabelShards:
    """A folder of shards, each written whole or not at all."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """
        Args:
            folder: for the shards alone; made with the first of them.
            settings: what the labels depend on; JSON.
        """
        self.folder = folder
        self.settings = dict(settings)

    def read(self, number: int, image_ids: Sequence[Any]) -> list[ImageLabels] | None:
        """Labels of each image of a part; None where they are not there, or their file is damaged.

        Args:
            number: of the part, from 0.
            image_ids: the images of the part.

        Raises:
            InputError: they were made with other settings.
        """
        path = self._path(number)
        try:
            content = read_json(path)
            settings, ids, labels = (
                dict(content["settings"]),
                content["image_ids"],
                content["labels"],
            )
            parts: list[ImageLabels] = [[(int(n), float(s)) for n, s in own] for own in labels]
        except (InputError, KeyError, TypeError, ValueError):
            return None
        for key, value in self.settings.items():
            if settings.get(key) != value:
                raise InputError(
                    f"{self.folder} is of an interrupted run with other {key}: finish that one with its "
                    "own command, or begin anew with --overwrite"
                )
        return parts if ids == list(image_ids) and len(parts) == len(ids) else None

    def write(self, number: int, image_ids: Sequence[Any], labels: Sequence[ImageLabels]) -> None:
        """Write the labels of the images of a part, in the same order.

        Raises:
            OSError: the file cannot be written.
        """
        content = {"settings": self.settings, "image_ids": list(image_ids), "labels": list(labels)}
        write_json(self._path(number), content)

    def clear(self) -> None:
        """Remove the folder and all shards."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Remove half-written shards of a killed run."""
        remove_leftovers(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"
