"""YOLO's text files of boxes and polygons become annotations in COCO's format.

A line is `class cx cy width height` or `class x1 y1 x2 y2 x3 y3 ...`, in fractions of the image's sides. An image
without a file has no object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from clipself_seg.data.annotations import JsonObject
from clipself_seg.data.images import image_size
from clipself_seg.errors import InputError, shown
from clipself_seg.files import read_text

Pairs = Mapping[str, tuple[Path, Path | None]]
BEYOND = 0.01
"""How far a corner may lie beyond the image, in fractions of a side: what rounding leaves is cut off."""


def yolo_content(pairs: Pairs, names: Mapping[int, str], listed: bool) -> JsonObject:
    """Content of an annotation file in COCO's format, with the sizes of the images in their headers.

    Args:
        pairs: id of each image -> its file, and the file of its labels or None.
        names: names by number.
        listed: whether there is no class beside these.

    Raises:
        InputError: an image or a file that cannot be read; a line that is neither box nor polygon, or of a class that
            is none. Names file and line.
    """
    images, annotations = list[JsonObject](), list[JsonObject]()
    for image_id, (image, path) in pairs.items():
        width, height = image_size(image)
        images.append({"id": image_id, "file_name": str(image), "width": width, "height": height})
        text = read_text(path, "label file") if path else ""
        for number, words in enumerate(map(str.split, text.splitlines()), 1):
            if words:
                place = f"{path}, line {number}"
                entry = _annotation(words, width, height, place)
                if listed and entry["category_id"] >= len(names):
                    raise InputError(
                        f'{place}: class {entry["category_id"]}, and "names" has 0 to {len(names) - 1}: add its name, '
                        "or correct the number"
                    )
                annotations.append(entry | {"id": len(annotations) + 1, "image_id": image_id})
    categories = [{"id": number, "name": name} for number, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(words: Sequence[str], width: int, height: int, place: str) -> JsonObject:
    try:
        category, values = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        category, values = -1, []
    if category < 0 or len(values) not in (4, *range(6, 1 << 20, 2)):
        raise InputError(
            f"{place}: {shown(' '.join(words))} is no box, `class cx cy width height`, and no polygon, `class x1 y1 x2 "
            "y2 x3 y3 ...`, whose class is a whole number from 0 on: correct it"
        )
    xs, ys = values[::2], values[1::2]
    if len(values) == 4:
        (cx, w), (cy, h) = (values[0], values[2]), (values[1], values[3])
        xs, ys = [cx - w / 2, cx + w / 2], [cy - h / 2, cy + h / 2]
    if not all(-BEYOND <= value <= 1 + BEYOND for value in (*xs, *ys)):
        raise InputError(
            f"{place}: {shown(' '.join(words[1:]))} reaches beyond the image: give fractions of its sides, from 0 to 1"
        )
    xs = [min(max(x, 0.0), 1.0) * width for x in xs]
    ys = [min(max(y, 0.0), 1.0) * height for y in ys]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    entry = {"category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    if len(values) > 4:
        entry["segmentation"] = [[side for point in zip(xs, ys) for side in point]]
    return entry
