"""ADE20K's instance maps: the thing that each pixel belongs to, and the class of each thing.

A pixel's red value is one of 100 instance classes, counted from 1, its green value the number of
the thing in the image; 0 is no thing. The 100 classes are the things among the 150, in order.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from clipself_seg.data.images import DECODING_ERRORS, open_image
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError

VOCABULARY = "openseg_ade20k_150"
MAPPING_FILES = ("categoryMapping.txt", "ade20k_instance_catid_mapping.txt")
ARCHIVE = (
    "The instance maps are an archive of their own: unpack annotations_instance.tar of "
    "http://sceneparsing.csail.mit.edu/data/ChallengeData2017 beside the folder annotations"
)


class InstanceMap(NamedTuple):
    """Things of an image.

    Attributes:
        numbers: (H, W) uint8, number of the thing, 0 where there is none.
        classes: index among the 150 classes by number, in the order of numbers.
    """

    numbers: np.ndarray
    classes: dict[int, int]


def scene_classes(folder: Path) -> np.ndarray:
    """Index among the 150 classes of each of the 100 instance classes, int64 (100,).

    Args:
        folder: folder of the archive. A file there that maps instance classes to scene classes, as
            the challenge provides it, has to agree.

    Raises:
        InputError: such a file cannot be read or disagrees.
    """
    expected = np.flatnonzero(load_vocabulary(VOCABULARY).thing)
    for parent in (folder, folder / "annotations_instance"):
        for name in MAPPING_FILES:
            if (parent / name).exists():
                _check_mapping(parent / name, expected)
    return expected


def _check_mapping(path: Path, expected: np.ndarray) -> None:
    """Check a file of rows "instance class, scene class, ...", counted from 1, below a header line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        rows = (line.split()[:2] for line in lines if line.strip())
        scenes = {int(instance): int(scene) for instance, scene in rows}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a table of instance and scene classes ({error}): fetch it again, "
            "or remove it"
        ) from None
    wanted = {number: index + 1 for number, index in enumerate(expected.tolist(), 1)}
    wrong = sorted(n for n in scenes.keys() | wanted.keys() if scenes.get(n) != wanted.get(n))
    if wrong:
        raise InputError(
            f"{path} maps the instance class {wrong[0]} to {scenes.get(wrong[0])}, but "
            f"{wanted.get(wrong[0])} is the thing with that number among the 150 classes: "
            "fetch it again, or remove it"
        )


def read_instance_map(path: str | os.PathLike[str], scene_of: np.ndarray) -> InstanceMap:
    """Read and check the things of one image.

    Args:
        path: PNG of annotations_instance.
        scene_of: index among the 150 classes of each instance class, from `scene_classes`.

    Raises:
        InputError: the file is missing, corrupt or not RGB; a thing has several classes or an
            unknown one.
    """
    rgb = _read_rgb(path)
    numbers = np.ascontiguousarray(rgb[..., 1])
    classes: dict[int, int] = {}
    # One value for each pair of number and class, in the order of numbers.
    pairs = np.unique(numbers.astype(np.int64) * 256 + rgb[..., 0])
    for number, instance_class in zip((pairs // 256).tolist(), (pairs % 256).tolist()):
        if number == 0:
            continue
        if number in classes or not 1 <= instance_class <= len(scene_of):
            raise InputError(
                f"{path}: thing {number} has the class {instance_class}, where a thing has one of "
                f"1 to {len(scene_of)}: unpack it again\n{ARCHIVE}"
            )
        classes[number] = int(scene_of[instance_class - 1])
    return InstanceMap(numbers, classes)


def _read_rgb(path: str | os.PathLike[str]) -> np.ndarray:
    try:
        with open_image(path) as file:
            if file.mode != "RGB":
                raise InputError(
                    f"{path} has pixels of type {file.mode}, not RGB: unpack it again\n{ARCHIVE}"
                )
            return np.asarray(file)
    except FileNotFoundError:
        raise InputError(f"instance map {path} is missing\n{ARCHIVE}") from None
    except InputError:
        raise
    except DECODING_ERRORS as error:
        raise InputError(f"{path} cannot be decoded ({error}): unpack it again") from None


def segment_entry(mask: np.ndarray, category: int) -> dict[str, Any]:
    """Entry of a segment in both JSONs: class, area in pixels and box XYWH.

    Args:
        mask: mask of the segment, (H, W) bool, not empty.
        category: index of its class.
    """
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    return {
        "category_id": category,
        "area": int(mask.sum()),
        "bbox": [int(value) for value in box],
        "iscrowd": 0,
    }


def instance_entry(mask: np.ndarray, category: int) -> dict[str, Any]:
    """Entry of a thing in COCO's instances format: `segment_entry` with the mask as RLE."""
    coded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    segmentation = {"size": coded["size"], "counts": coded["counts"].decode()}
    return {**segment_entry(mask, category), "segmentation": segmentation}
