"""ADE20K's 150 classes: panoptic PNGs and JSON, and instances, from semantic and instance maps.

The published panoptic files state area and box of stuff as they were before the things were pasted
over it, and list stuff of which nothing is left. Panoptic quality reads the stated area, so numbers
can be compared with published ones only if it is written that way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipself_seg.data.datasets.table import ADE_150, ade_parent
from clipself_seg.data.images import DECODING_ERRORS, open_image
from clipself_seg.data.prepare.ade import read_scene_map
from clipself_seg.data.prepare.ade_instances import (
    ARCHIVE,
    VOCABULARY,
    InstanceMap,
    instance_entry,
    read_instance_map,
    scene_classes,
    segment_entry,
)
from clipself_seg.data.prepare.common import (
    Options,
    Prepared,
    convert_files,
    files_in,
    require,
    written_whole,
)
from clipself_seg.data.records import coco_info, read_coco_json
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import read_json

SPLITS = {"training": "train", "validation": "val"}
"""Name of a split in the published files, by its folder in the archive."""

# Ids are multiples of it, so that they need all channels and look different.
ID_STEP = 10007
IGNORED = 255
# The stated areas of stuff: before the things are pasted ("published") or after it ("clean").
PUBLISHED = "published"
CLEAN = "clean"


class _Job(NamedTuple):
    """One image to convert; its entries of the JSONs are kept in a file until all images are done."""

    image: Path
    semantic: Path
    instances: Path
    scene_of: np.ndarray
    clean: bool
    target: Path
    entries: Path

    @property
    def outputs(self) -> tuple[Path, ...]:
        return (self.target, self.entries)


class _Split(NamedTuple):
    """Files that are written for a split."""

    pngs: Path
    panoptic: Path
    instances: Path
    areas: str

    @property
    def waiting(self) -> Path:
        """Folder of the images' entries."""
        return self.pngs / f".{self.areas}"

    def complete(self, jobs: Sequence[_Job]) -> bool:
        """Whether all files are there."""
        files = [self.panoptic, self.instances, *(job.target for job in jobs)]
        return all(path.exists() for path in files)


def prepare_ade_panoptic(
    options: Options, splits: Sequence[str] = tuple(SPLITS), clean_areas: bool = False
) -> list[Prepared]:
    """Write ade20k_panoptic_{split}, its JSON and ade20k_instance_{split}.json.

    All are in ADEChallengeData2016, as are annotations and annotations_instance, which are read.

    Args:
        options: root folder, number of processes, and whether files are written again.
        splits: splits of `SPLITS`.
        clean_areas: whether stuff has the area that it has in the PNG, and stuff without a pixel is
            left out.

    Raises:
        InputError: an archive is not there, a file of it is broken, or the files that are there have
            been prepared with other areas.
    """
    folder = ade_parent(options.root) / "ADEChallengeData2016"
    require(folder, ADE_150)
    scene_of = scene_classes(folder)
    return [_prepare_split(folder, split, scene_of, clean_areas, options) for split in splits]


def _prepare_split(
    folder: Path, name: str, scene_of: np.ndarray, clean: bool, options: Options
) -> Prepared:
    pngs = folder / f"ade20k_panoptic_{SPLITS[name]}"
    instances = folder / f"ade20k_instance_{SPLITS[name]}.json"
    split = _Split(pngs, pngs.with_suffix(".json"), instances, CLEAN if clean else PUBLISHED)
    semantic = require(folder / "annotations" / name, ADE_150)
    things = require(folder / "annotations_instance" / name, ADE_150, ARCHIVE)
    jobs = []
    for image in files_in(folder / "images" / name, "*.jpg", ADE_150):
        png = f"{image.stem}.png"
        sources = (semantic / png, things / png)
        targets = (pngs / png, split.waiting / f"{image.stem}.json")
        jobs.append(_Job(image, *sources, scene_of, clean, *targets))
    if not options.overwrite:
        _check_areas(split)
    if split.complete(jobs) and not options.overwrite:
        done = Prepared(pngs, 0, len(jobs), 0)
    else:
        done = convert_files(_convert, jobs, options)
        _write_jsons(split, [read_json(job.entries) for job in jobs])
    for areas in (PUBLISHED, CLEAN):
        shutil.rmtree(split._replace(areas=areas).waiting, ignore_errors=True)
    return done


def _check_areas(split: _Split) -> None:
    if not split.panoptic.exists():
        return
    # A file without the entry was not written here: it is the published one.
    areas = coco_info(read_coco_json(split.panoptic)).get("areas", PUBLISHED)
    if areas != split.areas:
        raise InputError(
            f"{split.panoptic} is there already, with {areas} areas of stuff, and {split.areas} "
            "ones are asked for: add --overwrite to replace it"
        )


def _convert(job: _Job) -> bool:
    labels = read_scene_map(job.semantic)
    things = read_instance_map(job.instances, job.scene_of)
    _check_sizes(job, labels, things.numbers)
    ids, segments = _paste(labels, things, np.isin(np.arange(256), job.scene_of))
    if job.clean:
        segments = _as_painted(ids, segments)
    with written_whole(job.target) as temporary:
        rgb = ids.view(np.uint8).reshape(*ids.shape, 4)[..., :3]
        Image.fromarray(np.ascontiguousarray(rgb)).save(temporary, format="PNG")
    height, width = labels.shape
    entries = {
        "image": {
            "id": job.image.stem,
            "file_name": job.image.name,
            "width": width,
            "height": height,
        },
        "segments": segments,
        "instances": [
            instance_entry(things.numbers == thing, category)
            for thing, category in things.classes.items()
        ],
    }
    with written_whole(job.entries) as temporary:
        temporary.write_text(json.dumps(entries))
    return True


def _paste(
    labels: np.ndarray, things: InstanceMap, isthing: np.ndarray
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segment ids (H, W) int32 of stuff with things pasted over it, and the entries of both.

    An entry has the area and box of its segment before later ones are pasted over it.

    Args:
        labels: (H, W) uint8 classes, `IGNORED` elsewhere. Its pixels of things are not used.
        things: things of the image, pasted in the order of their numbers.
        isthing: whether each class is a thing, (256,) bool.
    """
    ids = np.zeros(labels.shape, dtype=np.int32)
    segments: list[dict[str, Any]] = []
    stuff = [c for c in np.unique(labels).tolist() if c != IGNORED and not isthing[c]]
    masks = [(labels == category, category) for category in stuff]
    masks += [(things.numbers == thing, category) for thing, category in things.classes.items()]
    for order, (mask, category) in enumerate(masks, 1):
        ids[mask] = order * ID_STEP
        segments.append({"id": order * ID_STEP, **segment_entry(mask, category)})
    return ids, segments


def _as_painted(ids: np.ndarray, segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries with the areas and boxes that segments have in the PNG, without hidden segments."""
    masks = [(ids == info["id"], info) for info in segments]
    return [info | segment_entry(mask, info["category_id"]) for mask, info in masks if mask.any()]


def _check_sizes(job: _Job, *maps: np.ndarray) -> None:
    try:
        with open_image(job.image) as file:
            size = file.size
    except InputError:
        raise
    except DECODING_ERRORS as error:
        raise InputError(f"{job.image} cannot be decoded ({error}): unpack it again") from None
    for path, values in zip((job.semantic, job.instances), maps):
        if values.shape != size[::-1]:
            raise InputError(
                f"{path} is {values.shape[1]} x {values.shape[0]}, its image {job.image} is "
                f"{size[0]} x {size[1]}: unpack both again"
            )


def _write_jsons(split: _Split, converted: Sequence[dict[str, Any]]) -> None:
    """Write both JSONs, the panoptic one last: once it is there, all files are."""
    panoptic = []
    instances = []
    for entries in converted:
        image_id = entries["image"]["id"]
        segments = {"file_name": f"{image_id}.png", "segments_info": entries["segments"]}
        panoptic.append({"image_id": image_id, **segments})
        instances += [{**entry, "image_id": image_id} for entry in entries["instances"]]
    for number, entry in enumerate(instances, 1):
        entry["id"] = number
    categories = _categories()
    things = [category for category in categories if category["isthing"]]
    about = {
        "info": {"areas": split.areas},
        "images": [entries["image"] for entries in converted],
    }
    for path, listed, classes in (
        (split.instances, instances, things),
        (split.panoptic, panoptic, categories),
    ):
        content = {**about, "annotations": listed, "categories": classes}
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(content))


def _categories() -> list[dict[str, Any]]:
    return [
        {
            "id": index,
            "name": entry.names[0],
            "isthing": int(bool(entry.isthing)),
            "color": [index * 67 % 256, index * 101 % 256, index * 149 % 256],
        }
        for index, entry in enumerate(load_vocabulary(VOCABULARY).classes)
    ]
