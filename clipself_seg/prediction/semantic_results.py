"""Writes overlays, label maps and scores of semantic segmentation as files."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipself_seg.files import atomic_path, write_json
from clipself_seg.prediction.files import ImageFile, image_ids
from clipself_seg.prediction.formats import Formats, Region, require_palette, save_palette
from clipself_seg.prediction.journal import Written
from clipself_seg.prediction.loop import Index
from clipself_seg.prediction.semantic import Predictor, Segmentation
from clipself_seg.provenance import provenance
from clipself_seg.visualization.class_colours import class_colours
from clipself_seg.visualization.overlays import save_png

logger = logging.getLogger(__name__)


class SemanticResults:
    """overlays/NAME.png, labels/NAME.png (8 or 16 bits), if asked for scores/NAME.npz, classes.json.

    Other formats are palette/NAME.png, and "masks", "coco" and "yolo" of `Formats`, where every class that is there
    is a region, but for the background; ids of images in coco.json are those of `image_ids`. Scores are "scores"
    float32 (N, H, W), highest where the labels say, and "names"; the JSON has the meaning of labels, their fractions
    of every image, failures, and the provenance.
    """

    def __init__(
        self,
        *,
        predictor: Predictor,
        folder: str | Path,
        images: Sequence[ImageFile] = (),
        scores: bool = False,
        save: Sequence[str] = ("overlays", "labels"),
    ) -> None:
        """
        Args:
            predictor: predictor with a vocabulary.
            folder: folder below which results are written.
            images: all whose results will be written.
            scores: whether to write scores.
            save: formats to write: "overlays", "labels", "palette", "masks", "coco", "yolo".

        Raises:
            InputError: more classes than a palette has colours.
        """
        require_palette(save, len(predictor.names))
        self.predictor = predictor
        self.folder = Path(folder)
        self.max_pixels = predictor.mapper.max_pixels
        self.scores = scores
        self.save = tuple(save)
        self._colours = class_colours(predictor.names)
        # A background that is none of the classes, the last of the names, has no id.
        pairs = zip(predictor.category_ids, predictor.names)
        categories = [{"id": number, "name": name} for number, name in pairs]
        self._formats = Formats(self.folder, save, categories)
        self._ids = dict(zip((image.name for image in images), image_ids(images)))

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """Where the results come from."""
        return provenance(weights_hash=self.predictor.model.weights_hash())

    def predict(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        """The segmentation of each image, with scores if they are written."""
        return self.predictor(list(images), scores=self.scores, batch_size=len(images))

    def write(self, source: ImageFile, image: np.ndarray, result: Segmentation) -> Written:
        """Write what was asked for of an image."""
        name = source.name
        files = [f"{kind}/{name}.png" for kind in ("labels", "overlays") if kind in self.save]
        if "labels" in self.save:
            save_png(Image.fromarray(result.labels), self.folder / "labels" / f"{name}.png")
        if "overlays" in self.save:
            drawn = Image.fromarray(result.overlay())
            save_png(drawn, self.folder / "overlays" / f"{name}.png")
        if "palette" in self.save:
            files.append(f"palette/{name}.png")
            save_palette(self.folder / files[-1], result.labels, self._colours)
        if result.scores is not None:
            files.append(f"scores/{name}.npz")
            with atomic_path(self.folder / "scores" / f"{name}.npz") as temporary:
                with open(temporary, "wb") as file:
                    # In half precision close scores would be equal, and some labels not theirs.
                    np.savez_compressed(file, scores=result.scores, names=np.array(result.names))
        more, regions = self._formats.write(name, self._regions(result.labels))
        size = {"size": list(result.labels.shape)} if regions else {}
        return Written([*files, *more], {"shares": result.fractions(), **size, **regions})

    def _regions(self, labels: np.ndarray) -> Iterator[Region]:
        for label in np.unique(labels).tolist():
            if label != self.predictor.background:
                yield Region(label, label, labels == label, instance=False)

    def write_index(self, index: Index) -> None:
        """Write classes.json, and what other formats have in common of all images."""
        self._formats.write_index({"provenance": dict(index.provenance)}, index.images, self._ids)
        # It keeps its keys "shares" and "pictures", which readers of earlier files know.
        listed = {
            "provenance": dict(index.provenance),
            "pictures": {
                source.name: {"file": str(source.path), "shares": entry["shares"]}
                for source, entry in index.images
            },
            **({"videos": index.listed_videos()} if index.videos else {}),
            "failed": dict(index.failed),
            "complete": index.complete,
        }
        write_json(self.folder / "classes.json", self._metadata | listed)
        if index.complete:
            self._warn_of_background_alone([entry["shares"] for _, entry in index.images])

    def _warn_of_background_alone(self, fractions: Sequence[Mapping[str, float]]) -> None:
        number, threshold = self.predictor.background, self.predictor.threshold
        if number is None or not threshold or not fractions:
            return
        background = self.predictor.names[number]
        if all(list(of) == [background] for of in fractions):
            logger.warning(
                "every pixel is %s: no class reaches a score of %g; --threshold lowers it, --scores writes the scores",
                background,
                threshold,
            )

    @functools.cached_property
    def _metadata(self) -> dict[str, Any]:
        names = self.predictor.names
        model = self.predictor.model
        return {
            "names": {str(label): name for label, name in enumerate(names)},
            "colours": {str(n): f"#{bytes(rgb).hex()}" for n, rgb in enumerate(self._colours)},
            "prompted": [list(synonyms) for synonyms in model.names],
            "background": self.predictor.background,
            "threshold": self.predictor.threshold,
        }
