"""Reads the rank and the number of processes that torchrun sets in the environment.

Processes are numbered through over all machines, machine by machine, as Detectron2 wants it.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from clipself_seg.errors import InputError, shown

if TYPE_CHECKING:
    from torch.distributed import Store

Environment = Mapping[str, str]

# How long processes wait for the first one, and look whether it is the right one.
PATIENCE, ROUND = timedelta(minutes=30), timedelta(seconds=1)


class Place(NamedTuple):
    """One of the processes of a run.

    Attributes:
        rank: its number among all processes.
        local_rank: its number among those of its machine.
        processes: number of all processes.
        local_processes: number of processes on each machine.
        address: host at which all processes meet.
        port: of that host.
    """

    rank: int
    local_rank: int
    processes: int
    local_processes: int
    address: str
    port: int


def place_of(environment: Environment) -> Place | None:
    """Place of this process among those that torchrun has started; None if it is alone.

    Args:
        environment: such as `os.environ`.

    Raises:
        InputError: a variable is missing or no whole number, or they contradict each other; names them.
    """
    alone = not environment.keys() & {"LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"}
    if alone or environment.get("WORLD_SIZE") == "1":
        return None
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    numbers = [_number(environment, name) for name in names]
    rank, local_rank, processes, local_processes = numbers
    whole = local_processes > 0 and processes % local_processes == 0
    if not whole or not 0 <= rank < processes or rank % local_processes != local_rank:
        values = ", ".join(f"{name} {value}" for name, value in zip(names, numbers))
        raise InputError(
            f"the environment of torchrun has {values}: every machine needs the same number of processes, "
            "numbered through machine by machine (--nproc-per-node)"
        )
    address = _text(environment, "MASTER_ADDR")
    port = _number(environment, "MASTER_PORT")
    return Place(rank, local_rank, processes, local_processes, address, port)


def restarted(environment: Environment) -> bool:
    """True if torchrun has started the processes anew after one failed.

    Args:
        environment: such as `os.environ`.

    Raises:
        InputError: the count is no whole number.
    """
    name = "TORCHELASTIC_RESTART_COUNT"
    return name in environment and _number(environment, name) > 0


def name_of_start(store: Store, rank: int, processes: int) -> str:
    """A name that all processes of this start have, and those that were started before them had not.

    torchrun's store outlives processes, and what they wrote there would be read by those that are started
    anew. Its counts of restarts are no such name: each machine has its own.

    Args:
        store: of `torch.distributed`, the same for all processes.
        rank: number of this process.
        processes: number of all.

    Raises:
        InputError, torch.distributed.DistError: the others do not come.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("leader", own)
        # An answer is to this leader, so it is of this start.
        answers = [f"{own}/{other}" for other in range(1, processes)]
        store.wait(answers, PATIENCE)
        store.set(f"{own}/all", b",".join(map(store.get, answers)).decode())
        return own
    end = time.monotonic() + PATIENCE.total_seconds()
    while time.monotonic() < end:
        store.wait(["leader"], PATIENCE)
        leader = store.get("leader").decode()  # perhaps one of an earlier start
        store.set(f"{leader}/{rank}", own)
        with contextlib.suppress(RuntimeError):  # not yet, or never of this leader
            store.wait([f"{leader}/all"], ROUND)
            if own in store.get(f"{leader}/all").decode().split(","):
                return leader
        time.sleep(0.05)
    raise InputError(f"process {rank + 1} of {processes} has waited {PATIENCE} for the first one")


def gpu_of(place: Place, gpus: int) -> int:
    """Number of the GPU of a process, among those that its machine has.

    Args:
        place: the process.
        gpus: number of GPUs.

    Raises:
        InputError: there are fewer than processes on this machine.
    """
    if place.local_rank >= gpus:
        raise InputError(
            f"torchrun has started {place.local_processes} processes on this machine, which has {gpus} GPUs: "
            "start one for each GPU"
        )
    return place.local_rank


def _text(environment: Environment, name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise InputError(
            f"{name} is not set, and this process seems to be one of several of torchrun: start it by that command, "
            "or unset the other variables of it"
        )
    return value


def _number(environment: Environment, name: str) -> int:
    """A whole number of at least 0."""
    value = _text(environment, name)
    if not re.fullmatch("[0-9]{1,18}", value):
        raise InputError(f"{name} of torchrun is {shown(value)}, not a whole number: unset it")
    return int(value)
