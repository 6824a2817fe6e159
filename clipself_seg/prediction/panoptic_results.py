"""Panoptic segments of files and folders of images, in COCO's format, and drawn."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipself_seg.errors import InputError
from clipself_seg.models.panoptic.outputs import NO_MASKS
from clipself_seg.prediction.coco_results import CocoResults
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.formats import Region, require_palette, save_palette
from clipself_seg.prediction.journal import Written
from clipself_seg.prediction.panoptic import PanopticPredictor, PanopticSegmentation
from clipself_seg.visualization.class_colours import class_colours
from clipself_seg.visualization.overlays import save_png


class PanopticResults(CocoResults):
    """overlays/NAME.png, panoptic/NAME.png and panoptic.json, the last two in COCO's format.

    Other formats are labels/NAME.png (positions of classes in the vocabulary, the highest value where nothing is),
    palette/NAME.png, and "masks", "coco" and "yolo" of `Formats`. Pixels of a panoptic PNG are
    R + 256 G + 65536 B of a segment's id and look like its colour on the overlay; black is nothing. Category ids
    are those of the vocabulary; your own classes count from 0. Image ids are the numbers that the files are named
    by, as COCO's are, or else count from 1.
    """

    file_name = "panoptic.json"

    def __init__(
        self,
        *,
        predictor: PanopticPredictor,
        folder: str | Path,
        images: Sequence[ImageFile],
        save: Sequence[str] = ("overlays", "panoptic"),
    ) -> None:
        """The arguments are those of `CocoResults`, and formats are "overlays", "panoptic", "labels", "palette",
        "masks", "coco", "yolo".

        Raises:
            InputError: more classes than a palette has colours.
        """
        super().__init__(predictor, folder, images, save)
        require_palette(save, len(self._vocabulary))
        self.predictor = predictor
        self._colours = class_colours(self._vocabulary.names)

    def predict(self, images: Sequence[np.ndarray]) -> list[PanopticSegmentation]:
        """The segments of each image."""
        return self.predictor(list(images), batch_size=len(images))

    def write(self, source: ImageFile, image: np.ndarray, result: PanopticSegmentation) -> Written:
        """Write what was asked for of an image."""
        kinds = ("overlays", "panoptic", "labels", "palette")
        files = [f"{kind}/{source.name}.png" for kind in kinds if kind in self.save]
        if "overlays" in self.save:
            drawn = Image.fromarray(result.overlay())
            save_png(drawn, self.folder / "overlays" / f"{source.name}.png")
        annotation, painted = result.to_coco(file_name=f"{source.name}.png")
        if "panoptic" in self.save:
            save_png(Image.fromarray(painted), self.folder / "panoptic" / f"{source.name}.png")
        labels = result.labels
        if "labels" in self.save:
            save_png(Image.fromarray(labels), self.folder / "labels" / f"{source.name}.png")
        if "palette" in self.save:
            save_palette(self.folder / "palette" / f"{source.name}.png", labels, self._colours)
        more, regions = self._formats.write(source.name, _regions(result))
        entry = {"size": list(result.ids.shape), "annotations": [annotation], **regions}
        return Written([*files, *more], entry)

    def _listed(self, annotation: Mapping[str, Any], image_id: int, number: int) -> dict[str, Any]:
        return {**annotation, "image_id": image_id}

    @functools.cached_property
    def _categories(self) -> list[dict[str, Any]]:
        return [
            {
                "id": entry.dataset_id,
                "name": entry.names[0],
                "isthing": int(entry.isthing is not False),
                "color": colour.tolist(),
            }
            for entry, colour in zip(self._vocabulary.classes, self._colours)
        ]

    @functools.cached_property
    def _metadata(self) -> dict[str, Any]:
        model = self.predictor.model
        seen = self.predictor.seen
        return {
            "description": "panoptic segmentation by clipself_seg",
            "prompted": [list(synonyms) for synonyms in model.names],
            "trained": self.predictor.trained.name,
            "seen": [name for name, known in zip(self._vocabulary.names, seen) if known],
            "alpha": model.alpha,
            "beta": model.beta,
            **({"void_discount": void} if (void := model.fusion.returned().void_discount) else {}),
        }


class MaskResults(PanopticResults):
    """`PanopticResults` of given masks, which are read from a folder for each image and classified."""

    def predict_of(
        self, images: Sequence[np.ndarray], sources: Sequence[ImageFile]
    ) -> list[PanopticSegmentation]:
        """The segments of each image, of the masks of its file.

        Raises:
            InputError: there is no folder of masks, or an image has none in it.
        """
        if (folder := self.predictor.mapper.masks) is None:
            raise InputError(NO_MASKS)
        # One after another: masks take more memory than images.
        paths = [folder.required(source.name) for source in sources]
        return self.predictor(list(images), batch_size=1, masks=paths)


def _regions(result: PanopticSegmentation) -> Iterator[Region]:
    for segment in result.segments:
        yield Region(segment.id, segment.label, result.ids == segment.id, segment.isthing)
