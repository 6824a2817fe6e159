"""The end of a run of several processes."""

from __future__ import annotations

import torch.distributed as dist
from detectron2.utils import comm


def leave_process_group() -> None:
    """Wait for the others and take the group down, if there is one.

    Detectron2 keeps the group in a cache. Left there, it falls with the interpreter, and a thread of
    gloo's that still runs then aborts a process whose work is done.
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        comm._get_global_gloo_group.cache_clear()
        dist.destroy_process_group()
