"""Annotation files of open-vocabulary detection: OV-COCO, OV-LVIS and Objects365, made of the official ones.

The recipe and the names of OV-COCO's files are those of OVR-CNN and of the detectors that followed it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from tqdm import tqdm

from clipself_seg.data.annotations import (
    JsonObject,
    annotated_image,
    category_counts,
    category_indices,
    category_labels,
    category_names,
    coco_list,
    listed_records,
    read_coco_json,
)
from clipself_seg.data.datasets.table import COCO, ROOTS, DataRoot
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in, atomic_path, remove_leftovers
from lab.prepare.common import Options, Prepared, preparation, require

logger = logging.getLogger(__name__)

AT_ONCE = 10_000
"""Number of entries of a list that are written together."""


class Count(NamedTuple):
    """Something counted in a file that was written, beside the published number.

    Attributes:
        of: what is counted, in the plural.
        number: how many there are.
        published: how many there are according to others.
    """

    of: str
    number: int
    published: int

    def __str__(self) -> str:
        """Line for the terminal."""
        return f"{self.of}: {self.number} (published: {self.published})"


def rewrite(
    source: Path,
    target: Path,
    archive: DataRoot,
    change: Callable[[JsonObject, Path], list[Count]],
    options: Options,
) -> Prepared:
    """Write an annotation file of another one, unless it is there already.

    A count that differs from the published one is a warning: official files have been corrected before.

    Args:
        source: official file.
        target: file that is written.
        archive: root of the official file, with advice how to get it.
        change: changes the content in place, and counts what is left.
        options: whether a file that is there is written again.

    Raises:
        InputError: the official file is missing or broken, or another process is at work in the folder.
    """
    if target.exists() and not options.overwrite:
        return Prepared(target, 0, 1, 0)
    require(source, archive)
    with alone_in(target.parent):
        remove_leftovers(target.parent)
        with tqdm(total=1, desc=f"read {source.name}", unit="file") as progress:
            content = read_coco_json(source)
            progress.update()
        before = len(coco_list(content, "images", source))
        counts = change(content, source)
        _write(target, content)
    for count in counts:
        if count.number != count.published:
            logger.warning("%s: another number of %s than published", target, count.of)
    left_out = before - len(content["images"])
    return Prepared(target, 1, 0, left_out, tuple(map(str, counts)))


def _write(path: Path, content: JsonObject) -> None:
    total = sum(len(value) for value in content.values() if isinstance(value, list))
    with (
        tqdm(total=total, desc=path.name, unit="entry") as progress,
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for number, (key, value) in enumerate(content.items()):
            file.write(f"{', ' if number else '{'}{json.dumps(key)}: ")
            if isinstance(value, list):
                _write_list(file, value, progress)
            else:
                file.write(json.dumps(value))
        file.write("}")


def _write_list(file: TextIO, values: list[object], progress: tqdm) -> None:
    # In pieces: the text of the whole list would take as much memory again as the list.
    file.write("[")
    for start in range(0, len(values), AT_ONCE):
        piece = values[start : start + AT_ONCE]
        file.write(", " * bool(start) + json.dumps(piece)[1:-1])
        progress.update(len(piece))
    file.write("]")


TARGETS = {
    "train2017": "instances_train2017_seen_2_65_cat.json",
    "val2017": "instances_val2017_all_2.json",
}
"""Name of the file that is written, by split."""


@preparation("ov_coco", tuple(TARGETS))
def prepare_ov_coco(options: Options, splits: Sequence[str] = tuple(TARGETS)) -> list[Prepared]:
    """Annotations of OV-COCO: 48 base classes to train on, with 17 novel ones to evaluate.

        python tools/prepare.py ov_coco
        python tools/prepare.py ov_coco --root /data/datasets --splits val2017

    Reads coco/annotations/instances_{train2017,val2017}.json and writes
    coco/zero-shot/instances_train2017_seen_2_65_cat.json and instances_val2017_all_2.json. Counts are
    printed beside the published ones.
    What is there already is kept.
    """
    folder = options.root / "coco"
    return [
        rewrite(
            folder / f"annotations/instances_{split}.json",
            folder / "zero-shot" / TARGETS[split],
            COCO,
            keep_base if split == "train2017" else keep_all,
            options,
        )
        for split in splits
    ]


def keep_base(content: JsonObject, source: Path) -> list[Count]:
    """Keep the annotations of the base classes, and count images and objects."""
    base, _ = _keep(content, source, novel=False)
    return [
        Count("images", len(content["images"]), 107_761),
        Count("objects of base classes", base, 665_387),
    ]


def keep_all(content: JsonObject, source: Path) -> list[Count]:
    """Keep the annotations of base and novel classes, and count images and objects."""
    base, novel = _keep(content, source, novel=True)
    return [
        Count("images", len(content["images"]), 4_836),
        Count("objects of base classes", base, 28_538),
        Count("objects of novel classes", novel, 4_614),
    ]


def _keep(content: JsonObject, source: Path, novel: bool) -> tuple[int, int]:
    """Keep annotations of base (and novel) classes, images that have one, and the categories of all these classes.

    Returns:
        Numbers of annotations of base classes and of novel ones that are kept.
    """
    vocabulary = Vocabulary.load("ov_coco_65")
    names = category_names(content, source)
    for entry in vocabulary.classes:
        if names.get(entry.dataset_id) != entry.names[0]:
            raise InputError(
                f'{source}: category {entry.dataset_id} is "{names.get(entry.dataset_id)}" where COCO has '
                f'"{entry.names[0]}": unpack annotations_trainval2017.zip again'
            )
    category_counts(content, source)
    listed = {record["image_id"] for record in listed_records(content, source, "", 1)}
    base = {entry.dataset_id for entry in vocabulary.classes if entry.seen}
    known = vocabulary.dataset_id_to_index
    wanted = known.keys() if novel else base
    kept = [entry for entry in content["annotations"] if entry["category_id"] in wanted]
    images = {annotated_image(annotation, listed, source) for annotation in kept}
    content["annotations"] = kept
    content["images"] = [image for image in content["images"] if image["id"] in images]
    content["categories"] = [entry for entry in content["categories"] if entry["id"] in known]
    counts = category_counts(content, source)
    of_base = sum(counts[number] for number in base)
    return of_base, counts.total() - of_base


@preparation("ov_lvis")
def prepare_ov_lvis(options: Options) -> list[Prepared]:
    """Annotations of OV-LVIS to train on: LVIS v1 without those of its 337 rare classes.

        python tools/prepare.py ov_lvis
        python tools/prepare.py ov_lvis --root /data/datasets

    Reads lvis/lvis_v1_train.json and writes lvis/lvis_v1_train_seen_1203_cat.json; the file is read
    whole, which takes some gigabytes of memory. Evaluation reads LVIS's own lvis_v1_val.json.
    What is there already is kept.
    """
    folder = options.root / "lvis"
    target = folder / "lvis_v1_train_seen_1203_cat.json"
    return [rewrite(folder / "lvis_v1_train.json", target, ROOTS["LVIS"], drop_rare, options)]


def drop_rare(content: JsonObject, source: Path) -> list[Count]:
    """Take the annotations of rare classes out, and count images, categories and annotated classes."""
    vocabulary = Vocabulary.load("lvis_v1_1203")
    index_of = vocabulary.dataset_id_to_index
    counts = category_counts(content, source)
    category_labels(np.array(list(counts)), index_of, source)
    seen = {number for number in counts if vocabulary.classes[index_of[number]].seen}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in seen]
    return [
        Count("images", len(coco_list(content, "images", source)), 100_170),
        Count("categories", len(coco_list(content, "categories", source)), 1203),
        Count("annotated classes", len(seen), 866),
    ]


@preparation("objects365")
def prepare_objects365(options: Options) -> list[Prepared]:
    """Annotations of Objects365 v1 with its categories in the order of their ids.

        python tools/prepare.py objects365
        python tools/prepare.py objects365 --root /data/datasets

    Reads Objects365v1/objects365_val.json and writes objects365_reorder_val.json beside it. The names
    have to be those of v1; v2 has others.
    What is there already is kept.
    """
    folder = options.root / "Objects365v1"
    target = folder / "objects365_reorder_val.json"
    return [rewrite(folder / "objects365_val.json", target, ROOTS["OBJECTS365"], reorder, options)]


def reorder(content: JsonObject, source: Path) -> list[Count]:
    """Sort the categories by id, once their names are known to be those of the vocabulary."""
    category_indices(content, Vocabulary.load("objects365_v1"), source, by_order=True)
    content["categories"] = sorted(content["categories"], key=lambda entry: entry["id"])
    return [
        Count("images", len(coco_list(content, "images", source)), 30_000),
        Count("categories", len(content["categories"]), 365),
    ]
