"""Batch norms of two processes, and in convolutions; the folded pyramid is that of resizers and laterals in turn."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.plain_detection import plain_convs
from clipself_seg.heads.fvit.pyramid import (
    ConvNorm,
    FeaturePyramid,
    TapResizers,
)
from clipself_seg.heads.maps import BatchNorm
from tests.two_processes import in_two_processes


def test_two_processes_with_different_counts_equal_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 3, 4, 6, generator=generator)
    wanted = torch.randn(5, 3, 4, 6, generator=generator)

    def work(rank=0, folder=None, whole=False):
        own = slice(None) if whole else (slice(0, 2), slice(2, 5))[rank]
        norm = nn.BatchNorm2d(3) if whole else BatchNorm(3)
        given = maps[own].clone().requires_grad_()
        output = norm(given)
        (output * wanted[own]).sum().backward()
        return {
            "output": output.detach(),
            "given": given.grad,
            "weight": norm.weight.grad,
            "bias": norm.bias.grad,
            "mean": norm.running_mean,
            "var": norm.running_var,
        }

    parts = in_two_processes(work, tmp_path)
    whole = work(whole=True)
    for name in ("output", "given"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name])
    for name in ("weight", "bias"):
        torch.testing.assert_close(sum(part[name] for part in parts), whole[name])
    for name in ("mean", "var"):
        for part in parts:
            torch.testing.assert_close(part[name], whole[name])


def test_one_process_and_evaluation_are_torchs_own():
    maps = torch.randn(2, 3, 4, 4)
    own, plain = BatchNorm(3), nn.BatchNorm2d(3)
    assert torch.equal(own(maps), plain(maps))
    assert torch.equal(own.eval()(maps), plain.eval()(maps))


@pytest.mark.cpu
def test_in_evaluation_the_norm_is_part_of_the_convolution(monkeypatch):
    torch.manual_seed(0)
    conv = ConvNorm(3, 5, 3).train()
    maps = 2 * torch.randn(2, 3, 8, 8) + 1
    given = maps.clone()
    torch.testing.assert_close(
        conv(maps), plain_convs([conv], maps)
    )  # and the statistics are learned
    nn.init.normal_(conv.bn.weight)
    nn.init.normal_(conv.bn.bias)
    conv.eval()
    wanted = plain_convs([conv], maps)
    monkeypatch.setattr(BatchNorm, "forward", lambda *_: pytest.fail("a pass of its own"))
    torch.testing.assert_close(conv(maps), wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(maps, given)


def plain_levels(neck, taps, resizers):
    laterals = [conv(x) for conv, x in zip(neck.lateral_convs, resizers(taps))]
    if neck.top_down:
        for fine in (2, 1, 0):
            above = F.interpolate(laterals[fine + 1], scale_factor=2, mode="nearest")
            laterals[fine] = laterals[fine] + above
    levels = [conv(x) for conv, x in zip(neck.fpn_convs, laterals)]
    return [*levels, F.max_pool2d(levels[-1], 1, 2)]


@pytest.mark.parametrize("top_down", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_levels_of_the_pyramid_and_gradients(top_down, training):
    resizers, neck = TapResizers(12).double(), FeaturePyramid(12, 8, top_down).double()
    taps = [torch.randn(2, 12, 6, 6).double() for _ in range(4)]
    for module in (resizers, neck):
        module.train(training)
    parameters = [*resizers.parameters(), *neck.parameters()]
    results = []
    for make in (neck, lambda *given: plain_levels(neck, *given)):
        levels = make(taps, resizers)
        gradients = torch.autograd.grad(sum((x * x).sum() for x in levels), parameters)
        results.append([*levels, *gradients])
    assert [x.shape[-1] for x in results[0][:5]] == [24, 12, 6, 3, 2]
    for own, other in zip(*results):
        torch.testing.assert_close(own, other)
