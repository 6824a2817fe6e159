"""Sums and means over all processes, and a batch norm with their statistics.

Shapes: B images, C or I input and O output channels, H x W cells.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that trains with the statistics of all processes' batches together, on any device.

    torch's SyncBatchNorm does not train on a CPU. In one process, and in evaluation, it is torch's plain
    batch norm; with several, counts may differ.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalised maps (B, C, H, W); B may be 0 in some of several processes, and in all of them."""
        if not self.training or not several_processes():
            return super().forward(maps)
        values = maps.float()
        count = AllSum.apply(values.new_full((), float(values.numel() // self.num_features)))
        counted, count = count > 0, count.clamp(min=1)
        mean = AllSum.apply(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = AllSum.apply((centred * centred).sum((0, 2, 3))) / count
        unbiased = variance.detach() * count / (count - 1).clamp(min=1)
        self._update(mean.detach(), unbiased, counted)
        factor = self.weight * (variance + self.eps).rsqrt()
        return centred * factor[:, None, None] + self.bias[:, None, None]

    def _update(self, mean: Tensor, variance: Tensor, counted: Tensor) -> None:
        """Moves the statistics towards those of a batch; `counted` is false of one that is empty."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        for running, own in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(torch.where(counted, own, running), self.momentum)


class AllSum(torch.autograd.Function):
    """Sum over all processes; the gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _all_reduce(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Gradient of the sum: that of all processes."""
        return _all_reduce(gradient)


def _all_reduce(own: Tensor) -> Tensor:
    total = own.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def mean_over_processes(own: Tensor) -> Tensor:
    """A number's mean over all processes, the divisor by which the mean of their losses is the whole batch's."""
    return _all_reduce(own) / dist.get_world_size() if several_processes() else own


def several_processes() -> bool:
    """True if several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
