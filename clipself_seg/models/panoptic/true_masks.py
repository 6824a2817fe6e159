"""Classes that a panoptic model gives to given masks, and the masks of all its queries.

Shapes: Q queries, n given segments, K classes, H W rows and columns of the original image, h w of the resized one.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.data.generator_outputs import GeneratorOutput
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.heads.panoptic.mask_pieces import resize_masks

STRIDE = 4  # pixels of the resized image in one of a mask, as of the generator's own masks
STEEPNESS = 40.0  # logit of a pixel that is in a mask as a whole, twice over
AT_ONCE = 16  # masks that are resized together


@runtime_checkable
class MaskModel(Protocol):
    """A model that makes masks and names them in two steps."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    def generate(self, sample: Sample) -> GeneratorOutput:
        """Masks of an image; not asked for where the sample brings masks, "given_masks"."""

    def clip_scores(self, sample: Sample, generated: GeneratorOutput) -> tuple[Tensor, Tensor]:
        """CLIP's class logits (Q, K) of the generated masks, and which of them it can see (Q,)."""


@torch.no_grad()
def query_masks(model: MaskModel, sample: Sample) -> np.ndarray:
    """The masks of all queries at the size of the original image, bool (Q, H, W).

    Masks that come with the sample ("given_masks") are the queries: whatever the merge makes of them begins there.
    """
    if "given_masks" in sample:
        return sample["given_masks"].cpu().numpy()
    generated = model.generate(sample)
    size = sample["height"], sample["width"]
    masks = resize_masks(generated.mask_logits, generated.canvas, generated.image_size, size)
    return (masks > 0).cpu().numpy()


@torch.no_grad()
def mask_names(
    model: MaskModel, sample: Sample, ids: np.ndarray, segment_ids: np.ndarray, num_classes: int
) -> np.ndarray:
    """The class that CLIP gives to each of some segments, int64 (n,) in [0, K).

    The segments take the place of the generator's masks. A generator has no scores for them.

    Args:
        model: its CLIP branch names.
        sample: a sample of evaluation, "image" (3, h, w).
        ids: (H, W) integers, the segment of each pixel.
        segment_ids: (n,) ids of the segments.
        num_classes: number of classes, K.
    """
    if not len(segment_ids):
        return np.zeros(0, dtype=np.int64)
    height, width = sample["image"].shape[1:]
    size = (-(-height // STRIDE), -(-width // STRIDE))
    masks = mask_logits(ids, segment_ids, size)
    given = GeneratorOutput(
        masks,
        torch.zeros(len(masks), num_classes),
        torch.zeros(len(masks)),
        (height, width),
        (height, width),
    )
    logits, _ = model.clip_scores(sample, given.to(model.device))
    return logits.argmax(dim=1).cpu().numpy()


def mask_logits(ids: np.ndarray, segment_ids: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Logits (n, *size) of segments, positive where a segment covers more than half of a pixel.

    Args:
        ids: (H, W) integers, the segment of each pixel.
        segment_ids: (n,) ids of the segments.
        size: rows and columns of the result.
    """
    numbers = torch.from_numpy(ids.astype(np.int64))
    parts = torch.from_numpy(np.asarray(segment_ids, dtype=np.int64)).split(AT_ONCE)
    covered = [
        F.interpolate((numbers == part[:, None, None]).float()[None], size, mode="area")[0]
        for part in parts
    ]
    return STEEPNESS * (torch.cat(covered) - 0.5)
