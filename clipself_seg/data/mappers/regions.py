"""Mapper for region recognition: record -> the image and its regions with their classes.

Nothing is normalised here: images are passed on as bytes, and the model normalises them.
Legend: S side of the padded square, S0 side of a crop, n regions, h w tokens along S.
"Relative" boxes are XYXY in [0, 1] of the padded square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from clipself_seg.data.annotations import Record, category_labels
from clipself_seg.data.images import MAX_PIXELS, letterbox_crops, letterbox_image, read_image
from clipself_seg.data.mappers.samples import Sample, box_tensor, chw, image_sample
from clipself_seg.data.regions import read_segments, segment_regions, token_masks
from clipself_seg.data.vocabulary import Vocabulary


@dataclass(kw_only=True)
class RegionMapper:
    """Mapper from a record with panoptic ground truth to the image and its labelled regions.

    Attributes:
        image_size: S, side of the model's input in pixels.
        crop_size: S0, side of the crops in pixels.
        stride: pixels per token along S.
        vocabulary: classes of the data set, with ids and things.
        read: readouts of a region; crops and masks are made only if one of them needs them.
        crop_scale: enlargement of the things' crops.
        max_pixels: largest number of pixels of an image that is decoded.
    """

    image_size: int
    crop_size: int
    stride: int
    vocabulary: Vocabulary
    read: Sequence[str] = ("boxes", "masks", "crops")
    crop_scale: float = 1.5
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        self._isthing = self.vocabulary.thing
        things = self._isthing.nonzero()[0].tolist()
        self._thing_ids = frozenset(self.vocabulary.classes[index].dataset_id for index in things)

    def size_rule(self) -> str:
        """The size of images in words, for the protocol of an evaluation."""
        return f"fitted into a square of {self.image_size} px, masks by rule reference"

    def __call__(self, record: Record) -> Sample:
        """Makes the sample of one image.

        Args:
            record: record of `datasets.records.region_records`.

        Returns:
            "file_name", "image_id", "image" uint8 (3, S, S), "boxes" float32 (n, 4) relative,
            "labels" int64 (n,), "isthing" bool (n,), and if they are read "masks" bool (n, h, w)
            and "crops" uint8 (n, 3, S0, S0). n is 0 for an image whose segments are all too small.

        Raises:
            InputError: image, PNG or JSON are unreadable or disagree.
        """
        segments = read_segments(record, self._thing_ids, self.max_pixels)
        height, width = segments.ids.shape
        image = read_image(record["file_name"], (width, height), self.max_pixels)
        index_of = self.vocabulary.dataset_id_to_index
        labels = category_labels(segments.category_ids, index_of, record["pan_seg_file_name"])
        isthing = self._isthing[labels]
        regions = segment_regions(segments, isthing, self.crop_scale)
        sample = image_sample(record, letterbox_image(image, self.image_size)) | {
            "boxes": box_tensor(regions.boxes, width, height),
            "labels": torch.from_numpy(labels),
            "isthing": torch.from_numpy(isthing),
        }
        if any(readout.endswith("masks") for readout in self.read):
            side = self.image_size // self.stride
            sample["masks"] = token_masks(segments.masks, side)
        if "crops" in self.read:
            sample["crops"] = chw(letterbox_crops(image, regions.crops, self.crop_size))
        return sample


@dataclass(kw_only=True)
class WholeImageMapper:
    """Mapper from a record of a whole image to its centre, a square, as open_clip prepares images.

    Images are upright and RGB before they are resized, as everywhere here; open_clip does not turn those that say in
    their EXIF block that they lie.

    Attributes:
        image_size: S, side of the square in pixels.
        squash: the whole image becomes the square; else its shorter side becomes S, and what is over at both
            ends of the longer one is cut off.
        filter: of Pillow, "bicubic" or "bilinear".
        max_pixels: largest number of pixels of an image that is decoded.
    """

    image_size: int
    squash: bool = False
    filter: str = "bicubic"
    max_pixels: int = MAX_PIXELS

    def size_rule(self) -> str:
        """The size of images in words, for the protocol of an evaluation."""
        how = "squashed into" if self.squash else "shorter side resized to fit, centre cut to"
        return f"{how} a square of {self.image_size} px, {self.filter}"

    def __call__(self, record: Record) -> Sample:
        """Makes the sample of one image: "file_name", "image_id", "image" uint8 (3, S, S), and of its one region, the
        whole, "boxes" (1, 4), "labels" (1,) and "isthing" (1,).

        Raises:
            InputError: the image is unreadable.
        """
        whole = Image.fromarray(read_image(record["file_name"], max_pixels=self.max_pixels))
        side = self.image_size
        small = resize(whole, [side] * (1 + self.squash), InterpolationMode(self.filter))
        return image_sample(record, np.asarray(center_crop(small, [side, side]))) | {
            "boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
            "labels": torch.tensor([record["label"]]),
            "isthing": torch.tensor([True]),
        }
