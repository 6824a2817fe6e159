"""Boxes with nouns: a file in COCO's format whose categories are nouns, for region-text training.

{"images": [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 48, "captions": ["A dog."]}, ...],
 "annotations": [{"image_id": 1, "bbox": [3, 4, 20, 10], "category_id": 7, "score": 0.8}, ...],
 "categories": [{"id": 7, "name": "dog"}, ...]}

The annotations of an image stand by falling score, and training takes the first ones. "captions" are there
for RegionCLIP's loss of whole images. Instances in COCO's format are such a file too.
"""

from __future__ import annotations

import logging
import os
import reprlib
from typing import Any, NamedTuple

import numpy as np

from clipself_seg.data.records import Record, category_labels, coco_list, proposal_records_of
from clipself_seg.errors import InputError

logger = logging.getLogger(__name__)


class RegionText(NamedTuple):
    """Content of a file.

    Attributes:
        records: images that have a box, with "proposals" (n, 4) float32 XYXY pixels and "labels" (n,) int64,
            indices of `nouns`, in file order; and "captions", a list of texts, where the file has them.
        nouns: names of the categories, by ascending id.
    """

    records: list[Record]
    nouns: tuple[str, ...]


def read_region_text(
    content: dict[str, Any],
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
) -> RegionText:
    """Boxes with nouns; images without a box are left out, with a logged count.

    Args:
        content: content of the file, see `read_coco_json`.
        json_file: path of the file, for errors.
        image_root: folder to which file names are relative.

    Raises:
        InputError: as `proposal_records`; categories without names or with equal ids or names, an annotation
            of another category; captions that are no texts.
    """
    nouns = _nouns(content, json_file)
    records = proposal_records_of(content, json_file, image_root)
    ids: dict[Any, list[Any]] = {}
    for annotation in content["annotations"]:
        ids.setdefault(annotation["image_id"], []).append(annotation.get("category_id"))
    captions = {image["id"]: image.get("captions", []) for image in content["images"]}
    index_of = {category: index for index, category in enumerate(nouns)}
    labelled = [record for record in records if len(record["proposals"])]
    for record in labelled:
        image_id = record["image_id"]
        record["labels"] = _labels(ids[image_id], index_of, json_file)
        record["captions"] = _texts(captions[image_id], image_id, json_file)
    if len(labelled) < len(records):
        left = len(records) - len(labelled)
        logger.info("%s: %d images have no box and are left out", json_file, left)
    return RegionText(labelled, tuple(nouns.values()))


def _nouns(content: dict[str, Any], path: str | os.PathLike[str]) -> dict[int, str]:
    """Names of categories by id, in ascending order of ids."""
    nouns: dict[int, str] = {}
    names: set[str] = set()
    for category in coco_list(content, "categories", path):
        number, name = category.get("id"), category.get("name")
        if not isinstance(number, int) or not isinstance(name, str) or not name.strip():
            raise InputError(
                f'{path}: a category needs "id", a whole number, and "name", text; got '
                f"{reprlib.repr(category)}"
            )
        if number in nouns or name in names:
            raise InputError(
                f"{path}: {reprlib.repr(category)} repeats the id or name of another category: "
                "each noun is listed once"
            )
        nouns[number] = name
        names.add(name)
    return dict(sorted(nouns.items()))


def _labels(ids: list[Any], index_of: dict[int, int], path: str | os.PathLike[str]) -> np.ndarray:
    wrong = [number for number in ids if not isinstance(number, int)]
    if wrong:
        raise InputError(
            f'{path}: an annotation has the "category_id" {reprlib.repr(wrong[0])}: give the id of '
            "a category"
        )
    return category_labels(np.array(ids), index_of, path)


def _texts(captions: Any, image_id: Any, path: str | os.PathLike[str]) -> list[str]:
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise InputError(
            f'{path}: image {image_id} has the "captions" {reprlib.repr(captions)}: give a list of '
            "texts, or leave them out"
        )
    return captions
