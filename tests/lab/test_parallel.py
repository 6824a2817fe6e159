"""Work in several processes: in order, and no process outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipself_seg.errors import InputError
from lab.parallel import run_in_parallel
from tests.conftest import ROOT

HELPER = """
import os, signal, time
from pathlib import Path

def square(number):
    return number * number

def die(number):
    os.kill(os.getpid(), signal.SIGKILL)

def wait(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)
"""
WAITING = """
from lab.parallel import run_in_parallel
from parallel_helper import wait

if __name__ == "__main__":
    run_in_parallel(wait, ["."] * 2, processes=2, label="wait")
"""


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """A module that workers can import."""
    (tmp_path / "parallel_helper.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    import parallel_helper

    yield parallel_helper
    del sys.modules["parallel_helper"]


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_jobs(helper, processes):
    results = run_in_parallel(helper.square, range(40), processes=processes, label="square")
    assert results == [number**2 for number in range(40)]
    assert run_in_parallel(helper.square, [], processes=processes, label="none") == []


def test_a_worker_that_the_system_ends_is_an_error_not_a_wait(helper):
    with pytest.raises(InputError, match="the system ended a worker"):
        run_in_parallel(helper.die, range(4), processes=2, label="die")


def test_workers_end_with_a_parent_that_is_killed(helper, tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tools", tmp_path)))
    }
    pids = tmp_path / "pids"
    pids.mkdir()
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "waiting.py"],
        cwd=pids,
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    while len(list(pids.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    workers = [int(path.name) for path in pids.iterdir()]
    for _ in range(400):
        if not any(alive(pid) for pid in workers):
            return
        time.sleep(0.05)
    raise AssertionError("workers are still there")


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
