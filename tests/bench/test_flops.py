"""Operation counts are those of the formulas, and of torch's counter on real tensors."""

from __future__ import annotations

import torch

from bench.cat_seg_workload import SemSegWorkload
from bench.flops import aggregator_flops, feature_flops, upsample_flops
from clipself_seg.clip import load_clip
from clipself_seg.tables.flops import TowerFlops, count_flops, text_flops, tower_flops
from tests.bench.small import panoptic_runs, semseg_case, tiny_eva


def by_formula(tower, mlp: int, dense_side: int, image_side: int) -> TowerFlops:
    """Operations of a transformer whose last block needs the value path alone of dense features, and one query else."""
    width, depth, patch = tower.width, len(tower.blocks), tower.patch_size
    dense, crop = ((side // patch) ** 2 for side in (dense_side, image_side))

    def stem(tokens: int) -> int:
        return 2 * tokens * 3 * patch**2 * width

    def block(tokens: int) -> int:
        return 2 * tokens * (4 * width**2 + mlp) + 4 * tokens**2 * width

    head = 2 * dense * width * tower.embed_dim
    blocks = (depth - 1) * block(1 + dense) + 2 * dense * (2 * width**2 + mlp)
    keys_and_values = 2 * (1 + crop) * 2 * width**2 + 4 * (1 + crop) * width
    class_token = 2 * (2 * width**2 + mlp) + 2 * width * tower.embed_dim
    image = stem(crop) + (depth - 1) * block(1 + crop) + keys_and_values + class_token
    return TowerFlops(stem(dense) + blocks + head, 2 * blocks + head, image)


def test_operations_of_towers_are_those_of_the_formulas():
    openai, eva = load_clip("ViT-Mini-8", None).visual, tiny_eva()
    weights = 2 * openai.blocks[0].mlp.c_fc.weight.numel()
    assert tower_flops(openai, 48, 32) == by_formula(openai, weights, 48, 32)
    weights = 3 * eva.blocks[0].mlp.w1.weight.numel()
    assert tower_flops(eva, 48, 32) == by_formula(eva, weights, 48, 32)


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
        counted = count_flops(lambda: model.window_logits(views))
    parts = (feature_flops, upsample_flops, aggregator_flops)
    assert text_flops(model, torch.device("cpu")) + sum(part(model, 2) for part in parts) == counted


def test_operation_counts_of_a_training_step_are_those_of_torch(small_cat_seg):
    workload = SemSegWorkload(semseg_case(training=True, batch=2))
    step = workload.runs()["step"]
    assert count_flops(lambda: step.call(None)) == step.flops


def test_operation_counts_of_the_generator_are_those_of_torch(small_panoptic):
    generator = panoptic_runs()["generator"]
    assert count_flops(lambda: generator.call(None)) == generator.flops
