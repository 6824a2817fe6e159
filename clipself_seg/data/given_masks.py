"""Masks of an image from another program, such as Segment Anything: read from files or memory, checked and bounded.

A folder has for an image NAME one of

    NAME.json   run lengths or polygons of COCO: a list of them, or of {"segmentation": ..., "score": ...}, or
                such a list as "annotations"
    NAME.png    a mask for each value: one channel of 8 or 16 bits, or R + 256 G + 65536 B; 0 is none

The first is what Segment Anything's script writes with --convert-to-rle, and may have masks that overlap; the second
are COCO's panoptic PNGs. A score is 1 where there is none; SAM's "predicted_iou", an estimate, is at most 1.

Shapes: n masks, H x W pixels of the image as it is meant to be seen.
"""

from __future__ import annotations

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
from clipself_seg.data import images
from clipself_seg.data.masks import INDEX_MODES, read_indices, read_panoptic_png, run_lengths
from clipself_seg.errors import InputError, require_unique, shown
from clipself_seg.files import read_json
from clipself_seg.schema import LIST, Kind, check, is_number

MOST_MASKS = 1000  # of an image
MOST_BYTES = 1 << 31  # of the masks of an image, with a byte a pixel
MOST_FILE_BYTES = 1 << 26  # of a JSON
# The second is an estimate, which may exceed 1.
SCORES = {
    "score": Kind("a number in [0, 1]", lambda value: is_number(value) and 0 <= value <= 1),
    "predicted_iou": Kind("a number from 0 on", lambda value: is_number(value) and value >= 0),
}
FORMS = "NAME.json or NAME.png"


class GivenMasks(NamedTuple):
    """Masks of an image.

    Attributes:
        masks: (n, H, W) bool.
        scores: quality of each mask, (n,) float32 in [0, 1].
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
    _require_size("the array of masks", masks.shape[1:], size)
    _require_room("masks", len(masks), size)
    if scores.shape != masks.shape[:1] or not ((scores >= 0) & (scores <= 1)).all():
        raise InputError(f"scores of {len(masks)} masks are as many numbers in [0, 1]")
    # As torch takes them: writable, in order.
    return GivenMasks(np.require(masks, bool, ["C", "W"]), np.array(scores))


def read_masks(path: str | os.PathLike[str], size: tuple[int, int]) -> GivenMasks:
    """Reads the masks of an image from a file of one of the forms above.

    Args:
        path: file.
        size: rows and columns of the image in pixels.

    Raises:
        InputError: it is missing, damaged, of another size, or too much; names file and mask.
    """
    path = Path(path)
    if path.suffix.lower() == ".png":
        return _of_map(path, size)
    content = read_json(path, "masks", most_bytes=MOST_FILE_BYTES)
    if isinstance(content, dict):
        content = content.get("annotations")
    advice = 'give COCO\'s run lengths or polygons, also as "annotations"'
    check(content, LIST, f"masks {path}", advice)
    return _of_annotations(content, size, str(path))


def _of_annotations(entries: Sequence[object], size: tuple[int, int], source: str) -> GivenMasks:
    _require_room(source, len(entries), size)
    masks = np.zeros((len(entries), *size), dtype=bool)
    scores = np.ones(len(entries), dtype=np.float32)
    for index, entry in enumerate(entries):
        place = f"{source}: mask {index}"
        if isinstance(entry, dict):
            scores[index] = _score(entry, place)
            entry = entry.get("segmentation", entry)
        masks[index] = _pixels(entry, size, place)
    return GivenMasks(masks, scores)


def _pixels(value: object, size: tuple[int, int], place: str) -> np.ndarray:
    """Pixels (H, W) of the "segmentation" of an annotation."""
    if isinstance(value, np.ndarray):
        _require_size(place, value.shape, size)
        return value != 0
    if isinstance(value, dict) and isinstance(value.get("counts"), bytes):  # pycocotools' own
        value = {**value, "counts": value["counts"].decode("latin-1")}
    pixels: np.ndarray = rle.decode(run_lengths(value, *size, place))
    return pixels


def _score(entry: Mapping[str, object], place: str) -> float:
    for key, kind in SCORES.items():
        value: Any = entry.get(key)
        if value is not None:
            check(value, kind, place, "correct it or leave it out", key)
            return float(min(value, 1))
    return 1.0


def _of_map(path: Path, size: tuple[int, int]) -> GivenMasks:
    """The masks of a PNG, whose header is compared before anything is decoded."""
    limit = max(images.MAX_PIXELS, size[0] * size[1])
    with images.decoding_errors(f"file of masks {path}", "correct the path", "write it again"):
        with images.open_image(path, limit) as file:
            mode, (width, height) = file.mode, file.size
    _require_size(str(path), (height, width), size)
    advice = "give one channel of whole numbers, or RGB as in COCO's panoptic PNGs"
    images.require_mode(f"masks {path}", mode, (*INDEX_MODES, "RGB"), advice)
    ids = read_panoptic_png(path, limit) if mode == "RGB" else read_indices(path, max_pixels=limit)
    values = np.unique(ids[ids != 0])
    _require_room(str(path), len(values), size)
    return GivenMasks(ids == values[:, None, None], np.ones(len(values), dtype=np.float32))


def _require_size(source: str, shape: Sequence[int], size: tuple[int, int]) -> None:
    whose = "the image, as it is meant to be seen (EXIF applied),"
    advice = "give masks of this image at its own size"
    images.require_size(source, shape[::-1], whose, size[::-1], advice)


def _require_room(source: str, count: int, size: tuple[int, int]) -> None:
    if count > MOST_MASKS or count * size[0] * size[1] > MOST_BYTES:
        raise InputError(
            f"{source}: {count} masks of {size[1]} x {size[0]} pixels, and {MOST_MASKS} masks and {MOST_BYTES} pixels "
            "at most are read: give fewer, or a smaller image with its masks"
        )


def image_name(file_name: str | os.PathLike[str]) -> str:
    """Name by which a `MaskFolder` has the masks of a data set's image: that of its file, without folder and ending."""
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
            file = " (a file, of which no masks are read)" if self.folder.is_file() else ""
            raise InputError(
                f'no folder of masks "{folder}"{file}: give one that has {FORMS} for each image (predict --masks, '
                f"MODEL.MASK_GENERATOR.OUTPUTS), or a model that finds masks: {', '.join(MASK_MODELS)}, hf-hub:org/name"
            )
        has_mask_model(folder)  # refuses one that is not read

    def path(self, name: str) -> Path | None:
        """File of an image; None if there is none.

        Args:
            name: name of the image without ending, with the folder below that of all images.

        Raises:
            InputError: there are two.
        """
        files = [*filter(Path.is_file, (self.folder / f"{name}{end}" for end in (".json", ".png")))]
        if len(files) > 1:
            raise InputError(f"{files[0]} and {files[1]} are of one image: leave one out")
        return files[0] if files else None

    def required(self, name: str) -> Path:
        """File of an image, see `path`.

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

    def check(self, names: Sequence[str]) -> dict[str, object]:
        """Looks for the masks of all images before any is evaluated.

        Args:
            names: names of the images, as for `path`.

        Returns:
            "forms", how many images have each, and "digest" of names and sizes of their files.

        Raises:
            InputError: an image has none, or two; two images have one name.
        """
        require_unique(names, "name of an image, without folder and ending,", self.folder)
        forms = Counter(self.required(name).suffix[1:] for name in names)
        return {"forms": dict(sorted(forms.items())), "digest": self.digest(names, times=False)}

    def digest(self, names: Sequence[str], times: bool = True) -> str:
        """Digest of the names and sizes of the files of some images.

        Args:
            names: names of images, as for `path`.
            times: it depends on the times of the last changes too.
        """
        digest = hashlib.sha256()
        for name in names:
            if file := self.path(name):
                state = file.stat()
                line = [name, file.name, state.st_size, state.st_mtime_ns if times else 0]
                digest.update(f"{json.dumps(line)}\n".encode())
        return digest.hexdigest()[:16]
