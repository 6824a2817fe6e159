"""Every trained parameter is in one group, by the kind of its module."""

from detectron2.config import CfgNode
from torch import nn

from clipself_seg.models.optimizer_groups import (
    by_rate_and_kind,
    matrices_and_vectors,
    norms_and_biases_apart,
)
from tests.tiny import tiny_clipself


def test_norms_and_biases_apart_decays_embeddings_and_matrices_alone():
    model = nn.ModuleDict({"e": nn.Embedding(2, 3), "n": nn.GroupNorm(1, 3), "l": nn.Linear(3, 3)})
    model["f"] = nn.Linear(3, 3).requires_grad_(False)
    decayed, plain = norms_and_biases_apart(model, CfgNode({"WEIGHT_DECAY": 0.05}))
    assert [p.ndim for p in decayed["params"]] == [2, 2] and decayed["weight_decay"] == 0.05
    assert [p.ndim for p in plain["params"]] == [1, 1, 1] and plain["weight_decay"] == 0.0


def test_vectors_have_no_weight_decay_and_frozen_parameters_no_group():
    layer, frozen = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False)
    decayed, plain = matrices_and_vectors(nn.Sequential(layer, frozen).parameters(), 0.1)
    assert decayed == {"params": [layer.weight], "weight_decay": 0.1}
    assert plain == {"params": [layer.bias], "weight_decay": 0.0}


def test_groups_of_clipself_hold_the_student_blocks_once():
    model = tiny_clipself()
    groups = matrices_and_vectors(model.parameters(), 0.1)
    grouped = [p for group in groups for p in group["params"]]
    blocks = list(model.student.blocks.parameters())
    assert {id(p) for p in grouped} == {id(p) for p in blocks} and len(grouped) == len(blocks)


def test_kinds_have_decays_of_their_own_and_parts_rates_of_their_own():
    parts = {"norms": nn.Sequential(nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.BatchNorm2d(3))}
    parts["norms"].append(nn.SyncBatchNorm(3))
    parts |= {"table": nn.Embedding(2, 3), "slow": nn.Linear(3, 3), "fast": nn.Linear(3, 3)}
    model = nn.ModuleDict(parts)
    solver = CfgNode({"WEIGHT_DECAY": 0.3, "WEIGHT_DECAY_NORM": 0.2})
    groups = by_rate_and_kind(model, solver, ((model["slow"], 0.1), (None, 7.0)))
    named = {(g["lr_multiplier"], g["weight_decay"]): g["params"] for g in groups}
    assert named.keys() == {(1.0, 0.2), (1.0, 0.0), (0.1, 0.3), (1.0, 0.3)}
    for key, part in (((1.0, 0.2), "norms"), ((1.0, 0.0), "table"), ((0.1, 0.3), "slow")):
        assert {id(p) for p in named[key]} == {id(p) for p in model[part].parameters()}
