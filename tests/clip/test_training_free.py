"""Attentions without training, and CorrCLIP's form: by loops, by hand, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.clip.layers import ResidualBlock
from clipself_seg.clip.training_free import (
    ATTENTIONS,
    by_proxy,
    by_proxy_in_masks,
    cosines,
    dense_in_masks,
    gaussian_bias,
    mask_class_tokens,
    masked_weights,
    middle_blocks,
    proxy_weights,
    refuse_training,
    resize_values,
    with_class_tokens,
)
from clipself_seg.config.keys import CHOICES
from clipself_seg.errors import InputError
from tests.clip.test_tower import TOWERS, openai_tower

GRID = (2, 3)


def scores_of(name, q_C, k_C, other_q, other_k, nearness):
    """Exponents of the softmaxes of one pair of places, after their formulas."""
    scale = len(q_C) ** -0.5
    qq, kk = scale * float(q_C @ other_q), scale * float(k_C @ other_k)
    return {
        "sclip": (qq, kk),
        "qq_kk": (qq, kk),
        "clearclip": (qq,),
        "kk": (kk,),
        "naclip": (kk + nearness,),
    }[name]


def nearness_of(place, other):
    """NACLIP's G of two tokens of the grid, the class token being number 0."""
    if 0 in (place, other):
        return 0.0
    (row, column), (other_row, other_column) = (divmod(p - 1, GRID[1]) for p in (place, other))
    return math.exp(-((row - other_row) ** 2 + (column - other_column) ** 2) / 50)


@torch.no_grad()
def dense_by_pairs(tower, images, name):
    """Dense features by loops over heads and pairs of places."""
    tokens, extras, _ = tower.embed(images)
    for block in tower.blocks[:-1]:
        tokens = block(tokens, *extras)
    last = tower.blocks[-1]
    openai = isinstance(last, ResidualBlock)
    normed = (last.ln_1 if openai else last.norm1)(tokens)[0]
    if openai:
        weights, biases = last.attn.in_proj_weight.chunk(3), last.attn.in_proj_bias.chunk(3)
    else:
        weights = [getattr(last.attn, f"{part}_proj").weight for part in "qkv"]
        biases = [last.attn.q_bias, 0 * last.attn.q_bias, last.attn.v_bias]
    q, k, v = (normed @ w.T + b for w, b in zip(weights, biases))
    attended = torch.zeros(len(normed) - 1, tower.width)
    channels = tower.width // last.attn.heads
    for start in range(0, tower.width, channels):
        own = slice(start, start + channels)
        for place in range(1, len(normed)):
            pairs = [
                scores_of(
                    name, q[place, own], k[place, own], q[j, own], k[j, own], nearness_of(place, j)
                )
                for j in range(len(normed))
            ]
            for exponents in zip(*pairs):
                total = sum(math.exp(one) for one in exponents)
                for j, one in enumerate(exponents):
                    attended[place - 1, own] += math.exp(one) / total * v[j, own]
    branch = last.attn.out_proj if openai else lambda x: last.attn.proj(last.attn.inner_attn_ln(x))
    added = last.ls_1(branch(attended)) if openai else branch(attended)
    if name == "sclip":
        added = tokens[0, 1:] + added
        mlp = last.ls_2(last.mlp(last.ln_2(added))) if openai else last.mlp(last.norm2(added))
        added = added + mlp
    return tower.project(added).T.unflatten(1, GRID)[None]


@TOWERS
@pytest.mark.parametrize("name", ATTENTIONS)
def test_each_attention_is_its_formula_over_pairs_of_places(make_tower, name):
    tower, images = make_tower(), torch.randn(1, 3, 16, 24)
    expected = dense_by_pairs(tower, images, name)
    tower.choose_attention(name)
    with torch.no_grad():
        torch.testing.assert_close(tower.dense(images), expected, atol=1e-5, rtol=1e-4)
        both = tower.features(images, ["dense", "block2"])
        tower.choose_attention("none")
        assert torch.equal(both["block2"], tower.features(images, ["block2"])["block2"])


def test_nearness_is_a_gaussian_of_five_patches_and_0_for_the_class_token():
    bias = gaussian_bias((2, 3), 5.0, torch.zeros(()))
    assert bias.shape == (7, 7) and not bias[0].any() and not bias[:, 0].any()
    assert bias[1:, 1:].diagonal().eq(1).all()
    torch.testing.assert_close(bias[1, 6], torch.tensor(math.exp(-5 / 50)))  # one down, two right


def test_proxies_weigh_what_is_above_the_shifted_mean():
    c = torch.tensor([[[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    # mean 4.8 / 9, times 1.2: 0.64. Kept are 1 - 0.64 and 0.9 - 0.64, times 3.
    first = math.exp(3 * 0.36) / (math.exp(3 * 0.36) + math.exp(3 * 0.26))
    expected = torch.tensor([[[first, 1 - first, 0.0], [1 - first, first, 0.0], [0.0, 0.0, 1.0]]])
    torch.testing.assert_close(proxy_weights(c), expected)
    # Where all are alike the shifted mean is above all of them.
    torch.testing.assert_close(proxy_weights(torch.ones(1, 2, 2)), torch.eye(2)[None])


def test_masks_bound_what_a_place_attends_to():
    c = torch.tensor([[[1.0, 0.5, 0.9, 0.1]] * 4])
    masks = torch.tensor([[[True, True, False, False], [False, True, False, False]]])
    weights = masked_weights(c, masks)[0]
    shared = math.exp(4) / (math.exp(4) + math.exp(2))
    torch.testing.assert_close(weights[0], torch.tensor([shared, 1 - shared, 0.0, 0.0]))
    # The last two are in no mask: above the mean, 0.625, are the first and the third, and each is itself.
    assert weights[2].bool().tolist() == [True, False, True, False]
    assert weights[3].bool().tolist() == [True, False, True, True]
    torch.testing.assert_close(weights.sum(-1), torch.ones(4))
    nothing = masked_weights(c, masks[:, :0])[0]
    assert nothing[1].bool().tolist() == [True, True, True, False]


@TOWERS
def test_a_proxy_of_unlike_places_gives_each_its_own_value_and_of_equal_ones_their_mean(make_tower):
    tower, images = make_tower(), torch.randn(1, 3, 16, 24)
    unlike = torch.eye(6)[None].unflatten(2, GRID)
    tower.choose_dense(DenseFeature("value"))
    with torch.no_grad():
        alone = tower.dense_by(images, by_proxy(unlike))
        torch.testing.assert_close(alone, tower.dense(images), atol=1e-5, rtol=1e-4)
        halves = torch.tensor([[True] * 3 + [False] * 3, [False] * 3 + [True] * 3])
        masks = halves.unflatten(1, GRID)[None]
        equal = torch.ones(1, 4, *GRID)
        mixed = tower.dense_by(images, by_proxy_in_masks(equal, masks))
    for row in mixed[0].unbind(1):
        torch.testing.assert_close(row, row[:, :1].expand_as(row), atol=1e-5, rtol=1e-4)
    assert (mixed[0, :, 0] - mixed[0, :, 1]).abs().max() > 1e-3


@TOWERS
def test_features_have_the_grid_of_the_proxy(make_tower):
    tower, images = make_tower(), torch.randn(2, 3, 16, 24)
    proxies = torch.randn(2, 5, 4, 7)
    masks = torch.rand(2, 3, 4, 7) > 0.5
    with torch.no_grad():
        assert tower.dense_by(images, by_proxy(proxies)).shape == (2, 16, 4, 7)
        assert tower.dense_by(images, by_proxy_in_masks(proxies, masks)).shape == (2, 16, 4, 7)
    values = torch.randn(2, 3, 6, 5)
    resized = resize_values(values, GRID, (4, 7))
    one = F.interpolate(values[1, 2].T.unflatten(1, GRID)[None], (4, 7), mode="bilinear")
    torch.testing.assert_close(resized[1, 2], one[0].flatten(1).T)


def test_cosines_do_not_depend_on_lengths():
    features = torch.randn(2, 5, 2, 2)
    torch.testing.assert_close(cosines(features), cosines(3 * features))
    torch.testing.assert_close(cosines(features).diagonal(dim1=1, dim2=2), torch.ones(2, 4))


def test_every_name_is_a_choice_of_the_key_and_others_are_refused():
    assert CHOICES["MODEL.CLIP.ATTENTION"] == ("none", *ATTENTIONS)
    tower = openai_tower()
    with pytest.raises(InputError, match="ATTENTION is nacilp: .* naclip"):
        tower.choose_attention("nacilp")
    tower.choose_dense(DenseFeature("value"))
    with pytest.raises(InputError, match="ATTENTION kk and MODEL.CLIP.DENSE value both say"):
        tower.choose_attention("kk")
    refuse_training("none")
    with pytest.raises(InputError, match="ATTENTION kk is for evaluation.*leave it none to train"):
        refuse_training("kk")


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
