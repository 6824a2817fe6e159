"""Panoptic segmentation: both formulations agree, and memory is counted where it is meant."""

from __future__ import annotations

import pytest
import torch

from bench.case import Case
from bench.panoptic_workload import PanopticWorkload
from bench.plain_panoptic import plain_masked_attention
from bench.workloads import build_runs
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic.clip_branches import MaskedAttention
from tests.benchmark.small import panoptic_runs, result, tiny_eva


def test_formulations_of_panoptic_segmentation_agree(small_panoptic):
    runs = panoptic_runs()
    ours, plain = result(runs, "generator"), result(runs, "plain generator")
    assert ours.mask_logits.shape == (1, 12, 32, 48) and (ours.mask_logits > 0).any()
    for mine, other in zip(vars(ours).values(), vars(plain).values()):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    shapes = {"masked attention": (12, 128), "dense pooling": (12, 128), "fusion": (12, 10)}
    for name, shape in {**shapes, "masks": (12, 480, 640)}.items():
        ours, plain = result(runs, name), result(runs, f"plain {name}")
        assert ours.shape == shape
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4, msg=name)
    (ids, segments), (plain_ids, plain_segments) = result(runs, "merge"), result(
        runs, "plain merge"
    )
    assert torch.equal(ids, plain_ids) and segments == plain_segments
    assert ids.shape == (128, 192) and 3 < len(segments) <= 12


def test_mask_tokens_of_eva_attend_as_in_the_plain_formulation(small_panoptic):
    workload = PanopticWorkload(Case("panoptic", "ViT-Mini-8", classes=9, queries=5))
    workload.clip.visual = tiny_eva()
    branch = MaskedAttention(workload.clip)
    ours = branch.embed(workload.image, workload.masks, (128, 192))[0]
    plain = plain_masked_attention(branch, workload.image, workload.masks)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_towers_without_a_class_token_have_no_masked_attention(small_panoptic):
    runs = build_runs(Case("panoptic", "RN50", classes=9, queries=5))
    assert (
        "dense pooling" in runs and not {"masked attention", "image", "large image"} & runs.keys()
    )


def test_memory_of_the_merge_is_beside_its_masks(small_panoptic):
    runs = panoptic_runs(queries=None)
    for name in ("merge", "plain merge"):
        masks = runs[name].setup()
        assert len(masks) == 250 and runs[name].given == masks.numel() * masks.element_size()


def test_refuses_what_cannot_be_measured():
    with pytest.raises(InputError, match="847"):
        panoptic_runs(classes=848)
    with pytest.raises(InputError, match="queries 0"):
        panoptic_runs(queries=0)
    with pytest.raises(InputError, match="ViT-Mini-8"):
        build_runs(Case("panoptic", "ViT-Mini-9"))
