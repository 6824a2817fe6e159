"""Predictions of any task as files: images, COCO's formats, and the JSON of all of them.

Each format is made of what all predictions have; what a task's JSON says of the model is the predictor's.

Shapes: H, W pixels of the image, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipself_seg.data.masks import mask_as_json
from clipself_seg.files import write_json
from clipself_seg.prediction import results
from clipself_seg.prediction.files import ImageFile, image_ids
from clipself_seg.prediction.journal import Entry, Json, Written
from clipself_seg.prediction.loop import Index
from clipself_seg.prediction.predictor import ImagePredictor
from clipself_seg.provenance import provenance
from clipself_seg.visualization.sheets import save_png

# Task -> its JSON file.
INDEX_FILES = {
    "semantic": "classes.json",
    "panoptic": "panoptic.json",
    "detection": "detections.json",
}


class ResultFiles:
    """Writes predictions below a folder, in the formats that were asked for, and the task's JSON.

    * overlays/NAME.png: the image with the regions and their names.
    * labels/NAME.png, 8 or 16 bits: the class of every pixel; of panoptic segmentation the highest value is nothing.
    * panoptic/NAME.png: R + 256 G + 65536 B is a segment's id and looks like its colour on the overlay; black is none.
    * coco.json: every region in COCO's format, "segmentation" as run-length encoding.

    The JSON of semantic segmentation, classes.json, has the meaning of labels and their fractions of every image.
    panoptic.json and detections.json are in COCO's formats, with scores; pycocotools reads the latter as ground truth,
    and its "annotations" alone as results. All have failures and the provenance. Ids of images are the numbers that the
    files are named by, as COCO's are, or else count from 1; ids of categories are those of the vocabulary.

    Attributes:
        save: formats to write; "overlaps" makes masks that somebody gave the regions of coco.json, hidden ones too.
        folder: folder below which results are written.
        max_pixels: largest number of pixels of an image that is decoded.
        masks: number of masks that were given of all images, and of those that are in no segment, once they are done.
    """

    masks = (0, 0)

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
        """
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
        if sources:
            return self.predictor.predict_files(images, [source.name for source in sources])
        return self.predictor.predict_batch(images)

    def write(self, source: ImageFile, result: results.Prediction) -> Written:
        """Writes what was asked for of an image.

        Raises:
            InputError: it would replace the image.
        """
        entry: Entry = {"size": list(result.image.shape[:2])}
        drawn = dict[str, Image.Image]()
        if "overlays" in self.save:
            drawn["overlays"] = result.overlay()
        if isinstance(result, results.Segmentation):
            entry["fractions"] = result.fractions()
        elif isinstance(result, results.PanopticSegmentation):
            annotation, painted = result.to_coco(0, f"{source.name}.png")
            entry["annotations"] = [annotation]
            if result.given is not None:
                lost = [{"mask": place, "reason": why} for place, why in result.given.lost.items()]
                entry["masks"] = {"given": len(result.given.scores), "lost": lost}
            if "panoptic" in self.save:
                drawn["panoptic"] = Image.fromarray(painted)
        elif isinstance(result, results.Detections):
            entry["annotations"] = _detections(result)
        if "labels" in self.save:
            labels: Any = result.labels  # type: ignore[attr-defined]
            drawn["labels"] = results.label_image(labels, result.names)
        files = []
        for kind, image in drawn.items():
            files.append(f"{kind}/{source.name}.png")
            source.require_other(self.folder / files[-1])
            save_png(image, self.folder / files[-1])
        if result.presence is not None:
            entry["presence"] = dict(result.presence)
            entry["absent"] = list(result.absent)
        if "coco" in self.save:
            regions = result.streamed_regions()
            if "overlaps" in self.save:
                assert isinstance(result, results.PanopticSegmentation) and result.given
                # Read again: results that keep the masks of many images would fill memory.
                given = self.predictor.mapper.masks.read(source.name, result.image.shape[:2])
                regions = result.given.regions(given.masks)
            by_label = isinstance(result, results.Segmentation)
            entry["regions"] = list(coco_annotations(regions, self.categories, by_label))
        return Written(files, entry)

    def write_index(self, index: Index) -> None:
        """Writes the task's JSON, and what other formats have in common of all images."""
        if "coco" in self.save:
            regions = [(source, entry, entry["regions"]) for source, entry in index.images]
            coco = {"info": {"provenance": index.provenance}} | self._coco(regions)
            write_json(self.folder / "coco.json", coco)
        masks = [entry["masks"] for _, entry in index.images if "masks" in entry]
        self.masks = sum(m["given"] for m in masks), sum(len(m["lost"]) for m in masks)
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


def _looked(entry: Entry) -> Json:
    """The words that are in an image, and those that are not, if somebody asked for them, and what became of masks."""
    return {key: entry[key] for key in ("presence", "absent", "masks") if key in entry}


def _detections(result: results.Detections) -> list[Json]:
    """COCO's annotations of detections, with scores."""
    if result.masks is None:
        areas = np.prod(result.boxes[:, 2:] - result.boxes[:, :2], axis=1)
    else:
        areas = np.array([mask.sum(dtype=np.float64) for mask in result.masks])
    return [
        {"area": area, "iscrowd": 0} | entry
        for entry, area in zip(result.to_coco(), areas.tolist(), strict=True)
    ]


def coco_annotations(
    regions: results.Regions, categories: Sequence[Json], by_label: bool
) -> Iterator[Json]:
    """COCO's annotations of regions, with run-length encodings, in the order of their labels or as they are."""
    order = np.argsort(regions.labels) if by_label else np.arange(len(regions.labels))
    for place in order.tolist():
        mask = regions.masks[place]
        left, top, right, bottom = regions.boxes[place].astype(int).tolist()
        yield {
            "category_id": categories[regions.labels[place]]["id"],
            "segmentation": mask_as_json(mask),
            "area": int(mask.sum()),
            "score": float(regions.scores[place]),
            "bbox": [left, top, right - left, bottom - top],
            "iscrowd": 0,
        }
