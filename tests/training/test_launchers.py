"""Places that torchrun gives, and a run that torchrun's agent starts anew."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from clipself_seg.errors import InputError
from clipself_seg.training.launchers import Place, gpu_of, name_of_start, place_of, restarted

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node01",
    "MASTER_PORT": "29500",
}


def test_the_place_is_that_of_the_launcher():
    assert place_of(TORCHRUN) == Place(5, 1, 8, 4, "node01", 29500)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
    ],
)
def test_a_process_alone_is_no_part_of_a_run(environment):
    assert place_of(environment) is None


def test_what_is_missing_or_no_number_is_named():
    for name in TORCHRUN:
        with pytest.raises(InputError, match=f"{name} is not set"):
            place_of({key: value for key, value in TORCHRUN.items() if key != name})
    for name in TORCHRUN.keys() - {"MASTER_ADDR"}:
        with pytest.raises(InputError, match=f"{name} of torchrun is 'x1', not a whole number"):
            place_of(TORCHRUN | {name: "x1"})
    with pytest.raises(InputError, match="LOCAL_RANK is not set"):
        place_of({"WORLD_SIZE": "2", "RANK": "0"})


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"LOCAL_RANK": "2"}, "RANK 5, LOCAL_RANK 2, WORLD_SIZE 8, LOCAL_WORLD_SIZE 4"),
        ({"LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "2"}, "--nproc-per-node"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE 0"),
    ],
)
def test_contradictions_are_named(wrong, named):
    with pytest.raises(InputError, match=named):
        place_of(TORCHRUN | wrong)


def test_a_process_has_the_gpu_of_its_number():
    place = place_of(TORCHRUN)
    assert gpu_of(place, 4) == 1
    with pytest.raises(InputError, match="4 processes on this machine, which has 1 GPUs"):
        gpu_of(place, 1)


def test_a_restart_is_seen_by_its_count():
    assert not restarted({}) and not restarted({"TORCHELASTIC_RESTART_COUNT": "0"})
    assert restarted({"TORCHELASTIC_RESTART_COUNT": "1"})
    with pytest.raises(InputError, match="TORCHELASTIC_RESTART_COUNT of torchrun is '-1'"):
        restarted({"TORCHELASTIC_RESTART_COUNT": "-1"})


def test_processes_that_are_started_anew_do_not_meet_those_before_them():
    store = HashStore()

    def start(pool):
        late = [pool.submit(name_of_start, store, rank, 3) for rank in (2, 1)]
        names = {pool.submit(name_of_start, store, 0, 3).result(20)}
        return names | {process.result(20) for process in late}

    with ThreadPoolExecutor(3) as pool:
        first, second = start(pool), start(pool)
    assert len(first) == len(second) == 1 and first != second
