"""The captions of images that training reads: texts, or their noun phrases.

{"annotations": [{"image_id": 139, "caption": "A dog on grass.", "phrases": ["dog", "grass"]}, ...]}

COCO's own files have the captions alone, beside the list of images.
"""

from __future__ import annotations

import os
import reprlib
from typing import Any

from clipself_seg.data.annotations import (
    ImageId,
    Record,
    annotated_image,
    coco_list,
    listed_records,
    log_left_out,
    read_coco_json,
)
from clipself_seg.errors import InputError


def read_phrases(path: str | os.PathLike[str]) -> dict[ImageId, list[list[str]]]:
    """Noun phrases of each caption by image id, in the order of the file.

    Raises:
        InputError: the file is missing or broken, or its captions have no phrases.
    """
    phrases: dict[ImageId, list[list[str]]] = {}
    for entry in coco_list(read_coco_json(path), "annotations", path):
        image_id, listed = entry.get("image_id"), entry.get("phrases")
        texts: list[Any] = listed if isinstance(listed, list) else [None]
        if not isinstance(image_id, int | str) or not all(isinstance(t, str) for t in texts):
            raise InputError(
                f'{path}: a caption needs "image_id", a number or text, and a list of "phrases", '
                f"texts, got {reprlib.repr(entry)}: write it with python tools/prepare.py coco_captions "
                "--overwrite"
            )
        phrases.setdefault(image_id, []).append(texts)
    return phrases


def caption_records(
    json_file: str | os.PathLike[str], image_root: str | os.PathLike[str]
) -> list[Record]:
    """Records of the images with "captions": the texts of each image, at least one, in file order.

    Captions of blanks alone count as none. Images without a caption are left out, with a logged count.

    Args:
        json_file: file in COCO's format of captions: "images", and "annotations" with "image_id" and
            "caption".
        image_root: folder to which file names are relative.

    Raises:
        InputError: as `annotations.image_records`; no annotations; one without a text, or of an image that
            is not listed; no image with a caption.
    """
    content = read_coco_json(json_file)
    records = listed_records(content, json_file, image_root)
    listed = {image["id"] for image in content["images"]}
    captions: dict[ImageId, list[str]] = {}
    for annotation in coco_list(content, "annotations", json_file, {"caption": str}):
        image_id = annotated_image(annotation, listed, json_file)
        if caption := annotation["caption"].strip():
            captions.setdefault(image_id, []).append(caption)
    described = [
        record | {"captions": captions[record["image_id"]]}
        for record in records
        if record["image_id"] in captions
    ]
    if not described:
        raise InputError(f"{json_file}: no image has a caption: give a file that has captions")
    log_left_out(json_file, records, described, "no caption")
    return described
