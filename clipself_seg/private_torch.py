"""Members of torch that it does not promise to keep. Where one is missing the project does without.

Operators of `torch.ops.aten` without another name are called in `clip/linear.py` and `clip/layers.py`; where one is
missing its lever is not chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

try:
    from torch.multiprocessing.reductions import StorageWeakRef
except ImportError:
    StorageWeakRef = None  # type: ignore[assignment,misc]

# Without them every question about weights is answered as if they had changed.
COUNTS_WRITES = StorageWeakRef is not None and hasattr(Tensor, "_version")
# True within a transform of torch.func, and always where that cannot be asked.
functorch_may_be_active: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", lambda: True
)


def own_tensor(result: Tensor) -> Tensor:
    """A tensor of the same values that autograd takes for no view, so that callers may change it in place."""
    return torch.ops.aten._unsafe_view(result, result.shape)


def allow_graphs(count: int) -> None:
    """Lets torch compile a function for so many kinds of inputs; without the setting for as many as torch likes."""
    config = torch._dynamo.config
    if hasattr(config, "recompile_limit"):
        config.recompile_limit = max(count, config.recompile_limit)
