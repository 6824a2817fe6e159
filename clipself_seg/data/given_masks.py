"""Masks of an image from another program, such as Segment Anything: read from files or memory, checked and bounded.

A folder has for an image NAME one of

    NAME.json   run lengths or polygons of COCO: a list of them, or of {"segmentation": ..., "score": ...}, or
                such a list as "annotations"
    NAME.png    a mask for each value: one channel of 8 or 16 bits, or R + 256 G + 65536 B; 0 is none
    NAME/       a PNG for each mask, all but 0 is inside; their scores may be in metadata.csv

The first and the last are what Segment Anything's script writes, the second are COCO's panoptic PNGs. Masks may
overlap. A score is 1 where there is none; SAM's "predicted_iou", an estimate, counts as 1 where it is above.

Shapes: n masks, H x W pixels of the image as it is meant to be seen.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from clipself_seg.checkpoints.mask_models import MASK_MODELS, has_mask_model
from clipself_seg.data.images import (
    MAX_PIXELS,
    decoding_errors,
    open_image,
    require_mode,
    require_size,
)
from clipself_seg.data.masks import INDEX_MODES, read_indices, read_panoptic_png, run_lengths
from clipself_seg.errors import InputError, in_short, shown
from clipself_seg.files import read_json, read_text
from clipself_seg.schema import LIST, Kind, check

MOST_MASKS = 1000  # of an image
MOST_BYTES = 1 << 31  # of the masks of an image, with a byte a pixel
MOST_FILE_BYTES = 1 << 26  # of a JSON or a table
TABLE = "metadata.csv"
# The second is an estimate, which may exceed 1.
SCORES = {
    "score": Kind("a number in [0, 1]", lambda value: _is_score(value) and value <= 1),
    "predicted_iou": Kind("a number from 0 on", lambda value: _is_score(value)),
}
FORMS = "NAME.json, NAME.png or a folder NAME"


class GivenMasks(NamedTuple):
    """Masks of an image.

    Attributes:
        masks: (n, H, W) bool.
        scores: how good each mask is, (n,) float32 in [0, 1].
    """

    masks: np.ndarray
    scores: np.ndarray


def given_masks(value: object, size: tuple[int, int]) -> GivenMasks:
    """Masks that a caller gives of an image.

    Args:
        value: a path of one of the forms above; an array (n, H, W) of bool, or of 0 and others; a list of
            annotations, whose "segmentation" may be an array (H, W) too, as SAM's generator returns them; or
            `GivenMasks`.
        size: rows and columns of the image in pixels.

    Raises:
        InputError: it is none of these, of another size, damaged, or too much; names file and mask.
    """
    if isinstance(value, str | os.PathLike):
        return read_masks(value, size)
    if isinstance(value, GivenMasks):
        return _checked(value, size)
    if isinstance(value, list):
        return _of_annotations(value, size, "masks")
    masks = np.asarray(value)
    if masks.ndim != 3 or masks.dtype == object:
        raise InputError(
            f"masks are an array (n, height, width), a list of annotations or a path, got {shown(value)}"
        )
    return _checked(GivenMasks(masks != 0, np.ones(len(masks), np.float32)), size)


def _checked(given: GivenMasks, size: tuple[int, int]) -> GivenMasks:
    masks, scores = np.asarray(given.masks), np.asarray(given.scores, dtype=np.float32)
    _require_size("masks", masks.shape[1:], size)
    _require_room("masks", len(masks), size)
    if scores.shape != masks.shape[:1] or not ((scores >= 0) & (scores <= 1)).all():
        raise InputError(f"scores of {len(masks)} masks are as many numbers in [0, 1]")
    # As torch takes them: writable, in order.
    return GivenMasks(np.require(masks, bool, ["C", "W"]), np.array(scores))


def read_masks(path: str | os.PathLike[str], size: tuple[int, int]) -> GivenMasks:
    """Read the masks of an image from a file or folder of one of the forms above.

    Args:
        path: file or folder.
        size: rows and columns of the image in pixels.

    Raises:
        InputError: it is missing, damaged, of another size, or too much; names file and mask.
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(path, size)
    if path.suffix.lower() == ".png":
        return _of_map(path, size)
    content = read_json(path, "masks", most_bytes=MOST_FILE_BYTES)
    if isinstance(content, dict):
        content = content.get("annotations")
    check(
        content,
        LIST,
        f"masks {path}",
        'give COCO\'s run lengths or polygons, also as "annotations"',
    )
    return _of_annotations(content, size, str(path))


def _of_annotations(entries: Sequence[object], size: tuple[int, int], source: str) -> GivenMasks:
    _require_room(source, len(entries), size)
    _require_one_image(entries, source)
    masks = np.zeros((len(entries), *size), dtype=bool)
    scores = np.ones(len(entries), dtype=np.float32)
    for index, entry in enumerate(entries):
        place = f"{source}: mask {index}"
        if isinstance(entry, dict):
            scores[index] = _score(entry, place)
            entry = entry.get("segmentation", entry)
        masks[index] = _pixels(entry, size, place)
    return GivenMasks(masks, scores)


def _require_one_image(entries: Sequence[object], source: str) -> None:
    """Refuse a list of a whole data set, as COCO's results and annotations are."""
    first, name = None, "image_id"
    for index, entry in enumerate(entries):
        image = entry.get(name) if isinstance(entry, dict) else None
        if image is None:
            continue
        if first is not None and image != first[1]:
            raise InputError(
                f'{source}: mask {first[0]} has the "{name}" {shown(first[1])} and mask {index} {shown(image)}: give '
                "the masks of one image alone"
            )
        first = first or (index, image)


def _pixels(value: object, size: tuple[int, int], place: str) -> np.ndarray:
    """Pixels (H, W) of the "segmentation" of an annotation."""
    if isinstance(value, np.ndarray):
        _require_size(place, value.shape, size)
        return value != 0
    if isinstance(value, dict) and isinstance(value.get("counts"), bytes):  # pycocotools' own
        value = {**value, "counts": value["counts"].decode("latin-1")}
    pixels: np.ndarray = rle.decode(run_lengths(value, *size, place))
    return pixels


def _is_score(value: object) -> bool:
    number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    return number and 0 <= value < np.inf


def _score(entry: Mapping[str, object], place: str) -> float:
    for key, kind in SCORES.items():
        value: Any = entry.get(key)
        if value is not None:
            check(value, kind, place, "correct it or leave it out", key)
            return float(min(value, 1))
    return 1.0


def _of_map(path: Path, size: tuple[int, int]) -> GivenMasks:
    ids = _read_ids(path, size)
    values = np.unique(ids)
    values = values[values != 0]
    _require_room(str(path), len(values), size)
    return GivenMasks(ids == values[:, None, None], np.ones(len(values), dtype=np.float32))


def _of_folder(folder: Path, size: tuple[int, int]) -> GivenMasks:
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    pngs = sorted((path for path in files if path.suffix.lower() == ".png"), key=_number_first)
    if not pngs and {path.name for path in files} - {TABLE}:
        raise InputError(f"masks {folder} has no PNG: give one for each mask")
    _require_room(str(folder), len(pngs), size)
    masks = np.zeros((len(pngs), *size), dtype=bool)
    for mask, path in zip(masks, pngs):
        np.not_equal(_read_ids(path, size), 0, out=mask)
    scores = np.ones(len(pngs), dtype=np.float32)
    if TABLE in {path.name for path in files}:
        scores[:] = _table_scores(folder / TABLE, [path.stem for path in pngs])
    return GivenMasks(masks, scores)


def _number_first(path: Path) -> tuple[int, str]:
    """Sorts 2.png before 10.png."""
    digits = path.stem.isdecimal() and len(path.stem) < 10
    return int(path.stem) if digits else -1, path.name


def _table_scores(path: Path, stems: Sequence[str]) -> list[float]:
    """The score of each mask from a table with the columns "id" and "score" or "predicted_iou"."""
    text = read_text(path, "scores of masks", MOST_FILE_BYTES)
    try:
        rows = list(csv.DictReader(text.splitlines()))
    except csv.Error as error:
        raise InputError(f"scores of masks {path} are no table ({in_short(error)})") from None
    own = {row.get("id"): row for row in rows}
    scores = []
    for stem in stems:
        if stem not in own:
            raise InputError(
                f'{path} has no row whose "id" is {shown(stem)}: give each mask one, or leave the table out'
            )
        entry = {key: _number(own[stem][key]) for key in SCORES if own[stem].get(key)}
        scores.append(_score(entry, f"{path}: {stem}"))
    return scores


def _number(text: str) -> float | str:
    """The number of a cell of a table; the text itself where it is none."""
    try:
        return float(text)
    except ValueError:
        return text


def _read_ids(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Values (H, W) of a PNG, 0 outside of all masks; its header is compared before anything is decoded."""
    limit = max(MAX_PIXELS, size[0] * size[1])
    with decoding_errors(f"file of masks {path}", "correct the path", "write it again"):
        with open_image(path, limit) as file:
            mode, (width, height) = file.mode, file.size
    _require_size(str(path), (height, width), size)
    advice = "give one channel of whole numbers, or RGB as in COCO's panoptic PNGs"
    require_mode(f"masks {path}", mode, (*INDEX_MODES, "RGB"), advice)
    return read_panoptic_png(path, limit) if mode == "RGB" else read_indices(path, max_pixels=limit)


def _require_size(source: str, shape: Sequence[int], size: tuple[int, int]) -> None:
    whose = "the image, as it is meant to be seen (EXIF applied),"
    advice = "give masks of this image at its own size"
    require_size(source, shape[::-1], whose, size[::-1], advice)


def _require_room(source: str, count: int, size: tuple[int, int]) -> None:
    if count > MOST_MASKS or count * size[0] * size[1] > MOST_BYTES:
        raise InputError(
            f"{source}: {count} masks of {size[1]} x {size[0]} pixels, and {MOST_MASKS} masks and {MOST_BYTES} pixels "
            "at most are read: give fewer, or a smaller image with its masks"
        )


def image_name(file_name: str | os.PathLike[str]) -> str:
    """Name by which a `MaskFolder` has the masks of a data set's image: that of its file, without ending."""
    return Path(file_name).stem


class MaskFolder:
    """A folder with the masks of images, by their names.

    Attributes:
        folder: the folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """
        Args:
            folder: it has for each image NAME one of the forms above.

        Raises:
            InputError: it is no folder, or has a model in shards or a pickle.
        """
        self.folder = Path(folder)
        if not os.fspath(folder) or not self.folder.is_dir():
            raise InputError(
                f'no folder of masks "{folder}": give one that has {FORMS} for each image (predict --masks, '
                "MODEL.MASK_GENERATOR.OUTPUTS), or a model that finds masks: "
                f"{', '.join(MASK_MODELS)} or hf-hub:org/name"
            )
        has_mask_model(folder)  # refuses one that is not read

    def path(self, name: str) -> Path | None:
        """File or folder of an image; None if there is none.

        Args:
            name: name of the image without ending, with the folder below that of all images.

        Raises:
            InputError: there are two.
        """
        files = [self.folder / f"{name}{ending}" for ending in (".json", ".png")]
        files = [file for file in files if file.is_file()]
        if len(files) > 1:
            raise InputError(f"{files[0]} and {files[1]} are of one image: leave one out")
        # Beside a file a folder is that of further images.
        return files[0] if files else folder if (folder := self.folder / name).is_dir() else None

    def required(self, name: str) -> Path:
        """File or folder of an image, see `path`.

        Raises:
            InputError: there is none, or there are two.
        """
        if (path := self.path(name)) is None:
            raise InputError(
                f"no masks of {name} in {self.folder}: give {FORMS}, an empty list as JSON where there are none"
            )
        return path

    def read(self, name: str, size: tuple[int, int]) -> GivenMasks:
        """Masks of an image.

        Args:
            name: as for `path`.
            size: rows and columns of the image in pixels.

        Raises:
            InputError: there are none, or as `read_masks`.
        """
        return read_masks(self.required(name), size)

    def check(self, dataset: str, names: Sequence[str]) -> dict[str, object]:
        """Look for the masks of all images before any is evaluated.

        Args:
            dataset: name of the data set, for messages.
            names: names of its images, as for `path`.

        Returns:
            "forms", how many images have each, and "digest" of names and sizes of their files.

        Raises:
            InputError: an image has none, or two.
        """
        paths = {name: self.path(name) for name in names}
        missing = [name for name, path in paths.items() if path is None]
        if missing:
            raise InputError(
                f"masks of {len(missing)} of {len(names)} images of {dataset} are missing in {self.folder}, such as "
                f"those of {missing[0]}: give {FORMS}, or leave the data set out of DATASETS.TEST"
            )
        forms = Counter(
            path.suffix[1:] if path.is_file() else "folder" for path in paths.values() if path
        )
        return {"forms": dict(sorted(forms.items())), "digest": self.digest(names, times=False)}

    def digest(self, names: Sequence[str], times: bool = True) -> str:
        """Digest of the names and sizes of the files of some images.

        Args:
            names: names of images, as for `path`.
            times: it depends on the times of the last changes too.
        """
        digest = hashlib.sha256()
        for name in names:
            path = self.path(name)
            inside = sorted(path.iterdir()) if path is not None and path.is_dir() else [path]
            for file in inside:
                if file is not None:
                    state = file.stat()
                    line = [name, file.name, state.st_size, state.st_mtime_ns if times else 0]
                    digest.update(f"{json.dumps(line)}\n".encode())
        return digest.hexdigest()[:16]
