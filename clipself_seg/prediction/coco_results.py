"""Results of several images in one file of COCO's format: what segments and boxes have in common."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipself_seg.files import write_json
from clipself_seg.prediction.files import ImageFile, image_ids

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
    ) -> None:
        """
        Args:
            predictor: predictor with a vocabulary.
            folder: folder below which results are written.
            images: all whose results will be written.

        Raises:
            ValueError: no vocabulary.
        """
        if predictor.vocabulary is None:
            raise ValueError("the predictor has no vocabulary")
        self.folder = Path(folder)
        self.max_pixels = predictor.mapper.max_pixels
        self._vocabulary = predictor.vocabulary
        self._ids = dict(zip((image.name for image in images), image_ids(images)))
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def _add_image(self, source: ImageFile, height: int, width: int) -> int:
        """List an image of so many rows and columns; returns its id."""
        number = self._ids[source.name]
        size = {"width": width, "height": height}
        self._images.append({"id": number, "file_name": source.file_name} | size)
        return number

    def write_index(self, failed: Mapping[str, str], complete: bool) -> None:
        """Write the JSON.

        Args:
            failed: name of an image -> what was wrong with it.
            complete: whether no image is left to do.
        """
        content = {
            "info": self._metadata | {"failed": dict(failed), "complete": complete},
            "images": self._images,
            "annotations": self._annotations,
            "categories": self._categories,
        }
        write_json(self.folder / self.file_name, content)

    @property
    @abc.abstractmethod
    def _categories(self) -> list[dict[str, Any]]:
        """An entry for each class."""

    @property
    @abc.abstractmethod
    def _metadata(self) -> dict[str, Any]:
        """What the results come from."""
