"""ADE20K's 150 classes: panoptic PNGs and JSON, and instances, from semantic and instance maps.

The published panoptic files state area and box of stuff as they were before the things were pasted
over it, and list stuff of which nothing is left. Panoptic quality reads the stated area, so numbers
can be compared with published ones only if it is written that way.

In an instance map a pixel's red value is one of 100 instance classes, counted from 1, its green value the number of
the thing in the image; 0 is no thing. The 100 classes are the things among the 150, in order.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipself_seg.data.annotations import coco_info, read_coco_json
from clipself_seg.data.datasets.table import ADE_150, ade_parent
from clipself_seg.data.prepare.ade import read_rgb, read_scene_map
from clipself_seg.data.prepare.common import (
    Flag,
    Options,
    Prepared,
    files_in,
    preparation,
    require,
)
from clipself_seg.data.prepare.panoptic_files import (
    Category,
    ImageTruth,
    PanopticJob,
    Segment,
    SplitFiles,
    check_size,
    listed_categories,
    prepare_panoptic_split,
)
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError

SPLITS = {"training": "train", "validation": "val"}
"""Name of a split in the published files, by its folder in the archive."""
VOCABULARY = "openseg_ade20k_150"
MAPPING_FILES = ("categoryMapping.txt", "ade20k_instance_catid_mapping.txt")
ARCHIVE = (
    "The instance maps are an archive of their own: unpack annotations_instance.tar of "
    "http://sceneparsing.csail.mit.edu/data/ChallengeData2017 beside the folder annotations"
)

# Ids are multiples of it, so that they need all channels and look different.
ID_STEP = 10007
IGNORED = 255
# The stated areas of stuff: before the things are pasted ("published") or after it ("clean").
PUBLISHED = "published"
CLEAN = "clean"
CLEAN_AREAS = Flag(
    "clean_areas",
    "--clean-areas",
    "state the areas that stuff has in the end, which gives another panoptic quality",
    bool,
)


@preparation("ade20k_panoptic", tuple(SPLITS), (CLEAN_AREAS,))
def prepare_ade_panoptic(
    options: Options, splits: Sequence[str] = tuple(SPLITS), clean_areas: bool = False
) -> list[Prepared]:
    """Panoptic and instance labels of ADE20K's 150 classes.

        clipself-seg data prepare ade20k_panoptic
        clipself-seg data prepare ade20k_panoptic --root /data/datasets --processes 8 --splits validation

    Reads images, annotations and annotations_instance of ADEChallengeData2016 and writes beside them
    ade20k_panoptic_{train,val}, its JSON and ade20k_instance_{train,val}.json. As in the files that
    published numbers come from, areas of stuff are those before things are pasted over it.
    What is there already is kept; an interrupted run is completed by the next.
    """
    folder = ade_parent(options.root) / "ADEChallengeData2016"
    require(folder, ADE_150)
    scene_of = scene_classes(folder)
    areas = CLEAN if clean_areas else PUBLISHED
    return [_prepare_split(folder, split, scene_of, areas, options) for split in splits]


def _prepare_split(
    folder: Path, name: str, scene_of: np.ndarray, areas: str, options: Options
) -> Prepared:
    pngs = folder / f"ade20k_panoptic_{SPLITS[name]}"
    instances = folder / f"ade20k_instance_{SPLITS[name]}.json"
    split = SplitFiles(pngs, pngs.with_suffix(".json"), instances, kept=False, areas=areas)
    semantic = require(folder / "annotations" / name, ADE_150)
    things = require(folder / "annotations_instance" / name, ADE_150, ARCHIVE)
    jobs = [
        PanopticJob(
            image.stem,
            image,
            image.name,
            (semantic / f"{image.stem}.png", things / f"{image.stem}.png"),
            functools.partial(read_truth, image=image, scene_of=scene_of, clean=areas == CLEAN),
            pngs / f"{image.stem}.png",
            None,
            pngs / f".{areas}" / f"{image.stem}.json",
            options.overwrite,
        )
        for image in files_in(folder / "images" / name, "*.jpg", ADE_150)
    ]
    if not options.overwrite:
        _check_areas(split)
    done = prepare_panoptic_split(split, jobs, _categories(), options)
    for waiting in (PUBLISHED, CLEAN):
        shutil.rmtree(pngs / f".{waiting}", ignore_errors=True)
    return done


def _check_areas(split: SplitFiles) -> None:
    if not split.panoptic.exists():
        return
    # A file without the entry was not written here: it is the published one.
    areas = coco_info(read_coco_json(split.panoptic)).get("areas", PUBLISHED)
    if areas != split.areas:
        raise InputError(
            f"{split.panoptic} is there already, with {areas} areas of stuff, and {split.areas} "
            "ones are asked for: add --overwrite to replace it"
        )


def read_truth(
    semantic: Path, instances: Path, *, image: Path, scene_of: np.ndarray, clean: bool
) -> ImageTruth:
    """Ground truth of an image: stuff with things pasted over it, in the order of their numbers.

    Args:
        semantic: map of the 150 classes, whose pixels of things are not used.
        instances: map of things.
        image: file of the image.
        scene_of: index among the 150 classes of each instance class, from `scene_classes`.
        clean: whether stuff has the area that it has in the PNG, and stuff without a pixel is left out.

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
    if clean:
        visible = set(np.unique(ids).tolist())
        segments = [s._replace(mask=None) for s in segments if s.id in visible]
    return ImageTruth(ids, segments)


def _categories() -> list[Category]:
    return [
        {**entry, "color": [index * 67 % 256, index * 101 % 256, index * 149 % 256]}
        for index, entry in enumerate(listed_categories(load_vocabulary(VOCABULARY)))
    ]


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
