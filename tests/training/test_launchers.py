"""Places that torchrun and Slurm give, and a run that torchrun's agent starts anew."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from clipself_seg.errors import InputError
from clipself_seg.training.launchers import (
    Place,
    first_host,
    gpu_of,
    name_of_start,
    place_of,
    restarted,
    tasks_of_each_node,
)

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node01",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "node[01-02]",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def test_the_place_is_that_of_the_launcher():
    assert place_of(TORCHRUN) == Place("torchrun", 5, 1, 8, 4, "node01", 29500)
    assert place_of(SRUN) == Place("Slurm's srun", 5, 1, 8, 4, "node01", 10000 + 123456 % 20000)
    assert place_of(SRUN | {"MASTER_PORT": "7", "MASTER_ADDR": "a", "WORLD_SIZE": "8"}) == (
        Place("Slurm's srun", 5, 1, 8, 4, "a", 7)
    )
    part = {"SLURM_STEP_NODELIST": "node02", "SLURM_STEP_NUM_TASKS": "4"}
    own = {"SLURM_PROCID": "1", "SLURM_STEP_TASKS_PER_NODE": "4"}
    assert place_of(SRUN | part | own)[1:6] == (1, 1, 4, 4, "node02")
    # srun has started a torchrun on each machine.
    assert place_of(SRUN | TORCHRUN).launcher == "torchrun"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # the job's script
        SRUN | {"SLURM_STEP_ID": str(0xFFFFFFFA)},  # the shell of salloc
        SRUN | {"SLURM_NTASKS": "1"},
        {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
    ],
)
def test_a_process_alone_is_no_part_of_a_run(environment):
    assert place_of(environment) is None


@pytest.mark.parametrize("given", [TORCHRUN, SRUN])
def test_what_is_missing_or_no_number_is_named(given):
    for name in given.keys() - {"SLURM_STEP_ID", "SLURM_NTASKS"}:
        with pytest.raises(InputError, match=f"{name} is not set"):
            place_of({key: value for key, value in given.items() if key != name})
    for name, value in given.items():
        if value.isdigit():
            with pytest.raises(InputError, match=f"{name} of .* is 'x1', not a whole number"):
                place_of(given | {name: "x1"})
    with pytest.raises(InputError, match="LOCAL_RANK is not set"):
        place_of({"WORLD_SIZE": "2", "RANK": "0"})


@pytest.mark.parametrize(
    "environment, named",
    [
        (TORCHRUN | {"LOCAL_RANK": "2"}, "RANK 5, LOCAL_RANK 2, WORLD_SIZE 8, LOCAL_WORLD_SIZE 4"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "2"}, "--nproc-per-node"),
        (TORCHRUN | {"RANK": "9"}, "RANK 9"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE 0"),
        (SRUN | {"SLURM_LOCALID": "2"}, "SLURM_LOCALID 2.*--distribution=block"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "5,3"}, "is '5,3'.*--ntasks-per-node"),
        (
            SRUN | {"SLURM_JOB_NODELIST": "[01"},
            r"is '\[01', which is no list of hosts.*MASTER_ADDR",
        ),
    ],
)
def test_contradictions_are_named(environment, named):
    with pytest.raises(InputError, match=named):
        place_of(environment)


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("node[01-04,07],gpu3", "node01"),
        ("gpu3,node[01-04,07]", "gpu3"),
        ("gpu3", "gpu3"),
        ("a[007,009-011]-ib.cluster", "a007-ib.cluster"),
        ("rack[1-2]node[03-04]", "rack1node03"),
        ("n-1,n-2", "n-1"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["", ",a", "[", "a[1-", "a[]", "a b", "a;b", "$(b)"])
def test_what_is_no_list_of_hosts_is_refused(nodes):
    with pytest.raises(InputError, match="no list of hosts"):
        first_host(nodes)


@pytest.mark.parametrize("tasks, each", [("4", 4), ("4(x2)", 4), ("2(x3),2", 2), ("1,1", 1)])
def test_tasks_of_each_node(tasks, each):
    assert tasks_of_each_node(tasks) == each


@pytest.mark.parametrize("tasks", ["", "0", "4,2", "4(x2),3", "x", "4(x2"])
def test_uneven_tasks_are_refused(tasks):
    with pytest.raises(InputError, match="same number of processes"):
        tasks_of_each_node(tasks)


def test_a_process_has_the_gpu_of_its_number_or_the_only_one_that_slurm_shows_it():
    torchrun, srun = place_of(TORCHRUN), place_of(SRUN)
    assert gpu_of(torchrun, 4) == gpu_of(srun, 4) == 1 and gpu_of(srun, 1) == 0
    with pytest.raises(InputError, match="4 processes on this machine, which has 1 GPUs"):
        gpu_of(torchrun, 1)


def test_a_restart_is_seen_by_either_count():
    assert not restarted({}) and not restarted({"TORCHELASTIC_RESTART_COUNT": "0"})
    assert restarted({"TORCHELASTIC_RESTART_COUNT": "1"})
    assert restarted({"SLURM_RESTART_COUNT": "2"})
    with pytest.raises(InputError, match="SLURM_RESTART_COUNT of Slurm is '-1'"):
        restarted({"SLURM_RESTART_COUNT": "-1"})


def test_processes_that_are_started_anew_do_not_meet_those_before_them():
    store = HashStore()

    def start(pool):
        late = [pool.submit(name_of_start, store, rank, 3) for rank in (2, 1)]
        names = {pool.submit(name_of_start, store, 0, 3).result(20)}
        return names | {process.result(20) for process in late}

    with ThreadPoolExecutor(3) as pool:
        first, second = start(pool), start(pool)
    assert len(first) == len(second) == 1 and first != second
