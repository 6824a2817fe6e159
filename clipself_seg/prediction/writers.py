"""Predictions of any task as files: images, arrays, COCO's and YOLO's formats, and the JSON of all of them.

Each format is made of what all predictions have; what a task's JSON says of the model is the predictor's.

Shapes: H, W pixels of the image, K classes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import yaml
from PIL import Image

from clipself_seg.data.masks import mask_as_json
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path, write_json, write_text
from clipself_seg.prediction.files import ImageFile, image_ids
from clipself_seg.prediction.journal import Entry, Json, Written
from clipself_seg.prediction.loop import Index
from clipself_seg.prediction.predictor import ImagePredictor
from clipself_seg.prediction.results import (
    Detections,
    PanopticSegmentation,
    Prediction,
    Segmentation,
)
from clipself_seg.provenance import provenance
from clipself_seg.visualization.overlays import save_png

logger = logging.getLogger(__name__)

# Formats that are made of regions.
OF_REGIONS = ("masks", "coco", "yolo")
# Task -> its JSON file.
INDEX_FILES = {
    "semantic": "classes.json",
    "panoptic": "panoptic.json",
    "detection": "detections.json",
}
CORNERS = 3  # of the smallest polygon
MOST_BYTES = 120  # of the name of a class in a file's name
FORBIDDEN = '/\\:*?"<>|'  # on some file system


class Region(NamedTuple):
    """A region of an image, as files number it.

    Attributes:
        number: its number among those of the image.
        label: of its class, in [0, K).
        mask: (H, W) bool, or None for a box alone.
        box: (4,) XYXY in pixels.
        is_object: true if it is one object, however many parts it has.
    """

    number: int
    label: int
    mask: np.ndarray | None
    box: np.ndarray
    is_object: bool


class ResultFiles:
    """Writes predictions below a folder, in the formats that were asked for, and the task's JSON.

    * overlays/NAME.png: the image with the regions and their names.
    * labels/NAME.png, 8 or 16 bits: the class of every pixel; of panoptic segmentation the highest value is nothing.
    * panoptic/NAME.png: R + 256 G + 65536 B is a segment's id and looks like its colour on the overlay; black is none.
    * scores/NAME.npz: "scores" float32 (N, H, W), highest where the labels say, and "names".
    * masks/NAME/NUMBER_CLASS.png: 255 in a region and 0 outside.
    * coco.json: every region in COCO's format, "segmentation" as run-length encoding.
    * yolo/labels/NAME.txt: a line for each polygon, or box of a model without masks, with the label and x, y of its
      corners relative to the image; yolo/data.yaml has the names of labels.

    The JSON of semantic segmentation, classes.json, has the meaning of labels and their fractions of every image.
    panoptic.json and detections.json are in COCO's formats, with scores; pycocotools reads the latter as ground truth,
    and its "annotations" alone as results. All have failures and the provenance. Ids of images are the numbers that the
    files are named by, as COCO's are, or else count from 1; ids of categories are those of the vocabulary.

    Attributes:
        save: formats to write.
        folder: folder below which results are written.
        max_pixels: largest number of pixels of an image that is decoded.
    """

    def __init__(
        self,
        *,
        predictor: ImagePredictor[Any],
        folder: str | Path,
        images: Sequence[ImageFile] = (),
        save: Sequence[str] = ("overlays",),
    ) -> None:
        """
        Args:
            predictor: predictor with a vocabulary.
            folder: folder below which results are written.
            images: all whose results will be written.
            save: formats to write.

        Raises:
            InputError: masks of a model that has none.
        """
        if "masks" in save and not predictor.has_masks:
            raise InputError("this detector has no masks: leave masks out of --save")
        self.save = tuple(save)
        self.predictor = predictor
        self.folder = Path(folder)
        self.max_pixels = predictor.mapper.max_pixels
        self._ids = dict(zip((image.name for image in images), image_ids(images)))

    @functools.cached_property
    def provenance(self) -> Mapping[str, object]:
        """Commit, versions and weights that the results come from."""
        return provenance(weights_hash=self.predictor.model.weights_hash())

    @functools.cached_property
    def categories(self) -> list[Json]:
        """COCO's entry of each class, by its label."""
        return self.predictor.categories()

    def predict(
        self, images: Sequence[np.ndarray], sources: Sequence[ImageFile] = ()
    ) -> Sequence[Any]:
        """The prediction of each image; `sources` are the files of images."""
        how: dict[str, Any] = {"scores": True} if "scores" in self.save else {}
        if sources:
            return self.predictor.predict_files(images, [source.name for source in sources], **how)
        return self.predictor.predict_batch(images, **how)

    def write(self, source: ImageFile, result: Prediction) -> Written:
        """Write what was asked for of an image."""
        entry: Entry = {"size": list(result.image.shape[:2])}
        drawn = dict[str, Image.Image]()
        if "overlays" in self.save:
            drawn["overlays"] = result.overlay()
        if isinstance(result, Segmentation):
            entry["fractions"] = result.fractions()
        elif isinstance(result, PanopticSegmentation):
            annotation, painted = result.to_coco(0, f"{source.name}.png")
            entry["annotations"] = [annotation]
            if "panoptic" in self.save:
                drawn["panoptic"] = Image.fromarray(painted)
        elif isinstance(result, Detections):
            entry["annotations"] = _detections(result)
        if "labels" in self.save:
            drawn["labels"] = Image.fromarray(result.labels)  # type: ignore[attr-defined]
        files = []
        for kind, image in drawn.items():
            files.append(f"{kind}/{source.name}.png")
            save_png(image, self.folder / files[-1])
        if result.presence is not None:
            entry["presence"] = dict(result.presence)
            entry["absent"] = list(result.absent)
        if any(kind in self.save for kind in OF_REGIONS):
            files += self._write_regions(source.name, result, entry)
        if "scores" in self.save:
            files.append(f"scores/{source.name}.npz")
            with atomic_path(self.folder / files[-1]) as temporary, open(temporary, "wb") as file:
                # In half precision close scores would be equal, and some labels not theirs.
                scores = result.scores  # type: ignore[attr-defined]
                np.savez_compressed(file, scores=scores, names=np.array(result.names))
        return Written(files, entry)

    def _write_regions(self, name: str, result: Prediction, entry: Entry) -> list[str]:
        """Write masks and polygons, and note the annotations of coco.json; returns paths below the folder."""
        files, lines, annotations = list[str](), list[str](), list[Json]()
        if "masks" in self.save:
            # Masks of an earlier call, which may have had other regions.
            for path in (self.folder / "masks" / name).glob("[0-9][0-9][0-9]*_*.png"):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    path.unlink()
        for region in regions_of(result):
            if "masks" in self.save:
                assert region.mask is not None  # of a model without masks they were refused
                title = safe_name(str(self.categories[region.label]["name"]))
                files.append(f"masks/{name}/{region.number:03d}_{title}.png")
                pixels = region.mask.astype(np.uint8) * 255
                save_png(Image.fromarray(pixels), self.folder / files[-1])
            if "coco" in self.save:
                annotations.append(coco_annotation(region, self.categories[region.label]["id"]))
            if "yolo" in self.save:
                lines += yolo_lines(region, *result.image.shape[:2])
        if "yolo" in self.save:
            files.append(f"yolo/labels/{name}.txt")
            write_text(self.folder / files[-1], "".join(f"{line}\n" for line in lines))
        if "coco" in self.save:
            entry["regions"] = annotations
        return files

    def write_index(self, index: Index) -> None:
        """Write the task's JSON, and what other formats have in common of all images."""
        if "yolo" in self.save:
            names = {label: entry["name"] for label, entry in enumerate(self.categories)}
            content = {"train": "images", "val": "images", "names": names}
            text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
            write_text(self.folder / "yolo/data.yaml", text)
        if "coco" in self.save:
            regions = [(source, entry, entry["regions"]) for source, entry in index.images]
            coco = {"info": {"provenance": index.provenance}} | self._coco(regions)
            write_json(self.folder / "coco.json", coco)
        task, absent = self.predictor.task, self.predictor.absent
        about = self.predictor.about() | ({"absent words": absent._asdict()} if absent else {})
        whole: Json
        if task == "semantic":
            images = {
                source.name: {"file": str(source.path), "fractions": entry["fractions"]}
                | _looked(entry)
                for source, entry in index.images
            }
            whole = about | {"provenance": index.provenance, "images": images} | index.outcome()
            if index.complete:
                self._warn_of_background_alone([entry for _, entry in index.images])
        else:
            info = about | {"provenance": index.provenance} | index.outcome()
            annotated = [(source, entry, entry["annotations"]) for source, entry in index.images]
            whole = {"info": info} | self._coco(annotated, numbered=task != "panoptic")
        write_json(self.folder / INDEX_FILES[task], whole)

    def _coco(
        self, images: Sequence[tuple[ImageFile, Entry, Sequence[Json]]], numbered: bool = True
    ) -> Json:
        """Images and annotations in COCO's format, each annotation with the id of its image.

        Args:
            images: images with their entries and annotations.
            numbered: annotations have an "id"; that of panoptic segmentation is its image's.
        """
        listed, annotations = list[Json](), list[Json]()
        for source, entry, own in images:
            number, (height, width) = self._ids[source.name], entry["size"]
            size = {"width": width, "height": height}
            listed.append({"id": number, "file_name": source.file_name} | size | _looked(entry))
            for annotation in own:
                first = {"id": len(annotations) + 1} if numbered else {}
                if "image_id" not in annotation:
                    first["image_id"] = number
                annotations.append(first | annotation | {"image_id": number})
        return {"images": listed, "annotations": annotations, "categories": self.categories}

    def _warn_of_background_alone(self, entries: Sequence[Entry]) -> None:
        given, absent = self.predictor.require_words(), self.predictor.absent
        if given.background is None or not (given.threshold or absent) or not entries:
            return
        background = given.names[given.background]
        if all(list(entry["fractions"]) == [background] for entry in entries):
            why = f"no class reaches a score of {given.threshold:g}: give a lower --threshold or no --background"
            if absent and all(len(entry["absent"]) == len(entry["presence"]) for entry in entries):
                why = "all words are absent from all images: give a lower --absent-threshold"
            logger.warning("every pixel is %s: %s", background, why)


def _looked(entry: Entry) -> Json:
    """Which words are in an image, where somebody asked."""
    return {key: entry[key] for key in ("presence", "absent") if key in entry}


def _detections(result: Detections) -> list[Json]:
    """COCO's annotations of detections, with scores."""
    if result.masks is None:
        areas = np.prod(result.boxes[:, 2:] - result.boxes[:, :2], axis=1)
    else:
        areas = result.masks.sum(axis=(1, 2), dtype=np.float64)
    return [
        {"area": area, "iscrowd": 0} | entry
        for entry, area in zip(result.to_coco(), areas.tolist(), strict=True)
    ]


def regions_of(result: Prediction) -> Iterator[Region]:
    """The regions of a prediction for files, one after the other, by their numbers."""
    regions = result.streamed_regions()
    numbers, objects = result.numbered(regions)
    for place in np.argsort(numbers, kind="stable"):
        yield Region(
            number=int(numbers[place]),
            label=int(regions.labels[place]),
            mask=None if regions.masks is None else regions.masks[place],
            box=regions.boxes[place],
            is_object=bool(objects[place]),
        )


def coco_annotation(region: Region, category_id: object) -> Json:
    """COCO's annotation of a region that has a mask, with its run-length encoding."""
    assert region.mask is not None
    left, top, right, bottom = region.box.astype(int).tolist()
    return {
        "category_id": category_id,
        "segmentation": mask_as_json(region.mask),
        "area": int(region.mask.sum()),
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
    }


def yolo_lines(region: Region, height: int, width: int) -> list[str]:
    """YOLO's lines of a region, relative to the image: a polygon for each part, or one for all parts of an object;
    where there is no mask, x and y of the middle of the box, its width and its height.

    Args:
        region: of an image.
        height: of the image in pixels.
        width: of the image in pixels.
    """
    size = np.array([width, height])
    if region.mask is None:
        corner, opposite = region.box[:2].astype(np.float64), region.box[2:].astype(np.float64)
        shapes = [np.array([(corner + opposite) / 2, opposite - corner])]
    else:
        shapes = mask_polygons(region.mask)
        if region.is_object and shapes:
            shapes = [joined_polygon(shapes)]
    return [
        " ".join([str(region.label), *(f"{number:.6g}" for number in (shape / size).ravel())])
        for shape in shapes
    ]


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


def safe_name(name: str) -> str:
    """The name of a class as a part of a file's name: letters of any script stay, what file systems forbid does not."""
    whole = unicodedata.normalize("NFC", name)
    text = "".join(
        "_" if char in FORBIDDEN or not char.isprintable() else char for char in whole
    ).strip(" .")
    return text.encode()[:MOST_BYTES].decode(errors="ignore") or "_"
