"""TIPSv2's text tower: padding, texts without tokens, recomputed blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.clip.tips import TipsTextTower
from tests.clip.test_tips import TEXT_SIZES, TOKENS, close


@pytest.fixture(scope="module")
def text_tower() -> TipsTextTower:
    torch.manual_seed(0)
    return TipsTextTower(**TEXT_SIZES, hidden=64).eval()


@torch.no_grad()
def test_padding_and_the_other_texts_of_a_batch_have_no_effect(text_tower):
    together = text_tower(TOKENS)
    for tokens, expected in zip(TOKENS, together):
        close(text_tower(tokens[tokens != 0][None])[0], expected, 1e-5)
    longer = F.pad(TOKENS, (0, 7))
    close(text_tower(longer), together, 1e-5)
    assert text_tower.lengths(TOKENS).tolist() == [2, 4, 1]


def test_a_text_without_tokens_is_zero_and_has_finite_gradients(text_tower):
    tokens = torch.tensor([[0, 0, 0], [4, 0, 0]])
    text = text_tower(tokens)
    assert torch.equal(text[0], torch.zeros(32))
    text.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in text_tower.parameters())
    text_tower.zero_grad()
    assert text_tower(TOKENS[:0]).shape == (0, 32)


def test_recomputed_blocks_have_the_same_gradients(text_tower):
    gradients = []
    for checkpointing in (False, True):
        text_tower.zero_grad()
        text_tower(TOKENS, checkpointing).square().sum().backward()
        gradients.append([p.grad.clone() for p in text_tower.parameters()])
    for one, other in zip(*gradients):
        assert torch.equal(one, other)
    text_tower.zero_grad()
