"""The script that kills trainings: a run comes through, and it is able to see what differs."""

import json
import mmap
import shutil
import signal
import sys
import time

import torch
from safetensors.torch import save_file

from clipself_seg.checkpoints.training_state import CheckpointFolder
from tests.fuzz import kills


def test_a_training_that_is_killed_once_ends_like_one_that_is_not(tmp_path, capsys):
    words = ["--kills", "1", "--task", "distill", "--steps", "4"]
    assert kills.main([*words, "--json", str(tmp_path / "kills.json")]) == 0
    outcome = json.loads((tmp_path / "kills.json").read_text())["tasks"]["distill"]
    assert len(outcome["steps"]) == 1 and outcome["finished"] >= 1 and not outcome["different"]
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["distill", "1"]


def end_run(folder, values=(1.0, 2.0)):
    """What a training leaves."""
    folder.mkdir()
    save_file({"x": torch.tensor(values)}, folder / "final.safetensors")
    CheckpointFolder(folder / "checkpoints", 1).save(3, {"model/x": torch.tensor(values)}, {})
    rows = [{"iteration": step, "loss": 1 / (step + 1), "time": time.time()} for step in range(3)]
    (folder / "metrics.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_every_difference_is_seen(tmp_path):
    whole, other = (end_run(tmp_path / name) for name in ("whole", "other"))

    def differences():
        return kills.differences(whole, other, "final.safetensors")

    assert not differences()
    (other / "checkpoints/.iteration_3.x.part").touch()
    assert "half-written files: .iteration_3" in differences()[-1]
    metrics = other / "metrics.json"
    metrics.write_text(metrics.read_text().replace("0.5", "0.50000000000000011"))
    assert "metrics of other differ" in differences()
    (other / "final.safetensors").unlink()
    assert differences() == ["other has no final.safetensors"]
    shutil.rmtree(other)
    bits = torch.nextafter(torch.tensor(2.0), torch.tensor(3.0)).item()
    end_run(other, (1.0, bits))
    different = differences()
    assert different[0].endswith("differs in x") and different[1].startswith("checkpoints")


def test_a_process_is_killed_before_the_change_to_a_file_that_is_asked_for(tmp_path):
    changes = mmap.mmap(-1, 8)

    def write():
        for name in "abc":
            (tmp_path / name).write_text(name)
        return 0

    assert kills.end(kills.start(write, tmp_path / "said.txt", changes)) == 0
    assert int.from_bytes(changes[:], sys.byteorder) == 3
    for name in "abc":
        (tmp_path / name).unlink()
    assert kills.end(kills.start(write, tmp_path / "said.txt", changes, 3)) == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "said.txt"]


def test_a_result_that_is_half_written_at_a_kill_is_seen(tmp_path):
    for folder, length in (("whole", 4), ("killed", 4), ("torn", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(bytes(length))
        (tmp_path / folder / "index.json").write_text(folder)
    (tmp_path / "whole/b.png").touch()

    def torn(task, name):
        return kills.torn(task, tmp_path / "whole", tmp_path / name)

    assert not torn("predict", "killed") and not torn("save_pretrained", "absent")
    assert torn("predict", "torn") == ["torn has a part of a.png after a kill"]
    assert "killed has a part of b.png after a kill" in torn("save_pretrained", "killed")
