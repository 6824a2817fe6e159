"""Ground truth of detection: true objects of COCO's instances format, by class, and what LVIS adds.

Legend: K classes of a vocabulary.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clipself_seg.data.instances import category_indices
from clipself_seg.data.masks import encode_segmentation
from clipself_seg.data.records import coco_list, read_coco_json
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.evaluation.instances.ground_truth import (
    check_annotation,
    image_order,
    images_by_id,
)


class Federated(NamedTuple):
    """What a federated data set says of its images and classes, as LVIS's.

    Attributes:
        negatives: for each class the numbers of the images that are said to be without it.
        not_exhaustive: for each class the numbers of the images where not all of its objects are annotated.
    """

    negatives: list[frozenset[int]]
    not_exhaustive: list[frozenset[int]]


class DetectionGroundTruth(NamedTuple):
    """True objects of a data set, with images and objects numbered for pycocotools.

    Attributes:
        image_ids: ids of the data set's images, sorted; the number of an image is its position.
        sizes: height and width in pixels of each image.
        category_ids: category id of each of the K classes.
        objects: for each class the number of an image -> its objects of this class: "id" from 1, "area",
            "iscrowd", "ignore", "bbox" (XYWH), and "segmentation" (run lengths) if masks are compared.
        federated: what LVIS's rules need; None for COCO's.
    """

    image_ids: tuple[Any, ...]
    sizes: list[tuple[int, int]]
    category_ids: tuple[int, ...]
    objects: list[dict[int, list[dict[str, Any]]]]
    federated: Federated | None


def read_detection_ground_truth(
    json_file: str | os.PathLike[str],
    vocabulary: Vocabulary,
    image_ids: Sequence[Any] | None = None,
    *,
    masks: bool = False,
    federated: bool = False,
    by_order: bool = False,
) -> DetectionGroundTruth:
    """Reads the true objects of the images of a data set.

    Args:
        json_file: file in COCO's instances format, or in LVIS's.
        vocabulary: K classes of the data set.
        image_ids: ids of the data set's images, other images are left out; None takes all of the file.
        masks: masks will be compared, so each object needs one.
        federated: the file is LVIS's, and says of each image which classes are not in it
            ("neg_category_ids") or not annotated in full ("not_exhaustive_category_ids").
        by_order: the classes are the categories of the file by ascending id, see `category_indices`.

    Raises:
        InputError: a missing or broken file; one without images, categories or annotations; entries that lack
            something; images that are not in it; a category that is not in the vocabulary.
    """
    content = read_coco_json(json_file)
    listed = images_by_id(content, json_file)
    order = image_order(listed, image_ids, json_file)
    index_of = category_indices(content, vocabulary, json_file, by_order)
    category_of = {index: category for category, index in index_of.items()}
    annotations = coco_list(content, "annotations", json_file)
    _check_annotations(annotations, listed, index_of, json_file, masks)
    numbers = {image: number for number, image in enumerate(order)}
    objects: list[dict[int, list[dict[str, Any]]]] = [{} for _ in vocabulary.classes]
    last_id = 0
    for entry in annotations:
        number = numbers.get(entry["image_id"])
        # The LVIS package takes objects with an area only, and knows no crowds.
        if number is None or (federated and not entry["area"] > 0):
            continue
        last_id += 1
        crowd = not federated and bool(entry.get("iscrowd"))
        ignored = bool(entry.get("ignore")) if federated else crowd
        own = {"id": last_id, "bbox": entry["bbox"], "area": entry["area"]}
        own |= {"iscrowd": int(crowd), "ignore": int(ignored)}
        if masks:
            size = listed[entry["image_id"]]["height"], listed[entry["image_id"]]["width"]
            own["segmentation"] = _run_lengths(entry, size, json_file)
        objects[index_of[entry["category_id"]]].setdefault(number, []).append(own)
    if not last_id:
        raise InputError(f"{json_file} has no object in the {len(order)} images of the data set")
    return DetectionGroundTruth(
        image_ids=order,
        sizes=[(listed[image]["height"], listed[image]["width"]) for image in order],
        category_ids=tuple(category_of[index] for index in range(len(vocabulary))),
        objects=objects,
        federated=(
            _federated([listed[i] for i in order], index_of, json_file) if federated else None
        ),
    )


def _check_annotations(
    annotations: list[dict[str, Any]],
    listed: Mapping[Any, Any],
    index_of: Mapping[int, int],
    json_file: str | os.PathLike[str],
    masks: bool,
) -> None:
    needed = {"image_id", "category_id", "bbox", "area"} | ({"segmentation"} if masks else set())
    for entry in annotations:
        image_id, category = check_annotation(entry, needed, listed, json_file)
        if not isinstance(category, int) or category not in index_of:
            raise InputError(
                f"{json_file}: an object of image {image_id} has category {reprlib.repr(category)}, "
                "which is not in the vocabulary: give the data set's own"
            )
        if not _are_finite(entry["bbox"], 4) or not _are_finite([entry["area"]], 1):
            raise InputError(
                f'{json_file}: an object of image {image_id} has no "bbox" [x, y, width, height], or no '
                f'"area", of finite numbers: {reprlib.repr(entry)}'
            )


def _are_finite(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )


def _federated(
    images: Sequence[Mapping[str, Any]],
    index_of: Mapping[int, int],
    json_file: str | os.PathLike[str],
) -> Federated:
    lists = []
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        by_class: list[set[int]] = [set() for _ in index_of]
        for number, image in enumerate(images):
            categories = image.get(key)
            if not isinstance(categories, list) or not all(
                isinstance(c, int) and c in index_of for c in categories
            ):
                raise InputError(
                    f'{json_file}: image {image["id"]} has no "{key}" of categories of the vocabulary, '
                    "which LVIS's rules need: give LVIS's own file"
                )
            for category in categories:
                by_class[index_of[category]].add(number)
        lists.append([frozenset(numbers) for numbers in by_class])
    return Federated(*lists)


def _run_lengths(
    entry: Mapping[str, Any], size: tuple[int, int], json_file: str | os.PathLike[str]
) -> dict[str, Any]:
    """Compressed run lengths of a mask as COCO's files have it: polygons, or run lengths of either kind."""
    try:
        return encode_segmentation(entry["segmentation"], *size)
    except ValueError as error:
        raise InputError(
            f"{json_file}: the mask of an object of image {entry['image_id']} is not made of polygons or "
            f"an RLE of {size[1]} x {size[0]} pixels ({error}): correct it or take it out"
        ) from None
