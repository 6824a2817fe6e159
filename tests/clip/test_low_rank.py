"""Low-rank updates: nothing changes at first, they alone train, and their sums are ordinary weights."""

import pytest
import torch

from clipself_seg.clip.low_rank import merge_low_rank, train_low_rank
from clipself_seg.errors import InputError
from clipself_seg.models.model_base import ModelBase
from tests.tiny import random_clip

EVA = "EVA02-B-16"


def tower_of(name, monkeypatch):
    if name == EVA:
        from clipself_seg.clip import eva

        monkeypatch.setitem(eva.SHAPES, "eva02_base_patch16_clip_224", (32, 3, 2, 16))
    return random_clip(name).visual


@pytest.mark.parametrize("name", ["ViT-Mini-8", EVA])
def test_the_merged_tower_computes_what_the_updated_one_does(name, monkeypatch):
    tower = tower_of(name, monkeypatch)
    names, images = set(tower.state_dict()), torch.rand(1, 3, 64, 64)
    before = tower.dense(images).detach()
    train_low_rank(tower, 2, names=("dense", "block1"))
    assert torch.equal(tower.dense(images), before)
    trained = {name: p for name, p in tower.named_parameters() if p.requires_grad}
    assert trained and all(".parametrizations." in name for name in trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        tower.dense(images).square().mean().backward()
        assert all(p.grad is not None for p in trained.values())  # as several processes need it
        optimizer.step()
    after = tower.dense(images).detach()
    assert not torch.allclose(after, before)
    merge_low_rank(tower)
    torch.testing.assert_close(tower.dense(images), after)
    assert set(tower.state_dict()) == names


def test_checkpointed_blocks_have_equal_gradients():
    tower, gradients = random_clip().visual, []
    train_low_rank(tower, 2)
    trained = [p for p in tower.parameters() if p.requires_grad]
    for checkpointing in (False, True):
        tower.checkpointing = checkpointing
        loss = tower.dense(torch.ones(1, 3, 64, 64)).square().mean()
        gradients.append(torch.autograd.grad(loss, trained))
    assert all(map(torch.equal, *gradients))


def test_updates_are_of_the_last_blocks_alone_where_a_number_of_them_is_given():
    tower = random_clip().visual
    train_low_rank(tower, 2, count=1)
    trained = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert trained and all(".resblocks.3." in name for name in trained)
    assert ModelBase.tower_features == ("dense",)
    with pytest.raises(InputError, match="and none is trained: set it to 0"):
        train_low_rank(random_clip().visual, 2, count=0)
