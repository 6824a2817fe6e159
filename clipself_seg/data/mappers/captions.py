"""Mapper for image-level supervision: record -> the augmented image and one of its captions.

Nothing is normalised here: images are passed on as bytes, and the model normalises them.
Legend: S side of the square.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from detectron2.config import CfgNode, configurable
from PIL import Image

from clipself_seg.data.images import MAX_PIXELS, letterbox_image, read_image
from clipself_seg.data.mappers.samples import Sample, chw
from clipself_seg.data.records import Record

Resize = Literal["warp", "letterbox"]

# CLIP's training transform, as open_clip has it for the run of the paper's Table 1c, #5*.
AREAS = (0.9, 1.0)  # fractions of the image
ASPECTS = (3 / 4, 4 / 3)  # width by height
ATTEMPTS = 10


class CaptionMapper:
    """Mapper from a record and a draw number to a random crop of the image and one of its captions.

    The crop has 90 to 100 % of the image's area and an aspect of 3:4 to 4:3, and is never flipped. A
    sample depends on the record, the seed and the draw number only, as `distill.DistillMapper` has it.
    """

    @configurable
    def __init__(
        self, *, student_size: int, seed: int, resize: Resize = "warp", max_pixels: int = MAX_PIXELS
    ) -> None:
        """
        Args:
            student_size: S, side of the student's input in pixels.
            seed: seed of the run.
            resize: "warp" stretches the crop to the square, "letterbox" pads it as in evaluation.
            max_pixels: largest number of pixels of an image that is decoded.
        """
        self.student_size = student_size
        self.seed = seed
        self.resize = resize
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode, *, seed: int) -> dict[str, Any]:
        """Read INPUT; the seed comes from the caller."""
        return {
            "student_size": cfg.INPUT.REGIONS.STUDENT_SIZE,
            "seed": seed,
            "resize": cfg.INPUT.CAPTIONS.RESIZE,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    def __call__(self, record: Record, draw: int) -> Sample:
        """Make the sample of one draw.

        Args:
            record: record of `captions.caption_records`.
            draw: number of this draw in the run, at least 0.

        Returns:
            "file_name", "image_id", "image" uint8 (3, S, S), "caption" text.

        Raises:
            InputError: the image cannot be read.
        """
        image = read_image(record["file_name"], max_pixels=self.max_pixels)
        rng = np.random.default_rng((self.seed, draw))
        captions = record["captions"]
        caption = captions[rng.integers(len(captions))]
        x0, y0, x1, y1 = random_crop(rng, image.shape[1], image.shape[0])
        return {
            "file_name": record["file_name"],
            "image_id": record["image_id"],
            "image": chw(self._square(image[y0:y1, x0:x1])),
            "caption": caption,
        }

    def _square(self, crop: np.ndarray) -> np.ndarray:
        """Crop (h, w, 3) at the student's size, (S, S, 3) uint8."""
        if self.resize == "letterbox":
            return letterbox_image(crop, self.student_size)
        size = (self.student_size, self.student_size)
        return np.asarray(Image.fromarray(crop).resize(size, Image.Resampling.BICUBIC))


def random_crop(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """Corners x0, y0, x1, y1 in pixels of a crop by the rule of torchvision's `RandomResizedCrop`.

    Area and logarithm of the aspect are drawn evenly, anew while the crop does not fit. After
    `ATTEMPTS` draws it is the largest crop in the middle whose aspect is allowed.

    Args:
        rng: generator that decides the crop.
        width: width of the image in pixels.
        height: height of the image in pixels.
    """
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*AREAS)
        narrowest, widest = map(math.log, ASPECTS)
        aspect = math.exp(rng.uniform(narrowest, widest))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = (int(rng.integers(room + 1)) for room in (width - w, height - h))
            return x, y, x + w, y + h
    narrow, wide = ASPECTS
    w = min(width, max(1, round(height * wide)))
    h = min(height, max(1, round(width / narrow)))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h
