"""The files of registered data sets: what a run reads, as a fingerprint, and what is missing."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from clipself_seg.data.datasets.coco import COCO_DATASETS
from clipself_seg.data.datasets.detection import DETECTION_DATASETS
from clipself_seg.data.datasets.panoptic import PANOPTIC_DATASETS
from clipself_seg.data.datasets.roots import MINI, DataRoot
from clipself_seg.data.datasets.sem_seg import SEM_SEG_DATASETS
from clipself_seg.errors import InputError
from clipself_seg.files import read_json
from clipself_seg.mini.writer import WorldSize, manifest_of

CHUNK = 1 << 22  # bytes


class DataFiles(NamedTuple):
    """Files and folders of a data set, with the advice how to get them."""

    root: DataRoot
    paths: tuple[Path, ...]
    how: str


def data_files(name: str) -> DataFiles | None:
    """Files of a data set that the project knows; None for one of somebody else's."""
    if name in DETECTION_DATASETS:
        detection = DETECTION_DATASETS[name]
        paths = [detection.images, detection.annotations]
        return _files(detection.root, paths, detection.prepare)
    if name in PANOPTIC_DATASETS:
        panoptic = PANOPTIC_DATASETS[name]
        paths = [needed.relative for needed in panoptic.needed(("instances", "semantic"))]
        return _files(panoptic.root, paths, panoptic.prepare)
    if name in SEM_SEG_DATASETS:
        sem_seg = SEM_SEG_DATASETS[name]
        if sem_seg.root is None:
            return None
        return _files(sem_seg.root, [sem_seg.images, sem_seg.labels], sem_seg.prepare)
    if name in COCO_DATASETS:
        coco = COCO_DATASETS[name]
        return _files(coco.root, [coco.images, coco.annotations, coco.panoptic or ""], "")
    return None


def _files(root: DataRoot, relative: Iterable[str], prepare: str) -> DataFiles:
    paths = tuple(root.path / path for path in relative if path)
    return DataFiles(root, paths, root.advice + (f", then {prepare}" if prepare else ""))


def missing_data(name: str) -> str:
    """What of a data set is not on this disk, and how to get it.

    "" if all is there, if nobody knows, and of the mini worlds, which are drawn when they are needed.
    """
    files = data_files(name)
    if files is None or files.root.variable == MINI.variable:
        return ""
    missing = [str(path) for path in files.paths if not path.exists()]
    return f"{name}: {', '.join(missing)}: {files.how}" if missing else ""


def fingerprint(name: str) -> Any:
    """What decides the content of a data set.

    Of the mini worlds, and of what a run itself prepares there, it is their manifest (sizes, seed and version
    of the generator), the standard one where no world is written yet. Of other data sets it is a hash of every
    annotation file, and the number of entries of every folder.
    """
    files = data_files(name)
    if files is None:
        return "registered elsewhere"
    if files.root.variable == MINI.variable:
        return mini_fingerprint()
    return {path.name: _content(path) for path in files.paths}


def mini_fingerprint() -> Any:
    """The manifest of the mini worlds, the standard one where none is written yet."""
    try:
        return read_json(MINI.path / "mini" / "manifest.json")
    except InputError:
        return manifest_of(WorldSize())


def _content(path: Path) -> Any:
    if path.is_dir():
        return sum(1 for _ in os.scandir(path))
    if not path.is_file():
        return "absent"
    status = path.stat()
    return file_hash(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=None)
def file_hash(path: Path, *_: int) -> str:
    """12 hexadecimal digits of the bytes of a file, read once for the same further values."""
    digest = hashlib.blake2b(digest_size=6)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
