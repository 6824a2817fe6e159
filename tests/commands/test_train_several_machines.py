"""Processes of torchrun's agent: several machines, and a start anew after one was killed."""

import json
import os
import signal
import socket
import sys

import pytest
import torch
from detectron2.utils import comm
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing import get_context

from clipself_seg.commands import train
from clipself_seg.training.trainer import Trainer
from tests.commands.test_train import words
from tests.tiny import write_tiny_coco

STEPS = {"SOLVER__MAX_ITER": 4, "SOLVER__CHECKPOINT_PERIOD": 2, "SOLVER__WARMUP_ITERS": 1}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def under_torchrun(work, arguments, port, **changes):
    """What torchrun does, but for a fork in place of a program for each process."""
    config = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": 2,
        "run_id": "run",
        "rdzv_backend": "c10d",
        "rdzv_endpoint": f"127.0.0.1:{port}",
        "max_restarts": 0,
        "monitor_interval": 0.05,
        "start_method": "fork",
        "local_addr": "127.0.0.1",
    }
    return elastic_launch(LaunchConfig(**config | changes), work)(*arguments)


def trained(arguments, dies=False):
    torch.set_num_threads(1)  # OpenMP does not survive the fork
    os.cpu_count = lambda: 1  # of each machine
    if dies and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        step = Trainer._step

        def last_step(self, forward, storage, samples):
            if storage.iter == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            step(self, forward, storage, samples)

        Trainer._step = last_step
    if status := train.main(arguments):
        sys.exit(status)
    return comm.get_world_size()


def assert_same_weights(left, right):
    one, two = (load_file(folder / "clip_final.safetensors") for folder in (left, right))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_tiny_coco(folder / "datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        under_torchrun(trained, [words(folder / "run", **STEPS)], free_port())
        yield folder / "run"


def test_a_run_that_torchrun_starts_anew_ends_as_one_that_was_not_killed(tmp_path, uninterrupted):
    folder = tmp_path / "restarted"
    under_torchrun(trained, [words(folder, **STEPS), True], free_port(), max_restarts=1)
    assert_same_weights(folder, uninterrupted)
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(4))
    assert "resumed after 2 steps" in (folder / "log.txt").read_text()


def node(number, arguments, port):
    torch.set_num_threads(1)
    under_torchrun(
        trained,
        arguments,
        port,
        min_nodes=2,
        max_nodes=2,
        nproc_per_node=1,
        rdzv_backend="static",
        rdzv_configs={"rank": number, "timeout": 60},
    )


def test_two_machines_with_a_process_each_are_one_with_two(tmp_path, uninterrupted):
    folder, port = tmp_path / "two", free_port()
    nodes = [
        get_context("fork").Process(target=node, args=(n, [words(folder, **STEPS)], port))
        for n in (0, 1)
    ]
    for process in nodes:
        process.start()
    for process in nodes:
        process.join()
    assert [process.exitcode for process in nodes] == [0, 0]
    assert_same_weights(folder, uninterrupted)
