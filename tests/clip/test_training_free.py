"""Attentions without training: by loops over pairs of places, and what is refused."""

import math

import pytest
import torch

from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.clip.layers import ResidualBlock
from clipself_seg.clip.tower import TowerOptions
from clipself_seg.clip.training_free import ATTENTIONS, gaussian_bias, refuse_training
from clipself_seg.config.declare import KEYS
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
    tower.configure(TowerOptions(attention=name))
    with torch.no_grad():
        torch.testing.assert_close(tower.dense(images), expected, atol=1e-5, rtol=1e-4)
        both = tower.features(images, ["dense", "block2"])
        tower.configure(TowerOptions(attention="none"))
        assert torch.equal(both["block2"], tower.features(images, ["block2"])["block2"])


def test_nearness_is_a_gaussian_of_five_patches_and_0_for_the_class_token():
    bias = gaussian_bias((2, 3), 5.0, torch.zeros(()))
    assert bias.shape == (7, 7) and not bias[0].any() and not bias[:, 0].any()
    assert bias[1:, 1:].diagonal().eq(1).all()
    torch.testing.assert_close(bias[1, 6], torch.tensor(math.exp(-5 / 50)))  # one down, two right


def test_every_name_is_a_choice_of_the_key_and_others_are_refused():
    assert KEYS["MODEL.CLIP.ATTENTION"].choices == ("none", *ATTENTIONS)
    tower = openai_tower()
    with pytest.raises(InputError, match="ATTENTION is nacilp: .* naclip"):
        tower.configure(TowerOptions(attention="nacilp"))
    with pytest.raises(InputError, match="ATTENTION kk and MODEL.CLIP.DENSE value both say"):
        tower.configure(TowerOptions(DenseFeature("value"), attention="kk"))
    refuse_training("none")
    with pytest.raises(InputError, match="ATTENTION kk is for evaluation.*leave it none to train"):
        refuse_training("kk")
