"""The quickstart's commands side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipself_seg.commands import predict, train
from clipself_seg.config.yaml_files import CONFIGS, find_file
from clipself_seg.errors import InputError
from clipself_seg.quickstart import steps
from clipself_seg.quickstart.steps import AT_ONCE, Run, call_together, prediction


def python(*lines: str) -> list[str]:
    return ["-c", "\n".join(["import os, sys", *lines])]


def test_lines_bear_the_name_of_their_command_and_commands_share_the_cores(capfd):
    told = "print(os.environ['OMP_NUM_THREADS'], os.environ['CLIPSELF_SEG_MINI'])"
    commands = {"one": python(told), "two": python("print('up', file=sys.stderr)", told)}
    call_together(commands, Path("worlds"))
    threads = max(1, torch.get_num_threads() // AT_ONCE)
    lines = capfd.readouterr().out.splitlines()
    assert sum(line.startswith("$ python -c") for line in lines) == 2
    assert [line for line in lines if line.startswith("[one]")] == [f"[one] {threads} worlds"]
    assert {"[two] up", f"[two] {threads} worlds"} <= set(lines)


def test_a_command_that_fails_is_named_and_the_others_come_to_their_end(tmp_path):
    done = tmp_path / "done"
    commands = {"bad": python("sys.exit(3)"), "good": python(f"open({str(done)!r}, 'w')")}
    with pytest.raises(InputError, match=r"this step failed: python -c (.|\n)*after \[bad\]"):
        call_together(commands, tmp_path)
    assert done.exists()


def test_a_command_that_the_system_ends_is_named_with_the_reason(tmp_path):
    commands = {"big": python("os.kill(os.getpid(), 9)")}
    message = r"this step was ended by SIGKILL, often for want of memory.*: python -c"
    with pytest.raises(InputError, match=message):
        call_together(commands, tmp_path)


def test_commands_are_the_packages_own_and_need_no_checkout(tmp_path, monkeypatch):
    training = Run("", "live", "patches.yaml", training=True).command(tmp_path)
    images = prediction("semseg.yaml", "mini-cat-seg", "mini", tmp_path, tmp_path / "out")
    for words, command in ((training, train), (images, predict)):
        assert words[:2] == ["-m", "clipself_seg"] and words[2] == command.__name__.split(".")[-1]
        args = command.main.parser().parse_args(
            [*words[3:], *(["none.jpg"] if command is predict else [])]
        )
        monkeypatch.chdir(tmp_path)  # as site-packages, there is no folder configs here
        assert find_file(args.config_file).parent == CONFIGS / "mini"
    assert (steps.ROOT / "clipself_seg" / "__main__.py").is_file()
