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

Captions are COCO's, with the images or alone. Training of mask generators reads the noun phrases of each:

{"annotations": [{"image_id": 139, "caption": "A dog on grass.", "phrases": ["dog", "grass"]}, ...]}
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError, require_unique, shown
from clipself_seg.files import read_json
from clipself_seg.memory import no_collection
from clipself_seg.schema import NUMBER, OBJECT, TEXT, WHOLE, Kind, Schema, check, texts

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

    Attributes:
        count: number of annotations that were made last.
        left_out: "left_out" of that content: those that are none of them, by class.
    """

    def __init__(self, origin: str, make: Callable[[], JsonObject]) -> None:
        self.origin = origin
        self._make = make
        self.count = 0
        self.left_out: Mapping[str, int] = {}

    def make(self) -> JsonObject:
        """The content, made anew."""
        content = self._make()
        self.count = len(content.get("annotations", ()))
        self.left_out = content.get("left_out", {})
        return content

    def __fspath__(self) -> str:
        return self.origin

    def __str__(self) -> str:
        return self.origin

    def exists(self) -> bool:
        """True if the file or folder is there."""
        return os.path.exists(self.origin)


MIN_SIDE = 10  # pixels; below it a grid cell or a token has no content, and the reference skips such images too
LARGEST = 1e12  # far beyond any number of pixels


def is_box(value: object) -> bool:
    """True for a list of four numbers, none of them larger than any image."""
    if not isinstance(value, list) or len(value) != 4:
        return False
    for number in value:
        if not isinstance(number, (int, float)) or not -LARGEST < number < LARGEST:
            return False
    return True


ID = Kind("a number or text", lambda value: isinstance(value, int | str))
BOX = Kind("[x, y, width, height] of finite numbers", is_box)
# A box that stands for a region as it is, so that nothing leaves it out.
REGION = Kind(
    "[x, y, width, height] of finite numbers, with sides of at least 0",
    lambda value: is_box(value) and min(value[2:]) >= 0,
)
PIXELS = Kind(
    "a whole number of pixels", lambda value: isinstance(value, int | float) and value % 1 == 0
)
MASK = Kind(
    "a list of polygons or an RLE", lambda value: bool(value) and isinstance(value, list | dict)
)
# Three bytes of a PNG hold it.
SEGMENT_ID = Kind(
    f"a whole number from 1 to {2**24 - 1}",
    lambda value: type(value) is int and 0 < value < 2**24,
)
NOUN = Kind("a word", lambda value: isinstance(value, str) and bool(value.strip()))
# Entries of annotation files, by what is read of them.
IMAGE: Schema = {"id": ID, "height?": PIXELS, "width?": PIXELS}
SIZED_IMAGE: Schema = {"id": ID, "height": PIXELS, "width": PIXELS}
CATEGORY: Schema = {"id": WHOLE, "name": TEXT}
CLASSIFIED: Schema = {"image_id": ID, "category_id": WHOLE}
OBJECT_IN_BOX: Schema = {"image_id": ID, "category_id": WHOLE, "bbox": BOX, "area?": NUMBER}
SEGMENTS: Schema = {
    "image_id": ID,
    "file_name": TEXT,
    "segments_info": [{"id": SEGMENT_ID, "category_id": WHOLE, "bbox": REGION, "area?": NUMBER}],
}


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
    by_image = annotations_by_image(content, json_file, {"image_id": ID, "bbox": REGION})
    for record in records:
        boxes = [annotation["bbox"] for annotation in by_image[record["image_id"]]]
        xywh = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        record["proposal_areas"] = xywh[:, 2] * xywh[:, 3]
        xywh[:, 2:] += xywh[:, :2]
        record["proposals"] = xywh.astype(np.float32)
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
    annotations = coco_list(content, "annotations", json_file, SEGMENTS)
    ids = [annotated_image(annotation, listed, json_file) for annotation in annotations]
    require_unique(ids, "annotation of image", json_file)
    labelled = []
    for image_id, annotation in zip(ids, annotations):
        if image_id not in records:
            continue
        record = records[image_id]
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
    content: JsonObject = read_json(path, "annotation file", OBJECT)
    return content


def coco_info(content: JsonObject) -> JsonObject:
    """The "info" of an annotation file about itself; empty where that is no object.

    Args:
        content: content of the file, see `read_coco_json`.
    """
    info = content.get("info")
    return info if isinstance(info, dict) else {}


def coco_list(
    content: JsonObject,
    key: str,
    path: Source,
    schema: Schema = OBJECT,
    advice: str = "give a file in COCO's format",
) -> list[JsonObject]:
    """List of an annotation file, such as "images".

    Args:
        content: content of the file, see `read_coco_json`.
        key: name of the list.
        path: path of the file, for the error.
        schema: schema of each entry.
        advice: the way out for an entry that does not fit.

    Raises:
        InputError: there is no such list, it is empty, or an entry does not fit the schema.
    """
    check(content, {key: [schema]}, path, advice)
    if not content[key]:
        raise InputError(f'{path}: its list "{key}" is empty: {advice}')
    values: list[JsonObject] = content[key]
    return values


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
    images = coco_list(content, "images", path, IMAGE)
    require_unique((image["id"] for image in images), "image id", path)
    records = [_image_record(image, path, image_root, by_url) for image in images]
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
    """Logs how many images of a file are left out, if any are.

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
    """Refuses a data set without all images or other files: a run of hours should not end at the last one.

    Args:
        name: name of the data set.
        records: records of its images.
        advice: the way to get the files.
        key: entry of the records that names the files.

    Raises:
        InputError: files are missing; names the first one.
    """
    missing = [record[key] for record in records if not os.path.exists(record[key])]
    if missing:
        kind = "images" if key == "file_name" else "files"
        raise InputError(
            f'data set "{name}": {len(missing)} of {len(records)} {kind} are missing, such as '
            f"{missing[0][:1000]}; {advice}"
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
    image_id: ImageId = annotation["image_id"]
    if image_id not in listed:
        raise InputError(
            f'{path}: an annotation of image {shown(image_id)}, which is not in "images"'
        )
    return image_id


def annotations_by_image(
    content: JsonObject, path: Source, schema: Schema
) -> defaultdict[ImageId, list[JsonObject]]:
    """The annotations of each image of a file, in its order; none of an image that has none.

    Args:
        content: content of the file, see `read_coco_json`.
        path: path of the file, for errors.
        schema: schema of each annotation.

    Raises:
        InputError: as `coco_list`; an annotation of an image that is not listed.
    """
    listed = {image["id"] for image in content["images"]}
    by_image = defaultdict[ImageId, list[JsonObject]](list)
    for annotation in coco_list(content, "annotations", path, schema):
        by_image[annotated_image(annotation, listed, path)].append(annotation)
    return by_image


def category_labels(
    category_ids: np.ndarray, index_of: Mapping[int, int], source: Source
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
    if not name or not isinstance(name, str):
        raise InputError(f'{path}: an image needs "file_name" or "coco_url", got {shown(image)}')
    record = {"file_name": os.path.join(image_root, name), "image_id": image["id"]}
    if "height" in image and "width" in image:
        record |= {side: int(image[side]) for side in ("height", "width")}
    return record


def category_indices(
    content: JsonObject, vocabulary: Vocabulary, path: Source, by_order: bool = False
) -> dict[int, int]:
    """Index in the vocabulary by category id of an annotation file.

    Args:
        content: content of the file, see `read_coco_json`.
        vocabulary: classes of the data set.
        path: path of the file, for the error.
        by_order: the classes are the categories of the file by ascending id, because the
            vocabulary does not have their ids. Names are then compared, up to blanks around them and
            around "/".

    Raises:
        InputError: by order, and the names of the file are others.
    """
    if not by_order:
        return dict(vocabulary.dataset_id_to_index)
    names = category_names(content, path)
    ids = sorted(names)
    for number, wanted in itertools.zip_longest(ids, vocabulary.first_names):
        stated = names.get(number, "")
        if _without_blanks(stated) != _without_blanks(wanted or ""):
            raise InputError(
                f'{path}: category {number} is "{stated}" where "{vocabulary.name}" has "{wanted}": '
                "give the annotation file of that data set"
            )
    return {number: index for index, number in enumerate(ids)}


def require_same_classes(content: JsonObject, vocabulary: Vocabulary, path: Source) -> None:
    """Refuses a vocabulary whose numbers give a category of the file to another class than its name does.

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
    categories = coco_list(content, "categories", path, CATEGORY)
    require_unique((category["id"] for category in categories), "category id", path)
    return {category["id"]: category["name"] for category in categories}


def _without_blanks(name: str) -> str:
    return re.sub(r"\s*/\s*", "/", name.strip())


def category_counts(content: JsonObject, path: Source) -> Counter[int]:
    """Number of annotations of each category id, crowds included.

    Raises:
        InputError: no annotations, or one without a category id.
    """
    annotations = coco_list(content, "annotations", path, {"category_id": WHOLE})
    return Counter(annotation["category_id"] for annotation in annotations)


def require_base_classes(
    content: JsonObject, index_of: dict[int, int], vocabulary: Vocabulary, path: Source, remedy: str
) -> None:
    """Refuses a file for training that annotates anything else than base classes.

    Args:
        content: content of the file.
        index_of: index in the vocabulary by category id.
        vocabulary: classes of the data set; if it does not say which are seen, all are.
        path: path of the file, for the error.
        remedy: the way out, for the error.

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


@no_collection()
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
        masks: objects have a "segmentation"; None for those that have one in the file.
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
    coco_list(content, "images", path, SIZED_IMAGE)
    annotations = coco_list(content, "annotations", path, OBJECT_IN_BOX)
    categories = {annotation["category_id"]: None for annotation in annotations}
    category_labels(np.array(list(categories)), index_of, path)
    listed_images = listed_records(content, path, image_root, min_side, by_url)
    records = {record["image_id"]: record | {"annotations": []} for record in listed_images}
    listed = {image["id"] for image in content["images"]}
    for number, annotation in enumerate(annotations):
        record = records.get(annotated_image(annotation, listed, path))
        if record is None or not _is_object(annotation, record):
            continue
        x, y, width, height = annotation["bbox"]
        label = index_of[annotation["category_id"]]
        entry = {"bbox": (x, y, x + width, y + height), "label": label, "iscrowd": 0}
        segmentation = annotation.get("segmentation")
        if masks or (masks is None and segmentation):
            if not MASK.test(segmentation):
                place = f"annotations[{number}].segmentation"
                check(segmentation, MASK, path, "correct it or take it out", place)
            entry["segmentation"] = segmentation
        record["annotations"].append(entry)
    return list(records.values())


def _is_object(annotation: JsonObject, record: Record) -> bool:
    """True for an annotation that counts as an object by MMDetection's rule."""
    x, y, width, height = annotation["bbox"]
    across = x < record["width"] and x + width > 0
    down = y < record["height"] and y + height > 0
    skipped = annotation.get("ignore") or annotation.get("iscrowd")
    large = annotation.get("area", 1) > 0 and width >= 1 and height >= 1
    return not skipped and across and down and large


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
    coco_list(content, "categories", json_file, {"id": WHOLE, "name": NOUN})
    coco_list(content, "images", json_file, {"id": ID, "captions?": texts()})
    nouns = dict(sorted(category_names(content, json_file).items()))
    require_unique(nouns.values(), "noun", json_file)
    records = proposal_records(json_file, image_root, content)
    by_image = annotations_by_image(content, json_file, CLASSIFIED)
    captions = {image["id"]: image.get("captions", []) for image in content["images"]}
    index_of = {category: index for index, category in enumerate(nouns)}
    labelled = [record for record in records if len(record["proposals"])]
    for record in labelled:
        image_id = record["image_id"]
        ids = np.array([annotation["category_id"] for annotation in by_image[image_id]])
        record["labels"] = category_labels(ids, index_of, json_file)
        record["captions"] = captions[image_id]
    log_left_out(json_file, records, labelled, "no box", logging.INFO)
    return RegionText(labelled, tuple(nouns.values()))


def read_phrases(path: Source) -> dict[ImageId, list[list[str]]]:
    """Noun phrases of each caption by image id, in the order of the file.

    Args:
        path: file in COCO's format of captions, whose annotations also have "phrases".

    Raises:
        InputError: the file is missing or broken, or its captions have no phrases.
    """
    phrases: dict[ImageId, list[list[str]]] = {}
    entry: Schema = {"image_id": ID, "phrases": texts()}
    advice = "write it with python tools/prepare.py coco_captions --overwrite"
    for annotation in coco_list(read_coco_json(path), "annotations", path, entry, advice):
        phrases.setdefault(annotation["image_id"], []).append(annotation["phrases"])
    return phrases


def caption_records(json_file: Source, image_root: Source) -> list[Record]:
    """Records of the images with "captions": the texts of each image, at least one, in file order.

    Captions of blanks alone count as none. Images without a caption are left out, with a logged count.

    Args:
        json_file: file in COCO's format of captions: "images", and "annotations" with "image_id" and
            "caption".
        image_root: folder to which file names are relative.

    Raises:
        InputError: as `image_records`; no annotations; one without a text, or of an image that is not
            listed; no image with a caption.
    """
    content = read_coco_json(json_file)
    records = listed_records(content, json_file, image_root)
    by_image = annotations_by_image(content, json_file, {"image_id": ID, "caption": TEXT})
    for record in records:
        captions = [annotation["caption"].strip() for annotation in by_image[record["image_id"]]]
        record["captions"] = list(filter(None, captions))
    described = [record for record in records if record["captions"]]
    if not described:
        raise InputError(f"{json_file}: no image has a caption: give a file that has captions")
    log_left_out(json_file, records, described, "no caption")
    return described
