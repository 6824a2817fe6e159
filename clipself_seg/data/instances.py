"""Annotation files in COCO's and LVIS's instances format, read into records with the objects of each image.

Which annotations count is MMDetection's rule, with which the published detectors were trained. Crowds are
never objects. Masks stay as they are in the file until `object_mask` makes pixels of one.
"""

from __future__ import annotations

import re
import reprlib
from collections import Counter

import numpy as np
from pycocotools import mask as rle

from clipself_seg.data.masks import encode_segmentation
from clipself_seg.data.records import (
    JsonObject,
    Record,
    Source,
    annotated_image,
    category_labels,
    coco_list,
    listed_records,
)
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError

LARGEST_AREA = 1e12  # pixels, far beyond any image


def category_indices(
    content: JsonObject, vocabulary: Vocabulary, path: Source, by_order: bool = False
) -> dict[int, int]:
    """Index in the vocabulary by category id of an annotation file.

    Args:
        content: content of the file, see `records.read_coco_json`.
        vocabulary: classes of the data set.
        path: path of the file, for the error.
        by_order: whether the classes are the categories of the file by ascending id, because the
            vocabulary does not have their ids. Names are then compared, up to blanks around them and
            around "/".

    Raises:
        InputError: by order, and the names of the file are others.
    """
    if not by_order:
        return dict(vocabulary.dataset_id_to_index)
    names = category_names(content, path)
    ids = sorted(names)
    pairs = zip((names[number] for number in ids), vocabulary.names)
    for number, (stated, wanted) in zip(ids, pairs):
        if _without_blanks(stated) != _without_blanks(wanted):
            raise InputError(
                f'{path}: category {number} is "{stated}" where "{vocabulary.name}" has "{wanted}": '
                "give the annotation file of that data set"
            )
    if len(ids) != len(vocabulary):
        raise InputError(
            f'{path} has {len(ids)} categories, "{vocabulary.name}" has {len(vocabulary)} classes: '
            "give the annotation file of that data set"
        )
    return {number: index for index, number in enumerate(ids)}


def require_same_classes(content: JsonObject, vocabulary: Vocabulary, path: Source) -> None:
    """Refuse a vocabulary whose numbers give a category of the file to another class than its name does.

    Other names than the file's are fine, as long as they are no names of other classes.

    Raises:
        InputError: a category has the number of one class and the name of another.
    """
    classes = {entry.dataset_id: entry for entry in vocabulary.classes}
    named = {name.lower(): entry for entry in vocabulary.classes for name in entry.names}
    for number, name in category_names(content, path).items():
        same = named.get(name.lower())
        if number in classes and same is not None and same.dataset_id != number:
            if name.lower() not in map(str.lower, classes[number].names):
                raise InputError(
                    f'{path}: category {number} is "{name}", but class {number} of the vocabulary '
                    f'"{vocabulary.name}" is "{classes[number].names[0]}": give each class its '
                    '"dataset_id", the number of its category in the file'
                )


def category_names(content: JsonObject, path: Source) -> dict[int, str]:
    """Name of each category of an annotation file by its id, in the order of the file.

    Raises:
        InputError: no categories, or one without id and name, or an id twice.
    """
    names: dict[int, str] = {}
    for category in coco_list(content, "categories", path):
        number, name = category.get("id"), category.get("name")
        if not isinstance(number, int) or not isinstance(name, str) or number in names:
            raise InputError(
                f'{path}: a category needs an "id" of its own, a whole number, and a "name", got '
                f"{reprlib.repr(category)}"
            )
        names[number] = name
    return names


def _without_blanks(name: str) -> str:
    return re.sub(r"\s*/\s*", "/", name.strip())


def category_counts(content: JsonObject, path: Source) -> Counter[int]:
    """Number of annotations of each category id, crowds included.

    Raises:
        InputError: no annotations, or one without a category id.
    """
    counts: Counter[int] = Counter()
    for annotation in coco_list(content, "annotations", path):
        category = annotation.get("category_id")
        if not isinstance(category, int):
            raise InputError(
                f'{path}: an annotation needs a whole number as "category_id", got '
                f"{reprlib.repr(annotation)}"
            )
        counts[category] += 1
    return counts


def require_base_classes(
    content: JsonObject,
    index_of: dict[int, int],
    vocabulary: Vocabulary,
    path: Source,
    remedy: str,
) -> None:
    """Refuse a file for training that annotates anything else than base classes.

    Args:
        content: content of the file.
        index_of: index in the vocabulary by category id.
        vocabulary: classes of the data set; if it does not say which are seen, all are.
        path: path of the file, for the error.
        remedy: what to do, for the error.

    Raises:
        InputError: there are such annotations; names and counts their classes.
    """
    counts = category_counts(content, path)
    novel = {index for index, entry in enumerate(vocabulary.classes) if entry.seen is False}
    wrong = {
        number: count
        for number, count in counts.items()
        if number not in index_of or index_of[number] in novel
    }
    if not wrong:
        return
    names = category_names(content, path)
    listed = [f"{names.get(number, number)} ({count})" for number, count in wrong.items()]
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    raise InputError(
        f"{path}: {sum(wrong.values())} annotations are of {len(wrong)} classes that are not base "
        f'classes of "{vocabulary.name}": {", ".join(listed[:8])}{more}; {remedy}'
    )


def names_from_urls(content: JsonObject, path: Source) -> None:
    """Set the file names of a file of LVIS, such as "val2017/000000000139.jpg", from its "coco_url".

    Raises:
        InputError: an image has none, so that its folder is not known.
    """
    for image in coco_list(content, "images", path):
        url = image.get("coco_url")
        if not isinstance(url, str) or url.count("/") < 2:
            raise InputError(
                f'{path}: image {reprlib.repr(image.get("id"))} has no "coco_url", which says whether '
                "it is in train2017 or val2017: give a file of LVIS v1, which has it"
            )
        image["file_name"] = "/".join(url.split("/")[-2:])


def annotated_ids(content: JsonObject, index_of: dict[int, int], path: Source) -> set[object]:
    """Ids of the images with an annotation of a class of the vocabulary, be it a crowd or one that is skipped."""
    return {
        annotation.get("image_id")
        for annotation in coco_list(content, "annotations", path)
        if annotation.get("category_id") in index_of
    }


def instance_records(
    content: JsonObject,
    path: Source,
    image_root: Source,
    index_of: dict[int, int],
    *,
    masks: bool = False,
    min_side: int = 1,
) -> list[Record]:
    """Records of all images of a file with their objects, in file order; there may be none of them.

    No object is an annotation that is a crowd or flagged "ignore", does not overlap the image, or
    whose area is 0 or less, or whose width or height is below 1 pixel.

    Args:
        content: content of the file.
        path: path of the file, for errors.
        image_root: folder to which file names are relative.
        index_of: index in the vocabulary by category id.
        masks: whether objects have a "segmentation".
        min_side: smallest side in pixels of an image that is not left out.

    Returns:
        Records with "file_name", "image_id", "height", "width" and "annotations": dictionaries of
        "bbox" (XYXY in pixels, a tuple), "label" (index in the vocabulary), "iscrowd" (0) and, if masks are
        asked, "segmentation" as in the file.

    Raises:
        InputError: as `records.listed_records`; an image without size; a category that the vocabulary
            does not have; an annotation that is broken, or of an image that is not listed.
    """
    category_labels(np.array(list(category_counts(content, path))), index_of, path)
    records = {r["image_id"]: r for r in listed_records(content, path, image_root, min_side)}
    for record in records.values():
        if "height" not in record:
            raise InputError(
                f'{path}: image {record["image_id"]} has no "height" and "width", which boxes need: '
                "add them"
            )
        record["annotations"] = []
    listed = {image["id"] for image in content["images"]}
    for annotation in content["annotations"]:
        image_id = annotated_image(annotation, listed, path)
        if image_id in records:
            record = records[image_id]
            box = _object_box(annotation, record, path)
            if box is not None:
                label = index_of[annotation["category_id"]]
                entry = {"bbox": box, "label": label, "iscrowd": 0}
                if masks:
                    entry["segmentation"] = _segmentation(annotation, path)
                record["annotations"].append(entry)
    return list(records.values())


def _object_box(
    annotation: JsonObject, record: Record, path: Source
) -> tuple[float, float, float, float] | None:
    """Box XYXY of an annotation, or None if it is no object."""
    x, y, width, height = _xywh(annotation, path)
    area = annotation.get("area", 1)
    if not _is_number(area):
        raise _broken(annotation, '"area" is no finite number', path)
    across = min(x + width, record["width"]) - max(x, 0)
    down = min(y + height, record["height"]) - max(y, 0)
    skipped = annotation.get("ignore") or annotation.get("iscrowd")
    counts = not skipped and across > 0 < down and area > 0 and min(width, height) >= 1
    return (x, y, x + width, y + height) if counts else None


def _segmentation(annotation: JsonObject, path: Source) -> list[object] | JsonObject:
    segmentation = annotation.get("segmentation")
    if segmentation and isinstance(segmentation, list | dict):
        return segmentation
    raise _broken(annotation, '"segmentation" is no list of polygons and no RLE', path)


def _xywh(annotation: JsonObject, path: Source) -> list[float]:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise _broken(annotation, '"bbox" is not [x, y, width, height] of finite numbers', path)
    return box


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < LARGEST_AREA


def _broken(annotation: JsonObject, reason: str, path: Source) -> InputError:
    number, image = annotation.get("id"), annotation.get("image_id")
    return InputError(
        f"{path}: annotation {reprlib.repr(number)} of image {reprlib.repr(image)} is broken: {reason}; "
        "correct it or take it out"
    )


def object_mask(segmentation: object, height: int, width: int, image: Source) -> np.ndarray:
    """Pixels of an object, (H, W) uint8 of 0 and 1.

    Args:
        segmentation: polygons, or an RLE whose counts are a list or compressed, as COCO's files have them.
        height: H, height of the image in pixels.
        width: W, width of the image in pixels.
        image: path of the image, for the error.

    Raises:
        InputError: it is none of these, or an RLE of another size.
    """
    try:
        mask: np.ndarray = rle.decode(encode_segmentation(segmentation, height, width))
    except ValueError as error:
        raise InputError(
            f"image {image}: the mask of an object is not made of polygons or an RLE of "
            f"{width} x {height} pixels ({error}): correct it in the annotation file"
        ) from None
    return mask
