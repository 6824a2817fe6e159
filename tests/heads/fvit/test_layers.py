"""The batch norm of two processes is that of one that has all images."""

from __future__ import annotations

import torch
from torch import nn

from clipself_seg.heads.fvit.layers import BatchNorm
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
