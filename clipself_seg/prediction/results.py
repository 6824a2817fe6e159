"""Results of any task as files: one writer of images and of the JSON of all of them, and formats of other programs.

A task says which images it draws and what its JSON has; masks, run lengths and polygons are made of the regions that
every result has (`RegionResult.numbered`).

Shapes: H, W pixels of the image, K classes.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import cv2
import numpy as np
import yaml
from PIL import Image

from clipself_seg.data.mappers.detection import mask_boxes
from clipself_seg.data.masks import mask_as_json
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path, write_json, write_text
from clipself_seg.prediction.detection import DetectionPredictor, Detections
from clipself_seg.prediction.files import ImageFile, image_ids
from clipself_seg.prediction.journal import Entry, Json, Written
from clipself_seg.prediction.loop import Index
from clipself_seg.prediction.panoptic import PanopticPredictor, PanopticSegmentation
from clipself_seg.prediction.predictor import ImagePredictor
from clipself_seg.prediction.regions import Region, RegionResult
from clipself_seg.prediction.semantic import Predictor, Segmentation
from clipself_seg.provenance import provenance
from clipself_seg.visualization.colours import class_colours
from clipself_seg.visualization.sheets import save_png

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=RegionResult)
# Formats of which an image has one PNG, in a folder of the same name, and those that are made of regions.
IMAGES = ("overlays", "labels", "panoptic")
OF_REGIONS = ("masks", "coco", "yolo")
CORNERS = 3  # of the smallest polygon
MOST_BYTES = 120  # of the name of a class in a file's name
FORBIDDEN = '/\\:*?"<>|'  # on some file system


class TaskResults(abc.ABC, Generic[R]):
    """The base of what writes a task's results below a folder, in the formats that were asked for.

    masks/NAME/NUMBER_CLASS.png are 255 in a region and 0 outside. coco.json has every region in COCO's format,
    "segmentation" as run-length encoding. yolo/ has labels/NAME.txt, a line for each polygon with the label and
    x, y of its corners relative to the image, and data.yaml with the names of labels. Ids of images are the numbers
    that the files are named by, as COCO's are, or else count from 1.

    Attributes:
        index_file: name of the task's own JSON.
        save: formats to write.
        folder: folder below which results are written.
        max_pixels: largest number of pixels of an image that is decoded.
    """

    index_file: str
    save: Sequence[str]
    predictor: ImagePredictor[R]

    def __init__(
        self,
        *,
        predictor: ImagePredictor[R],
        folder: str | Path,
        images: Sequence[ImageFile] = (),
        save: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            predictor: predictor with a vocabulary.
            folder: folder below which results are written.
            images: all whose results will be written.
            save: formats to write; None for those of the class.

        Raises:
            InputError: masks of a model that has none.
        """
        if save is not None:
            self.save = tuple(save)
        if "masks" in self.save and not predictor.has_masks:
            raise InputError("this detector has no masks: leave masks out of --save")
        self.predictor = predictor
        self.folder = Path(folder)
        self.max_pixels = predictor.mapper.max_pixels
        self._ids = dict(zip((image.name for image in images), image_ids(images)))

    @functools.cached_property
    def provenance(self) -> Mapping[str, object]:
        """Commit, versions and weights that the results come from."""
        return provenance(weights_hash=self.predictor.model.weights_hash())

    @functools.cached_property
    def colours(self) -> np.ndarray:
        """Colours of the classes, (K, 3) uint8."""
        return class_colours(self.predictor.names)

    @functools.cached_property
    @abc.abstractmethod
    def categories(self) -> list[Json]:
        """COCO's entry of each class, by its label."""

    @functools.cached_property
    @abc.abstractmethod
    def _metadata(self) -> Json:
        """Entries of the index about the model and its classes."""

    def predict(
        self, images: Sequence[np.ndarray], sources: Sequence[ImageFile] = ()
    ) -> Sequence[R]:
        """The result of each image; `sources` are the files of images."""
        return self.predictor.predict_batch(images)

    @abc.abstractmethod
    def _entry(self, source: ImageFile, result: R) -> Entry:
        """Entries of the index about one image, beside its size."""

    def write(self, source: ImageFile, result: R) -> Written:
        """Write what was asked for of an image."""
        files = []
        for kind in IMAGES:
            if kind in self.save:
                files.append(f"{kind}/{source.name}.png")
                save_png(self._image(kind, result), self.folder / files[-1])
        entry = self._entry(source, result)
        entry["size"] = list(result.image.shape[:2])
        if result.presence is not None:
            entry["presence"] = dict(result.presence)
            entry["absent"] = list(result.absent)
        if any(kind in self.save for kind in OF_REGIONS):
            files += self._write_regions(source.name, result, entry)
        return Written(files, entry)

    def _image(self, kind: str, result: R) -> Image.Image:
        return result.overlay() if kind == "overlays" else Image.fromarray(self._label_map(result))

    def _label_map(self, result: R) -> np.ndarray:
        """The class of every pixel, (H, W), of a task that has one."""
        raise AssertionError(f"{type(result).__name__} has no label map")

    def _write_regions(self, name: str, result: R, entry: Entry) -> list[str]:
        """Write masks and polygons, and note the annotations of coco.json; returns paths below the folder."""
        files, lines, annotations = list[str](), list[str](), list[Json]()
        if "masks" in self.save:
            self._remove_masks(name)
        for region in result.numbered():
            if "masks" in self.save:
                files.append(self._write_mask(name, region))
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

    def _write_mask(self, name: str, region: Region) -> str:
        assert region.mask is not None  # of a model without masks they were refused
        title = safe_name(str(self.categories[region.label]["name"]))
        path = f"masks/{name}/{region.number:03d}_{title}.png"
        save_png(Image.fromarray(region.mask.astype(np.uint8) * 255), self.folder / path)
        return path

    def _remove_masks(self, name: str) -> None:
        """Remove masks of an earlier call, which may have had other regions."""
        for path in (self.folder / "masks" / name).glob("[0-9][0-9][0-9]*_*.png"):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                path.unlink()

    def write_index(self, index: Index) -> None:
        """Write the task's JSON, and what other formats have in common of all images."""
        if "yolo" in self.save:
            names = {label: entry["name"] for label, entry in enumerate(self.categories)}
            content = {"train": "images", "val": "images", "names": names}
            text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
            write_text(self.folder / "yolo/data.yaml", text)
        if "coco" in self.save:
            info: Json = {"provenance": index.provenance}
            write_json(self.folder / "coco.json", self._coco(index, "regions", info))
        write_json(self.folder / self.index_file, self._index(index))

    def _index(self, index: Index) -> Json:
        """Content of the task's JSON: COCO's format, with the metadata as "info"."""
        info = {**self._asked, "provenance": index.provenance, **index.outcome()}
        return self._coco(index, "annotations", info)

    @property
    def _asked(self) -> Json:
        """The metadata, and what was asked of absent words."""
        absent = self.predictor.absent
        return self._metadata | ({"absent words": absent._asdict()} if absent else {})

    def _coco(self, index: Index, key: Literal["annotations", "regions"], info: Json) -> Json:
        """Images and annotations, each with its number and the id of its image, in COCO's format."""
        images, annotations = list[Json](), list[Json]()
        for source, entry in index.images:
            number, (height, width) = self._ids[source.name], entry["size"]
            size = {"width": width, "height": height}
            images.append({"id": number, "file_name": source.file_name} | size | _looked(entry))
            for annotation in entry[key]:
                first = {} if "image_id" in annotation else {"image_id": number}
                last = {"image_id": number}
                annotations.append(self._id(len(annotations) + 1, key) | first | annotation | last)
        return {
            "info": info,
            "images": images,
            "annotations": annotations,
            "categories": self.categories,
        }

    def _id(self, number: int, key: str) -> Json:
        """What numbers an annotation: its "id"."""
        return {"id": number}


class SemanticResults(TaskResults[Segmentation]):
    """overlays/NAME.png, labels/NAME.png (8 or 16 bits), and classes.json.

    Other formats are "scores", "masks", "coco" and "yolo", where every class that is there is a region, but
    for the background. scores/NAME.npz has "scores" float32 (N, H, W), highest where the labels say, and "names"; the
    JSON has the meaning of labels, their fractions of every image, failures, and the provenance.
    """

    index_file = "classes.json"
    save = ("overlays", "labels")
    predictor: Predictor

    def predict(
        self, images: Sequence[np.ndarray], sources: Sequence[ImageFile] = ()
    ) -> list[Segmentation]:
        return self.predictor.predict_batch(images, scores="scores" in self.save)

    def write(self, source: ImageFile, result: Segmentation) -> Written:
        files, entry = super().write(source, result)
        if result.scores is not None:
            files.append(f"scores/{source.name}.npz")
            with atomic_path(self.folder / files[-1]) as temporary:
                with open(temporary, "wb") as file:
                    # In half precision close scores would be equal, and some labels not theirs.
                    np.savez_compressed(file, scores=result.scores, names=np.array(result.names))
        return Written(files, entry)

    def _label_map(self, result: Segmentation) -> np.ndarray:
        return result.labels

    def _entry(self, source: ImageFile, result: Segmentation) -> Entry:
        return {"fractions": result.fractions()}

    @functools.cached_property
    def categories(self) -> list[Json]:
        # A background that is none of the classes, the last of the names, has no id.
        pairs = zip(self.predictor.category_ids, self.predictor.names)
        return [{"id": number, "name": name} for number, name in pairs]

    def write_index(self, index: Index) -> None:
        super().write_index(index)
        if index.complete:
            self._warn_of_background_alone([entry for _, entry in index.images])

    def _index(self, index: Index) -> Json:
        images = {
            source.name: {"file": str(source.path), "fractions": entry["fractions"]}
            | _looked(entry)
            for source, entry in index.images
        }
        listed = {"provenance": index.provenance, "images": images}
        return {**self._asked, **listed, **index.outcome()}

    def _warn_of_background_alone(self, entries: Sequence[Entry]) -> None:
        number, threshold = self.predictor.background, self.predictor.threshold
        absent = self.predictor.absent
        if number is None or not (threshold or absent) or not entries:
            return
        background = self.predictor.names[number]
        if all(list(entry["fractions"]) == [background] for entry in entries):
            why = f"no class reaches a score of {threshold:g}: give a lower --threshold or no --background"
            if absent and all(len(entry["absent"]) == len(entry["presence"]) for entry in entries):
                why = "all words are absent from all images: give a lower --absent-threshold"
            logger.warning("every pixel is %s: %s", background, why)

    @functools.cached_property
    def _metadata(self) -> Json:
        names = enumerate(self.predictor.names)
        return {
            "names": {str(label): name for label, name in names},
            "colours": {str(n): f"#{bytes(rgb).hex()}" for n, rgb in enumerate(self.colours)},
            "prompted": [list(synonyms) for synonyms in self.predictor.model.names],
            "background": self.predictor.background,
            "threshold": self.predictor.threshold,
        }


class PanopticResults(TaskResults[PanopticSegmentation]):
    """overlays/NAME.png, panoptic/NAME.png and panoptic.json, the last two in COCO's format.

    Other formats are "labels" (positions of classes in the vocabulary, the highest value where nothing is), "masks",
    "coco" and "yolo". Pixels of a panoptic PNG are R + 256 G + 65536 B of a segment's id and look like its
    colour on the overlay; black is nothing. Category ids are those of the vocabulary; your own classes count from 0.
    """

    index_file = "panoptic.json"
    save = ("overlays", "panoptic")
    predictor: PanopticPredictor

    def predict(
        self, images: Sequence[np.ndarray], sources: Sequence[ImageFile] = ()
    ) -> list[PanopticSegmentation]:
        """The segments of each image; of a model that is given masks those of the image's file in their folder.

        Raises:
            InputError: there is no folder of masks, or an image has none in it.
        """
        folder = self.predictor.mapper.masks
        if folder is None or not sources:
            return self.predictor.predict_batch(images)
        masks = [folder.required(source.name) for source in sources]
        # One after another: masks take more memory than images.
        return [
            self.predictor.predict_batch([image], [image_masks])[0]
            for image, image_masks in zip(images, masks, strict=True)
        ]

    def _image(self, kind: str, result: PanopticSegmentation) -> Image.Image:
        if kind == "panoptic":
            return Image.fromarray(result.painted_ids())
        return super()._image(kind, result)

    def _label_map(self, result: PanopticSegmentation) -> np.ndarray:
        return result.labels

    def _entry(self, source: ImageFile, result: PanopticSegmentation) -> Entry:
        return {"annotations": [result.coco_annotation(0, f"{source.name}.png")]}

    def _id(self, number: int, key: str) -> Json:
        # A panoptic annotation is that of its image, which numbers it.
        return super()._id(number, key) if key == "regions" else {}

    @functools.cached_property
    def categories(self) -> list[Json]:
        classes = self.predictor.require_vocabulary().classes
        return [
            {
                "id": entry.dataset_id,
                "name": entry.names[0],
                "isthing": int(entry.isthing is not False),
                "color": colour.tolist(),
            }
            for entry, colour in zip(classes, self.colours)
        ]

    @functools.cached_property
    def _metadata(self) -> Json:
        model, predictor = self.predictor.model, self.predictor
        fusion = model.fusion.returned()
        return {
            "description": "panoptic segmentation by clipself_seg",
            "prompted": [list(synonyms) for synonyms in model.names],
            "trained": predictor.trained.name,
            "seen": [name for name, seen in zip(predictor.names, predictor.seen) if seen],
            "alpha": fusion.alpha,
            "beta": fusion.beta,
            **({"void_discount": fusion.void_discount} if fusion.void_discount else {}),
            **({"masks": model.masks.model_settings} if model.masks.model_settings else {}),
        }


class DetectionResults(TaskResults[Detections]):
    """overlays/NAME.png, and detections.json in COCO's format of annotations, with scores.

    Other formats are "masks" and "yolo"; where the model has no masks the lines of YOLO are boxes. The JSON is an
    object with "images", "categories" (and "seen" of each), "annotations" and "info".
    pycocotools reads it as ground truth, `COCO("detections.json")`; its "annotations" alone are a list in
    COCO's results format, `truth.loadRes(json.load(file)["annotations"])`. Each has "bbox" (x, y, width,
    height in pixels), "score", "area", of a model with masks "segmentation" (run-length encoding), and an
    "id" that counts from 1. Category ids are those of the vocabulary; your own classes count from 0.
    """

    index_file = "detections.json"
    save = ("overlays",)
    predictor: DetectionPredictor

    def _entry(self, source: ImageFile, result: Detections) -> Entry:
        if result.masks is None:
            areas = np.prod(result.boxes[:, 2:] - result.boxes[:, :2], axis=1)
        else:
            areas = result.masks.sum(axis=(1, 2), dtype=np.float64)
        annotations = [
            {"area": area, "iscrowd": 0} | entry
            for entry, area in zip(result.to_coco(), areas.tolist(), strict=True)
        ]
        return {"annotations": annotations}

    @functools.cached_property
    def categories(self) -> list[Json]:
        return [
            {"id": entry.dataset_id, "name": entry.names[0], "seen": bool(seen)}
            for entry, seen in zip(self.predictor.require_vocabulary().classes, self.predictor.seen)
        ]

    @functools.cached_property
    def _metadata(self) -> Json:
        model, trained = self.predictor.model, self.predictor.trained
        return {
            "description": "open-vocabulary detection by clipself_seg",
            "prompted": [list(synonyms) for synonyms in model.classes.names],
            "trained": "named by the weights" if trained is None else trained.name,
            "score threshold": model.settings.rule.threshold,
            "alpha": model.settings.alpha,
            "beta": model.settings.beta,
        }


# By task.
RESULTS: dict[str, type[TaskResults[Any]]] = {
    "semantic": SemanticResults,
    "panoptic": PanopticResults,
    "detection": DetectionResults,
}


def _looked(entry: Entry) -> Json:
    """Which words are in an image, where somebody asked."""
    return {key: entry[key] for key in ("presence", "absent") if key in entry}


def coco_annotation(region: Region, category_id: object) -> Json:
    """COCO's annotation of a region that has a mask, with its run-length encoding."""
    assert region.mask is not None
    left, top, right, bottom = mask_boxes(region.mask[None])[0].astype(int).tolist()
    return {
        "category_id": category_id,
        "segmentation": mask_as_json(region.mask),
        "area": int(region.mask.sum()),
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
    }


def yolo_lines(region: Region, height: int, width: int) -> list[str]:
    """YOLO's lines of a region, relative to the image: a polygon for each part, or one for all parts of an instance;
    where there is no mask, x and y of the middle of the box, its width and its height.

    Args:
        region: of an image.
        height: of the image in pixels.
        width: of the image in pixels.
    """
    size = np.array([width, height])
    if region.mask is None:
        assert region.box is not None
        corner, opposite = region.box[:2].astype(np.float64), region.box[2:].astype(np.float64)
        shapes = [np.array([(corner + opposite) / 2, opposite - corner])]
    else:
        shapes = mask_polygons(region.mask)
        if region.instance and shapes:
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
