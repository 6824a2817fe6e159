"""Writes proposals with their nouns as `data.region_text` reads them, and counts how many are kept and right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipself_seg.data.records import Record
from clipself_seg.data.region_text import RegionText
from clipself_seg.errors import InputError
from clipself_seg.evaluation.regions.pseudo_labels import Agreement, LabelledBoxes, agreement
from clipself_seg.files import atomic_path
from clipself_seg.prediction.coco_stream import CocoStream
from clipself_seg.prediction.label_shards import ImageLabels

DIGITS = 4  # of a score, after the point


class Labelled(NamedTuple):
    """Counts of a file of labelled proposals.

    Attributes:
        path: the file.
        images: images with proposals or without.
        empty: images of which no proposal is kept.
        proposals: proposals of all images.
        kept: proposals that are kept.
        nouns: nouns of the list.
        used: nouns that some kept proposal has.
        agreement: with ground truth, where that was given.
    """

    path: Path
    images: int
    empty: int
    proposals: int
    kept: int
    nouns: int
    used: int
    agreement: Agreement | None = None

    def __str__(self) -> str:
        """Lines for the terminal."""
        fraction = 100 * self.kept / self.proposals if self.proposals else 0
        lines = [
            f"{self.path}: {self.kept} of {self.proposals} proposals are kept ({fraction:.1f} %) with "
            f"{self.used} of {self.nouns} nouns; {self.empty} of {self.images} images have none"
        ]
        return "\n    ".join([*lines, *([str(self.agreement)] if self.agreement else [])])


def write_labels(
    path: Path,
    *,
    info: dict[str, Any],
    content: dict[str, Any],
    records: Sequence[Record],
    labels: Sequence[ImageLabels],
    nouns: Sequence[str],
    captions: Mapping[Any, list[str]],
    threshold: float,
    truth: RegionText | None = None,
) -> Labelled:
    """Write the proposals whose score is above the threshold, those of an image by falling score.

    Args:
        path: file to write, atomically.
        info: what the file says of itself.
        content: of the file of proposals.
        records: its images with "proposals".
        labels: of each image, for each proposal.
        nouns: what labels number; the id of a category is its label and 1.
        captions: by image id; they are written where an image has some.
        threshold: see above.
        truth: objects with their names to compare with.

    Raises:
        InputError: no proposal is above the threshold.
        OSError: the file cannot be written.
    """
    counts = None if truth is None else _agreement(records, labels, nouns, threshold, truth)
    images = {image["id"]: image for image in content["images"]}
    boxes: dict[Any, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        boxes.setdefault(annotation["image_id"], []).append(annotation)
    categories = [{"id": number, "name": noun} for number, noun in enumerate(nouns, 1)]
    listed, empty, used = [], 0, set()
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        stream = CocoStream(file, info, categories)
        for record, own in zip(records, labels, strict=True):
            image_id = record["image_id"]
            before = stream.count
            for annotation in _annotations(boxes.get(image_id, []), own, threshold):
                stream.add(annotation)
                used.add(annotation["category_id"])
            empty += stream.count == before
            texts = {"captions": captions[image_id]} if image_id in captions else {}
            listed.append(images[image_id] | texts)
        if not stream.count:
            raise InputError(
                f"no proposal has a noun with a probability above --threshold {threshold}: lower it"
            )
        stream.finish(listed)
    proposals = sum(map(len, labels))
    return Labelled(
        path, len(records), empty, proposals, stream.count, len(nouns), len(used), counts
    )


def _annotations(
    boxes: list[dict[str, Any]], labels: ImageLabels, threshold: float
) -> Iterator[dict[str, Any]]:
    order = sorted(range(len(labels)), key=lambda index: -labels[index][1])
    for index in order:
        box, (label, score) = boxes[index], labels[index]
        if label < 0 or score <= threshold:
            continue
        x, y, width, height = box["bbox"]
        objectness = {"objectness": box["score"]} if "score" in box else {}
        yield {
            "image_id": box["image_id"],
            "category_id": label + 1,
            "bbox": [x, y, width, height],
            "area": round(width * height, 2),
            "iscrowd": 0,
            "score": round(score, DIGITS),
            **objectness,
        }


def _agreement(
    records: Sequence[Record],
    labels: Sequence[ImageLabels],
    nouns: Sequence[str],
    threshold: float,
    truth: RegionText,
) -> Agreement:
    objects = {record["image_id"]: record for record in truth.records}

    def images() -> Iterator[LabelledBoxes]:
        for record, own in zip(records, labels, strict=True):
            true = objects.get(record["image_id"])
            if true is None:
                continue
            yield LabelledBoxes(
                boxes=record["proposals"],
                names=[nouns[label] if label >= 0 else "" for label, _ in own],
                kept=np.array([label >= 0 and score > threshold for label, score in own], bool),
                objects=true["proposals"],
                object_names=[truth.nouns[index] for index in true["labels"]],
            )

    return agreement(images())
