"""Annotation files in COCO's formats are read into dataset records, Detectron2's dictionaries.

A record has "file_name", "image_id" and, where the file states them, "height" and "width" in
pixels. Proposals, segments and nouns are added by the function that reads them. No image is opened here.

Objects for detection are those of COCO's and LVIS's instances. Which annotations count is MMDetection's rule, with
which the published detectors were trained. Crowds are never objects. Masks stay as they are in the file until
`masks.object_mask` makes pixels of one.

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
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from types import UnionType
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import read_json

logger = logging.getLogger(__name__)

Record = dict[str, Any]
JsonObject = dict[str, Any]
"""An object of a JSON file whose entries have not been checked."""
ImageId = int | str
Source = str | os.PathLike[str]
"""Path of a file or folder."""


class MadeAnnotations(os.PathLike[str]):
    """Annotations in COCO's format that are made when they are read, in place of a file.

    Args:
        origin: file or folder that they are made of, for messages.
        make: gives their content, anew each time.
    """

    def __init__(self, origin: str, make: Callable[[], JsonObject]) -> None:
        self.origin = origin
        self.make = make

    def __fspath__(self) -> str:
        return self.origin

    def __str__(self) -> str:
        return self.origin

    def exists(self) -> bool:
        """Whether the file or folder is there."""
        return os.path.exists(self.origin)


# Below this a grid cell or a token has no content; the reference skips such images too.
MIN_SIDE = 10
LARGEST_AREA = 1e12  # pixels, far beyond any image


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


def proposal_records(
    json_file: Source, image_root: Source, content: JsonObject | None = None
) -> list[Record]:
    """Records of all images with "proposals": (n, 4) float32 XYXY pixels, in file order, n may be 0.

    "proposal_areas" (n,) float64 are width times height as the file has them: corners that are rounded to float32 give
    a side of 8 pixels that is a little less.

    Args:
        json_file: file in COCO's instances format. Of the annotations only "image_id" and "bbox"
            (XYWH) are read.
        image_root: folder to which file names are relative.
        content: content of the file where it is read already, see `read_coco_json`.

    Raises:
        InputError: as `image_records`; no annotations; a box that is not four finite numbers with
            width and height of at least 0; a box of an image that is not listed.
    """
    content = read_coco_json(json_file) if content is None else content
    records = listed_records(content, json_file, image_root)
    listed = {image["id"] for image in content["images"]}
    annotations = coco_list(content, "annotations", json_file)
    boxes = _boxes_by_image(annotations, listed, json_file)
    none = np.zeros((0, 4), dtype=np.float32), np.zeros(0)
    for record in records:
        record["proposals"], record["proposal_areas"] = boxes.get(record["image_id"], none)
    return records


def panoptic_records(json_file: Source, image_root: Source, panoptic_root: Source) -> list[Record]:
    """Records of all images with panoptic ground truth.

    They also have "pan_seg_file_name", "segments_info" with the category ids of the file and, for
    messages, "panoptic_json"; where ids in the PNG count as void, "void_segments". Images without an
    entry in "annotations" have no ground truth and are left out, with a logged count.

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
        check_segments(annotation, image_id, json_file)
        record["pan_seg_file_name"] = os.path.join(panoptic_root, annotation["file_name"])
        record["segments_info"] = annotation["segments_info"]
        record["panoptic_json"] = os.fspath(json_file)
        # A JSON has no tuples: this is of `MadeAnnotations` alone.
        if isinstance(void := annotation.get("void_segments"), tuple):
            record["void_segments"] = void
        labelled.append(record)
    log_left_out(json_file, list(records.values()), labelled, "no panoptic annotation")
    return labelled


def read_coco_json(path: Source) -> JsonObject:
    """Content of an annotation file, a JSON object.

    Raises:
        InputError: the file is missing, cannot be read or holds no object.
    """
    if isinstance(path, MadeAnnotations):
        return path.make()
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


def coco_list(
    content: JsonObject,
    key: str,
    path: Source,
    fields: Mapping[str, type | UnionType] | None = None,
) -> list[JsonObject]:
    """List of an annotation file, such as "images".

    Args:
        content: content of the file, see `read_coco_json`.
        key: name of the list.
        path: path of the file, for the error.
        fields: what each entry needs -> its types.

    Raises:
        InputError: there is no such list, it is empty, or it holds something else than objects, or one that lacks
            a field or has it of another type.
    """
    values = content.get(key)
    if not isinstance(values, list) or not values:
        raise InputError(f'{path}: no "{key}" in it: give a file in COCO\'s format that lists them')
    _check_entries(values, f'"{key}"', path, fields or {})
    return values


def _check_entries(
    values: list[JsonObject], where: str, path: Source, fields: Mapping[str, type | UnionType]
) -> None:
    for value in values:
        if not isinstance(value, dict):
            shown = reprlib.repr(value)
            raise InputError(f"{path}: {shown} among its {where} is no object: fetch it again")
        for field, types in fields.items():
            if not isinstance(value.get(field), types):
                kind = getattr(types, "__name__", types)
                raise InputError(
                    f'{path}: {reprlib.repr(value)} among its {where} has no "{field}", or of another type '
                    f"than {kind}: give a file that has it, in COCO's format"
                )


def listed_records(
    content: JsonObject,
    path: Source,
    image_root: Source,
    min_side: int = MIN_SIDE,
    by_url: bool = False,
) -> list[Record]:
    """Records of the images that an annotation file lists.

    Args:
        content: content of the file, see `read_coco_json`.
        path: path of the file, for errors.
        image_root: folder to which file names are relative.
        min_side: smallest side in pixels of an image that is not left out.
        by_url: folder and name are those of the "coco_url", where an image has one; else of the "file_name", where it
            has that.

    Raises:
        InputError: no images, repeated image ids, no image of at least `min_side` pixels a side.
    """
    images = coco_list(content, "images", path)
    records = [_image_record(image, path, image_root, by_url) for image in images]
    counts = Counter(record["image_id"] for record in records)
    if len(counts) < len(records):
        image_id = counts.most_common(1)[0][0]
        raise InputError(f"{path}: image id {image_id} is listed twice: ids must be unique")
    # Where the file does not state the sides, images count as large.
    large = [
        r for r in records if min(r.get("height", min_side), r.get("width", min_side)) >= min_side
    ]
    if not large:
        raise InputError(f"{path}: every image has a side below {min_side} pixels")
    log_left_out(path, records, large, f"a side below {min_side} pixels")
    return large


def log_left_out(
    path: Source,
    every: Sequence[Record],
    kept: Sequence[Record],
    why: str,
    level: int = logging.WARNING,
) -> None:
    """Log how many images of a file are left out, if any are.

    Args:
        path: path of the file.
        every: records of all its images.
        kept: records of those that are not left out.
        why: what the others have.
        level: of the log.
    """
    if count := len(every) - len(kept):
        logger.log(
            level, "%s: %d of %d images have %s and are left out", path, count, len(every), why
        )


def require_files(
    name: str, records: Sequence[Record], advice: str, key: str = "file_name"
) -> None:
    """Refuse a data set without all images or other files: a run of hours should not end at the last one.

    Args:
        name: name of the data set.
        records: records of its images.
        advice: how to get the files.
        key: entry of the records that names the files.

    Raises:
        InputError: files are missing; names the first one.
    """
    missing = [record[key] for record in records if not os.path.exists(record[key])]
    if missing:
        kind = "images" if key == "file_name" else "files"
        raise InputError(
            f'data set "{name}": {len(missing)} of {len(records)} {kind} are missing, such as '
            f"{missing[0]}; {advice}"
        )


def annotated_image(annotation: JsonObject, listed: Collection[ImageId], path: Source) -> ImageId:
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


def _image_record(image: JsonObject, path: Source, image_root: Source, by_url: bool) -> Record:
    url = "/".join(str(image.get("coco_url") or "").split("/")[-2:])
    name = (by_url and url) or image.get("file_name") or url
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
        record |= {side: int(value) for side, value in sides.items()}
    return record


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
    for box in boxes_xywh:
        if not is_box(box) or box[2] < 0 or box[3] < 0:
            raise InputError(
                f'{path}: image {image_id} has the "bbox" {reprlib.repr(box)}, which is not '
                "[x, y, width, height] with finite numbers and sides of at least 0"
            )
    boxes = np.array(boxes_xywh, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes.astype(np.float32)


def check_segments(annotation: JsonObject, image_id: ImageId, path: Source) -> None:
    """Refuse an annotation of a panoptic JSON of which an image's segments cannot be read.

    Raises:
        InputError: it has no file or no segments, or a segment lacks id, category or box.
    """
    segments = annotation.get("segments_info")
    if not isinstance(segments, list) or not isinstance(annotation.get("file_name"), str):
        raise InputError(
            f'{path}: the annotation of image {image_id} needs "file_name" and "segments_info": '
            "give a panoptic JSON"
        )
    fields = {"id": int, "category_id": int, "bbox": list}
    _check_entries(segments, f'"segments_info" of image {image_id}', path, fields)
    _xyxy([segment["bbox"] for segment in segments], image_id, path)


def category_indices(
    content: JsonObject, vocabulary: Vocabulary, path: Source, by_order: bool = False
) -> dict[int, int]:
    """Index in the vocabulary by category id of an annotation file.

    Args:
        content: content of the file, see `read_coco_json`.
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
    pairs = zip((names[number] for number in ids), vocabulary.first_names)
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
        counts[category_of(annotation, path)] += 1
    return counts


def category_of(annotation: JsonObject, path: Source) -> int:
    """Category id of an annotation.

    Raises:
        InputError: it has none, or no whole number.
    """
    category = annotation.get("category_id")
    if not isinstance(category, int):
        raise InputError(
            f'{path}: an annotation needs a whole number as "category_id", got '
            f"{reprlib.repr(annotation)}"
        )
    return category


def require_base_classes(
    content: JsonObject, index_of: dict[int, int], vocabulary: Vocabulary, path: Source, remedy: str
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
    masks: bool | None = False,
    min_side: int = 1,
    by_url: bool = False,
) -> list[Record]:
    """Records of all images of a file with their objects, in file order; there may be none of them.

    No object is an annotation that is a crowd or flagged "ignore", does not overlap the image, or
    whose area is 0 or less, or whose width or height is below 1 pixel.

    Args:
        content: content of the file.
        path: path of the file, for errors.
        image_root: folder to which file names are relative.
        index_of: index in the vocabulary by category id.
        masks: whether objects have a "segmentation"; None for those that have one in the file.
        min_side: smallest side in pixels of an image that is not left out.
        by_url: see `listed_records`.

    Returns:
        Records with "file_name", "image_id", "height", "width" and "annotations": dictionaries of
        "bbox" (XYXY in pixels, a tuple), "label" (index in the vocabulary), "iscrowd" (0) and, if masks are
        asked, "segmentation" as in the file.

    Raises:
        InputError: as `listed_records`; an image without size; a category that the vocabulary
            does not have; an annotation that is broken, or of an image that is not listed.
    """
    category_labels(np.array(list(category_counts(content, path))), index_of, path)
    listed_images = listed_records(content, path, image_root, min_side, by_url)
    records = {record["image_id"]: record for record in listed_images}
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
                if masks or (masks is None and annotation.get("segmentation")):
                    entry["segmentation"] = _segmentation(annotation, path)
                record["annotations"].append(entry)
    return list(records.values())


def _object_box(
    annotation: JsonObject, record: Record, path: Source
) -> tuple[float, float, float, float] | None:
    """Box XYXY of an annotation, or None if it is no object."""
    x, y, width, height = _stated_box(annotation, path)
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
    wrong = '"segmentation" is no list of polygons and no RLE, and a box is no mask'
    raise _broken(annotation, wrong, path)


def _stated_box(annotation: JsonObject, path: Source) -> list[float]:
    box = annotation.get("bbox")
    if not is_box(box):
        raise _broken(annotation, '"bbox" is not [x, y, width, height] of finite numbers', path)
    return box


def is_box(value: object) -> TypeGuard[list[float]]:
    """Whether a value of a JSON is a list of four numbers, none of them larger than any image."""
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < LARGEST_AREA


def _broken(annotation: JsonObject, reason: str, path: Source) -> InputError:
    number, image = annotation.get("id"), annotation.get("image_id")
    return InputError(
        f"{path}: annotation {reprlib.repr(number)} of image {reprlib.repr(image)} is broken: {reason}; "
        "correct it or take it out"
    )


class RegionText(NamedTuple):
    """Content of a file.

    Attributes:
        records: images that have a box, with "proposals" (n, 4) float32 XYXY pixels and "labels" (n,) int64,
            indices of `nouns`, in file order; and "captions", a list of texts, where the file has them.
        nouns: names of the categories, by ascending id.
    """

    records: list[Record]
    nouns: tuple[str, ...]


def read_region_text(json_file: Source, image_root: Source) -> RegionText:
    """Boxes with nouns; images without a box are left out, with a logged count.

    Args:
        json_file: file in the format above.
        image_root: folder to which file names are relative.

    Raises:
        InputError: as `proposal_records`; categories without names or with equal ids or names, an annotation
            of another category; captions that are no texts.
    """
    content = read_coco_json(json_file)
    nouns = _nouns(content, json_file)
    records = proposal_records(json_file, image_root, content)
    ids: dict[ImageId, list[int]] = {}
    for annotation in content["annotations"]:
        category = category_of(annotation, json_file)
        ids.setdefault(annotation["image_id"], []).append(category)
    captions = {image["id"]: image.get("captions", []) for image in content["images"]}
    index_of = {category: index for index, category in enumerate(nouns)}
    labelled = [record for record in records if len(record["proposals"])]
    for record in labelled:
        image_id = record["image_id"]
        record["labels"] = category_labels(np.array(ids[image_id]), index_of, json_file)
        record["captions"] = _texts(captions[image_id], image_id, json_file)
    log_left_out(json_file, records, labelled, "no box", logging.INFO)
    return RegionText(labelled, tuple(nouns.values()))


def _nouns(content: JsonObject, path: Source) -> dict[int, str]:
    """Names of categories by id, in ascending order of ids."""
    names = category_names(content, path)
    counts = Counter(names.values())
    for number, name in names.items():
        if not name.strip() or counts[name] > 1:
            raise InputError(
                f"{path}: category {number} is {reprlib.repr(name)}, which is blank or the name of another "
                "category too: each noun is listed once"
            )
    return dict(sorted(names.items()))


def _texts(captions: object, image_id: ImageId, path: Source) -> list[str]:
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise InputError(
            f'{path}: image {image_id} has the "captions" {reprlib.repr(captions)}: give a list of '
            "texts, or leave them out"
        )
    return captions
