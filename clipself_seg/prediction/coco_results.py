"""Writes the results of several images into one file of COCO's format, for segments and for boxes."""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipself_seg.files import write_json
from clipself_seg.prediction.files import ImageFile, image_ids
from clipself_seg.prediction.formats import Formats
from clipself_seg.prediction.loop import Index
from clipself_seg.provenance import provenance

if TYPE_CHECKING:
    from clipself_seg.prediction.detection import DetectionPredictor
    from clipself_seg.prediction.panoptic import PanopticPredictor


class CocoResults(abc.ABC):
    """Collects images and annotations, and writes them with categories and metadata.

    Attributes:
        file_name: name of the JSON below the folder.
        folder: folder below which results are written.
        max_pixels: largest number of pixels of an image that is decoded.
    """

    file_name: str

    def __init__(
        self,
        predictor: PanopticPredictor | DetectionPredictor,
        folder: str | Path,
        images: Sequence[ImageFile],
        save: Sequence[str],
    ) -> None:
        """
        Args:
            predictor: predictor with a vocabulary.
            folder: folder below which results are written.
            images: all whose results will be written.
            save: formats to write.

        Raises:
            ValueError: no vocabulary.
        """
        if predictor.vocabulary is None:
            raise ValueError("the predictor has no vocabulary")
        self.folder = Path(folder)
        self.max_pixels = predictor.mapper.max_pixels
        self._vocabulary = predictor.vocabulary
        self._ids = dict(zip((image.name for image in images), image_ids(images)))
        self._weights_hash = predictor.model.weights_hash
        self.save = tuple(save)

    @functools.cached_property
    def _formats(self) -> Formats:
        return Formats(self.folder, self.save, self._categories)

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """Where the results come from."""
        return provenance(weights_hash=self._weights_hash())

    def write_index(self, index: Index) -> None:
        """Write the JSON, and what other formats have in common of all images.

        Args:
            index: entries of images have "size" [H, W] in pixels and "annotations".
        """
        self._formats.write_index({"provenance": dict(index.provenance)}, index.images, self._ids)
        info = {
            "provenance": dict(index.provenance),
            **({"videos": index.listed_videos()} if index.videos else {}),
            "failed": dict(index.failed),
            "complete": index.complete,
        }
        images, annotations = [], list[dict[str, Any]]()
        for source, entry in index.images:
            number = self._ids[source.name]
            height, width = entry["size"]
            size = {"width": width, "height": height}
            images.append({"id": number, "file_name": source.file_name} | size)
            for annotation in entry["annotations"]:
                annotations.append(self._listed(annotation, number, len(annotations) + 1))
        content = {
            "info": self._metadata | info,
            "images": images,
            "annotations": annotations,
            "categories": self._categories,
        }
        write_json(self.folder / self.file_name, content)

    @abc.abstractmethod
    def _listed(self, annotation: Mapping[str, Any], image_id: int, number: int) -> dict[str, Any]:
        """An annotation with the id of its image and its own number, from 1."""

    @property
    @abc.abstractmethod
    def _categories(self) -> list[dict[str, Any]]:
        """An entry for each class."""

    @property
    @abc.abstractmethod
    def _metadata(self) -> dict[str, Any]:
        """The origin of the results."""
