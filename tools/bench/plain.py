"""Plain reference formulations of dense features, region pooling, crops and the distillation loss.

Legend: B images, n regions of an image, D width, E embedding, h x w cells, S side of the image,
    S0 side of a crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from clipself_seg.clip import CLIP
from clipself_seg.clip.openai import VisionTransformer
from clipself_seg.clip.region_pooling import MASK_EPS
from clipself_seg.clip.tower import ImageTower, TransformerTower
from clipself_seg.data.images import letterbox_crops, letterbox_image
from clipself_seg.data.regions import token_masks

SLOTS = 20  # crops that travel for an image, however many are valid


def dense_features(tower: ImageTower, images: Tensor) -> Tensor:
    """Unit-length dense features (B, E, h, w), float32.

    OpenAI's layout: the last block runs in full beside the value path, for nothing. The value path
    keeps the class token to the end.
    """
    if not isinstance(tower, TransformerTower) or tower.pooled:
        return F.normalize(tower.dense(images).float(), dim=1)
    tokens_BLD, extras, grid = _before_last_block(tower, images)
    last: Any = tower.blocks[-1]
    if isinstance(tower, VisionTransformer):
        last(tokens_BLD, *extras)
    dense_BNE = tower.project(last.value_path(tokens_BLD))[:, tower.prefix :]
    return F.normalize(dense_BNE.transpose(1, 2).unflatten(2, grid).float(), dim=1)


def image_embeddings(tower: ImageTower, images: Tensor) -> Tensor:
    """Image embeddings (B, E) of any length: the last block in full, then the class token's row."""
    if not isinstance(tower, TransformerTower) or tower.pooled:
        return tower(images)
    tokens_BLD, extras, _ = _before_last_block(tower, images)
    last: Any = tower.blocks[-1]
    return tower.project(last(tokens_BLD, *extras)[:, 0])


def _before_last_block(
    tower: TransformerTower, images: Tensor
) -> tuple[Tensor, tuple[Tensor, ...], tuple[int, int]]:
    tokens_BLD, extras, grid = tower.embed(images)
    for block in tower.blocks[:-1]:
        tokens_BLD = block(tokens_BLD, *extras)
    return tokens_BLD, extras, grid


def pool_boxes(features_Ehw: Tensor, boxes_n4: Tensor) -> Tensor:
    """RoIAlign 1x1, one box after the other, (n, E); boxes are XYXY in [0, 1]."""
    rows, columns = features_Ehw.shape[1:]
    scale = boxes_n4.new_tensor([columns, rows, columns, rows])
    pooled = [
        roi_align(features_Ehw[None], [(box * scale)[None]], (1, 1), 1.0, -1, True)[:, :, 0, 0]
        for box in boxes_n4
    ]
    return torch.cat(pooled)


def pool_masks(features_Ehw: Tensor, masks_nhw: Tensor) -> Tensor:
    """Means over masks, (n, E), from a copy of the whole map for each mask."""
    repeated_nEhw = features_Ehw[None].repeat(len(masks_nhw), 1, 1, 1)
    weights_n1hw = masks_nhw[:, None].float()
    summed_nE = (repeated_nEhw * weights_n1hw).sum((-2, -1))
    return summed_nE / (weights_n1hw.sum((-2, -1)) + MASK_EPS)


def prepare_crops(clip: CLIP, pixels: np.ndarray, boxes_n4: np.ndarray) -> Tensor:
    """Normalised float crops (slots, 3, S0, S0): resized one by one, empty slots stay zero."""
    slots = torch.zeros(max(SLOTS, len(boxes_n4)), 3, clip.image_size, clip.image_size)
    for slot, box in zip(slots, boxes_n4):
        slot.copy_(_crop(clip, pixels, box))
    return slots


def _crop(clip: CLIP, pixels: np.ndarray, box: np.ndarray) -> Tensor:
    crop = letterbox_crops(pixels, box[None], clip.image_size)
    return clip.preprocess(torch.from_numpy(crop).permute(0, 3, 1, 2))[0]


def prepare_image(clip: CLIP, pixels: np.ndarray, side: int) -> Tensor:
    """The normalised float image (3, S, S)."""
    square = torch.from_numpy(letterbox_image(pixels, side))
    return clip.preprocess(square.permute(2, 0, 1)[None])[0]


def prepare_masks(masks_nHW: np.ndarray, side: int) -> Tensor:
    """Masks at token resolution (n, side, side), one by one."""
    return torch.cat([token_masks(mask[None], side) for mask in masks_nHW])


def region_scores(clip: CLIP, sample: dict[str, Tensor], text_KE: Tensor) -> dict[str, Tensor]:
    """Cosines (n, K) of boxes, masks and crops of one image, from two dense passes.

    Args:
        clip: both towers.
        sample: "image" (3, S, S) and "crops" (slots, 3, S0, S0), normalised; "boxes" (n, 4);
            "masks" (n, h, w).
        text_KE: unit length.
    """
    count, device = len(sample["boxes"]), text_KE.device
    image = sample["image"][None].to(device)
    crops = sample["crops"].to(device)[:count]
    boxes, masks = sample["boxes"].to(device), sample["masks"].to(device)
    rows = {
        "boxes": pool_boxes(dense_features(clip.visual, image)[0], boxes),
        "masks": pool_masks(dense_features(clip.visual, image)[0], masks),
        "crops": image_embeddings(clip.visual, crops),
    }
    return {
        readout: F.normalize(rows_nE.float(), dim=-1) @ text_KE.T
        for readout, rows_nE in rows.items()
    }


def distillation_loss(
    teacher: ImageTower, student: ImageTower, samples: Sequence[dict[str, Tensor]]
) -> Tensor:
    """``1 - mean cosine`` over the valid slots of a batch, a scalar.

    Args:
        teacher: of the crops, without gradient.
        student: of the dense features.
        samples: "image" (3, S, S) and "crops" (slots, 3, S0, S0), normalised; "boxes" (slots, 5),
            XYXY in [0, 1] and whether the slot is used.
    """
    device = next(student.parameters()).device
    images = torch.stack([sample["image"] for sample in samples]).to(device)
    crops = torch.stack([sample["crops"] for sample in samples]).to(device)
    boxes = torch.stack([sample["boxes"] for sample in samples]).to(device)
    valid = boxes[..., 4] > 0.5
    with torch.no_grad():
        teacher_RE = image_embeddings(teacher, crops[valid])
    student_RE = torch.cat(
        [
            pool_boxes(features, slots[used, :4])
            for features, slots, used in zip(dense_features(student, images), boxes, valid)
        ]
    )
    return 1 - F.cosine_similarity(student_RE, teacher_RE.float(), dim=-1, eps=1e-12).mean()
