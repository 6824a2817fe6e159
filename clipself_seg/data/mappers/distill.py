"""Mapper for distillation: record -> the image, some of its regions, and a crop of each.

Nothing is normalised here: images are passed on as bytes, and the model normalises them.
Legend: S side of the padded square, S0 side of a teacher crop, n regions. "Relative" boxes are XYXY in
[0, 1] of the padded square.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable

from clipself_seg.data.images import (
    MAX_PIXELS,
    decode_image,
    letterbox_crops,
    letterbox_image,
    read_image,
)
from clipself_seg.data.mappers.samples import Sample, box_tensor, chw, stated_size
from clipself_seg.data.records import MIN_SIDE, Record
from clipself_seg.data.regions import (
    GridRule,
    Regions,
    sample_grid_regions,
    sample_proposal_regions,
)
from clipself_seg.errors import InputError


class DistillMapper:
    """Mapper from a record and a draw number to the image, its regions, and a crop of each.

    The sample depends on the record, the seed and the draw number only, so it is the same
    whichever process makes it, and a resumed run reads the same samples as an uninterrupted one.
    """

    @configurable
    def __init__(
        self,
        *,
        source: str,
        student_size: int,
        crop_size: int,
        seed: int,
        max_split: int = 6,
        grid_rule: GridRule = "aspect",
        max_regions: int = 20,
        crop_scale: float = 1.0,
        min_area: float = 8**2,
        max_area: float = 1024**2,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """
        Args:
            source: "grid" draws cells, "proposals" draws from the record's "proposals", whose "proposal_areas" count.
            student_size: S, side of the student's input in pixels.
            crop_size: S0, side of the teacher's crops in pixels.
            seed: seed of the run.
            max_split: largest number of rows or columns of a grid.
            grid_rule: rule for the pairs of rows and columns, see `grid_pairs`.
            max_regions: most regions of an image, 0 for no limit.
            crop_scale: enlargement of the teacher's crops.
            min_area: smallest area of a proposal, in square pixels of the original image.
            max_area: largest area of a proposal, in square pixels of the original image.
            max_pixels: largest number of pixels of an image that is decoded.
        """
        if source not in ("grid", "proposals"):
            raise ValueError(f'regions come from "grid" or "proposals", got "{source}"')
        self.source = source
        self.student_size = student_size
        self.crop_size = crop_size
        self.seed = seed
        self.max_split = max_split
        self.grid_rule = grid_rule
        self.max_regions = max_regions
        self.crop_scale = crop_scale
        self.min_area = min_area
        self.max_area = max_area
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode, *, crop_size: int, seed: int) -> dict[str, Any]:
        """Read INPUT.REGIONS and INPUT.MAX_PIXELS; the teacher's input side and the seed come from the caller."""
        regions = cfg.INPUT.REGIONS
        return {
            "source": regions.SOURCE,
            "student_size": regions.STUDENT_SIZE,
            "crop_size": crop_size,
            "seed": seed,
            "max_split": regions.MAX_SPLIT,
            "grid_rule": regions.GRID_PAIRS,
            "max_regions": regions.MAX_REGIONS,
            "crop_scale": regions.CROP_SCALE,
            "min_area": regions.MIN_AREA,
            "max_area": regions.MAX_AREA,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    def __call__(self, record: Record, draw: int) -> Sample:
        """Make the sample of one draw.

        Args:
            record: record of `datasets.coco.distillation_records`, or of a shard, with "content", the
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
        return {
            "file_name": record["file_name"],
            "image_id": record["image_id"],
            "image": chw(letterbox_image(image, self.student_size)),
            "boxes": box_tensor(regions.boxes, width, height),
            "crops": chw(letterbox_crops(image, regions.crops, self.crop_size)),
            "whole": box_tensor(np.array([[0, 0, width, height]]), width, height),
        }

    def _image(self, record: Record) -> np.ndarray:
        """The image (H, W, 3) of a file, or of a shard, where no list leaves out tiny ones."""
        if "content" not in record:
            return read_image(record["file_name"], self._stated_size(record), self.max_pixels)
        image = decode_image(record["content"], record["file_name"], self.max_pixels)
        height, width = image.shape[:2]
        if min(height, width) < MIN_SIDE:
            raise InputError(
                f"image {record['file_name']} is {width} x {height}, with a side below {MIN_SIDE} pixels"
            )
        return image

    def _stated_size(self, record: Record) -> tuple[int, int] | None:
        """Size that the image must have: any fits a grid, proposals only the one they were made for."""
        return stated_size(record) if self.source == "proposals" else None

    def _sample_regions(
        self, rng: np.random.Generator, record: Record, width: int, height: int
    ) -> Regions:
        if self.source == "grid":
            return sample_grid_regions(
                rng,
                width=width,
                height=height,
                max_split=self.max_split,
                max_regions=self.max_regions,
                rule=self.grid_rule,
                crop_scale=self.crop_scale,
            )
        return sample_proposal_regions(
            rng,
            record["proposals"],
            width=width,
            height=height,
            areas=record.get("proposal_areas"),
            max_regions=self.max_regions,
            min_area=self.min_area,
            max_area=self.max_area,
            crop_scale=self.crop_scale,
        )
