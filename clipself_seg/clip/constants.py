"""Makes device tensors of Python numbers without a synchronisation with the GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def constant(values: Any, like: Tensor) -> Tensor:
    """What ``like.new_tensor(values)`` gives, a tensor of the type and on the device of another.

    `Tensor.new_tensor` waits until all that the GPU was given before is done; here the copy queues behind it.

    Args:
        values: numbers, nested as they shall lie; a few, for memory that is not pinned is copied twice.
        like: has the type and the device.
    """
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
