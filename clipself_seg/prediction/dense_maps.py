"""Draws the dense features of several CLIPs in an image: clusters of K-Means, and a heat map for each word.

Shapes: E channels, h x w cells of the features, K words, H x W pixels of a tile.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from clipself_seg.checkpoints.download import is_address
from clipself_seg.choice import find_clip
from clipself_seg.clip import TextBank, VisionLanguageBackbone
from clipself_seg.clip.backbone import load_backbone
from clipself_seg.clip.model import whole_image_features
from clipself_seg.data.images import MAX_PIXELS, fit_size
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.device import chosen_device
from clipself_seg.errors import InputError, require_unique
from clipself_seg.evaluation.named import name_and_value
from clipself_seg.files import write_json
from clipself_seg.prediction.files import ImageFile
from clipself_seg.prediction.journal import Written
from clipself_seg.prediction.loop import Index
from clipself_seg.prediction.mini_worlds import WorldCheck
from clipself_seg.provenance import provenance
from clipself_seg.visualization import dense_maps as maps
from clipself_seg.visualization.sheets import save_png, sheet

TILE = 320  # longest side in pixels of each image of a sheet
SMALLEST_RANGE = 0.01  # of the cosines on a scale
SMALLEST_CLUSTER = 0.02  # fraction of the cells below which one is dropped


def load_models(
    name: str | None, models: Sequence[str], device: str = "cpu"
) -> dict[str, VisionLanguageBackbone]:
    """CLIPs by title.

    Args:
        name: open_clip's model name of all, ``ViT-Mini-8`` or an entry of BACKBONE_REGISTRY; None for that of each, see
            `find_clip`.
        models: weights as `load_clip` takes them, with a title before them as in "student=a.safetensors"
            or without, which makes them their own title.
        device: device of all, as MODEL.DEVICE.

    Raises:
        InputError: as `evaluation.named.name_and_value`, `find_clip` and `load_clip`.
    """
    # An address may have a query with "=".
    typed = [
        name_and_value(one, "model", "weights", is_address(one) or os.path.exists(one))
        for one in models
    ]
    weights = [(title or named, named) for title, named in typed]
    require_unique((title for title, _ in weights), "title", "--model")
    return {
        title: load_backbone(*((name, named) if name else find_clip(named))).to(
            chosen_device(device)
        )
        for title, named in weights
    }


class DenseMapResults:
    """NAME.png of each image, and dense_maps.json.

    A PNG has a row for each model: the image, K-Means of the dense features, and for each word a heat
    map of its cosine with them, whose range stands below it. Clusters that overlap most have one colour in
    all rows. All heat maps of a row have one scale, from its smallest cosine, or 0 if that is larger, to
    its largest.
    """

    def __init__(
        self,
        *,
        clips: Mapping[str, VisionLanguageBackbone],
        folder: str | Path,
        side: int,
        clusters: int,
        words: Vocabulary | None = None,
    ) -> None:
        """
        Args:
            clips: models by title.
            folder: folder for the results.
            side: longest side in pixels that images are resized to for the models.
            clusters: number of clusters of K-Means, from 1 to 255.
            words: classes of the heat maps, none for K-Means alone.

        Raises:
            InputError: the patch of a model does not divide `side`.
        """
        for clip in clips.values():
            clip.check_side(side)
        self.clips = clips
        self.folder = Path(folder)
        self.max_pixels = MAX_PIXELS
        self.provenance: Mapping[str, object] = provenance()
        self.side = side
        self.clusters = clusters
        self.vocabulary = words
        self.words = () if words is None else words.first_names
        self._check = WorldCheck([clip.name for clip in clips.values()])
        self._texts = {
            title: (
                TextBank(clip).embed(words).cpu().numpy()
                if words
                else np.zeros((0, clip.embed_dim), np.float32)
            )
            for title, clip in clips.items()
        }

    def predict(
        self, images: Sequence[np.ndarray], sources: Sequence[ImageFile] = ()
    ) -> list[tuple[Image.Image, str]]:
        """The sheet of maps of each image, and a warning, if its models do not know such images or words.

        Raises:
            InputError: the image has fewer cells than there are clusters.
        """
        classes = () if self.vocabulary is None else self.vocabulary.classes
        return [self._sheet(image, self._check.warning(classes, [image])) for image in images]

    def _sheet(self, image: np.ndarray, warning: str) -> tuple[Image.Image, str]:
        """The sheet of an image with a warning below it, and the warning."""
        # The tile's size follows that of the model's input, which is whole pixels and cells.
        fitted = fit_size(image.shape[1], image.shape[0], self.side)
        width, height = (self._pixels(side) for side in fitted)
        small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        rows, captions = [], []
        first: np.ndarray | None = None
        for title, clip in self.clips.items():
            features = whole_image_features(clip, image, self.side)
            labels = self._clusters(features)
            # The last cells may go beyond the image.
            rows_columns = [self._pixels(count * clip.patch_size) for count in labels.shape]
            large = maps.enlarge_labels(labels, *rows_columns)[:height, :width]
            first = large if first is None else first
            row = [small, maps.colour_segments(maps.match_labels(large, first))]
            notes = [title, f"{labels.max() + 1} of {self.clusters} clusters"]
            cosines = np.einsum("ke,ehw->khw", self._texts[title], features)
            low = max(0.0, cosines.min(initial=1))
            high = max(low + SMALLEST_RANGE, cosines.max(initial=0))
            for values in cosines:
                smooth = cv2.resize(values, rows_columns[::-1], interpolation=cv2.INTER_CUBIC)
                row.append(maps.heat_map(small, smooth[:height, :width], low, high))
                notes.append(f"{values.min():.2f} to {values.max():.2f}")
            rows.append(row)
            captions.append(notes)
        return sheet(rows, ["image", "K-Means", *self.words], captions, note=warning), warning

    def write(self, source: ImageFile, result: tuple[Image.Image, str]) -> Written:
        """Writes the sheet of an image.

        Raises:
            InputError: the sheet would replace the image.
        """
        drawn, warning = result
        path = self.folder / f"{source.name}.png"
        source.require_other(path)
        save_png(drawn, path)
        return Written([f"{source.name}.png"], {"warning": warning} if warning else {})

    def _clusters(self, features: np.ndarray) -> np.ndarray:
        """Clusters (h, w) without the small ones."""
        cells = features[0].size
        if cells < self.clusters:
            raise InputError(
                f"{self.clusters} clusters in {cells} cells: give fewer --clusters, or a larger --size"
            )
        labels = maps.kmeans(features, self.clusters)
        return maps.discard_small_clusters(labels, features, SMALLEST_CLUSTER)

    def _pixels(self, length: int) -> int:
        """Pixels on the tile of a length in pixels of the model's input."""
        return max(1, round(length * TILE / self.side))

    def write_index(self, index: Index) -> None:
        """Writes dense_maps.json."""
        content = {
            "models": {title: clip.weights_hash() for title, clip in self.clips.items()},
            "words": list(self.words),
            "size": self.side,
            "clusters": self.clusters,
            "provenance": index.provenance,
            "images": {s.name: {"file": str(s.path), **entry} for s, entry in index.images},
            **index.outcome(),
        }
        write_json(self.folder / "dense_maps.json", content)
