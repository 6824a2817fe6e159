"""Training-free attentions in place of a ViT's last one: SCLIP's, ClearCLIP's, NACLIP's, ProxyCLIP's and others.

Each entry of `ATTENTIONS` (``MODEL.CLIP.ATTENTION``) puts another attention in the place of the last block's; weights
are the original CLIP's. With s = 1 / sqrt(C), C the channels of a head, softmax over the keys j:

    sclip       softmax(s q q^T) + softmax(s k k^T), residual and MLP kept (arXiv 2312.01597)
    clearclip   softmax(s q q^T), residual and MLP dropped (arXiv 2407.12442)
    kk          softmax(s k k^T), dropped
    qq_kk       softmax(s q q^T) + softmax(s k k^T), dropped
    naclip      softmax(s k k^T + G), dropped; G = exp(-d^2 / 50), d the distance of two patches in patches, 0 in row
                and column of the class token (WACV 2025)

`by_proxy` (ProxyCLIP, arXiv 2408.04883) and `by_proxy_in_masks` (the attention of CorrCLIP, ICCV 2025) take
correlations out of another model's features in place of q and k. All of them are written down from formulas, and no
number of theirs is promised. Queries and keys of EVA's blocks are taken before their rotation, which compares places
and not content (DeCLIP does the same).

`dense_in_masks`, `mask_class_tokens` and `with_class_tokens` make dense features in CorrCLIP's form. They are written
down from notes on it, and none of its code was read. The features of a place are of three parts:

* values of the last block, attended by `by_proxy_in_masks`, on a grid of twice CLIP's resolution;
* beside these values, before they are attended, those of the mean of the tokens of the middle blocks (five of twelve,
  twelve of twenty-four), which the last block's norm and value matrix make of it;
* half the class token of the masks that the place is in.

What the notes leave open is chosen here: which blocks the middle ones are (`middle_blocks`); that the class token of a
mask is that of masked attention in all blocks (`TransformerTower.masked_attention`), and the mean counts where masks
overlap; and that the last part is added to the others at unit length, behind the projection.

Shapes: B images, H heads, L = P + N tokens, the class token first, h x w grid of N patches, C channels of a head,
    K masks, M = h' x w' cells of a proxy, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.layers import ViTBlock, attention, merge_heads
from clipself_seg.errors import InputError

if TYPE_CHECKING:
    from clipself_seg.clip.tower import TransformerTower

NONE = "none"
GAUSSIAN_DEVIATION = 5.0  # of NACLIP, in patches
PROXY_SHIFT = 1.2  # of ProxyCLIP: means of the correlations that are taken off
PROXY_SCALE = 3.0
MASKED_SCALE = 4.0  # of CorrCLIP
FINER = 2  # cells along a side of one of CLIP's
CLASS_WEIGHT = 0.5

Grid = tuple[int, int]
Attend = Callable[[Tensor, Tensor, Tensor, Grid], tuple[Tensor, Grid]]


class Attention(NamedTuple):
    """An attention of the last block.

    Attributes:
        attend: queries, keys and values (B, H, L, C) and the grid -> values (B, H, M, C) of places, and their grid.
        keep: whether the block's residual and MLP are kept, which needs the places to be the patches.
    """

    attend: Attend
    keep: bool = False


def attended_tokens(
    block: ViTBlock, tokens_BLD: Tensor, attention: Attention, grid: Grid
) -> tuple[Tensor, Grid]:
    """Tokens (B, M, D) behind a block with another attention, before the final norm, and their grid.

    Args:
        block: the last block.
        tokens_BLD: tokens before it.
        attention: what stands in the place of its own.
        grid: grid of the patches.
    """
    q, k, v = block.queries_keys_values(tokens_BLD)
    values_BHMC, cells = attention.attend(q, k, v, grid)
    residual = tokens_BLD[:, _prefix(tokens_BLD, grid) :] if attention.keep else None
    return block.finish(merge_heads(values_BHMC), residual), cells


def _prefix(tokens_BLD: Tensor, grid: Grid) -> int:
    """Number P of tokens (..., L, D) before those of the patches."""
    return tokens_BLD.shape[-2] - grid[0] * grid[1]


def _of_themselves(*parts: str, near: bool = False) -> Attend:
    """The sum over x of softmax(s x x^T) V at the patches; x are queries, "q", or keys, "k", and `near` adds G."""

    def attend(q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        prefix = _prefix(v, grid)
        bias_NL = gaussian_bias(grid, GAUSSIAN_DEVIATION, k, prefix)[prefix:] if near else None
        chosen = [{"q": q, "k": k}[part] for part in parts]
        first, *others = (attention(x[:, :, prefix:], x, v, mask=bias_NL) for x in chosen)
        return sum(others, first), grid

    return attend


def gaussian_bias(grid: Grid, deviation: float, like: Tensor, prefix: int = 1) -> Tensor:
    """NACLIP's bias of nearness, ``exp(-d^2 / (2 deviation^2))``, (L, L); 0 in row and column of the class token.

    Args:
        grid: grid of the patches, between which d is the distance.
        deviation: in patches.
        like: tensor with the bias's device and type.
        prefix: number of tokens before those of the patches.
    """
    axes = [torch.arange(side, device=like.device, dtype=torch.float32) for side in grid]
    places_N2 = torch.cartesian_prod(*axes)
    squared_NN = (places_N2[:, None] - places_N2[None]).square().sum(-1)
    bias_NN = (-squared_NN / (2 * deviation**2)).exp()
    return F.pad(bias_NN, (prefix, 0, prefix, 0)).to(like.dtype)


ATTENTIONS: dict[str, Attention] = {
    "sclip": Attention(_of_themselves("q", "k"), keep=True),
    "clearclip": Attention(_of_themselves("q")),
    "naclip": Attention(_of_themselves("k", near=True)),
    "kk": Attention(_of_themselves("k")),
    "qq_kk": Attention(_of_themselves("q", "k")),
}


def by_proxy(features_BEhw: Tensor) -> Attention:
    """ProxyCLIP's attention: places attend to those that another model's features say are alike.

    Args:
        features_BEhw: features of the same images (B, E', h', w') by another model, of any length; the dense
            features have their grid.
    """
    similarities_BMM = cosines(features_BEhw)
    return _by_weights(proxy_weights(similarities_BMM), features_BEhw)


def by_proxy_in_masks(features_BEhw: Tensor, masks_BKhw: Tensor) -> Attention:
    """CorrCLIP's attention: as `by_proxy`, but no place attends beyond the masks that it is in.

    CorrCLIP doubles the resolution (features of twice CLIP's grid), adds values of middle blocks and masked class
    tokens (both below), and gives each mask its most frequent class (`heads.windows`).

    Args:
        features_BEhw: as for `by_proxy`.
        masks_BKhw: boolean masks of each image on the same grid, which may overlap and leave places out.
    """
    similarities_BMM = cosines(features_BEhw)
    weights_BMM = masked_weights(similarities_BMM, masks_BKhw.flatten(2))
    return _by_weights(weights_BMM, features_BEhw)


def cosines(features_BEhw: Tensor) -> Tensor:
    """Cosines (B, M, M) of the features of all places with each other."""
    unit_BEM = F.normalize(features_BEhw.flatten(2), dim=1)
    return unit_BEM.transpose(1, 2) @ unit_BEM


def proxy_weights(similarities_BMM: Tensor) -> Tensor:
    """ProxyCLIP's weights (B, M, M): softmax of ``scale * (c - shift * mean(c))``, negative entries excluded.

    The mean is that of an image's whole matrix. A place always attends to itself, so that no row is empty.

    Args:
        similarities_BMM: cosines c.
    """
    shifted = PROXY_SCALE * (similarities_BMM - PROXY_SHIFT * _mean(similarities_BMM))
    return _softmax_within(shifted, shifted >= 0)


def masked_weights(similarities_BMM: Tensor, masks_BKM: Tensor) -> Tensor:
    """CorrCLIP's weights (B, M, M): softmax of ``scale * c`` over the places that share a mask.

    A place without a mask attends where c is above its mean over the image's matrix; every place to itself.

    Args:
        similarities_BMM: cosines c.
        masks_BKM: boolean masks.
    """
    masks = masks_BKM.to(similarities_BMM.dtype)
    shared_BMM = masks.transpose(1, 2) @ masks > 0
    covered_BM1 = masks_BKM.any(dim=1)[..., None]
    similar_BMM = similarities_BMM > _mean(similarities_BMM)
    allowed_BMM = torch.where(covered_BM1, shared_BMM, similar_BMM)
    return _softmax_within(MASKED_SCALE * similarities_BMM, allowed_BMM)


def _mean(matrices_BMM: Tensor) -> Tensor:
    return matrices_BMM.mean(dim=(1, 2), keepdim=True)


def _softmax_within(scores_BMM: Tensor, allowed_BMM: Tensor) -> Tensor:
    itself_MM = torch.eye(scores_BMM.shape[-1], dtype=torch.bool, device=scores_BMM.device)
    return scores_BMM.masked_fill(~(allowed_BMM | itself_MM), -torch.inf).softmax(dim=-1)


def _by_weights(weights_BMM: Tensor, features_BEhw: Tensor) -> Attention:
    """The attention of given weights over the cells of given features, to whose grid values are resized."""
    cells = (features_BEhw.shape[2], features_BEhw.shape[3])

    def attend(q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        values_BHMC = resize_values(v[:, :, _prefix(v, grid) :], grid, cells)
        return weights_BMM[:, None].to(v.dtype) @ values_BHMC, cells

    return Attention(attend)


def resize_values(values_BHNC: Tensor, grid: Grid, cells: Grid) -> Tensor:
    """Values on another grid, bilinearly, (B, H, N, C) -> (B, H, M, C)."""
    if grid == cells:
        return values_BHNC
    maps = values_BHNC.transpose(2, 3).flatten(1, 2).unflatten(2, grid)
    resized = F.interpolate(maps, cells, mode="bilinear", align_corners=False)
    return resized.flatten(2).unflatten(1, (values_BHNC.shape[1], -1)).transpose(2, 3)


def refuse_training(name: str) -> None:
    """Refuse to train with an attention of `ATTENTIONS`.

    Raises:
        InputError: the name is another than ``none``.
    """
    if name != NONE:
        raise InputError(
            f"MODEL.CLIP.ATTENTION {name} is for evaluation: a training would fit the weights to an attention that is "
            f"not part of them; leave it {NONE} to train, or freeze it (--eval-only, MODEL.CLIP.TRAINABLE_BLOCKS "
            "0 of a CLIPBackbone)"
        )


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
    middle = middle_blocks(len(tower.blocks))
    tokens_BLD, extras, grid = tower.embed(images)
    middle_BLD = torch.zeros_like(tokens_BLD)
    for index, block in enumerate(tower.stack[:-1]):
        tokens_BLD = tower.run(block, tokens_BLD, *extras)
        if index in middle:
            middle_BLD = middle_BLD + tokens_BLD / len(middle)
    last = tower.stack[-1]
    middle_BHLC = last.queries_keys_values(middle_BLD)[2]
    in_masks = by_proxy_in_masks(features_BEhw, masks_BKhw)

    def attend(q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        return in_masks.attend(q, k, v + middle_BHLC, grid)

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


def with_class_tokens(dense_Ehw: Tensor, tokens_KE: Tensor, masks_Khw: Tensor) -> Tensor:
    """Features (E, h', w') of unit length, and `CLASS_WEIGHT` times the mean class token of the masks of each place.

    Args:
        dense_Ehw: features of places, of any length.
        tokens_KE: class tokens of the masks, of any length.
        masks_Khw: boolean masks, which may overlap and leave places out.
    """
    members_Khw = masks_Khw.to(dense_Ehw.dtype)
    fractions_Khw = members_Khw / members_Khw.sum(dim=0).clamp(min=1)
    unit_KE = F.normalize(tokens_KE.to(dense_Ehw.dtype), dim=1)
    added_Ehw = torch.einsum("ke,khw->ehw", unit_KE, fractions_Khw)
    return F.normalize(dense_Ehw, dim=0) + CLASS_WEIGHT * added_Ehw
