"""Files of panoptic segmentation from maps in which every pixel has the number of its segment.

Of each image a panoptic PNG, a label map and an entry; of all of them the JSONs in COCO's panoptic and instances
formats. The entries wait in a folder until all images are done, so that an interrupted run is completed.

H, W are the pixels of an image.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipself_seg.data.annotations import coco_info, read_coco_json
from clipself_seg.data.images import decoding_errors, open_image
from clipself_seg.data.masks import mask_as_json, tight_box
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path, read_json
from lab.prepare.common import Options, Prepared, convert_files, save_png

Category = dict[str, object]
Entries = dict[str, Any]
"""Content of the JSONs about an image: "image", and lists of its "segments" and "instances"."""

WAITING = ".entries"
MADE_OF = "instance maps"
"""Note on their origin in panoptic JSONs that are written here, as "made_of" in "info"."""


class Segment(NamedTuple):
    """One segment of an image.

    Attributes:
        id: its value in the panoptic PNG, from 1 to 2^24 - 1.
        category: category id of its class in the JSONs.
        isthing: whether it is an instance of a thing, or a crowd of them.
        iscrowd: whether it is several instances that nobody told apart.
        mask: (H, W) bool, what area and box are stated of, where that is not its pixels in the PNG.
    """

    id: int
    category: int
    isthing: bool
    iscrowd: bool = False
    mask: np.ndarray | None = None


class ImageTruth(NamedTuple):
    """Ground truth of one image.

    Attributes:
        ids: (H, W) int32, segment ids, 0 where nothing is.
        segments: the segments, in the order of the JSON.
        labels: (H, W) uint8, class indices, 255 where there is none; None if no label map is written.
    """

    ids: np.ndarray
    segments: list[Segment]
    labels: np.ndarray | None = None


class PanopticJob(NamedTuple):
    """One image to convert, and where its files go.

    Attributes:
        image_id: its id in the JSONs.
        image: file of the image.
        file_name: name that the JSONs give it.
        sources: files of the archive that `read` is given.
        read: function of a module, which reads the ground truth of `sources`.
        target: panoptic PNG; one that is there is left as it is, unless `overwrite`.
        label_map: map of class indices to write; None for none.
        entries: file for the image's entries.
        overwrite: whether a panoptic PNG that is there is written again.
    """

    image_id: str
    image: Path
    file_name: str
    sources: tuple[Path, ...]
    read: Callable[..., ImageTruth]
    target: Path
    label_map: Path | None
    entries: Path
    overwrite: bool = False

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Paths of all files that it writes, in the order of writing."""
        paths = (self.target, self.label_map, self.entries)
        return tuple(path for path in paths if path is not None)


class SplitFiles(NamedTuple):
    """Files that are written for a split, beside those of its jobs.

    Attributes:
        pngs: folder of the panoptic PNGs.
        panoptic: JSON in COCO's panoptic format.
        instances: JSON in COCO's instances format.
        archived: whether PNGs and panoptic JSON are the archive's: they stay, and have to be there.
    """

    pngs: Path
    panoptic: Path
    instances: Path
    archived: bool = False


def prepare_panoptic_split(
    split: SplitFiles, jobs: Sequence[PanopticJob], categories: Sequence[Category], options: Options
) -> Prepared:
    """Convert the images of a split and write its JSONs. Panoptic files that are there stay, unless files
    are written again and are not the archive's.

    Args:
        split: files of the split.
        jobs: at least one job.
        categories: classes as the JSONs list them.
        options: number of processes, and whether files are written again.

    Raises:
        InputError: a file of the archive cannot be used.
    """
    finals = [split.panoptic, split.instances]
    written = [path for job in jobs for path in job.outputs if path != job.entries]
    if not options.overwrite and all(path.exists() for path in (*finals, *written)):
        return Prepared(split.pngs, 0, len(jobs), 0)
    done = convert_files(convert_image, jobs, options)
    converted = [read_json(job.entries) for job in jobs]
    # The panoptic JSON last: once it is there, all files are.
    _write_json(split.instances, _instances_json(converted, categories))
    again = options.overwrite and not split.archived
    if again or not split.panoptic.exists() or is_ours(split.panoptic):
        _write_json(split.panoptic, _panoptic_json(converted, jobs, categories))
    for folder in {job.entries.parent for job in jobs}:
        shutil.rmtree(folder, ignore_errors=True)
    return done


def is_ours(panoptic: Path) -> bool:
    """True for a panoptic JSON that is written here, False for an archive's."""
    return coco_info(read_coco_json(panoptic)).get("made_of") == MADE_OF


def convert_image(job: PanopticJob) -> bool:
    """Write the files of one job.

    Raises:
        InputError: a file of the archive cannot be read, or has another size than its image.
    """
    truth = job.read(*job.sources)
    for path, values in zip(job.sources, (truth.ids, truth.labels)):
        if values is not None:
            check_size(job.image, path, values)
    if job.overwrite or not job.target.exists():
        with atomic_path(job.target) as temporary:
            rgb = truth.ids.view(np.uint8).reshape(*truth.ids.shape, 4)[..., :3]
            Image.fromarray(np.ascontiguousarray(rgb)).save(temporary, format="PNG")
    if job.label_map is not None and truth.labels is not None:
        save_png(job.label_map, truth.labels)
    _write_json(job.entries, _entries(job, truth))
    return True


def _write_json(path: Path, content: object) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content))


def _entries(job: PanopticJob, truth: ImageTruth) -> Entries:
    height, width = truth.ids.shape
    segments = []
    instances = []
    for segment in truth.segments:
        mask = truth.ids == segment.id if segment.mask is None else segment.mask
        entry = segment_entry(mask, segment)
        segments.append({"id": segment.id, **entry})
        if segment.isthing:
            instances.append({**entry, "segmentation": mask_as_json(mask)})
    image = {"id": job.image_id, "file_name": job.file_name, "width": width, "height": height}
    return {"image": image, "segments": segments, "instances": instances}


def check_size(image: Path, path: Path, values: np.ndarray) -> None:
    """Refuse a map of another size than its image.

    Args:
        image: file of the image.
        path: file of the map, for the error.
        values: the map, (H, W).

    Raises:
        InputError: the sizes differ, or the image is missing or cannot be decoded.
    """
    with decoding_errors(f"image {image} of {path}", "unpack both again", "unpack it again"):
        with open_image(image) as file:
            width, height = file.size
    if values.shape != (height, width):
        raise InputError(
            f"{path} is {values.shape[1]} x {values.shape[0]}, its image {image} is {width} x {height}: "
            "unpack both again"
        )


def segment_entry(mask: np.ndarray, segment: Segment) -> dict[str, object]:
    """Entry of a segment in both JSONs: class, area in pixels, box XYWH, and whether it is a crowd.

    Args:
        mask: mask of the segment, (H, W) bool, not empty.
        segment: the segment.
    """
    x0, y0, x1, y1 = tight_box(mask)
    return {
        "category_id": segment.category,
        "area": int(mask.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": int(segment.iscrowd),
    }


def listed_categories(vocabulary: Vocabulary) -> list[Category]:
    """Classes as the JSONs list them; the dataset ids are the category ids."""
    return [
        {"id": entry.dataset_id, "name": entry.names[0], "isthing": int(bool(entry.isthing))}
        for entry in vocabulary.classes
    ]


def _panoptic_json(
    converted: Sequence[Entries],
    jobs: Sequence[PanopticJob],
    categories: Sequence[Category],
) -> dict[str, object]:
    annotations = [
        {
            "image_id": job.image_id,
            "file_name": job.target.name,
            "segments_info": entries["segments"],
        }
        for job, entries in zip(jobs, converted, strict=True)
    ]
    return {
        "info": {"made_of": MADE_OF},
        "images": [entries["image"] for entries in converted],
        "annotations": annotations,
        "categories": categories,
    }


def _instances_json(
    converted: Sequence[Entries], categories: Sequence[Category]
) -> dict[str, object]:
    annotations = [
        {**entry, "image_id": entries["image"]["id"]}
        for entries in converted
        for entry in entries["instances"]
    ]
    return {
        "images": [entries["image"] for entries in converted],
        "annotations": [{**entry, "id": number} for number, entry in enumerate(annotations, 1)],
        "categories": [entry for entry in categories if entry["isthing"]],
    }
