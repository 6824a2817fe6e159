"""Overlays, label maps and scores of semantic segmentation as files."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipself_seg.files import atomic_path, write_json
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.journal import Written
from clipself_seg.prediction.loop import Index
from clipself_seg.prediction.semantic import Predictor, Segmentation
from clipself_seg.provenance import provenance
from clipself_seg.visualization.class_colours import class_colours
from clipself_seg.visualization.overlays import save_png


class SemanticResults:
    """overlays/NAME.png, labels/NAME.png (8 or 16 bits), if asked for scores/NAME.npz, classes.json.

    Scores are "scores" float32 (N, H, W), highest where the labels say, and "names"; the JSON has the
    meaning of labels, their fractions of every image, failures, and the provenance.
    """

    def __init__(self, *, predictor: Predictor, folder: str | Path, scores: bool = False) -> None:
        """
        Args:
            predictor: predictor with a vocabulary.
            folder: folder below which results are written.
            scores: whether to write scores.
        """
        self.predictor = predictor
        self.folder = Path(folder)
        self.max_pixels = predictor.mapper.max_pixels
        self.scores = scores
        self._colours = class_colours(predictor.names)

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """Where the results come from."""
        return provenance(weights_hash=self.predictor.model.weights_hash())

    def predict(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        """The segmentation of each image, with scores if they are written."""
        return self.predictor(list(images), scores=self.scores, batch_size=len(images))

    def write(self, source: ImageFile, image: np.ndarray, result: Segmentation) -> Written:
        """Write the label map of an image, its overlay and, if asked for, its scores."""
        name = source.name
        files = [f"labels/{name}.png", f"overlays/{name}.png"]
        drawn = Image.fromarray(result.overlay())
        save_png(Image.fromarray(result.labels), self.folder / "labels" / f"{name}.png")
        save_png(drawn, self.folder / "overlays" / f"{name}.png")
        if result.scores is not None:
            files.append(f"scores/{name}.npz")
            with atomic_path(self.folder / "scores" / f"{name}.npz") as temporary:
                with open(temporary, "wb") as file:
                    # In half precision close scores would be equal, and some labels not theirs.
                    np.savez_compressed(file, scores=result.scores, names=np.array(result.names))
        return Written(files, {"shares": result.fractions()})

    def write_index(self, index: Index) -> None:
        """Write classes.json."""
        # It keeps its keys "shares" and "pictures", which readers of earlier files know.
        listed = {
            "provenance": dict(index.provenance),
            "pictures": {
                source.name: {"file": str(source.path), **entry} for source, entry in index.images
            },
            "failed": dict(index.failed),
            "complete": index.complete,
        }
        write_json(self.folder / "classes.json", self._metadata | listed)

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
