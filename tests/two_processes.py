"""Two processes that train or evaluate together (gloo, CPU)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimisers import it, and each forked process would for itself
import torch.distributed as dist
import torch.multiprocessing as mp

from clipself_seg.commands.train import leave_process_group

Work = Callable[[int, Path], Any]


def _process(rank: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)  # OpenMP does not survive the fork
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(work(rank, folder), folder / f"{rank}.pt")
    leave_process_group()


def in_two_processes(work: Work, folder: Path) -> list[Any]:
    """What `work(rank, folder)` returns in each process: tensors, numbers and containers of them.

    The processes are forked, so that they need not import torch and detectron2 again.
    """
    mp.start_processes(_process, (work, folder), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
