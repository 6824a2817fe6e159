"""Mapper for region-text training: record -> the image, the first of its boxes, and their nouns.

Legend: S side of the padded square, S0 side of a teacher crop, n boxes. Nothing is normalised here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable

from clipself_seg.data.images import MAX_PIXELS, letterbox_crops, letterbox_image, read_image
from clipself_seg.data.mappers.samples import Sample, box_tensor, chw, stated_size
from clipself_seg.data.records import Record
from clipself_seg.data.regions import enlarge_boxes
from clipself_seg.errors import InputError


class RegionTextMapper:
    """Mapper from a record and a draw number to the image, boxes and labels.

    Boxes are the first of the record, in its order and of any size, as in the official code.
    """

    @configurable
    def __init__(
        self,
        *,
        student_size: int,
        seed: int,
        max_regions: int = 20,
        crop_size: int | None = None,
        crop_scale: float = 1.0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """
        Args:
            student_size: S, side of the student's input in pixels.
            seed: seed of the run.
            max_regions: most boxes of an image, 0 for no limit.
            crop_size: S0; None makes neither crops nor captions, which RegionCLIP's losses read.
            crop_scale: enlargement of the crops.
            max_pixels: largest number of pixels of an image that is decoded.
        """
        self.student_size = student_size
        self.seed = seed
        self.max_regions = max_regions
        self.crop_size = crop_size
        self.crop_scale = crop_scale
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode, *, crop_size: int, seed: int) -> dict[str, Any]:
        """Read INPUT.REGIONS, INPUT.MAX_PIXELS and MODEL.CLIPSELF.TEXTS.LOSS."""
        regions = cfg.INPUT.REGIONS
        return {
            "student_size": regions.STUDENT_SIZE,
            "seed": seed,
            "max_regions": regions.MAX_REGIONS,
            "crop_size": crop_size if cfg.MODEL.CLIPSELF.TEXTS.LOSS == "regionclip" else None,
            "crop_scale": regions.CROP_SCALE,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    def __call__(self, record: Record, draw: int) -> Sample:
        """Make the sample of one draw.

        Args:
            record: record of `data.region_text.read_region_text`.
            draw: number of this draw in the run, which decides the caption.

        Returns:
            "file_name", "image_id", "image" uint8 (3, S, S), "boxes" float32 (n, 4) XYXY in [0, 1] of the
            padded square, "labels" int64 (n,), n >= 1; for RegionCLIP's losses also "crops" uint8
            (n, 3, S0, S0), "caption", one of the image's, and "whole" (1, 4), the box of the whole image.

        Raises:
            InputError: the image cannot be read or has another size than its boxes were made for; it has no
                caption, and RegionCLIP's losses need one.
        """
        image = read_image(record["file_name"], stated_size(record), self.max_pixels)
        height, width = image.shape[:2]
        boxes = record["proposals"][: self.max_regions or None]
        sample = {
            "file_name": record["file_name"],
            "image_id": record["image_id"],
            "image": chw(letterbox_image(image, self.student_size)),
            "boxes": box_tensor(boxes, width, height),
            "labels": torch.tensor(record["labels"][: self.max_regions or None]),
        }
        if self.crop_size is None:
            return sample
        crops = enlarge_boxes(boxes, self.crop_scale, width, height)
        return sample | {
            "crops": chw(letterbox_crops(image, crops, self.crop_size)),
            "caption": self._caption(record, draw),
            "whole": box_tensor(np.array([[0, 0, width, height]]), width, height),
        }

    def _caption(self, record: Record, draw: int) -> str:
        captions = record["captions"]
        if not captions:
            raise InputError(
                f"image {record['image_id']} of DATASETS.TRAIN has no caption, which "
                "MODEL.CLIPSELF.TEXTS.LOSS regionclip compares it with: write the file with "
                "clipself-seg data region-text --captions, or take another loss"
            )
        return captions[np.random.default_rng((self.seed, draw)).integers(len(captions))]
