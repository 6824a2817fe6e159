"""Operation counts are those of torch's own counter."""

from __future__ import annotations

import pytest
import torch

from bench.cat_seg_workload import SemSegWorkload
from clipself_seg.clip import load_clip
from clipself_seg.clip.tower import train_last_blocks
from clipself_seg.tables import flops
from clipself_seg.tables.flops import count_tower_flops, tower_flops
from tests.benchmark.small import panoptic_runs, semseg_case, tiny_eva


@pytest.mark.parametrize("kind", ["OpenAI", "EVA"])
def test_operation_counts_are_those_of_torch(kind):
    tower = load_clip("ViT-Mini-8", None).visual if kind == "OpenAI" else tiny_eva()
    train_last_blocks(tower, -1)
    counted = count_tower_flops(tower, torch.zeros(1, 3, 48, 48), torch.zeros(1, 3, 32, 32))
    assert tuple(tower_flops(tower, 48, 32)) == counted


def test_operations_of_a_resnet_are_counted_without_memory():
    flops = tower_flops(load_clip("RN50", None).visual, 224, 224)
    # 4.1 G multiply-adds of a ResNet-50, and those of CLIP's wider stem and its pool.
    assert 9e9 < flops.dense < 13e9
    assert 1.5 * flops.dense < flops.dense_backward < 2 * flops.dense


def test_operation_counts_of_cat_seg_are_those_of_torch(small_cat_seg):
    words = ["a", "old brick wall", "x y z", "very old tree in the park"]
    model = SemSegWorkload(semseg_case()).model
    model.set_vocabulary(words)
    model.requires_grad_(False)
    views = torch.zeros(2, 3, 384, 384)
    with torch.no_grad():
        counted = flops.count_flops(lambda: model.window_logits(views))
    parts = [flops.feature_flops, flops.upsample_flops]
    parts += [flops.aggregator_flops]
    assert (
        flops.text_flops(model, torch.device("cpu")) + sum(part(model, 2) for part in parts)
        == counted
    )


def test_operation_counts_of_a_training_step_are_those_of_torch(small_cat_seg):
    workload = SemSegWorkload(semseg_case(training=True, batch=2))
    step = workload.runs()["step"]
    assert flops.count_flops(lambda: step.call(None)) == step.flops


def test_operation_counts_of_the_generator_are_those_of_torch(small_panoptic):
    generator = panoptic_runs()["generator"]
    assert flops.count_flops(lambda: generator.call(None)) == generator.flops
