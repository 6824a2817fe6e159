"""A batch norm over all processes, and the convolution with norm that every part of F-ViT is made of."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_seg.clip.runtime import on_cpu


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that trains with the statistics of all processes' batches together, on any device.

    torch's SyncBatchNorm does not train on a CPU. In one process, and in evaluation, it is torch's plain
    batch norm; with several, counts may differ.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalised maps (B, C, H, W); B may be 0 in one of several processes."""
        if not self.training or not _several_processes():
            return super().forward(maps)
        values = maps.float()
        count = _Sum.apply(values.new_full((), float(values.numel() // self.num_features)))
        mean = _Sum.apply(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _Sum.apply((centred * centred).sum((0, 2, 3))) / count
        self._update(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        factor = self.weight * (variance + self.eps).rsqrt()
        return centred * factor[:, None, None] + self.bias[:, None, None]

    def _update(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class _Sum(torch.autograd.Function):
    """Sum over all processes; the gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _all_reduce(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _all_reduce(gradient)


def _all_reduce(own: Tensor) -> Tensor:
    total = own.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def fold_norm(
    norm: nn.BatchNorm2d, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Weight (outputs, ...) and bias (outputs,) of a convolution with what the norm behind it does in evaluation.

    In training they stay as they are.
    """
    if norm.training:
        return weight, bias
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    return weight * factor.view(-1, *[1] * (weight.dim() - 1)), norm.bias - mean * factor


def double(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Transposed convolution of kernel and stride 2, (B, O, 2 H, 2 W), of maps (B, I, H, W).

    No two cells write to one place, so it is one matrix product; torch's own takes twice as long on a CPU, where alone
    this one is taken.

    Args:
        maps: (B, I, H, W).
        weight: (I, O, 2, 2), as `nn.ConvTranspose2d` has it.
        bias: (O,)
    """
    if not on_cpu(maps):
        return F.conv_transpose2d(maps, weight, bias, stride=2)
    product = weight.permute(1, 2, 3, 0).flatten(0, 2)[:, :, None, None]
    offset = None if bias is None else bias.repeat_interleave(4)
    return F.pixel_shuffle(F.conv2d(maps, product, offset), 2)


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm and, if asked, ReLU; or convolution with bias and ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, norm: bool = True, relu: bool = True
    ) -> None:
        """
        Args:
            inputs: channels of the input.
            outputs: channels of the output.
            kernel: side of the kernel; the size of the map stays.
            norm: whether there is a batch norm; the convolution has a bias where there is none.
            relu: whether a ReLU ends it.
        """
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not norm)
        self.bn = BatchNorm(outputs) if norm else None
        self.relu = relu

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, outputs, H, W) of maps (B, inputs, H, W)."""
        if self.bn is not None and not on_cpu(maps):
            # Folding takes a CPU nothing; for a GPU it is five small operations in place of one.
            maps = self.bn(self.conv(maps))
            return F.relu_(maps) if self.relu else maps
        weight, bias = self.folded(self.conv.weight, self.conv.bias)
        return self.finish(F.conv2d(maps, weight, bias, padding=self.conv.padding))

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight (outputs, ...) and bias of a convolution in place of the own one, see `fold_norm`."""
        return (weight, bias) if self.bn is None else fold_norm(self.bn, weight, bias)

    def finish(self, maps: Tensor) -> Tensor:
        """What is left after a convolution with `folded` weights: norm of a training step, ReLU.

        The maps are overwritten.
        """
        if self.bn is not None and self.bn.training:
            maps = self.bn(maps)
        return F.relu_(maps) if self.relu else maps


def xavier_uniform(module: nn.Module) -> None:
    """Initialises every convolution and linear layer by Xavier's rule, biases with 0 (MMDetection's FPN)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def kaiming_normal(module: nn.Module) -> None:
    """Initialises every convolution by Kaiming's rule over its outputs, biases with 0 (MMDetection's ConvModule)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
