"""Detections in files and folders of images, in COCO's format, and drawn."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipself_seg.errors import InputError
from clipself_seg.prediction.coco_results import CocoResults
from clipself_seg.prediction.detection import DetectionPredictor, Detections
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.formats import Region, box_lines
from clipself_seg.prediction.journal import Written
from clipself_seg.visualization.overlays import save_png


class DetectionResults(CocoResults):
    """overlays/NAME.png, and detections.json in COCO's format of annotations, with scores.

    Other formats are "masks" and "yolo" of `Formats`; where the model has no masks the lines of YOLO are boxes. The
    JSON is an object with "images", "categories" (and "seen" of each), "annotations" and "info".
    pycocotools reads it as ground truth, `COCO("detections.json")`; its "annotations" alone are a list in
    COCO's results format, `truth.loadRes(json.load(file)["annotations"])`. Each has "bbox" (x, y, width,
    height in pixels), "score", "area", of a model with masks "segmentation" (run-length encoding), and an
    "id" that counts from 1. Category ids are those of the vocabulary; your own classes count from 0. Image
    ids are the numbers that the files are named by, as COCO's are, or else count from 1.
    """

    file_name = "detections.json"

    def __init__(
        self,
        *,
        predictor: DetectionPredictor,
        folder: str | Path,
        images: Sequence[ImageFile],
        save: Sequence[str] = ("overlays",),
    ) -> None:
        """The arguments are those of `CocoResults`, and formats are "overlays", "masks", "yolo".

        Raises:
            InputError: masks of a model that has none.
        """
        super().__init__(predictor, folder, images, save)
        if "masks" in save and not predictor.model.has_masks:
            raise InputError("this detector has no masks: leave masks out of --save")
        self.predictor = predictor

    def predict(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """The detections in each image."""
        return self.predictor(list(images), batch_size=len(images))

    def write(self, source: ImageFile, image: np.ndarray, result: Detections) -> Written:
        """Write what was asked for of an image."""
        files = []
        if "overlays" in self.save:
            files.append(f"overlays/{source.name}.png")
            save_png(Image.fromarray(result.overlay()), self.folder / files[-1])
        annotations = [
            {"area": area, "iscrowd": 0} | entry
            for entry, area in zip(result.to_coco(), _areas(result), strict=True)
        ]
        if result.masks is not None:
            masks = enumerate(zip(result.labels.tolist(), result.masks), 1)
            regions = (Region(number, label, mask, True) for number, (label, mask) in masks)
            files += self._formats.write(source.name, regions)[0]
        elif "yolo" in self.save:
            lines = box_lines(result.boxes, result.labels, *image.shape[:2])
            files.append(self._formats.write_lines(source.name, lines))
        return Written(files, {"size": list(image.shape[:2]), "annotations": annotations})

    def _listed(self, annotation: Mapping[str, Any], image_id: int, number: int) -> dict[str, Any]:
        return {"id": number, **annotation, "image_id": image_id}

    @functools.cached_property
    def _categories(self) -> list[dict[str, Any]]:
        return [
            {"id": entry.dataset_id, "name": entry.names[0], "seen": bool(known)}
            for entry, known in zip(self._vocabulary.classes, self.predictor.seen)
        ]

    @functools.cached_property
    def _metadata(self) -> dict[str, Any]:
        model = self.predictor.model
        settings = model.settings
        trained = self.predictor.trained
        return {
            "description": "open-vocabulary detection by clipself_seg",
            "prompted": [list(synonyms) for synonyms in model.classes.names],
            "trained": "named by the weights" if trained is None else trained.name,
            "score threshold": settings.rule.threshold,
            "alpha": settings.alpha,
            "beta": settings.beta,
        }


def _areas(result: Detections) -> list[float]:
    """Area of each detection in pixels: of its mask, or of its box where there is none."""
    if result.masks is not None:
        return [float(mask.sum()) for mask in result.masks]
    areas: list[float] = np.prod(result.boxes[:, 2:] - result.boxes[:, :2], axis=1).tolist()
    return areas
