"""Results in the formats of other programs: palette PNGs, binary masks, COCO's run-length encoding, YOLO's polygons.

Shapes: H, W pixels of the image, K classes.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import yaml
from PIL import Image

from clipself_seg.data.masks import encode_masks
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path, write_json
from clipself_seg.prediction.files import ImageFile
from clipself_seg.visualization.overlays import save_png

CORNERS = 3  # of the smallest polygon


def mask_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """The outer border of each connected part of a mask, the largest first; what is thinner than a polygon has none.

    Args:
        mask: (H, W) bool.

    Returns:
        (k, 2) int32 each, x and y of the outermost pixels of a part, k at least 3. Filled, and with its border, a
        polygon has the pixels of its part and of the holes in it.
    """
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    polygons = [contour.reshape(-1, 2) for contour in contours if len(contour) >= CORNERS]
    return sorted(polygons, key=lambda polygon: -cv2.contourArea(polygon))


def joined_polygon(parts: list[np.ndarray]) -> np.ndarray:
    """One polygon of several: from the nearest point of what is joined already a line leads to each part and back.

    Args:
        parts: (k, 2) each, at least one.
    """
    from scipy.spatial import cKDTree  # a while, which only instances in parts need

    joined, *others = parts
    for part in others:
        distances, nearest = cKDTree(joined).query(part)
        first = int(distances.argmin())
        place = int(nearest[first])
        there = np.concatenate([part[first:], part[: first + 1]])
        joined = np.concatenate([joined[: place + 1], there, joined[place:]])
    return joined


# What may be written of the regions of an image, beside what each task has of its own.
OF_REGIONS = ("masks", "coco", "yolo")
VOID = 255  # of a palette PNG: no class
VOID_COLOUR = (224, 224, 192)  # PASCAL VOC's
MOST_BYTES = 120  # of the name of a class in a file's name
_FORBIDDEN = '/\\:*?"<>|'  # on some file system


class Region(NamedTuple):
    """A region of an image.

    Attributes:
        number: its number among those of the image.
        label: of its class, in [0, K).
        mask: (H, W) bool.
        instance: whether it is one object, however many parts it has.
    """

    number: int
    label: int
    mask: np.ndarray
    instance: bool


class Formats:
    """Writes regions of images below a folder, in the formats that were asked for.

    masks/NAME/NUMBER_CLASS.png are 255 in the region and 0 outside. coco.json has every region in COCO's format,
    "segmentation" as run-length encoding. yolo/ has labels/NAME.txt, a line for each polygon with the label and
    x, y of its corners relative to the image, and data.yaml with the names of labels.
    """

    def __init__(
        self, folder: Path, save: Iterable[str], categories: Sequence[Mapping[str, Any]]
    ) -> None:
        """
        Args:
            folder: folder below which results are written.
            save: names of formats; those that are not in `OF_REGIONS` are not looked at.
            categories: "id" and "name" of each of the K classes; more keys go to coco.json as they are.
        """
        self.folder = folder
        self.save = tuple(name for name in OF_REGIONS if name in save)
        self.categories = categories

    def write(self, name: str, regions: Iterable[Region]) -> tuple[list[str], dict[str, Any]]:
        """Write the regions of an image.

        Args:
            name: of the results of the image.
            regions: its regions; they are asked for one after the other.

        Returns:
            Paths of files below the folder, and what the image contributes to coco.json, for `write_index`.
        """
        files, lines, annotations = list[str](), list[str](), list[dict[str, Any]]()
        if not self.save:
            return files, {}
        if "masks" in self.save:
            self._remove_masks(name)
        for region in regions:
            if "masks" in self.save:
                title = safe_name(str(self.categories[region.label]["name"]))
                files.append(f"masks/{name}/{region.number:03d}_{title}.png")
                save_png(Image.fromarray(region.mask.astype(np.uint8) * 255), self._at(files[-1]))
            if "coco" in self.save:
                annotations.append(self._annotation(region))
            if "yolo" in self.save:
                lines += _polygon_lines(region)
        if "yolo" in self.save:
            files.append(self.write_lines(name, lines))
        return files, {"regions": annotations} if "coco" in self.save else {}

    def write_lines(self, name: str, lines: Sequence[str]) -> str:
        """Write YOLO's lines of an image; returns the path of the file below the folder."""
        path = f"yolo/labels/{name}.txt"
        _write_text(self._at(path), "".join(f"{line}\n" for line in lines))
        return path

    def write_index(
        self,
        info: Mapping[str, Any],
        images: Sequence[tuple[ImageFile, Mapping[str, Any]]],
        ids: Mapping[str, int],
    ) -> None:
        """Write the files that all images have in common.

        Args:
            info: what coco.json says of itself; JSON.
            images: those that are done, each with "size" [H, W] in pixels and what `write` returned.
            ids: id of each image by the name of its results.
        """
        if "yolo" in self.save:
            names = {label: entry["name"] for label, entry in enumerate(self.categories)}
            content = {"train": "images", "val": "images", "names": names}
            text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
            _write_text(self.folder / "yolo/data.yaml", text)
        if "coco" not in self.save:
            return
        listed, annotations = [], list[dict[str, Any]]()
        for source, entry in images:
            number, (height, width) = ids[source.name], entry["size"]
            size = {"width": width, "height": height}
            listed.append({"id": number, "file_name": source.file_name} | size)
            for region in entry["regions"]:
                annotations.append({"id": len(annotations) + 1, "image_id": number, **region})
        content = {"info": dict(info), "images": listed, "annotations": annotations}
        write_json(self.folder / "coco.json", content | {"categories": list(self.categories)})

    def _annotation(self, region: Region) -> dict[str, Any]:
        (code,) = encode_masks(region.mask[None])
        rows = np.flatnonzero(region.mask.any(axis=1))
        columns = np.flatnonzero(region.mask.any(axis=0))
        corner = [int(columns[0]), int(rows[0])] if len(rows) else [0, 0]
        sides = [int(ends[-1] - ends[0] + 1) if len(ends) else 0 for ends in (columns, rows)]
        return {
            "category_id": self.categories[region.label]["id"],
            "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
            "area": int(region.mask.sum()),
            "bbox": [*corner, *sides],
            "iscrowd": 0,
        }

    def _at(self, path: str) -> Path:
        return self.folder / path

    def _remove_masks(self, name: str) -> None:
        """Remove masks of an earlier call, which may have had other regions."""
        for path in self._at(f"masks/{name}").glob("[0-9][0-9][0-9]*_*.png"):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                path.unlink()


def save_palette(path: Path, labels: np.ndarray, colours: np.ndarray) -> None:
    """Write a label map as a PNG with a palette, as PASCAL VOC's: pixels are labels, and look like their class.

    Args:
        path: file.
        labels: (H, W) integers, positions in `colours`, or 255 for no class.
        colours: colours of the classes, (K, 3) uint8.
    """
    table = np.zeros((256, 3), np.uint8)
    table[VOID] = VOID_COLOUR
    table[: len(colours)] = colours
    image = Image.fromarray(labels.astype(np.uint8), "L")
    image.putpalette(table.tobytes())
    save_png(image, path)


def require_palette(save: Iterable[str], count: int) -> None:
    """Refuse a palette for more classes than it has colours.

    Raises:
        InputError: "palette" is among the formats, and there are more than 255 classes.
    """
    if "palette" in save and count > VOID:
        raise InputError(
            f"a palette PNG has {VOID} classes at most, these are {count}: --save labels writes 16 bits"
        )


def safe_name(name: str) -> str:
    """The name of a class as a part of a file's name: letters of any script stay, what file systems forbid does not."""
    whole = unicodedata.normalize("NFC", name)
    text = "".join(
        "_" if char in _FORBIDDEN or not char.isprintable() else char for char in whole
    ).strip(" .")
    return text.encode()[:MOST_BYTES].decode(errors="ignore") or "_"


def box_lines(boxes: np.ndarray, labels: np.ndarray, height: int, width: int) -> list[str]:
    """YOLO's lines of boxes: label, x and y of the middle, width and height, relative to the image.

    Args:
        boxes: (n, 4) XYXY in pixels.
        labels: (n,) in [0, K).
        height: of the image in pixels.
        width: of the image in pixels.
    """
    corner, opposite = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    parts = np.concatenate([(corner + opposite) / 2, opposite - corner], axis=1)
    relative = parts / [width, height, width, height]
    return [_line(label, numbers) for label, numbers in zip(labels.tolist(), relative)]


def _polygon_lines(region: Region) -> list[str]:
    """A line for each part of a region, or one for all parts of an instance."""
    parts = mask_polygons(region.mask)
    if region.instance and parts:
        parts = [joined_polygon(parts)]
    height, width = region.mask.shape
    return [_line(region.label, (part / [width, height]).ravel()) for part in parts]


def _line(label: int, numbers: np.ndarray) -> str:
    return " ".join([str(label), *(f"{number:.6g}" for number in numbers)])


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
