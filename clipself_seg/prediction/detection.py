"""Detection in images with your own class names.

    model = clipself_seg.load("fvit-eva02-vitb16-lvis-patches")
    result = model("photo.jpg", "dog|puppy, cat")
    result.boxes, result.scores, result.labels

Shapes: H, W pixels of the image as it is meant to be seen, K classes, n detections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from torch import nn

from clipself_seg.data.datasets.records import find_dataset
from clipself_seg.data.datasets.table import DetectionSet
from clipself_seg.data.mappers.detection import DetectionTestMapper
from clipself_seg.data.vocabulary import Vocabulary, Words
from clipself_seg.errors import InputError
from clipself_seg.models import FViT
from clipself_seg.prediction.predictor import GivenImage, GivenImages, ImagePredictor
from clipself_seg.prediction.regions import Region, RegionResult, Regions


@dataclasses.dataclass(frozen=True, eq=False)  # arrays are neither equal nor not
class Detections(RegionResult):
    """Detections in one image, the best first.

    Attributes:
        boxes: (n, 4) float32, XYXY in pixels of the image.
        scores: (n,) float32 in [0, 1]; those of seen and of unseen classes are fused with exponents of
            their own.
        labels: (n,) int64, positions in the vocabulary.
        masks: (n, H, W) bool, or None for a model without masks.
        seen: (K,) bool, which of the classes training has shown.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    _: dataclasses.KW_ONLY
    seen: np.ndarray

    def streamed_regions(self) -> Regions:
        """The detections in the form that all results have in common."""
        return Regions(self.boxes, self.labels, self.scores, self.masks)

    def numbered(self) -> Iterator[Region]:
        """The detections, counted from 1, with masks or else with boxes."""
        for index, label in enumerate(self.labels.tolist()):
            mask = None if self.masks is None else self.masks[index]
            yield Region(index + 1, label, mask, instance=True, box=self.boxes[index])

    def overlay(self, legend: bool = True, enlarge: bool = True) -> Image.Image:
        """The image with boxes, names, scores, and masks if there are any.

        Args:
            legend: draw a legend below.
            enlarge: enlarge a small image, so that there is room for names.
        """
        from clipself_seg.visualization.overlays import box_overlay  # 0.3 s of matplotlib

        names = [self.names[label] for label in self.labels]
        seen = self.seen[self.labels]
        return box_overlay(
            self.image, self.boxes, self.scores, names, seen, self.masks, legend, enlarge
        )

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Entries of COCO's results format: "category_id", "bbox" (x, y, width, height in pixels), "score", and
        "segmentation" (run-length encoding) where there are masks.

        Args:
            image_id: id of the image in its data set; every image needs another.
        """
        return self.coco_results(image_id)


class DetectionPredictor(ImagePredictor[Detections]):
    """A model with a vocabulary; calling it with an image gives `Detections`.

    Attributes:
        trained: the training vocabulary, whose classes are seen; None: the one that is stored in the model's
            checkpoint.
    """

    task = "detection"
    model: FViT
    mapper: DetectionTestMapper
    seen: np.ndarray = np.zeros(0, bool)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, model: nn.Module | None = None) -> dict[str, Any]:
        """Reads what `FViT` and `DetectionTestMapper` do, TEST.TRAIN_VOCABULARY, and, of weights that
        do not know their classes, as the released ones, DATASETS.TRAIN.

        Raises:
            InputError: weights that do not fit, or no training vocabulary.
        """
        common = super().from_config(cfg, model=model)
        trained = _training_vocabulary(cfg, common["model"])
        return common | {"mapper": DetectionTestMapper(cfg), "trained": trained}

    @property
    def has_masks(self) -> bool:
        return self.model.has_masks

    def set_vocabulary(self, words: Words) -> None:
        """Say which classes to look for, until the next call.

        Every synonym of your own class names counts (the text embeddings are averaged); a built-in
        vocabulary by the first name of each class, as in evaluation.

        Args:
            words: "dog|puppy, cat", a file or a built-in name, a list; or a
                vocabulary.

        Raises:
            InputError: no words, an empty one, one word twice, or one that CLIP cannot read whole.
        """
        words = Vocabulary.of(words)
        seen = None if self.trained is None else words.seen_in(self.trained)
        built_in = words.name in Vocabulary.available()
        self.model.set_vocabulary(words, seen, all_synonyms=not built_in)
        self.seen = self.model.seen().cpu().numpy()
        self._set_classes(words)

    @overload
    def predict(
        self, image: GivenImage, words: Words | None = None, *, batch_size: int = 1
    ) -> Detections: ...

    @overload
    def predict(
        self, image: GivenImages, words: Words | None = None, *, batch_size: int = 1
    ) -> list[Detections]: ...

    def predict(
        self, image: GivenImage | GivenImages, words: Words | None = None, *, batch_size: int = 1
    ) -> Detections | list[Detections]:
        """Detect objects: those with a score above MODEL.FVIT.SCORE_THRESHOLD, and of them the best
        TEST.DETECTIONS_PER_IMAGE.

        Args:
            image: array (H, W, 3) uint8 RGB, PIL image, path, or http(s) address, see `rgb_image`; or a list or
                tuple of them.
            words: set the vocabulary as `set_vocabulary(words)` does; None for the one that is set.
            batch_size: images of a list that one pass of the tower takes. With 1 each result is that of the
                image alone; more may be faster on a GPU, and round differently.

        Raises:
            InputError: an image cannot be read, or is not of that form; of a list its index is named.
        """
        return self._predict_in_batches(image, words, batch_size, self.predict_batch)

    __call__ = predict

    def predict_batch(self, images: Sequence[np.ndarray]) -> list[Detections]:
        self.warning_of(images)
        samples = [self.mapper.resized(image) for image in images]
        looks = self._look(images, samples)
        outputs = self.model(samples)
        results = []
        for image, output, look in zip(images, outputs, looks, strict=True):
            instances = output["instances"].to("cpu")
            if look.nothing:
                instances = instances[:0]
            detections = Detections(
                boxes=instances.pred_boxes.tensor.float().numpy(),
                scores=instances.scores.float().numpy(),
                labels=instances.pred_classes.numpy(),
                masks=instances.pred_masks.numpy() if self.has_masks else None,
                names=self.names,
                category_ids=self.category_ids,
                seen=self.seen,
                presence=look.presence,
                absent=look.absent,
                image=image,
            )
            results.append(detections)
        return results


def _training_vocabulary(cfg: CfgNode, model: FViT) -> Vocabulary | None:
    """The vocabulary whose classes are seen, or None where the model's weights name them."""
    if cfg.TEST.TRAIN_VOCABULARY:
        return Vocabulary.load(cfg.TEST.TRAIN_VOCABULARY)
    if model.trained_names:
        return None
    if not cfg.DATASETS.TRAIN:
        raise InputError(
            "neither the weights nor DATASETS.TRAIN say which classes are seen: name the training "
            "vocabulary, such as ov_coco_65 (TEST.TRAIN_VOCABULARY)"
        )
    return Vocabulary.load(find_dataset(cfg.DATASETS.TRAIN[0], DetectionSet).vocabulary)
