"""The folded pyramid is that of resizers and lateral convolutions one after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.heads.fvit.feature_pyramid import FeaturePyramid, SimpleFeaturePyramid
from clipself_seg.heads.fvit.resizers import TapResizers


def plain(neck, taps, resizers):
    laterals = [conv(x) for conv, x in zip(neck.lateral_convs, resizers(taps))]
    if neck.top_down:
        for fine in (2, 1, 0):
            above = F.interpolate(laterals[fine + 1], scale_factor=2, mode="nearest")
            laterals[fine] = laterals[fine] + above
    levels = [conv(x) for conv, x in zip(neck.fpn_convs, laterals)]
    return [*levels, F.max_pool2d(levels[-1], 1, 2)]


@pytest.mark.parametrize("kind", [FeaturePyramid, SimpleFeaturePyramid])
@pytest.mark.parametrize("training", [True, False])
def test_levels_and_gradients(kind, training):
    resizers, neck = TapResizers(12).double(), kind(12, 8).double()
    taps = [torch.randn(2, 12, 6, 6).double() for _ in range(4)]
    for module in (resizers, neck):
        module.train(training)
    parameters = [*resizers.parameters(), *neck.parameters()]
    results = []
    for make in (neck, lambda *given: plain(neck, *given)):
        levels = make(taps, resizers)
        gradients = torch.autograd.grad(sum((x * x).sum() for x in levels), parameters)
        results.append([*levels, *gradients])
    assert [x.shape[-1] for x in results[0][:5]] == [24, 12, 6, 3, 2]
    for own, other in zip(*results):
        torch.testing.assert_close(own, other)
