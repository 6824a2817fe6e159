"""Captions with their noun phrases: one JSON, written once and read by training.

{"annotations": [{"image_id": 139, "caption": "A dog on grass.", "phrases": ["a dog", "grass"]}, ...]}
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from clipself_seg.data.records import coco_list, read_coco_json
from clipself_seg.errors import InputError


def read_phrases(path: str | os.PathLike[str]) -> dict[Any, list[list[str]]]:
    """Image id -> noun phrases of each caption, in the order of the file.

    Raises:
        InputError: missing, broken, or captions without phrases.
    """
    phrases: dict[Any, list[list[str]]] = {}
    for entry in coco_list(read_coco_json(path), "annotations", path):
        if "image_id" not in entry or not isinstance(entry.get("phrases"), list):
            raise InputError(
                f'{path}: a caption needs "image_id" and a list of "phrases", got {entry}: '
                "write it with tools/prepare_coco_captions.py --overwrite"
            )
        phrases.setdefault(entry["image_id"], []).append(entry["phrases"])
    return phrases


def add_phrases(
    annotations: Sequence[dict[str, Any]], phrases: Sequence[list[str]]
) -> list[dict[str, Any]]:
    """COCO's captions with the "phrases" of each, for `read_phrases`."""
    pairs = zip(annotations, phrases, strict=True)
    return [{**annotation, "phrases": found} for annotation, found in pairs]
