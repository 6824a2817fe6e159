"""Counts floating-point operations of a task: matrix products and convolutions, 2 for a multiply-add.

OpenAI's ViTs and EVA-02's have closed formulas, tested against torch's own counter; all other towers are counted by
that counter on tensors without memory. What a formulation computes in vain, or twice
(activation checkpointing), does not count.

Legend: N patch tokens, L = 1 + N, D width, E embedding.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipself_seg.clip.eva import EvaTransformer
from clipself_seg.clip.freezing import train_last_blocks
from clipself_seg.clip.openai_vit import VisionTransformer
from clipself_seg.clip.tower import ImageTower, TransformerTower


class TowerFlops(NamedTuple):
    """Operations for one image.

    Attributes:
        dense: the dense features.
        dense_backward: their backward pass when every block trains; stem and head are frozen.
        image: the image embedding.
    """

    dense: int
    dense_backward: int
    image: int


def tower_flops(tower: ImageTower, dense_size: int, image_size: int) -> TowerFlops:
    """Operations of a tower.

    Args:
        tower: any.
        dense_size: side in pixels of the image for dense features.
        image_size: side in pixels of the image for image embeddings.
    """
    if isinstance(tower, (VisionTransformer, EvaTransformer)):
        return _transformer_flops(tower, dense_size, image_size)
    return _counted_flops(tower, dense_size, image_size)


def pooling_flops(cells: int, embed_dim: int, regions: int) -> int:
    """One pooling matrix product of all regions of an image; its backward pass costs as much."""
    return 2 * regions * cells * embed_dim


def _transformer_flops(tower: TransformerTower, dense_size: int, image_size: int) -> TowerFlops:
    width, depth, patch = tower.width, len(tower.blocks), tower.patch_size
    mlp = _mlp_weights(tower)

    def stem(tokens: int) -> int:
        return 2 * tokens * 3 * patch**2 * width

    def block(tokens: int) -> int:
        return 2 * tokens * (4 * width**2 + mlp) + 4 * tokens**2 * width

    patches = (dense_size // patch) ** 2
    head = 2 * patches * width * tower.embed_dim
    blocks = (depth - 1) * block(1 + patches) + 2 * patches * (2 * width**2 + mlp)
    crop_patches = (image_size // patch) ** 2
    crop_tokens = 1 + crop_patches
    # The last block of an image embedding: keys and values of all tokens, the rest of one.
    keys_and_values = 2 * crop_tokens * 2 * width**2 + 4 * crop_tokens * width
    class_token = 2 * (2 * width**2 + mlp) + 2 * width * tower.embed_dim
    return TowerFlops(
        dense=stem(patches) + blocks + head,
        dense_backward=2 * blocks + head,  # the head passes a gradient on and gets none
        image=stem(crop_patches) + (depth - 1) * block(crop_tokens) + keys_and_values + class_token,
    )


def _mlp_weights(tower: TransformerTower) -> int:
    mlp: Any = tower.blocks[0].mlp
    if isinstance(tower, EvaTransformer):
        return 3 * mlp.w1.weight.numel()
    return 2 * mlp.c_fc.weight.numel()


def _counted_flops(tower: ImageTower, dense_size: int, image_size: int) -> TowerFlops:
    tower = copy.deepcopy(tower)
    first = next(tower.parameters())
    if not isinstance(first, FakeTensor):  # which has no memory either, and cannot be moved
        first = next(tower.to("meta").parameters())
    train_last_blocks(tower, -1)
    dense_input, crop = (
        torch.zeros(1, 3, side, side, device=first.device) for side in (dense_size, image_size)
    )
    return TowerFlops(*count_tower_flops(tower, dense_input, crop))


def count_tower_flops(
    tower: ImageTower, dense_input: torch.Tensor, crop: torch.Tensor
) -> tuple[int, int, int]:
    """Operations that torch counts for dense features, their backward pass and image embeddings of a batch."""
    # torch's counter knows attention as two matrix products, not as the fused kernel of the CPU.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            features = tower.dense(dense_input)
        with FlopCounterMode(display=False) as backward:
            features.sum().backward()
        with FlopCounterMode(display=False) as image, torch.no_grad():
            tower(crop)
    return forward.get_total_flops(), backward.get_total_flops(), image.get_total_flops()
