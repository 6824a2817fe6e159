"""Reads the rank and the number of processes that torchrun or Slurm's srun sets in the environment.

Both say it in variables of their own. Processes are numbered through over all machines, machine by machine, as
Detectron2 wants it.
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

TORCHRUN = "torchrun"
SLURM = "Slurm's srun"
# Above it are steps of a job that srun did not start: its script, and the shell of salloc.
LAST_STEP = 0xFFFFFFF0
# Ports that Slurm's jobs meet at: below those that systems give to whoever asks for any.
PORTS = range(10000, 30000)
# How long processes wait for the first one, and look whether it is the right one.
PATIENCE, ROUND = timedelta(minutes=30), timedelta(seconds=1)


class Place(NamedTuple):
    """One of the processes of a run.

    Attributes:
        launcher: who started it, for messages.
        rank: its number among all processes.
        local_rank: its number among those of its machine.
        processes: number of all processes.
        local_processes: number of processes on each machine.
        address: host at which all processes meet.
        port: of that host.
    """

    launcher: str
    rank: int
    local_rank: int
    processes: int
    local_processes: int
    address: str
    port: int


def place_of(environment: Environment) -> Place | None:
    """Place of this process among those that torchrun or srun has started; None if it is alone.

    torchrun comes first, since srun may start one torchrun on each machine.

    Args:
        environment: such as `os.environ`.

    Raises:
        InputError: a variable is missing or no whole number, or they contradict each other; names them.
    """
    stepping = 0 <= _number(environment, "SLURM_STEP_ID", SLURM, default=-1) < LAST_STEP
    # Scripts of Slurm often export WORLD_SIZE; torchrun alone has those of a machine.
    if not environment.keys() & {"LOCAL_RANK", "LOCAL_WORLD_SIZE"} and stepping:
        return _place_of_slurm(environment)
    if environment.keys() & {"LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"}:
        return _place_of_torchrun(environment)
    return None


def restarted(environment: Environment) -> bool:
    """Whether torchrun has started the processes anew after one failed, or Slurm has queued the job again.

    Args:
        environment: such as `os.environ`.

    Raises:
        InputError: the count is no whole number.
    """
    counts = {"TORCHELASTIC_RESTART_COUNT": TORCHRUN, "SLURM_RESTART_COUNT": "Slurm"}
    return any(_number(environment, name, who, default=0) > 0 for name, who in counts.items())


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


def _place_of_torchrun(environment: Environment) -> Place | None:
    if environment.get("WORLD_SIZE") == "1":
        return None
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    rank, local_rank, processes, local_processes = (
        _number(environment, name, TORCHRUN) for name in names
    )
    address = _text(environment, "MASTER_ADDR", TORCHRUN)
    port = _number(environment, "MASTER_PORT", TORCHRUN)
    place = Place(TORCHRUN, rank, local_rank, processes, local_processes, address, port)
    return _consistent(place, dict(zip(names, place[1:5])))


def gpu_of(place: Place, gpus: int) -> int:
    """Number of the GPU of a process, among those that it sees.

    Args:
        place: the process.
        gpus: how many it sees; Slurm may show each process its own alone.

    Raises:
        InputError: there are fewer than processes on this machine.
    """
    if place.launcher == SLURM and gpus == 1:
        return 0
    if place.local_rank >= gpus:
        raise InputError(
            f"{place.launcher} has started {place.local_processes} processes on this machine, which has "
            f"{gpus} GPUs: start one for each GPU"
        )
    return place.local_rank


def _place_of_slurm(environment: Environment) -> Place | None:
    # Without the step's own number it is that of the whole job.
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    if _number(environment, count, SLURM, default=1) == 1:
        return None
    names = ("SLURM_PROCID", "SLURM_LOCALID", count)
    rank, local_rank, processes = (_number(environment, name, SLURM) for name in names)
    name = "SLURM_STEP_TASKS_PER_NODE"
    tasks = _text(environment, name, SLURM)
    listed = next(
        (key for key in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST") if key in environment),
        "SLURM_JOB_NODELIST",
    )
    address = environment.get("MASTER_ADDR") or first_host(_text(environment, listed, SLURM))
    if "MASTER_PORT" in environment:
        port = _number(environment, "MASTER_PORT", SLURM)
    else:
        job = _number(environment, "SLURM_JOB_ID", SLURM)
        step = _number(environment, "SLURM_STEP_ID", SLURM)
        port = PORTS[(job + step) % len(PORTS)]
    place = Place(SLURM, rank, local_rank, processes, tasks_of_each_node(tasks), address, port)
    return _consistent(place, dict(zip(names, place[1:4])) | {name: tasks})


def first_host(nodes: str) -> str:
    """First host of a list in Slurm's notation: "node01" of "node[01-04,07],gpu3".

    Raises:
        InputError: it is no such list.
    """
    group = r"\[\w+[\w,-]*\]"
    match = re.match(rf"((?:[\w.-]|{group})+)(?:,|$)", nodes)
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", match[1]) if match else ""
    if not host:
        raise InputError(
            f"SLURM_JOB_NODELIST is {shown(nodes)}, which is no list of hosts: set MASTER_ADDR to the "
            "host of the first process"
        )
    return host


def tasks_of_each_node(tasks: str) -> int:
    """Number of tasks on each node, of Slurm's notation: 4 of "4(x2)" and of "4,4".

    Raises:
        InputError: it is no such notation, or nodes have different numbers of tasks.
    """
    counts = set()
    for part in tasks.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(\(x[0-9]+\))?", part)
        counts.add(int(match[1]) if match else 0)
    if len(counts) != 1 or 0 in counts:
        raise InputError(
            f"SLURM_STEP_TASKS_PER_NODE is {shown(tasks)}: every node needs the same number of processes, "
            "give --ntasks-per-node"
        )
    return counts.pop()


def _consistent(place: Place, named: Mapping[str, object]) -> Place:
    """The place, if it is one of a run whose machines have equally many processes, numbered in blocks."""
    whole = place.local_processes > 0 and place.processes % place.local_processes == 0
    if (
        not whole
        or not 0 <= place.rank < place.processes
        or place.rank % place.local_processes != place.local_rank
    ):
        values = ", ".join(f"{name} {value}" for name, value in named.items())
        hint = "--nproc-per-node" if place.launcher == TORCHRUN else "--distribution=block"
        raise InputError(
            f"the environment of {place.launcher} has {values}: every machine needs the same number of "
            f"processes, numbered through machine by machine ({hint})"
        )
    return place


def _text(environment: Environment, name: str, launcher: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise InputError(
            f"{name} is not set, and this process seems to be one of several of {launcher}: start it by "
            "that command, or unset the other variables of it"
        )
    return value


def _number(
    environment: Environment, name: str, launcher: str, *, default: int | None = None
) -> int:
    """A whole number of at least 0; a variable that is not set counts as the default, if there is one."""
    if default is not None and name not in environment:
        return default
    value = _text(environment, name, launcher)
    if not re.fullmatch("[0-9]{1,18}", value):
        raise InputError(f"{name} of {launcher} is {shown(value)}, not a whole number: unset it")
    return int(value)
