"""Data with which the browser fuses the scores of mask generator and CLIP and merges masks, for one image.

Shapes: Q queries, K classes, H x W pixels of the map of segments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from clipself_seg.data.images import fit_size
from clipself_seg.errors import InputError
from clipself_seg.explore.quantise import packed, quantise_masks
from clipself_seg.heads.panoptic.mask_pieces import resize_masks
from clipself_seg.prediction.panoptic import PanopticPredictor
from clipself_seg.prediction.predictor import image_sample
from clipself_seg.prediction.regions import colours_of

MAP_SIDE = 256  # longest side in pixels of the map of segments


class PanopticView:
    """A panoptic model with its vocabulary, as `fusion.js` and `merge.js` take it."""

    def __init__(self, predictor: PanopticPredictor) -> None:
        """
        Args:
            predictor: one with a vocabulary, see `PanopticPredictor.set_vocabulary`.
        """
        if predictor.vocabulary is None:
            raise InputError("the panoptic model has no classes: call set_vocabulary")
        if predictor.model.masks_given:
            raise InputError(
                "MODEL.MASK_GENERATOR.SOURCE masks makes none, and the page has no others: take a generator's model"
            )
        self.predictor = predictor
        self.vocabulary = predictor.vocabulary

    def model(self) -> dict[str, Any]:
        """Classes, exponents and thresholds, JSON."""
        model = self.predictor.model
        names = tuple(self.vocabulary.names)
        things = set(model.classes.things)
        classes = [
            {"name": name, "thing": index in things, "seen": bool(seen), "colour": colour.tolist()}
            for index, (name, seen, colour) in enumerate(
                zip(names, self.predictor.seen, colours_of(names))
            )
        ]
        return {
            "classes": classes,
            "alpha": model.exponents[0],
            "beta": model.exponents[1],
            "voidDiscount": model.void_discount,
            "objectThreshold": model.settings.object_threshold,
            "overlapThreshold": model.settings.overlap_threshold,
            "weights": model.weights_hash(),
        }

    @torch.no_grad()
    def image(self, image: np.ndarray) -> dict[str, Any]:
        """Scores and masks of an image (H, W, 3) uint8, JSON."""
        model = self.predictor.model
        sample = image_sample(image, self.predictor.mapper)
        generated = model.generate(sample)
        clip_logits, valid = model.clip_scores(sample, generated)
        columns, rows = fit_size(image.shape[1], image.shape[0], MAP_SIDE)
        size = (rows, columns)
        masks = resize_masks(generated.mask_logits, generated.canvas, generated.image_size, size)
        if not model.fusion.valid_mask:
            valid = torch.ones_like(valid)
        return {
            "rows": rows,
            "columns": columns,
            "queries": len(masks),
            "generator": packed(generated.class_logits.float().cpu().numpy()),
            "clip": packed(clip_logits.float().cpu().numpy()),
            "void": packed(generated.void_prob.float().cpu().numpy()),
            "valid": packed(valid.cpu().numpy().astype(np.uint8)),
            "masks": packed(quantise_masks(masks.cpu().numpy())),
        }
