"""Ground truth of instance masks: reads COCO's instances format as pycocotools wants it.

Image ids may be strings, as in ADE20K, and annotations may have the id 0, which pycocotools would
take for no match: both are numbered anew.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipself_seg.data.masks import LARGEST_IMAGE, check_segmentation
from clipself_seg.data.records import coco_list, read_coco_json
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError


class InstanceGroundTruth(NamedTuple):
    """Instances of a data set, with images and annotations numbered for pycocotools.

    Attributes:
        image_ids: ids of the data set's images, sorted; the number of an image is its position.
        images: for each image "id" (its number), "height" and "width" in pixels.
        annotations: for each instance COCO's entry, with the number of its image as "image_id", and
            ids from 1.
    """

    image_ids: tuple[Any, ...]
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]


def read_instance_ground_truth(
    json_file: str | os.PathLike[str],
    vocabulary: Vocabulary,
    image_ids: Sequence[Any] | None = None,
) -> InstanceGroundTruth:
    """Reads the instances of the images of a data set.

    Args:
        json_file: file in COCO's instances format.
        vocabulary: classes of the data set; it says which are things.
        image_ids: ids of the data set's images, other images are left out; None takes all of the
            file.

    Raises:
        InputError: a missing or broken file; one without images or annotations; entries that lack
            something; images that are not in it; a category that is not a thing of the vocabulary.
    """
    content = read_coco_json(json_file)
    listed = images_by_id(content, json_file)
    order = image_order(listed, image_ids, json_file)
    number_of = {image: number for number, image in enumerate(order)}
    annotations = coco_list(content, "annotations", json_file)
    _check_annotations(annotations, listed, vocabulary, json_file)
    chosen = [entry for entry in annotations if entry["image_id"] in number_of]
    if not chosen:
        raise InputError(f"{json_file} has no instance in the {len(order)} images of the data set")
    return InstanceGroundTruth(
        image_ids=order,
        images=[
            {"id": number, "height": listed[image]["height"], "width": listed[image]["width"]}
            for number, image in enumerate(order)
        ],
        annotations=[
            entry
            | {
                "id": position,
                "image_id": number_of[entry["image_id"]],
                "iscrowd": entry.get("iscrowd", 0),
            }
            for position, entry in enumerate(chosen, 1)
        ],
    )


def images_by_id(
    content: dict[str, Any], json_file: str | os.PathLike[str]
) -> dict[Any, dict[str, Any]]:
    """Image id -> entry with "height" and "width" in pixels, in the order of a file.

    Args:
        content: content of the file, see `records.read_coco_json`.
        json_file: path of the file, for the error.

    Raises:
        InputError: there are no images, or one lacks id or size.
    """
    images = coco_list(content, "images", json_file)
    for image in images:
        missing = {"id", "height", "width"} - image.keys()
        if missing:
            raise InputError(
                f"{json_file}: an image lacks {sorted(missing)}: {reprlib.repr(image)}"
            )
        sides = (image["height"], image["width"])
        whole = all(isinstance(side, int) and 0 < side < 2**31 for side in sides)
        if not whole or not isinstance(image["id"], int | str):
            raise InputError(
                f'{json_file}: of an image "id" is a number or text, "height" and "width" are whole '
                f"numbers: {reprlib.repr(image)}"
            )
    return {image["id"]: image for image in images}


def image_order(
    listed: Mapping[Any, Any],
    image_ids: Sequence[Any] | None,
    json_file: str | os.PathLike[str],
) -> tuple[Any, ...]:
    """Ids of the images of a data set, sorted.

    Args:
        listed: images of the file, by id.
        image_ids: ids of the data set's images; None takes all of the file.
        json_file: path of the file, for the error.

    Raises:
        InputError: the file lacks an image.
    """
    wanted = list(listed) if image_ids is None else list(dict.fromkeys(image_ids))
    missing = [image for image in wanted if image not in listed]
    if missing:
        raise InputError(
            f"{json_file} lacks {len(missing)} of {len(wanted)} images of the data set, such as "
            f"{missing[:3]}: take the instances of the same split"
        )
    # Numbers before strings: Python does not compare one with the other.
    return tuple(sorted(wanted, key=lambda image: (isinstance(image, str), image)))


def check_annotation(
    entry: Mapping[str, Any],
    needed: Collection[str],
    listed: Mapping[Any, Any],
    json_file: str | os.PathLike[str],
) -> tuple[Any, Any]:
    """Image id and category id of an annotation, which has the keys that are needed and a listed image.

    Args:
        entry: annotation.
        needed: its keys, "image_id" and "category_id" among them.
        listed: images of the file, by id.
        json_file: path of the file, for the error.

    Raises:
        InputError: a key is missing, or the file lacks the image.
    """
    missing = set(needed) - entry.keys()
    if missing:
        raise InputError(
            f"{json_file}: an annotation lacks {sorted(missing)}: give COCO's instances format"
        )
    image_id = entry["image_id"]
    if not isinstance(image_id, int | str) or image_id not in listed:
        raise InputError(
            f'{json_file}: annotation of image {reprlib.repr(image_id)}, which is not in "images"'
        )
    return image_id, entry["category_id"]


def _check_annotations(
    annotations: list[dict[str, Any]],
    listed: Mapping[Any, Any],
    vocabulary: Vocabulary,
    json_file: str | os.PathLike[str],
) -> None:
    things = set(thing_categories(vocabulary))
    for entry in annotations:
        needed = {"image_id", "category_id", "segmentation", "area"}
        image_id, category = check_annotation(entry, needed, listed, json_file)
        _check_mask(entry, listed[image_id], json_file)
        if not isinstance(category, int) or category not in things:
            raise InputError(
                f"{json_file}: an instance of image {image_id} has category "
                f"{reprlib.repr(category)}, which is not among the {len(things)} things of "
                f'vocabulary "{vocabulary.name}": give those of the data set'
            )


def _check_mask(
    entry: dict[str, Any], image: Mapping[str, Any], json_file: str | os.PathLike[str]
) -> None:
    try:
        check_segmentation(entry["segmentation"], image["height"], image["width"])
        area = entry["area"]
        if not isinstance(area, int | float) or not abs(area) < LARGEST_IMAGE:
            raise ValueError('its "area" is no number of pixels')
        if entry.get("iscrowd", 0) not in (0, 1):
            raise ValueError('its "iscrowd" is not 0 or 1')
    except ValueError as error:
        raise InputError(
            f'{json_file}: an instance of image {entry["image_id"]} has no mask of it as '
            f'"segmentation" ({error}): {reprlib.repr(entry)}; take the instances of the data set'
        ) from None


def thing_categories(vocabulary: Vocabulary) -> list[int]:
    """Category ids of the things, in the order of the classes.

    Raises:
        InputError: the vocabulary marks no class as thing.
    """
    things = np.flatnonzero(vocabulary.thing)
    if not len(things):
        raise InputError(
            f'vocabulary "{vocabulary.name}": none of the {len(vocabulary)} classes is thing: '
            'set "isthing" of each; stuff has no instances'
        )
    return [vocabulary.classes[index].dataset_id for index in things]
