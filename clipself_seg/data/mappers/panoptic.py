"""Mappers for panoptic segmentation: record -> the image as bytes and, in training, segment masks.

Images are augmented by Detectron2, seeded for each sample (`samples.seeded`). S is the side of a
training crop in pixels, T the number of its segments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from clipself_seg.checkpoints.mask_models import has_mask_model
from clipself_seg.config.relations import IMAGES, require_valid
from clipself_seg.data.annotations import Record, category_labels
from clipself_seg.data.given_masks import GivenMasks, MaskFolder, image_name
from clipself_seg.data.images import MAX_PIXELS, read_image
from clipself_seg.data.mappers import samples
from clipself_seg.data.mappers.sem_seg import SemSegTestMapper, at_least_a_pixel
from clipself_seg.data.masks import read_panoptic_ids
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError

VOID = 0
WORDS = 8  # noun phrases drawn for each image, as in the official code


class _ResizeScale(T.ResizeScale):
    """Detectron2's augmentation, but with no side rounded to 0."""

    def _get_resize(self, image: np.ndarray, scale: float) -> T.Transform:
        return at_least_a_pixel(super()._get_resize(image, scale))


class PanopticTrainMapper(samples.Configurable):
    """Mapper from a record and a draw number to an augmented square crop and its segments' masks.

    The image is flipped in half of the draws, resized by a random factor of the size that fits S, then
    cut or padded at the right and bottom to S. A sample depends on the seed and the draw number alone.

    Attributes:
        seed: seed of the run.
        vocabulary: classes, whose dataset ids are the category ids of the records.
        size: S, side of the crop in pixels.
        scales: smallest and largest factor of the resizing.
        keep_empty: segments of which the crop leaves nothing stay targets.
        words: number of noun phrases that are drawn from one of the image's captions, 0 for none.
        max_pixels: largest number of pixels of an image that is decoded.
    """

    seed: int
    vocabulary: Vocabulary
    size: int
    scales: tuple[float, float]
    keep_empty: bool = True
    words: int = 0
    max_pixels: int = MAX_PIXELS

    @classmethod
    def from_config(cls, cfg: CfgNode, *, seed: int, vocabulary: Vocabulary) -> dict[str, Any]:
        """Reads INPUT, and from MODEL.MASK_GENERATOR whether captions are trained on."""
        require_valid(cfg, IMAGES, all_keys=True)
        return dict(
            seed=seed,
            vocabulary=vocabulary,
            size=cfg.INPUT.IMAGE_SIZE,
            scales=(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE),
            keep_empty=cfg.INPUT.KEEP_EMPTY_SEGMENTS,
            words=WORDS if cfg.MODEL.MASK_GENERATOR.VARIANT == "caption" else 0,
            max_pixels=cfg.INPUT.MAX_PIXELS,
        )

    def __call__(self, record: Record, draw: int) -> samples.Sample:
        """Makes the sample of one draw.

        Args:
            record: record of `datasets.records.panoptic_set_records`.
            draw: number of this draw in the run, at least 0.

        Returns:
            "file_name", "image_id", "image" uint8 (3, S, S) RGB, "labels" int64 (T,), "masks" bool
            (T, S, S), in the file's order and without crowds, and if phrases are drawn "words", a
            list of them, which is empty if the caption has none.

        Raises:
            InputError: image, PNG or JSON are unreadable or disagree; a category that the
                vocabulary does not have; no captions where phrases are drawn.
        """
        ids = read_panoptic_ids(record, self.max_pixels)
        height, width = ids.shape
        size = samples.stated_size(record) or (width, height)
        # Detectron2 resizes bytes with PIL, so ids are resized as RGB; the fourth byte of an id is 0.
        rgb = ids.view(np.uint8).reshape(height, width, 4)[..., :3]
        image = read_image(record["file_name"], size, self.max_pixels)
        augmented = T.AugInput(image, sem_seg=rgb)
        augmentations = [
            T.RandomFlip(),
            _ResizeScale(*self.scales, self.size, self.size),
            T.FixedSizeCrop((self.size, self.size), pad_value=samples.PADDING, seg_pad_value=VOID),
        ]
        with samples.seeded(self.seed, draw):
            T.AugmentationList(augmentations)(augmented)
        labels, masks = self._segments(augmented.sem_seg, record)
        sample = samples.image_sample(record, augmented.image) | {
            "labels": torch.from_numpy(labels),
            "masks": torch.from_numpy(masks),
        }
        if self.words:
            sample["words"] = self._draw_phrases(record, draw)
        return sample

    def _segments(self, rgb: np.ndarray, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """Class indices (T,) and masks (T, S, S) from segment ids as uint8 (S, S, 3)."""
        infos = [info for info in record["segments_info"] if not info.get("iscrowd", 0)]
        categories = np.array([info["category_id"] for info in infos], dtype=np.int64)
        index_of = self.vocabulary.dataset_id_to_index
        labels = category_labels(categories, index_of, record["pan_seg_file_name"])
        segment_ids = np.array([info["id"] for info in infos], dtype=np.int32)
        # Back from three bytes a pixel to one integer, R + 256 G + 65536 B.
        rgba = np.zeros((*rgb.shape[:2], 4), dtype=np.uint8)
        rgba[..., :3] = rgb
        masks = rgba.view(np.int32)[..., 0] == segment_ids[:, None, None]
        if not self.keep_empty:
            visible = masks.any(axis=(1, 2))
            labels = labels[visible]
            masks = masks[visible]
        return labels, masks

    def _draw_phrases(self, record: Record, draw: int) -> list[str]:
        captions = record.get("captions")
        if not captions:
            raise InputError(
                f"image {record['image_id']} ({record['file_name']}) has no captions, which "
                "MODEL.MASK_GENERATOR.VARIANT caption trains on: give a data set with captions, or train "
                "VARIANT label"
            )
        rng = np.random.default_rng((self.seed, draw))
        phrases = captions[rng.integers(len(captions))]
        return [phrases[i] for i in rng.integers(len(phrases), size=self.words)] if phrases else []


class PanopticTestMapper(SemSegTestMapper):
    """`SemSegTestMapper` that adds given masks where MODEL.MASK_GENERATOR.SOURCE is ``masks``.

    Attributes:
        original: samples have the image at its own size too, as "original", for a model that finds its masks.
        masks: folder of the masks; None for none.
    """

    original: bool = False
    masks: MaskFolder | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads what `SemSegTestMapper` does, and MODEL.MASK_GENERATOR."""
        generator = cfg.MODEL.MASK_GENERATOR
        settings = super().from_config(cfg)
        if generator.SOURCE != "masks":
            return settings
        if has_mask_model(generator.OUTPUTS):
            return settings | {"original": True}
        return settings | {"masks": MaskFolder(generator.OUTPUTS) if generator.OUTPUTS else None}

    def __call__(self, record: Record) -> samples.Sample:
        """Makes the sample of `SemSegTestMapper`, with `mask_entries` where there is a folder.

        Raises:
            InputError: likewise; or the image has no masks, or none of its size.
        """
        sample = super().__call__(record)
        if self.masks is not None:
            size = sample["height"], sample["width"]
            sample |= mask_entries(self.masks.read(image_name(record["file_name"]), size))
        return sample

    def resized(self, image: np.ndarray) -> samples.Sample:
        return super().resized(image) | ({"original": samples.chw(image)} if self.original else {})


def mask_entries(given: GivenMasks) -> samples.Sample:
    """Entries of a sample for given masks: "given_masks" (Q, H, W) bool, "given_scores" (Q,) float32."""
    return {
        "given_masks": torch.from_numpy(given.masks),
        "given_scores": torch.from_numpy(given.scores),
    }
