"""Dense features in CorrCLIP's form: the last block's attention is restricted to given masks.

CorrCLIP (ICCV 2025) is written down from notes on it, and none of its code was read; no number of its is promised.
The features of a place are of three parts:

* values of the last block, attended by `training_free.by_proxy_in_masks`, on a grid of twice CLIP's resolution;
* beside these values, before they are attended, those of the mean of the tokens of the middle blocks (five of twelve,
  twelve of twenty-four), which the last block's norm and value matrix make of it;
* half the class token of the masks that the place is in.

What the notes leave open is chosen here: which blocks the middle ones are (`middle_blocks`); that the class token of a
mask is that of masked attention in all blocks (`TransformerTower.masked_attention`), and the mean counts where masks
overlap; and that the last part is added to the others at unit length, behind the projection.

Shapes: B images, K masks, D width, E embedding, h' x w' cells, twice CLIP's h x w.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.tower import TransformerTower
from clipself_seg.clip.training_free import (
    Attention,
    Grid,
    attended_tokens,
    by_proxy_in_masks,
)

FINER = 2  # cells along a side of one of CLIP's
CLASS_WEIGHT = 0.5


def middle_blocks(depth: int) -> range:
    """The blocks, from 0, whose tokens are averaged: five of twelve, and half of more; as many before as behind, or one
    more behind."""
    count = max(1, depth * 5 // 12 if depth <= 12 else depth // 2)
    first = (depth - count) // 2
    return range(first, first + count)


def dense_in_masks(
    tower: TransformerTower, images: Tensor, features_BEhw: Tensor, masks_BKhw: Tensor
) -> Tensor:
    """The first two parts, (B, E, h', w'), not normalised.

    Args:
        tower: a ViT.
        images: (B, 3, H, W), normalised.
        features_BEhw: features (B, E', h', w') of any model, whose cosines say how alike places are.
        masks_BKhw: boolean masks on the same grid, see `by_proxy_in_masks`.
    """
    wanted = middle_blocks(len(tower.blocks))
    tokens_BLD, extras, grid = tower.embed(images)
    middle_BLD = torch.zeros_like(tokens_BLD)
    for index, block in enumerate(tower.blocks[:-1]):
        tokens_BLD = tower.run(block, tokens_BLD, *extras)
        if index in wanted:
            middle_BLD = middle_BLD + tokens_BLD / len(wanted)
    last: Any = tower.blocks[-1]
    middle_BHLC = last.queries_keys_values(middle_BLD)[2]
    own = by_proxy_in_masks(features_BEhw, masks_BKhw)

    def attend(q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        return own.attend(q, k, v + middle_BHLC, grid)

    tokens_BMD, cells = attended_tokens(last, tokens_BLD, Attention(attend), grid)
    return tower.project(tokens_BMD).transpose(1, 2).unflatten(2, cells)


def mask_class_tokens(tower: TransformerTower, image: Tensor, masks_Khw: Tensor) -> Tensor:
    """Class tokens of masks (K, E), not normalised; of one without a cell 0.

    Args:
        tower: a ViT.
        image: (1, 3, H, W), normalised.
        masks_Khw: boolean masks (K, h', w'); a cell of CLIP's is in a mask if one of its four is.
    """
    if not len(masks_Khw):
        return image.new_zeros(0, tower.embed_dim)
    coarse_Khw = F.max_pool2d(masks_Khw.float(), FINER) > 0
    tokens_KE = tower.masked_attention(image, [coarse_Khw])
    return tokens_KE * coarse_Khw.flatten(1).any(dim=1)[:, None]


def with_class_tokens(
    dense_Ehw: Tensor, tokens_KE: Tensor, masks_Khw: Tensor, weight: float = CLASS_WEIGHT
) -> Tensor:
    """Features (E, h', w') of unit length, and `weight` times the mean class token of the masks of each place.

    Args:
        dense_Ehw: features of places, of any length.
        tokens_KE: class tokens of the masks, of any length.
        masks_Khw: boolean masks, which may overlap and leave places out.
        weight: see above.
    """
    members_Khw = masks_Khw.to(dense_Ehw.dtype)
    fractions_Khw = members_Khw / members_Khw.sum(dim=0).clamp(min=1)
    unit_KE = F.normalize(tokens_KE.to(dense_Ehw.dtype), dim=1)
    added_Ehw = torch.einsum("ke,khw->ehw", unit_KE, fractions_Khw)
    return F.normalize(dense_Ehw, dim=0) + weight * added_Ehw
