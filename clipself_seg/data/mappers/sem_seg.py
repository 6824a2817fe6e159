"""Mappers for semantic segmentation: record -> the image as bytes and, in training, its label map.

Images are augmented by Detectron2. Its augmentations draw from the generators of `random` and
`numpy.random`, which are seeded for each sample and restored afterwards, so that a sample depends on
the seed and the draw number alone. S is the side of a training crop in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from torch import Tensor
from torch.nn import functional as F

from clipself_seg.config.relations import IMAGES, require_valid
from clipself_seg.data.annotations import Record
from clipself_seg.data.images import MAX_PIXELS, read_image
from clipself_seg.data.mappers import samples
from clipself_seg.data.masks import read_labels_of


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's augmentation, but with no side rounded to 0, as that of a thin image would be."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Transform that resizes this image."""
        return at_least_a_pixel(super().get_transform(image))


def at_least_a_pixel(transform: T.Transform) -> T.Transform:
    """The same transform, with sides of at least one pixel if it resizes."""
    if not isinstance(transform, T.ResizeTransform):
        return transform
    sides = max(1, transform.new_h), max(1, transform.new_w)
    return T.ResizeTransform(transform.h, transform.w, *sides, transform.interp)


class SemSegTrainMapper(samples.Configurable):
    """Mapper from a record and a draw number to an augmented square crop with its labels.

    The image is resized so that its shorter side has one of `min_sizes`, cropped, changed in colour,
    flipped in half of the draws, and padded at the right and bottom to S.

    Attributes:
        seed: seed of the run.
        num_classes: number of classes; labels are 0 ... num_classes - 1.
        ignore_label: value of pixels without ground truth, which padding gets too.
        min_sizes: lengths of the shorter side in pixels.
        max_size: largest length of the longer side in pixels, which takes precedence.
        sampling: "choice" draws one of `min_sizes`, "range" a length between the two of them.
        crop: type and size (height, width) of Detectron2's random crop; None does not crop.
        change_colours: brightness, contrast, saturation and hue change, as in SSD.
        pad_to: S; a larger image is cut. -1 leaves the size as it is.
        max_pixels: largest number of pixels of an image that is decoded.
    """

    seed: int
    num_classes: int
    ignore_label: int
    min_sizes: Sequence[int]
    max_size: int
    sampling: str = "choice"
    crop: tuple[str, Sequence[float]] | None = None
    change_colours: bool = False
    pad_to: int = -1
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        self._augmentations: list[T.Augmentation] = [
            ResizeShortestEdge(list(self.min_sizes), self.max_size, self.sampling)
        ]
        if self.crop is not None:
            self._augmentations.append(T.RandomCrop(*self.crop))
        if self.change_colours:
            self._augmentations.append(ColorAugSSDTransform(img_format="RGB"))
        self._augmentations.append(T.RandomFlip())

    @classmethod
    def from_config(
        cls, cfg: CfgNode, *, seed: int, num_classes: int, ignore_label: int
    ) -> dict[str, Any]:
        """Reads INPUT; the seed and the meaning of the labels come from the caller."""
        require_valid(cfg, IMAGES, all_keys=True)
        sizes, crop = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP
        return dict(
            seed=seed,
            num_classes=num_classes,
            ignore_label=ignore_label,
            min_sizes=(sizes,) if isinstance(sizes, int) else tuple(sizes),
            max_size=cfg.INPUT.MAX_SIZE_TRAIN,
            sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
            crop=(crop.TYPE, tuple(crop.SIZE)) if crop.ENABLED else None,
            change_colours=cfg.INPUT.COLOR_AUG_SSD,
            pad_to=cfg.INPUT.SIZE_DIVISIBILITY,
            max_pixels=cfg.INPUT.MAX_PIXELS,
        )

    def __call__(self, record: Record, draw: int) -> samples.Sample:
        """Makes the sample of one draw.

        Args:
            record: record of `datasets.records.sem_seg_records`.
            draw: number of this draw in the run, at least 0.

        Returns:
            "file_name", "image_id", "image" uint8 (3, S, S) RGB, "sem_seg" (S, S), uint8 where the
            labels fit and int32 elsewhere.

        Raises:
            InputError: image or label map cannot be read or do not agree.
        """
        image = read_image(record["file_name"], samples.stated_size(record), self.max_pixels)
        labels = read_labels_of(
            record,
            num_classes=self.num_classes,
            ignore_label=self.ignore_label,
            size=(image.shape[1], image.shape[0]),
        )
        # Doubles, as in MaskFormer's mapper, which CAT-Seg's is: Detectron2 resizes them with torch, whose nearest
        # neighbour is the pixel at floor(i * scale), and bytes with PIL, whose is the one at floor((i + 0.5) * scale).
        augmented = T.AugInput(image, sem_seg=labels.astype(np.float64))
        with samples.seeded(self.seed, draw):
            T.AugmentationList(self._augmentations)(augmented)
        narrow = self.num_classes <= 256 and 0 <= self.ignore_label <= 255
        sem_seg = torch.from_numpy(augmented.sem_seg.astype(np.uint8 if narrow else np.int32))
        sample = samples.image_sample(record, augmented.image)
        padded = self._pad(sample["image"], samples.PADDING)
        return sample | {"image": padded, "sem_seg": self._pad(sem_seg, self.ignore_label)}

    def _pad(self, pixels: Tensor, value: int) -> Tensor:
        """Pads or cuts (..., H, W) to (..., S, S); a negative padding cuts."""
        if self.pad_to < 0:
            return pixels
        height, width = pixels.shape[-2:]
        missing = (0, self.pad_to - width, 0, self.pad_to - height)
        return F.pad(pixels, missing, value=value).contiguous()


class SemSegTestMapper(samples.Configurable):
    """Mapper from a record to the image at the size of evaluation.

    Evaluators read ground truth.

    Attributes:
        min_size: length of the shorter side in pixels; 0 keeps the image's size.
        max_size: largest length of the longer side in pixels, which takes precedence.
        max_pixels: largest number of pixels of an image that is decoded.
    """

    min_size: int
    max_size: int
    max_pixels: int = MAX_PIXELS

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST and MAX_PIXELS."""
        require_valid(cfg, IMAGES, all_keys=True)
        return dict(
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            max_pixels=cfg.INPUT.MAX_PIXELS,
        )

    def size_rule(self) -> str:
        """The size of images in words, for the protocol of an evaluation."""
        if not self.min_size:
            return "own size"
        return f"short side {self.min_size} px, long side at most {self.max_size} px"

    def __call__(self, record: Record) -> samples.Sample:
        """Makes the sample of one image.

        Args:
            record: record with "file_name" and, where they are known, "height" and "width".

        Returns:
            The record's entries, "image" uint8 (3, h, w) RGB, and "height" and "width" of the
            image before resizing, in pixels.

        Raises:
            InputError: the image cannot be read, or has another size than stated.
        """
        image = read_image(record["file_name"], samples.stated_size(record), self.max_pixels)
        return record | self.resized(image)

    def resized(self, image: np.ndarray) -> samples.Sample:
        """The sample of an image (H, W, 3) uint8 RGB without a record: what says which one it is, is missing."""
        resize = ResizeShortestEdge(self.min_size, self.max_size, "choice")
        resized = resize.get_transform(image).apply_image(image)
        return {"image": samples.chw(resized), "height": image.shape[0], "width": image.shape[1]}
