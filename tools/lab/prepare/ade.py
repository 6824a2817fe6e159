"""ADE20K: label maps and panoptic files of the challenge's 150 classes, and label maps of the full data set's 847.

The published panoptic files state area and box of stuff as they were before the things were pasted
over it, and list stuff of which nothing is left. Panoptic quality reads the stated area, so numbers
can be compared with published ones only if it is written that way.

In an instance map a pixel's red value is one of 100 instance classes, counted from 1, its green value the number of
the thing in the image; 0 is no thing. The 100 classes are the things among the 150, in order.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from clipself_seg.data.datasets.table import ROOTS
from clipself_seg.data.images import decoding_errors, open_image, read_image
from clipself_seg.data.masks import read_indices
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path
from lab.prepare.common import (
    MapJob,
    Options,
    Prepared,
    convert_files,
    files_in,
    lookup_table,
    preparation,
    require,
    save_png,
    save_tiff,
    split_jobs,
)
from lab.prepare.panoptic_files import (
    WAITING,
    Category,
    ImageTruth,
    PanopticJob,
    Segment,
    SplitFiles,
    check_size,
    listed_categories,
    prepare_panoptic_split,
)

SPLITS = {"training": "train", "validation": "val"}
"""Name of a split in the published panoptic files, by its folder in the archives."""
LARGEST_SHORT_SIDE = 512
IGNORED_FULL = 65535  # of the 847 classes
IGNORED = 255
JPEG_QUALITY = 75
"""Quality of the images of the 847 classes, with which those of the published numbers were written."""
OBJECT_IDS = 26 * 256  # number of object ids, R // 10 * 256 + G


class FullJob(NamedTuple):
    """One image of the full data set and its label map, both to write from the archive's files."""

    image: Path
    source: Path
    image_target: Path
    target: Path

    @property
    def sources(self) -> tuple[Path, ...]:
        """Paths of the archive's image and map of objects."""
        return (self.image, self.source)

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Paths of the image, then of its label map."""
        return (self.image_target, self.target)


@preparation("ade150", tuple(SPLITS))
def prepare_ade150(options: Options, splits: Sequence[str] = ("validation",)) -> list[Prepared]:
    """Label maps of ADE20K's 150 classes.

        python tools/prepare.py ade150
        python tools/prepare.py ade150 --root /data/datasets --processes 8

    Reads ADEChallengeData2016/annotations and writes ADEChallengeData2016/annotations_detectron2.
    What is there already is kept; an interrupted run is completed by the next.
    """
    return [convert_files(_convert_scene, ade150_jobs(options.root, s), options) for s in splits]


def ade150_jobs(root: Path, split: str) -> list[MapJob]:
    """Jobs of `prepare_ade150` for a split.

    Raises:
        InputError: the archive is not there.
    """
    folder = root / "ADEChallengeData2016"
    return split_jobs(folder, split, ROOTS["ADE_150"])


def _convert_scene(job: MapJob) -> bool:
    save_png(job.target, read_scene_map(job.source))
    return True


def read_scene_map(path: Path) -> np.ndarray:
    """Class indices of a label map of the challenge, (H, W) uint8, 255 for "other".

    Raises:
        InputError: the map cannot be read, or is not one of the challenge's.
    """
    values = read_indices(path)
    if values.dtype != np.uint8 or values.max() > 150:
        raise InputError(
            f"{path} is not one of the challenge's maps, which have 8 bits and the values "
            f"0 to 150 (largest value {values.max()}): unpack ADEChallengeData2016 again"
        )
    return values - np.uint8(1)  # 0, "other", becomes 255


@preparation("ade847", tuple(SPLITS))
def prepare_ade847(options: Options, splits: Sequence[str] = ("validation",)) -> list[Prepared]:
    """Images and label maps of ADE20K's 847 classes.

        python tools/prepare.py ade847
        python tools/prepare.py ade847 --root /data/datasets --processes 8

    Reads ADE20K_2021_17_01/images/ADE (its index_ade20k.pkl is not needed) and writes
    images_detectron2 and annotations_detectron2 beside it.
    What is there already is kept; an interrupted run is completed by the next.
    """
    jobs = [ade847_jobs(options.root, split) for split in splits]
    return [convert_files(_convert_full, of_split, options) for of_split in jobs]


def ade847_jobs(root: Path, split: str) -> list[FullJob]:
    """Jobs of `prepare_ade847` for a split.

    Raises:
        InputError: the archive is not there.
    """
    folder = root / "ADE20K_2021_17_01"
    sources = files_in(folder / "images/ADE" / split, "ADE_*_seg.png", ROOTS["ADE_847"])
    images = folder / "images_detectron2" / split
    labels = folder / "annotations_detectron2" / split
    stems = [source.name.removesuffix("_seg.png") for source in sources]
    return [
        FullJob(
            source.with_name(f"{stem}.jpg"), source, images / f"{stem}.jpg", labels / f"{stem}.tif"
        )
        for stem, source in zip(stems, sources)
    ]


def _convert_full(job: FullJob) -> bool:
    image = read_image(job.image)
    labels = _full_table()[_object_ids(job.source)]
    height, width = labels.shape
    if image.shape[:2] != (height, width):
        raise InputError(
            f"{job.image} is {image.shape[1]} x {image.shape[0]}, {job.source} is "
            f"{width} x {height}: unpack both again"
        )
    if min(height, width) > LARGEST_SHORT_SIDE:
        scale = LARGEST_SHORT_SIDE / min(height, width)
        size = (round(width * scale), round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    with atomic_path(job.image_target) as temporary:
        Image.fromarray(image).save(temporary, format="JPEG", quality=JPEG_QUALITY)
    save_tiff(job.target, labels)
    return True


def _object_ids(path: Path) -> np.ndarray:
    """Object ids of the pixels of a `_seg.png`, (H, W) int32."""
    rgb = read_rgb(path)
    return (rgb[..., 0] // 10).astype(np.int32) * 256 + rgb[..., 1]


def read_rgb(path: str | os.PathLike[str], archive: str = "") -> np.ndarray:
    """Pixels of an archive's map whose colours are numbers, (H, W, 3) uint8.

    Args:
        path: file.
        archive: how to get the archive, for errors.

    Raises:
        InputError: the file is missing, corrupt or not RGB.
    """
    again = f"unpack it again\n{archive}".rstrip()
    with decoding_errors(f"map {path}", again, again):
        with open_image(path) as file:
            if file.mode != "RGB":
                raise InputError(f"{path} has pixels of type {file.mode}, not RGB: {again}")
            return np.asarray(file)


@functools.cache
def _full_table() -> np.ndarray:
    index_of = Vocabulary.load("ade20k_847").dataset_id_to_index
    return lookup_table(index_of, OBJECT_IDS, IGNORED_FULL, np.uint16)


# Panoptic files of the 150 classes.
VOCABULARY = "openseg_ade20k_150"
ARCHIVE = (
    "The instance maps are an archive of their own: unpack annotations_instance.tar of "
    "http://sceneparsing.csail.mit.edu/data/ChallengeData2017 beside the folder annotations"
)

# Ids are multiples of it, so that they need all channels and look different.
ID_STEP = 10007


@preparation("ade20k_panoptic", tuple(SPLITS))
def prepare_ade_panoptic(options: Options, splits: Sequence[str] = tuple(SPLITS)) -> list[Prepared]:
    """Panoptic and instance labels of ADE20K's 150 classes.

        python tools/prepare.py ade20k_panoptic
        python tools/prepare.py ade20k_panoptic --root /data/datasets --processes 8 --splits validation

    Reads images, annotations and annotations_instance of ADEChallengeData2016 and writes beside them
    ade20k_panoptic_{train,val}, its JSON and ade20k_instance_{train,val}.json. As in the files that
    published numbers come from, areas of stuff are those before things are pasted over it.
    What is there already is kept; an interrupted run is completed by the next.
    """
    folder = options.root / "ADEChallengeData2016"
    require(folder, ROOTS["ADE_150"])
    scene_of = scene_classes()
    return [_prepare_panoptic_split(folder, split, scene_of, options) for split in splits]


def _prepare_panoptic_split(
    folder: Path, name: str, scene_of: np.ndarray, options: Options
) -> Prepared:
    pngs = folder / f"ade20k_panoptic_{SPLITS[name]}"
    instances = folder / f"ade20k_instance_{SPLITS[name]}.json"
    split = SplitFiles(pngs, pngs.with_suffix(".json"), instances)
    semantic = require(folder / "annotations" / name, ROOTS["ADE_150"])
    things = require(folder / "annotations_instance" / name, ROOTS["ADE_150"], ARCHIVE)
    jobs = [
        PanopticJob(
            image.stem,
            image,
            image.name,
            (semantic / f"{image.stem}.png", things / f"{image.stem}.png"),
            functools.partial(read_truth, image=image, scene_of=scene_of),
            pngs / f"{image.stem}.png",
            None,
            pngs / WAITING / f"{image.stem}.json",
            options.overwrite,
        )
        for image in files_in(folder / "images" / name, "*.jpg", ROOTS["ADE_150"])
    ]
    return prepare_panoptic_split(split, jobs, _categories(), options)


def read_truth(semantic: Path, instances: Path, *, image: Path, scene_of: np.ndarray) -> ImageTruth:
    """Ground truth of an image: stuff with things pasted over it, in the order of their numbers.

    Args:
        semantic: map of the 150 classes, whose pixels of things are not used.
        instances: map of things.
        image: file of the image.
        scene_of: index among the 150 classes of each instance class, from `scene_classes`.

    Raises:
        InputError: a map is missing, broken, or of another size than the image.
    """
    labels = read_scene_map(semantic)
    things = read_instance_map(instances, scene_of)
    check_size(image, semantic, labels)
    check_size(image, instances, things.numbers)
    stuff = sorted(set(np.unique(labels).tolist()) - {IGNORED, *scene_of.tolist()})
    masks = [(labels == category, category, False) for category in stuff]
    masks += [(things.numbers == thing, c, True) for thing, c in things.classes.items()]
    ids = np.zeros(labels.shape, dtype=np.int32)
    segments = []
    for order, (mask, category, isthing) in enumerate(masks, 1):
        ids[mask] = order * ID_STEP
        segments.append(Segment(order * ID_STEP, category, isthing, mask=mask))
    return ImageTruth(ids, segments)


def _categories() -> list[Category]:
    return [
        {**entry, "color": [index * 67 % 256, index * 101 % 256, index * 149 % 256]}
        for index, entry in enumerate(listed_categories(Vocabulary.load(VOCABULARY)))
    ]


class InstanceMap(NamedTuple):
    """Things of an image.

    Attributes:
        numbers: (H, W) uint8, number of the thing, 0 where there is none.
        classes: index among the 150 classes by number, in the order of numbers.
    """

    numbers: np.ndarray
    classes: dict[int, int]


def scene_classes() -> np.ndarray:
    """Index among the 150 classes of each of the challenge's 100 instance classes, int64 (100,)."""
    return np.flatnonzero(Vocabulary.load(VOCABULARY).thing)


def read_instance_map(path: str | os.PathLike[str], scene_of: np.ndarray) -> InstanceMap:
    """Read and check the things of one image.

    Args:
        path: PNG of annotations_instance.
        scene_of: index among the 150 classes of each instance class, from `scene_classes`.

    Raises:
        InputError: the file is missing, corrupt or not RGB; a thing has several classes or an
            unknown one.
    """
    rgb = read_rgb(path, ARCHIVE)
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
