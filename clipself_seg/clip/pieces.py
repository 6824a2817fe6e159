"""Chooses sizes of chunks: on a CPU what its cache holds, elsewhere everything at once as far as memory allows.

A CPU gains from small pieces, whose numbers it need not fetch from memory again. A GPU does not: it waits for Python
between small operations. Nothing but the device of the tensors decides.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUMBERS = 2**28  # numbers that a piece makes on a GPU, 1 GiB in float32


def on_cpu(tensor: Tensor) -> bool:
    """Whether a CPU computes with the tensor, for which values decide what is worth computing."""
    return tensor.device.type == "cpu"


def at_once(device: torch.device, in_cache: int, numbers: int) -> int:
    """How many of equal items are processed together, at least 1.

    Args:
        device: that computes.
        in_cache: items whose numbers stay in a CPU's cache.
        numbers: numbers that are in memory for one item, all that is made of it included.
    """
    return max(1, in_cache if device.type == "cpu" else NUMBERS // max(1, numbers))
