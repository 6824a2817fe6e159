"""Matching of queries with targets: costs by loop, the assignment by trying all."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from clipself_seg.heads.panoptic.matching import (
    TermWeights,
    match_queries,
    matching_costs,
    pair_costs,
    sample_points,
)

WEIGHTS = TermWeights(2.0, 5.0, 3.0)


def test_costs_equal_a_loop_over_pairs():
    classes, logits = torch.randn(4, 6), 3 * torch.randn(4, 50)
    labels, targets = torch.tensor([2, 0, 2]), (torch.rand(3, 50) > 0.5).float()
    costs = pair_costs(classes, logits, labels, targets, WEIGHTS)
    for q, t in itertools.product(range(4), range(3)):
        probability = classes[q].softmax(-1)[labels[t]]
        entropy = F.binary_cross_entropy_with_logits(logits[q], targets[t])
        inside = logits[q].sigmoid()
        dice = 1 - (2 * (inside * targets[t]).sum() + 1) / (inside.sum() + targets[t].sum() + 1)
        expected = -2 * probability + 5 * entropy + 3 * dice
        torch.testing.assert_close(costs[q, t], expected)


def test_points_are_sampled_as_bilinear_interpolation_does():
    maps = torch.randn(3, 4, 6)
    y, x = torch.meshgrid((torch.arange(8) + 0.5) / 8, (torch.arange(12) + 0.5) / 12, indexing="ij")
    points = torch.stack([x, y], dim=-1).flatten(0, 1)[None]
    expected = F.interpolate(maps[None], (8, 12), mode="bilinear", align_corners=False)[0]
    inner = slice(1, -1)  # beyond the centres of the outer pixels, samples fade to zero
    samples = sample_points(maps, points).unflatten(1, (8, 12))
    torch.testing.assert_close(samples[:, inner, inner], expected[:, inner, inner])
    each = sample_points(maps, points.expand(3, -1, -1))
    torch.testing.assert_close(each, samples.flatten(1))
    assert sample_points(maps[:0], points).shape == (0, 96)


def test_the_assignment_is_the_cheapest_of_all():
    torch.manual_seed(3)
    classes, masks = torch.randn(5, 4), torch.randn(5, 8, 8)
    labels, targets = torch.tensor([1, 0, 2]), torch.rand(3, 16, 16) > 0.5
    points = torch.rand(1, 99, 2)
    problem = matching_costs(classes, masks, labels, targets, points, WEIGHTS)
    ((queries, matched),) = match_queries([problem])
    sampled = sample_points(masks, points), sample_points(targets, points)
    costs = pair_costs(classes, sampled[0], labels, sampled[1], WEIGHTS).numpy()
    best = min(costs[list(p), range(3)].sum() for p in itertools.permutations(range(5), 3))
    np.testing.assert_allclose(costs[queries, matched].sum(), best, rtol=1e-6)
    assert sorted(matched.tolist()) == [0, 1, 2] and len(set(queries.tolist())) == 3


def test_masks_find_themselves():
    targets = torch.zeros(3, 16, 16, dtype=torch.bool)
    targets[0, :8], targets[1, 8:, :8], targets[2, 8:, 8:] = True, True, True
    order = torch.tensor([2, 0, 1])
    masks = torch.cat([-torch.ones(2, 16, 16), targets[order].float() * 20 - 10])
    labels = torch.tensor([0, 0, 0])
    points = torch.rand(1, 200, 2)
    costs = matching_costs(torch.zeros(5, 2), masks, labels, targets, points, TermWeights())
    ((queries, matched),) = match_queries([costs])
    assert dict(zip(queries.tolist(), matched.tolist())) == {2: 2, 3: 0, 4: 1}


def test_an_image_without_targets():
    none = torch.zeros(0, dtype=torch.long), torch.zeros(0, 16, 16, dtype=torch.bool)
    how = *none, torch.rand(1, 20, 2), WEIGHTS
    costs = matching_costs(torch.randn(5, 4), torch.randn(5, 8, 8), *how)
    ((queries, matched),) = match_queries([costs])
    assert len(queries) == len(matched) == 0


def test_problems_of_several_shapes_are_each_solved_as_if_alone():
    problems = [torch.randn(shape) for shape in ((5, 3), (5, 0), (2, 4), (3, 3))]
    alone = [match_queries([one])[0] for one in problems]
    for pair, expected in zip(match_queries(problems), alone, strict=True):
        assert all(torch.equal(*both) for both in zip(pair, expected))
        assert len(pair[0]) == len(pair[1])


def test_predictions_that_are_not_finite_are_matched_all_the_same():
    logits = torch.full((3, 4, 4), torch.nan)
    masks = torch.ones(2, 4, 4, dtype=torch.bool)
    weights = TermWeights()
    where = torch.rand(1, 8, 2)
    costs = matching_costs(torch.zeros(3, 5), logits, torch.tensor([0, 1]), masks, where, weights)
    ((queries, matched),) = match_queries([costs])
    assert len(queries) == len(matched) == 2
