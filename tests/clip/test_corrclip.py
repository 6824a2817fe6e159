"""CorrCLIP's form: by loops over places, by hand, and where there is no mask or one that no cell has."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from clipself_seg.clip.training_free import (
    dense_in_masks,
    mask_class_tokens,
    middle_blocks,
    resize_values,
    with_class_tokens,
)
from tests.clip.test_dense import TOWERS, openai_tower


def test_the_middle_blocks_are_five_of_twelve_and_half_of_twenty_four():
    assert list(middle_blocks(12)) == [3, 4, 5, 6, 7] and list(middle_blocks(24)) == [*range(6, 18)]
    assert list(middle_blocks(4)) == [1] and list(middle_blocks(2)) == [0]


def fine_masks(*corners):
    masks = torch.zeros(len(corners), 4, 6, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, corners):
        mask[top:bottom, left:right] = True
    return masks


@torch.no_grad()
def plain_dense(tower, images, features, masks):
    """A place at a time; the values are torch's own."""
    tokens, extras, grid = tower.embed(images)
    outputs = []
    for block in tower.blocks[:-1]:
        tokens = block(tokens, *extras)
        outputs.append(tokens)
    middle = torch.stack([outputs[i] for i in middle_blocks(len(tower.blocks))]).mean(0)
    last = tower.blocks[-1]
    values = last.queries_keys_values(tokens)[2] + last.queries_keys_values(middle)[2]
    fine = resize_values(values[:, :, 1:], grid, (4, 6))[0]
    unit = F.normalize(features[0].flatten(1), dim=0)
    cosines = unit.T @ unit
    members = masks.flatten(1)
    rows = []
    for i in range(24):
        shared = [(members[:, i] & members[:, j]).any() for j in range(24)]
        if not members[:, i].any():
            shared = [cosines[i, j] > cosines.mean() for j in range(24)]
        places = [j for j in range(24) if shared[j] or i == j]
        weights = (4 * cosines[i, places]).softmax(0)
        rows.append((weights[:, None] * fine[:, places]).sum(1).flatten())
    return tower.project(last.finish(torch.stack(rows)[None], None))[0].T.unflatten(1, (4, 6))


@TOWERS
def test_dense_features_are_those_of_plain_loops(make_tower):
    tower = make_tower()
    generator = torch.Generator().manual_seed(0)
    patch = tower.patch_size
    images = torch.randn(1, 3, 2 * patch, 3 * patch, generator=generator)
    features = torch.randn(1, 5, 4, 6, generator=generator)
    masks = fine_masks((0, 0, 4, 2), (0, 1, 2, 4))
    with torch.no_grad():
        dense = dense_in_masks(tower, images, features, masks[None])
    assert dense.shape == (1, tower.embed_dim, 4, 6)
    expected = plain_dense(tower, images, features, masks)
    torch.testing.assert_close(dense[0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_class_tokens_are_those_of_masked_attention_and_0_for_masks_without_a_cell():
    tower = openai_tower()
    patch = tower.patch_size
    image = torch.randn(1, 3, 2 * patch, 3 * patch)
    masks = fine_masks((0, 0, 1, 1), (3, 3, 3, 3))
    tokens = mask_class_tokens(tower, image, masks)
    coarse = torch.zeros(1, 2, 3, dtype=torch.bool)
    coarse[0, 0, 0] = True
    torch.testing.assert_close(tokens[:1], tower.masked_attention(image, [coarse]))
    assert not tokens[1].any()
    assert mask_class_tokens(tower, image, masks[:0]).shape == (0, tower.embed_dim)


def test_half_the_mean_class_token_of_a_places_masks_is_added():
    dense = torch.tensor([[[3.0, 0.0, 5.0]], [[4.0, 2.0, 0.0]]])
    tokens = torch.tensor([[2.0, 0.0], [0.0, 9.0]])
    masks = torch.tensor([[[True, True, False]], [[False, True, False]]])
    result = with_class_tokens(dense, tokens, masks)
    expected = [[0.6 + 0.5, 0.25, 1.0], [0.8, 1 + 0.25, 0.0]]
    torch.testing.assert_close(result[:, 0], torch.tensor(expected))
    nothing = with_class_tokens(dense, tokens[:0], masks[:0])
    torch.testing.assert_close(nothing, F.normalize(dense, dim=0))
