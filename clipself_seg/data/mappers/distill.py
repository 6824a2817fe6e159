"""Mappers of distillation and what belongs to it: record -> the image, some of its regions, a crop of each, a text.

`DistillMapper` draws regions of a grid or of proposals, `RegionTextMapper` has boxes with nouns, and `CaptionMapper`
the image alone with a caption.

Nothing is normalised here: images are passed on as bytes, and the model normalises them.
Legend: S side of the padded square, S0 side of a teacher crop, n regions. "Relative" boxes are XYXY in
[0, 1] of the padded square.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image

from clipself_seg.data import images
from clipself_seg.data.annotations import MIN_SIDE, Record
from clipself_seg.data.mappers import samples
from clipself_seg.data.regions import (
    GridRule,
    Regions,
    enlarge_boxes,
    sample_grid_regions,
    sample_proposal_regions,
)
from clipself_seg.errors import InputError

# CLIP's training transform, as open_clip has it for the run of the paper's Table 1c, #5*: what a captioned image is
# cropped by.
AREAS = (0.9, 1.0)  # fractions of the image
ASPECTS = (3 / 4, 4 / 3)  # width by height
ATTEMPTS = 10


class StudentMapper(samples.Configurable):
    """Base of the mappers of one image for the student.

    Attributes:
        student_size: S, side of the student's input in pixels.
        seed: seed of the run.
        max_pixels: largest number of pixels of an image that is decoded.
    """

    student_size: int
    seed: int
    max_pixels: int = images.MAX_PIXELS

    @staticmethod
    def read_common(cfg: CfgNode, seed: int) -> dict[str, Any]:
        """The attributes above, of INPUT and the seed."""
        size = cfg.INPUT.REGIONS.STUDENT_SIZE
        return dict(student_size=size, seed=seed, max_pixels=cfg.INPUT.MAX_PIXELS)


class DistillMapper(StudentMapper):
    """Mapper from a record and a draw number to the image, its regions, and a crop of each.

    The sample depends on the record, the seed and the draw number only, so it is the same
    whichever process makes it, and a resumed run reads the same samples as an uninterrupted one.

    Attributes:
        source: "grid" draws cells, "proposals" draws from the record's "proposals", whose "proposal_areas" count.
        crop_size: S0, side of the teacher's crops in pixels.
        max_split: largest number of rows or columns of a grid.
        grid_rule: rule for the pairs of rows and columns, see `grid_pairs`.
        max_regions: most regions of an image, 0 for no limit.
        crop_scale: enlargement of the teacher's crops.
    """

    source: Literal["grid", "proposals"]
    crop_size: int
    max_split: int = 6
    grid_rule: GridRule = "aspect"
    max_regions: int = 20
    crop_scale: float = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode, *, crop_size: int, seed: int) -> dict[str, Any]:
        """Reads INPUT.REGIONS and INPUT.MAX_PIXELS; the teacher's input side and the seed come from the caller."""
        regions = cfg.INPUT.REGIONS
        return cls.read_common(cfg, seed) | dict(
            source=regions.SOURCE,
            crop_size=crop_size,
            max_split=regions.MAX_SPLIT,
            grid_rule=regions.GRID_PAIRS,
            max_regions=regions.MAX_REGIONS,
            crop_scale=regions.CROP_SCALE,
        )

    def __call__(self, record: Record, draw: int) -> samples.Sample:
        """Makes the sample of one draw.

        Args:
            record: record of `datasets.records.distillation_records`, or of a shard, with "content", the
                bytes of the file.
            draw: number of this draw in the run, at least 0.

        Returns:
            "file_name", "image_id", "image" uint8 (3, S, S), "boxes" float32 (n, 4) relative,
            "crops" uint8 (n, 3, S0, S0), n >= 1, and "whole" float32 (1, 4) relative, the box of the image.

        Raises:
            InputError: the image cannot be read, or is a tiny one of a shard; the proposals were made
                for another image size.
        """
        image = self._image(record)
        rng = np.random.default_rng((self.seed, draw))
        height, width = image.shape[:2]
        regions = self._sample_regions(rng, record, width, height)
        return samples.image_sample(record, images.letterbox_image(image, self.student_size)) | {
            "boxes": samples.box_tensor(regions.boxes, width, height),
            "crops": samples.chw(images.letterbox_crops(image, regions.crops, self.crop_size)),
            "whole": samples.box_tensor(np.array([[0, 0, width, height]]), width, height),
        }

    def _image(self, record: Record) -> np.ndarray:
        """The image (H, W, 3) of a file, or of a shard, where no list leaves out tiny ones."""
        if "content" not in record:
            # Any size fits a grid, proposals only the one that they were made for.
            size = samples.stated_size(record) if self.source == "proposals" else None
            return images.read_image(record["file_name"], size, self.max_pixels)
        image = images.decode_image(record["content"], record["file_name"], self.max_pixels)
        height, width = image.shape[:2]
        if min(height, width) < MIN_SIDE:
            raise InputError(
                f"image {record['file_name']} is {width} x {height}, with a side below {MIN_SIDE} pixels"
            )
        return image

    def _sample_regions(
        self, rng: np.random.Generator, record: Record, width: int, height: int
    ) -> Regions:
        how: dict[str, Any] = dict(
            width=width, height=height, max_regions=self.max_regions, crop_scale=self.crop_scale
        )
        if self.source == "grid":
            return sample_grid_regions(rng, max_split=self.max_split, rule=self.grid_rule, **how)
        areas = record.get("proposal_areas")
        return sample_proposal_regions(rng, record["proposals"], areas=areas, **how)


class RegionTextMapper(StudentMapper):
    """Mapper from a record and a draw number to the image, boxes and labels.

    Boxes are the first of the record, in its order and of any size, as in the official code.

    Attributes:
        max_regions: most boxes of an image, 0 for no limit.
        crop_size: S0; None makes neither crops nor captions, which RegionCLIP's losses read.
        crop_scale: enlargement of the crops.
    """

    max_regions: int = 20
    crop_size: int | None = None
    crop_scale: float = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode, *, crop_size: int, seed: int) -> dict[str, Any]:
        """Reads INPUT.REGIONS, INPUT.MAX_PIXELS and MODEL.CLIPSELF.TEXTS.LOSS."""
        regions = cfg.INPUT.REGIONS
        return cls.read_common(cfg, seed) | dict(
            max_regions=regions.MAX_REGIONS,
            crop_size=crop_size if cfg.MODEL.CLIPSELF.TEXTS.LOSS == "regionclip" else None,
            crop_scale=regions.CROP_SCALE,
        )

    def __call__(self, record: Record, draw: int) -> samples.Sample:
        """Makes the sample of one draw.

        Args:
            record: record of `data.annotations.read_region_text`.
            draw: number of this draw in the run, which decides the caption.

        Returns:
            "file_name", "image_id", "image" uint8 (3, S, S), "boxes" float32 (n, 4) XYXY in [0, 1] of the
            padded square, "labels" int64 (n,), n >= 1; for RegionCLIP's losses also "crops" uint8
            (n, 3, S0, S0), "caption", one of the image's, and "whole" (1, 4), the box of the whole image.

        Raises:
            InputError: the image cannot be read or has another size than its boxes were made for; it has no
                caption, and RegionCLIP's losses need one.
        """
        image = images.read_image(record["file_name"], samples.stated_size(record), self.max_pixels)
        height, width = image.shape[:2]
        boxes = record["proposals"][: self.max_regions or None]
        sample = samples.image_sample(record, images.letterbox_image(image, self.student_size)) | {
            "boxes": samples.box_tensor(boxes, width, height),
            "labels": torch.tensor(record["labels"][: self.max_regions or None]),
        }
        if self.crop_size is None:
            return sample
        crops = enlarge_boxes(boxes, self.crop_scale, width, height)
        return sample | {
            "crops": samples.chw(images.letterbox_crops(image, crops, self.crop_size)),
            "caption": self._caption(record, draw),
            "whole": samples.box_tensor(np.array([[0, 0, width, height]]), width, height),
        }

    def _caption(self, record: Record, draw: int) -> str:
        captions = record["captions"]
        if not captions:
            raise InputError(
                f"image {record['image_id']} of DATASETS.TRAIN has no caption, which "
                "MODEL.CLIPSELF.TEXTS.LOSS regionclip compares it with: write the file with "
                "python tools/precompute.py region-text --captions, or take another loss"
            )
        return captions[np.random.default_rng((self.seed, draw)).integers(len(captions))]


class CaptionMapper(StudentMapper):
    """Mapper from a record and a draw number to a random crop of the image and one of its captions.

    The crop has 90 to 100 % of the image's area and an aspect of 3:4 to 4:3, and is never flipped. A
    sample depends on the record, the seed and the draw number only, as `DistillMapper` has it.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, *, seed: int) -> dict[str, Any]:
        """Reads INPUT; the seed comes from the caller."""
        return cls.read_common(cfg, seed)

    def __call__(self, record: Record, draw: int) -> samples.Sample:
        """Makes the sample of one draw.

        Args:
            record: record of `annotations.caption_records`.
            draw: number of this draw in the run, at least 0.

        Returns:
            "file_name", "image_id", "image" uint8 (3, S, S), "caption" text.

        Raises:
            InputError: the image cannot be read.
        """
        image = images.read_image(record["file_name"], max_pixels=self.max_pixels)
        rng = np.random.default_rng((self.seed, draw))
        captions = record["captions"]
        caption = captions[rng.integers(len(captions))]
        x0, y0, x1, y1 = random_crop(rng, image.shape[1], image.shape[0])
        size = (self.student_size, self.student_size)
        crop = Image.fromarray(image[y0:y1, x0:x1]).resize(size, Image.Resampling.BICUBIC)
        return samples.image_sample(record, np.asarray(crop)) | {"caption": caption}


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
