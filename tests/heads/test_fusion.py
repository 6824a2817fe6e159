"""Fusion is the official one wherever that is finite, and finite where it is not."""

import math

import numpy as np
import pytest
import torch

from clipself_seg.heads.fusion import discounted_void, fuse_scores, fusion_of, name_masks
from tests.conftest import PARITY

CASE = PARITY / "odise_fusion.npz"
ROWS = [("caption", 0.35, 0.65), ("label", 0.3, 0.7)]
ROWS += [(model, w, w) for model in ("caption", "label") for w in (0, 1)]


def scores(queries=6, classes=5, scale=4.0):
    generator, clip = scale * torch.randn(2, queries, classes)
    return generator, clip, torch.rand(queries), torch.arange(classes) % 2 == 0


@pytest.mark.parametrize("model, alpha, beta", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_official_probabilities(model, alpha, beta, dtype):
    case = {key: torch.from_numpy(value) for key, value in np.load(CASE).items()}
    inputs = [case[name].to(dtype) for name in ("generator_logits", "clip_logits", f"void_{model}")]
    fused = fuse_scores(*inputs, case["seen"], alpha, beta)
    for suffix in ("", "_f64"):
        expected = case[f"{model}_a{alpha}_b{beta}{suffix}"].double()
        torch.testing.assert_close(fused.double(), expected, rtol=0, atol=1e-6)


def test_clip_alone_and_the_generator_alone():
    generator, clip, _, seen = scores()
    everything = torch.randn(6, 6).softmax(1)  # a generator's own K + 1 probabilities
    generator, void = everything[:, :5].log(), everything[:, 5]
    alone = fuse_scores(generator, clip, void, seen, *fusion_of("generator", 0.3, 0.7)[:2])
    torch.testing.assert_close(alone, everything)
    alone = fuse_scores(generator, clip, void, seen, *fusion_of("clip", 0.3, 0.7)[:2])
    torch.testing.assert_close(alone[:, :5], clip.softmax(1) * (1 - void[:, None]))
    assert fusion_of("fused", 0.3, 0.7)[:2] == (0.3, 0.7)
    discounts = [
        fusion_of(m, 0.3, 0.7, (), 0.5).void_discount for m in ("fused", "clip", "generator")
    ]
    assert discounts == [0.5, 0.5, 0]  # the generator alone keeps its void


@pytest.mark.parametrize("alpha, beta", [(0, 1), (1, 0), (0.35, 0.65), (0, 0), (1, 1)])
@pytest.mark.parametrize("extreme", [500.0, 3e38, math.inf])
def test_extreme_logits_give_finite_probabilities(alpha, beta, extreme):
    generator, clip, void, seen = scores()
    generator[0] = -extreme
    generator[0, 1] = clip[0, 2] = extreme  # they agree on nothing
    clip[1], generator[2] = extreme, -extreme
    fused = fuse_scores(generator, clip, void, seen, alpha, beta)
    assert fused.isfinite().all() and (fused >= 0).all()
    torch.testing.assert_close(fused.sum(1), torch.ones(6))


def test_a_query_that_clip_cannot_read_keeps_the_generators_scores():
    generator, clip, void, seen = scores()
    clip[3] = math.nan
    valid = torch.arange(6) != 3
    fused = fuse_scores(generator, clip, void, seen, 0.4, 0.8, valid)
    alone = fuse_scores(generator, torch.zeros(6, 5), void, seen, 0, 0)
    torch.testing.assert_close(fused[3], alone[3])
    readable = [tensor[valid] for tensor in (generator, clip, void)]
    torch.testing.assert_close(fused[valid], fuse_scores(*readable, seen, 0.4, 0.8))


def test_half_precision_is_fused_in_float32():
    generator, clip, void, seen = scores()
    halves = [tensor.half() for tensor in (generator, clip, void)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = fuse_scores(*halves, seen, 0.3, 0.7)
    expected = fuse_scores(*(tensor.float() for tensor in halves), seen, 0.3, 0.7)
    assert fused.dtype == torch.float32 and torch.equal(fused, expected)


def test_no_query_is_fine():
    fused = fuse_scores(*torch.zeros(2, 0, 4), torch.zeros(0), torch.ones(4).bool(), 0.3, 0.7)
    assert fused.shape == (0, 5)


def test_masks_of_queries_and_classes_may_be_of_numbers():
    generator, clip, void, seen = scores()
    valid = torch.tensor([1, 0, 1, 1, 0, 1])
    expected = fuse_scores(generator, clip, void, seen, 0.3, 0.7, valid.bool())
    assert torch.equal(fuse_scores(generator, clip, void, seen.long(), 0.3, 0.7, valid), expected)


@pytest.mark.parametrize("weight", [0.25, 1.0])
@pytest.mark.parametrize("guarded", [False, True])
def test_discounted_void_equals_a_loop_over_queries(weight, guarded):
    generator, clip, void, seen = scores(20, 7)
    inputs = generator.double(), clip.double(), void.double(), seen
    valid = torch.arange(20) % 3 > 0 if guarded else None
    fused = fuse_scores(*inputs, 0.4, 0.8, valid, weight)
    plain = fuse_scores(*inputs, 0.4, 0.8, valid)
    for query in range(20):
        surest = max(clip[query].double().softmax(0).tolist())
        left = void[query].item() * (1 - (weight * surest if valid is None or valid[query] else 0))
        assert fused[query, -1].item() == pytest.approx(left, abs=1e-12)
        classes = plain[query, :-1] / plain[query, :-1].sum() * (1 - left)
        torch.testing.assert_close(fused[query, :-1], classes, rtol=0, atol=1e-12)


def test_a_weight_of_0_changes_no_bit():
    inputs = scores(50, 30)
    assert torch.equal(fuse_scores(*inputs, 0.4, 0.8), fuse_scores(*inputs, 0.4, 0.8, None, 0.0))
    void = inputs[2]
    assert torch.equal(discounted_void(void, inputs[1].softmax(1), 0.0), void)


def test_masks_without_class_scores_are_named_by_clip_and_weighed_by_their_score():
    clip = torch.tensor([[0.75, 0.25], [0.5, 0.5], [math.nan, 0.0]]).log()
    valid = torch.tensor([True, True, False])
    named = name_masks(clip, torch.tensor([1.0, 0.5, 1.0]), valid)
    expected = torch.tensor([[0.75, 0.25, 0], [0.25, 0.25, 0], [0, 0, 0]])
    torch.testing.assert_close(named, expected)
    torch.testing.assert_close(name_masks(clip[:2], torch.tensor([1.0, 0.5])), expected[:2])
    assert name_masks(torch.zeros(0, 4), torch.zeros(0)).shape == (0, 5)
