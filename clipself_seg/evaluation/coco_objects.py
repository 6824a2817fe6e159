"""Objects in COCO's formats: the true ones of an annotation file, and detected ones, kept compactly and written.

Image ids may be strings, as in ADE20K, and annotations may have the id 0, which pycocotools would take for no match:
both are numbered anew. What LVIS's files say besides is read, too.

Legend: K classes of a vocabulary, n detections of an image, H W rows and columns of the original image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode, Instances

from clipself_seg.data import annotations as coco
from clipself_seg.data.masks import LARGEST_IMAGE, encode_masks, mask_arrays, run_lengths
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path
from clipself_seg.schema import WHOLE, Kind, Schema, is_number, one_of

if TYPE_CHECKING:
    from clipself_seg.evaluation.evaluator import ImageId

# Name of a task, in TEST.DETECTION.TASKS -> its name in pycocotools, and in results.
KINDS = {"boxes": "bbox", "masks": "segm"}

Entry = dict[str, Any]  # an image or an object of a file, or what pycocotools needs of an object
Source = str | os.PathLike[str]
AREA = Kind("a finite number of pixels", lambda v: is_number(v) and abs(v) < LARGEST_IMAGE)
# Of every annotation.
OBJECT: dict[str, Schema] = {
    "image_id": coco.ID,
    "category_id": WHOLE,
    "area": AREA,
    "iscrowd?": one_of(0, 1),
}
# What LVIS's rules need of an image: category ids.
FEDERATED: dict[str, Schema] = {"neg_category_ids": [WHOLE], "not_exhaustive_category_ids": [WHOLE]}


class Federated(NamedTuple):
    """Annotations of absent and partly annotated classes in a federated data set, such as LVIS.

    Attributes:
        negatives: for each class the numbers of the images that are said to be without it.
        not_exhaustive: for each class the numbers of the images where not all of its objects are annotated.
    """

    negatives: list[frozenset[int]]
    not_exhaustive: list[frozenset[int]]


class TrueObjects(NamedTuple):
    """True objects of a data set, with images and objects numbered for pycocotools.

    Attributes:
        image_ids: ids of the data set's images, sorted; the number of an image is its position.
        sizes: height and width in pixels of each image.
        category_ids: category id of each of the K classes.
        objects: for each class the number of an image -> its objects of this class: "id" from 1, "area",
            "iscrowd", "ignore", and as they are compared "bbox" (XYWH) and "segmentation" (run lengths).
        federated: annotations for LVIS's rules; None for COCO's.
    """

    image_ids: tuple[ImageId, ...]
    sizes: list[tuple[int, int]]
    category_ids: tuple[int, ...]
    objects: list[dict[int, list[Entry]]]
    federated: Federated | None


def read_true_objects(
    json_file: Source,
    vocabulary: Vocabulary,
    image_ids: Sequence[ImageId] | None = None,
    *,
    boxes: bool = True,
    masks: bool = False,
    federated: bool = False,
    by_order: bool = False,
) -> TrueObjects:
    """Reads the true objects of the images of a data set.

    Args:
        json_file: file in COCO's instances format, or in LVIS's.
        vocabulary: K classes of the data set.
        image_ids: ids of the data set's images, other images are left out; None takes all of the file.
        boxes: boxes will be compared, so each object needs one.
        masks: masks will be compared, so each object needs one.
        federated: the file is LVIS's, and says of each image which classes are not in it
            ("neg_category_ids") or not annotated in full ("not_exhaustive_category_ids").
        by_order: the classes are the categories of the file by ascending id, see `category_indices`.

    Raises:
        InputError: a missing or broken file; one without images, categories or annotations; entries that lack
            something; images that are not in it; a category that is not in the vocabulary.
    """
    content = coco.read_coco_json(json_file)
    stated: dict[str, Schema] = {"id": coco.ID, "height": WHOLE, "width": WHOLE}
    stated |= FEDERATED if federated else {}
    images = {image["id"]: image for image in coco.coco_list(content, "images", json_file, stated)}
    order = _image_order(images, image_ids, json_file)
    index_of = coco.category_indices(content, vocabulary, json_file, by_order)
    category_of = {index: category for category, index in index_of.items()}
    numbers = {image: number for number, image in enumerate(order)}
    objects: list[dict[int, list[Entry]]] = [{} for _ in vocabulary.classes]
    compared = {"bbox": coco.BOX} if boxes else {}
    compared |= {"segmentation": coco.MASK} if masks else {}
    entries = coco.coco_list(content, "annotations", json_file, OBJECT | compared)
    coco.category_labels(np.array([entry["category_id"] for entry in entries]), index_of, json_file)
    last_id = 0
    for entry in entries:
        number = numbers.get(coco.annotated_image(entry, images, json_file))
        # The LVIS package takes objects with an area only, and knows no crowds.
        if number is None or (federated and not entry["area"] > 0):
            continue
        last_id += 1
        crowd = not federated and bool(entry.get("iscrowd"))
        ignored = bool(entry.get("ignore")) if federated else crowd
        true_object = {"id": last_id, "area": entry["area"]}
        true_object |= {"iscrowd": int(crowd), "ignore": int(ignored)}
        if boxes:
            true_object["bbox"] = entry["bbox"]
        if masks:
            image = images[entry["image_id"]]
            size = image["height"], image["width"]
            source = f"{json_file}: the segmentation of an object of image {entry['image_id']}"
            true_object["segmentation"] = run_lengths(entry["segmentation"], *size, source)
        objects[index_of[entry["category_id"]]].setdefault(number, []).append(true_object)
    if not last_id:
        raise InputError(f"{json_file} has no object in the {len(order)} images of the data set")
    listed = [images[image] for image in order]
    return TrueObjects(
        image_ids=order,
        sizes=[(image["height"], image["width"]) for image in listed],
        category_ids=tuple(category_of[index] for index in range(len(vocabulary))),
        objects=objects,
        federated=_federated(listed, index_of, json_file) if federated else None,
    )


def read_true_instances(
    json_file: Source, vocabulary: Vocabulary, image_ids: Sequence[ImageId] | None = None
) -> TrueObjects:
    """Reads the true instance masks of the images of a panoptic data set, which are of things alone.

    Raises:
        InputError: as `read_true_objects`; an instance is of stuff, or the vocabulary does not say what is.
    """
    truth = read_true_objects(json_file, vocabulary, image_ids, boxes=False, masks=True)
    for entry, thing, by_image in zip(vocabulary.classes, vocabulary.thing, truth.objects):
        if by_image and not thing:
            raise InputError(
                f"{json_file}: instances have category {entry.dataset_id}, which is no thing of vocabulary "
                f'"{vocabulary.name}": give those of the data set, or set its "isthing"'
            )
    return truth


def _image_order(
    images: Mapping[ImageId, Entry], image_ids: Sequence[ImageId] | None, json_file: Source
) -> tuple[ImageId, ...]:
    """Ids of the images of a data set, sorted; all of the file for None."""
    wanted = list(images) if image_ids is None else list(dict.fromkeys(image_ids))
    missing = [image for image in wanted if image not in images]
    if missing:
        raise InputError(
            f"{json_file} lacks {len(missing)} of {len(wanted)} images of the data set, such as "
            f"{missing[:3]}: take the file of the same split"
        )
    # Numbers before strings: Python does not compare one with the other.
    return tuple(sorted(wanted, key=lambda image: (isinstance(image, str), image)))


def _federated(images: Sequence[Entry], index_of: dict[int, int], json_file: Source) -> Federated:
    lists = []
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        by_class: list[set[int]] = [set() for _ in index_of]
        for number, image in enumerate(images):
            labels = coco.category_labels(np.array(image[key], int), index_of, json_file)
            for label in labels.tolist():
                by_class[label].add(number)
        lists.append([frozenset(numbers) for numbers in by_class])
    return Federated(*lists)


class ImageDetections(NamedTuple):
    """The n detections of an image.

    Attributes:
        boxes: (n, 4) XYWH in pixels of the original image; (n, 0) for instance masks without boxes.
        scores: (n,) of any scale.
        classes: (n,) integers in [0, K).
        masks: run-length encoding of each detection, see `encode_masks`; None for a model without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: list[Entry] | None

    def best(self, limit: int) -> ImageDetections:
        """The detections with the highest scores, by falling score, the first of equal ones; all of them in
        their own order if they are no more than the limit."""
        if len(self.scores) <= limit:
            return self
        order = np.argsort(-self.scores, kind="stable")[:limit]
        masks = None if self.masks is None else [self.masks[index] for index in order]
        return ImageDetections(self.boxes[order], self.scores[order], self.classes[order], masks)


def image_detections(
    instances: Instances, *, source: str, boxes: bool = True, masks: bool
) -> ImageDetections:
    """Detections of an image as a model gives them.

    Args:
        instances: "scores", "pred_classes", and as they are kept "pred_boxes" (XYXY in pixels of the original
            image) and "pred_masks" (n, H, W) bool.
        source: the image's file, for messages.
        boxes: keep boxes.
        masks: keep masks.

    Raises:
        FloatingPointError: a score or a box is not finite.
    """
    scores = instances.scores.cpu().numpy()
    corners = np.zeros((len(scores), 0))
    if boxes:
        # Detectron2's own conversion, in the precision of the model: `COCOEvaluator` has the same numbers.
        xyxy = instances.pred_boxes.tensor.cpu().numpy()
        corners = BoxMode.convert(xyxy, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    if not np.isfinite(scores).all() or not np.isfinite(corners).all():
        raise FloatingPointError(
            f"the scores or boxes of {source} are not finite: the weights or the precision are at fault"
        )
    return ImageDetections(
        corners,
        scores,
        instances.pred_classes.cpu().numpy(),
        encode_masks(mask_arrays(instances.pred_masks)) if masks else None,
    )


def coco_results(
    image_id: ImageId, detections: ImageDetections, category_ids: Sequence[int]
) -> Iterator[Entry]:
    """Entries of COCO's results format: "image_id", "category_id", "bbox" (XYWH), "score", and
    "segmentation" (run-length encoding) of detections with masks.

    Args:
        image_id: id of the image in its data set.
        detections: the detections of the image.
        category_ids: category id of each of the K classes.
    """
    boxes = detections.boxes.tolist()
    scores = detections.scores.tolist()
    for index, label in enumerate(detections.classes.tolist()):
        entry = {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": boxes[index],
            "score": scores[index],
        }
        if detections.masks is not None:
            mask = detections.masks[index]
            entry["segmentation"] = mask | {"counts": mask["counts"].decode("ascii")}
        yield entry


def write_coco_results(
    path: Source, images: Iterable[tuple[ImageId, ImageDetections]], category_ids: Sequence[int]
) -> None:
    """Writes detections as a list in COCO's results format, atomically.

    Args:
        path: the JSON file to write.
        images: id and detections of each image.
        category_ids: category id of each of the K classes.
    """
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        # An entry at a time: those of LVIS's validation images would be gigabytes in memory.
        separator = "[\n"
        for image_id, detections in images:
            for entry in coco_results(image_id, detections, category_ids):
                file.write(separator + json.dumps(entry, allow_nan=False))
                separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")
