"""Statistics of the proposals that are written: boxes of an image, and how many objects they cover.

The objects are those of the data set's own annotations, of seen (base) and unseen (novel) classes apart. That is a
diagnostic: whoever chose a detector by the novel ones would have seen them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from clipself_seg.data.instances import category_names, instance_records
from clipself_seg.data.records import coco_list
from clipself_seg.data.vocabulary import Vocabulary

IOU = 0.5
"""Overlap from which on a proposal covers an object."""
KINDS = ("base", "novel")


class Objects(NamedTuple):
    """The objects of an image.

    Attributes:
        boxes: (k, 4) XYXY in pixels, float32.
        novel: (k,) bool, those of unseen classes.
    """

    boxes: Tensor
    novel: Tensor


def dataset_objects(
    content: dict[str, Any], path: str, folder: str, vocabulary: Vocabulary
) -> dict[Any, Objects]:
    """Objects of a data set's images by image id; none at all if its file has no annotations.

    A class counts where the file's category has its number and its name, so objects of other classes are left out.

    Args:
        content: content of the data set's file, see `records.read_coco_json`; it stays as it is.
        path: path of the file, for errors.
        folder: folder to which its file names are relative.
        vocabulary: that of the detector; classes that it does not mark as unseen are seen.

    Raises:
        InputError: as `instances.instance_records`.
    """
    if not content.get("annotations") or not content.get("categories"):
        return {}
    names, index_of = category_names(content, path), vocabulary.dataset_id_to_index
    known = {
        number: index
        for number, index in index_of.items()
        if names.get(number) in vocabulary.classes[index].names
    }
    annotations = coco_list(content, "annotations", path)
    counted = [a for a in annotations if a.get("category_id") in known]
    if not counted:
        return {}
    novel = np.array([entry.seen is False for entry in vocabulary.classes])
    return {
        record["image_id"]: _objects(record["annotations"], novel)
        for record in instance_records(content | {"annotations": counted}, path, folder, known)
    }


def _objects(entries: list[dict[str, Any]], novel: np.ndarray) -> Objects:
    boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32)
    labels = np.array([entry["label"] for entry in entries], dtype=np.int64)
    return Objects(boxes.reshape(-1, 4), torch.from_numpy(novel[labels]))


class ProposalStatistics:
    """Counts what is written, image by image; its string is for people."""

    def __init__(self, objects: Mapping[Any, Objects]) -> None:
        """
        Args:
            objects: objects of the images by image id, see `dataset_objects`; empty where they are not known.
        """
        self.objects = objects
        self.boxes_of_images: list[int] = []
        self.objects_of_kinds = dict.fromkeys(KINDS, 0)
        self.covered_of_kinds = dict.fromkeys(KINDS, 0)

    def add(self, image_id: Any, boxes: Tensor) -> None:
        """Count the proposals (n, 4), XYXY in pixels, of an image."""
        self.boxes_of_images.append(len(boxes))
        objects = self.objects.get(image_id)
        if objects is None or not len(objects.boxes):
            return
        covered = (pairwise_iou(Boxes(objects.boxes), Boxes(boxes)) >= IOU).any(dim=1)
        for kind, own in zip(KINDS, (~objects.novel, objects.novel)):
            self.objects_of_kinds[kind] += int(own.sum())
            self.covered_of_kinds[kind] += int((own & covered).sum())

    @property
    def boxes(self) -> int:
        """Number of proposals."""
        return sum(self.boxes_of_images)

    @property
    def images(self) -> int:
        """Number of images, those without proposals too."""
        return len(self.boxes_of_images)

    def recall(self) -> dict[str, float]:
        """Percentage of "base" and of "novel" objects that a proposal covers; kinds without objects are left out."""
        return {
            kind: 100 * self.covered_of_kinds[kind] / count
            for kind, count in self.objects_of_kinds.items()
            if count
        }

    def __str__(self) -> str:
        low, high = np.percentile(self.boxes_of_images, (5, 95))
        lines = [
            f"boxes of an image: {np.mean(self.boxes_of_images):.1f} on average, {low:.0f} at the 5th and {high:.0f} "
            f"at the 95th percentile; {self.boxes_of_images.count(0)} images have none"
        ]
        lines += [
            f"recall of the {self.objects_of_kinds[kind]} {kind} objects at IoU {IOU}: {percent:.1f} %"
            for kind, percent in self.recall().items()
        ]
        return "\n".join(lines)
