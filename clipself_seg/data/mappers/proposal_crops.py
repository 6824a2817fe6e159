"""Mapper for labelling proposals: record -> a crop of each.

Legend: S0 side of a crop, n proposals.
"""

from __future__ import annotations

from clipself_seg.data.images import MAX_PIXELS, letterbox_crops, read_image
from clipself_seg.data.mappers.samples import Sample, chw, stated_size
from clipself_seg.data.records import Record
from clipself_seg.data.regions import enlarge_boxes


class ProposalCropMapper:
    """Mapper from a record to crops of all its proposals, as the teacher of distillation sees them."""

    def __init__(
        self, *, crop_size: int, crop_scale: float = 1.5, max_pixels: int = MAX_PIXELS
    ) -> None:
        """
        Args:
            crop_size: S0, in pixels.
            crop_scale: enlargement of a crop about the centre of its box.
            max_pixels: largest number of pixels of an image that is decoded.
        """
        self.crop_size = crop_size
        self.crop_scale = crop_scale
        self.max_pixels = max_pixels

    def __call__(self, record: Record) -> Sample:
        """Make the sample of an image.

        Args:
            record: record of `data.records.proposal_records`.

        Returns:
            "image_id" and "crops" uint8 (n, 3, S0, S0).

        Raises:
            InputError: the image cannot be read, or the proposals were made for another image size.
        """
        image = read_image(record["file_name"], stated_size(record), self.max_pixels)
        height, width = image.shape[:2]
        boxes = enlarge_boxes(record["proposals"], self.crop_scale, width, height)
        crops = letterbox_crops(image, boxes, self.crop_size)
        return {"image_id": record["image_id"], "crops": chw(crops)}
