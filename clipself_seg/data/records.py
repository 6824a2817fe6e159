"""Annotation files in COCO's formats are read into dataset records, Detectron2's dictionaries.

A record has "file_name", "image_id" and, where the file states them, "height" and "width" in
pixels. Proposals, segments and nouns are added by the function that reads them. No image is opened here.

Boxes with nouns, for region-text training, are instances whose categories are the nouns:

{"images": [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 48, "captions": ["A dog."]}, ...],
 "annotations": [{"image_id": 1, "bbox": [3, 4, 20, 10], "category_id": 7, "score": 0.8}, ...],
 "categories": [{"id": 7, "name": "dog"}, ...]}

The annotations of an image stand by falling score, and training takes the first ones. "captions" are there
for RegionCLIP's loss of whole images.
"""

from __future__ import annotations

import logging
import os
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipself_seg.errors import InputError
from clipself_seg.files import read_json

logger = logging.getLogger(__name__)

Record = dict[str, Any]
JsonObject = dict[str, Any]
"""An object of a JSON file whose entries have not been checked."""
ImageId = int | str
Source = str | os.PathLike[str]
"""Path of a file or folder."""

# Below this a grid cell or a token has no content; the reference skips such images too.
MIN_SIDE = 10


def image_records(json_file: Source, image_root: Source) -> list[Record]:
    """Records of all images that a COCO-format file lists, with or without annotations.

    Args:
        json_file: file of which only "images" is read: "id", and "file_name" or, as in LVIS,
            "coco_url".
        image_root: folder to which file names are relative.

    Raises:
        InputError: a missing or broken file, one without images, repeated image ids, no image of
            at least `MIN_SIDE` pixels a side.
    """
    return listed_records(read_coco_json(json_file), json_file, image_root)


def proposal_records(json_file: Source, image_root: Source) -> list[Record]:
    """Records of all images with "proposals": (n, 4) float32 XYXY pixels, in file order, n may be 0.

    "proposal_areas" (n,) float64 are width times height as the file has them: corners that are rounded to float32 give
    a side of 8 pixels that is a little less.

    Args:
        json_file: file in COCO's instances format. Of the annotations only "image_id" and "bbox"
            (XYWH) are read.
        image_root: folder to which file names are relative.

    Raises:
        InputError: as `image_records`; no annotations; a box that is not four finite numbers with
            width and height of at least 0; a box of an image that is not listed.
    """
    return proposal_records_of(read_coco_json(json_file), json_file, image_root)


def proposal_records_of(
    content: JsonObject,
    json_file: Source,
    image_root: Source,
) -> list[Record]:
    """`proposal_records` of a file that is read already.

    Args:
        content: content of the file, see `read_coco_json`.
        json_file: path of the file, for errors.
        image_root: folder to which file names are relative.

    Raises:
        InputError: as `proposal_records`.
    """
    records = listed_records(content, json_file, image_root)
    listed = {image["id"] for image in content["images"]}
    annotations = coco_list(content, "annotations", json_file)
    boxes = _boxes_by_image(annotations, listed, json_file)
    none = np.zeros((0, 4), dtype=np.float32), np.zeros(0)
    for record in records:
        record["proposals"], record["proposal_areas"] = boxes.get(record["image_id"], none)
    return records


def panoptic_records(
    json_file: Source,
    image_root: Source,
    panoptic_root: Source,
) -> list[Record]:
    """Records of all images with panoptic ground truth.

    They also have "pan_seg_file_name", "segments_info" with the category ids of the file and, for
    messages, "panoptic_json". Images without an entry in "annotations" have no ground truth and are
    left out, with a logged count.

    Args:
        json_file: file in COCO's panoptic format.
        image_root: folder to which the images' file names are relative.
        panoptic_root: folder to which the PNGs' file names are relative.

    Raises:
        InputError: as `image_records`; no annotations; an annotation of an image that is not
            listed, or that has another one; a segment without id, category or box.
    """
    content = read_coco_json(json_file)
    records = {
        record["image_id"]: record for record in listed_records(content, json_file, image_root)
    }
    listed = {image["id"] for image in content["images"]}
    labelled = []
    for annotation in coco_list(content, "annotations", json_file):
        image_id = annotated_image(annotation, listed, json_file)
        if image_id not in records:
            continue
        record = records[image_id]
        if "segments_info" in record:
            raise InputError(
                f"{json_file}: image {image_id} has two annotations, of {record['pan_seg_file_name']} "
                f"and {reprlib.repr(annotation.get('file_name'))}: leave the right one"
            )
        _check_segments(annotation, image_id, json_file)
        record["pan_seg_file_name"] = os.path.join(panoptic_root, annotation["file_name"])
        record["segments_info"] = annotation["segments_info"]
        record["panoptic_json"] = os.fspath(json_file)
        labelled.append(record)
    if len(labelled) < len(records):
        logger.warning(
            "%s: %d images have no panoptic annotation and are left out",
            json_file,
            len(records) - len(labelled),
        )
    return labelled


def read_coco_json(path: Source) -> JsonObject:
    """Content of an annotation file, a JSON object.

    Raises:
        InputError: the file is missing, cannot be read or holds no object.
    """
    content = read_json(path, "annotation file")
    if not isinstance(content, dict):
        raise InputError(f"{path}: not in COCO's format, which is an object with a list of images")
    return content


def coco_info(content: JsonObject) -> JsonObject:
    """What an annotation file says of itself; empty where that is no object.

    Args:
        content: content of the file, see `read_coco_json`.
    """
    info = content.get("info")
    return info if isinstance(info, dict) else {}


def coco_list(content: JsonObject, key: str, path: Source) -> list[JsonObject]:
    """List of an annotation file, such as "images".

    Args:
        content: content of the file, see `read_coco_json`.
        key: name of the list.
        path: path of the file, for the error.

    Raises:
        InputError: there is no such list, it is empty, or it holds something else than objects.
    """
    values = content.get(key)
    if not isinstance(values, list) or not values:
        raise InputError(f'{path}: no "{key}" in it: give a file in COCO\'s format that lists them')
    for value in values:
        if not isinstance(value, dict):
            shown = reprlib.repr(value)
            raise InputError(f'{path}: {shown} among its "{key}" is no object: fetch it again')
    return values


def listed_records(
    content: JsonObject,
    path: Source,
    image_root: Source,
    min_side: int = MIN_SIDE,
) -> list[Record]:
    """Records of the images that an annotation file lists.

    Args:
        content: content of the file, see `read_coco_json`.
        path: path of the file, for errors.
        image_root: folder to which file names are relative.
        min_side: smallest side in pixels of an image that is not left out.

    Raises:
        InputError: no images, repeated image ids, no image of at least `min_side` pixels a side.
    """
    images = coco_list(content, "images", path)
    records = [_image_record(image, path, image_root) for image in images]
    _check_unique((record["image_id"] for record in records), path)
    large = [record for record in records if _large_enough(record, min_side)]
    if not large:
        raise InputError(f"{path}: every image has a side below {min_side} pixels")
    if len(large) < len(records):
        logger.warning(
            "%s: %d of %d images have a side below %d pixels and are left out",
            path,
            len(records) - len(large),
            len(records),
            min_side,
        )
    return large


def require_images(name: str, records: Sequence[Record], advice: str) -> None:
    """Refuse a data set without all images: a run of hours should not end at the last one.

    Args:
        name: name of the data set.
        records: records of its images.
        advice: how to get the files.

    Raises:
        InputError: images are missing; names the first one.
    """
    missing = [r["file_name"] for r in records if not os.path.exists(r["file_name"])]
    if missing:
        raise InputError(
            f'data set "{name}": {len(missing)} of {len(records)} images are missing, such as '
            f"{missing[0]}; {advice}"
        )


def annotated_image(annotation: JsonObject, listed: set[ImageId], path: Source) -> ImageId:
    """Id of the image that an annotation belongs to.

    Args:
        annotation: one of the list "annotations" of a file.
        listed: ids of all images of the file.
        path: path of the file, for the error.

    Raises:
        InputError: there is no such image.
    """
    image_id = annotation.get("image_id")
    if not isinstance(image_id, int | str) or image_id not in listed:
        raise InputError(
            f'{path}: an annotation of image {reprlib.repr(image_id)}, which is not in "images"'
        )
    return image_id


def category_labels(
    category_ids: np.ndarray, index_of: dict[int, int], source: Source
) -> np.ndarray:
    """Class indices of category ids, (n,) int64.

    Args:
        category_ids: category ids of an annotation file, (n,) integers.
        index_of: index in the vocabulary by category id.
        source: path of the file, for the error.

    Raises:
        InputError: the vocabulary lacks a category id.
    """
    unknown = sorted(set(category_ids.tolist()) - index_of.keys())
    if unknown:
        raise InputError(
            f"{source}: category ids {unknown[:5]} are not in the vocabulary: "
            "give the data set's own"
        )
    return np.array([index_of[category] for category in category_ids.tolist()], dtype=np.int64)


def _image_record(
    image: JsonObject,
    path: Source,
    image_root: Source,
) -> Record:
    name = image.get("file_name") or "/".join(str(image.get("coco_url") or "").split("/")[-2:])
    if not name or not isinstance(name, str) or not isinstance(image.get("id"), int | str):
        raise InputError(
            f'{path}: an image needs "id", a number or text, and "file_name" (or "coco_url"), text; '
            f"got {reprlib.repr(image)}"
        )
    record = {"file_name": os.path.join(image_root, name), "image_id": image["id"]}
    if "height" in image and "width" in image:
        sides = {side: image[side] for side in ("height", "width")}
        if not all(isinstance(value, int | float) and value % 1 == 0 for value in sides.values()):
            raise InputError(
                f"{path}: image {image['id']} has {reprlib.repr(sides)}: give whole numbers of pixels, "
                "or leave both out"
            )
        record |= sides
    return record


def _check_unique(image_ids: Iterable[ImageId], path: Source) -> None:
    listed: set[ImageId] = set()
    for image_id in image_ids:
        if image_id in listed:
            raise InputError(f"{path}: image id {image_id} is listed twice: ids must be unique")
        listed.add(image_id)


def _large_enough(record: Record, min_side: int) -> bool:
    """Whether both sides reach a number of pixels, or the file does not state them."""
    return min(record.get("height", min_side), record.get("width", min_side)) >= min_side


def _boxes_by_image(
    annotations: list[JsonObject], listed: set[ImageId], path: Source
) -> dict[ImageId, tuple[np.ndarray, np.ndarray]]:
    """Checked XYXY boxes of each image by its id, and their areas as stated."""
    grouped: dict[ImageId, list[Any]] = {}
    for annotation in annotations:
        image_id = annotated_image(annotation, listed, path)
        grouped.setdefault(image_id, []).append(annotation.get("bbox"))
    return {
        image_id: (_xyxy(boxes, image_id, path), np.array([w * h for _, _, w, h in boxes], float))
        for image_id, boxes in grouped.items()
    }


def _xyxy(boxes_xywh: list[Any], image_id: ImageId, path: Source) -> np.ndarray:
    boxes = _xywh(boxes_xywh)
    if boxes is None:
        wrong = next((box for box in boxes_xywh if _xywh([box]) is None), boxes_xywh)
        raise InputError(
            f'{path}: image {image_id} has the "bbox" {reprlib.repr(wrong)}, which is not '
            "[x, y, width, height] with finite numbers and sides of at least 0"
        )
    boxes[:, 2:] += boxes[:, :2]
    return boxes.astype(np.float32)


def _xywh(boxes: list[object]) -> np.ndarray | None:
    """Boxes (n, 4) float64, of whatever JSON has in their place; None for anything else than boxes."""
    try:
        given = np.array(boxes).reshape(len(boxes), 4)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    # Text would be taken for numbers, if it looks like them.
    if given.size and given.dtype.kind not in "iuf":
        return None
    numbers = given.astype(np.float64)
    return numbers if np.isfinite(numbers).all() and (numbers[:, 2:] >= 0).all() else None


def _check_segments(annotation: JsonObject, image_id: ImageId, path: Source) -> None:
    segments = annotation.get("segments_info")
    if not isinstance(segments, list) or not isinstance(annotation.get("file_name"), str):
        raise InputError(
            f'{path}: the annotation of image {image_id} needs "file_name" and "segments_info": '
            "give a panoptic JSON"
        )
    for segment in segments:
        if not isinstance(segment, dict):
            raise InputError(
                f'{path}: {reprlib.repr(segment)} among the "segments_info" of image {image_id} is no '
                "object: fetch it again"
            )
        missing = {"id", "category_id", "bbox"} - segment.keys()
        if missing:
            raise InputError(f"{path}: a segment of image {image_id} lacks {sorted(missing)}")
        if not all(isinstance(segment[key], int) for key in ("id", "category_id")):
            raise InputError(
                f'{path}: a segment of image {image_id} needs whole numbers as "id" and '
                f'"category_id", got {reprlib.repr(segment)}'
            )
    _xyxy([segment["bbox"] for segment in segments], image_id, path)


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
    content: JsonObject,
    json_file: Source,
    image_root: Source,
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
    ids: dict[ImageId, list[object]] = {}
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


def _nouns(content: JsonObject, path: Source) -> dict[int, str]:
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


def _labels(ids: list[object], index_of: dict[int, int], path: Source) -> np.ndarray:
    wrong = [number for number in ids if not isinstance(number, int)]
    if wrong:
        raise InputError(
            f'{path}: an annotation has the "category_id" {reprlib.repr(wrong[0])}: give the id of '
            "a category"
        )
    return category_labels(np.array(ids), index_of, path)


def _texts(captions: object, image_id: ImageId, path: Source) -> list[str]:
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise InputError(
            f'{path}: image {image_id} has the "captions" {reprlib.repr(captions)}: give a list of '
            "texts, or leave them out"
        )
    return captions
