"""The page about data of one's own: its file and all of its commands run, with a step or two in place of hundreds."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_seg import __main__ as console
from clipself_seg.commands import train
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "own_data.md").read_text()
MINE = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
# Joined where a line is continued.
COMMANDS = [
    shlex.split(line)
    for line in re.findall(
        r"^    ((?:python|clipself-seg|cp|tar) .*)$", PAGE.replace("\\\n", " "), re.MULTILINE
    )
]
QUICK = "SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 1 SOLVER.WARMUP_ITERS 0 SOLVER.CHECKPOINT_PERIOD 1"
SMALL = {"data": "--train 3 --val 1 --base 1"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder as a checkout, in which names of data sets are registered and forgotten again."""
    for name in ("configs", "clipself_seg"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    known = set(DatasetCatalog.list())
    yield tmp_path
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of the page in this process, on little data and with few steps."""
    program, *rest = words
    monkeypatch.setattr(sys, "argv", words)
    if program == "clipself-seg":
        assert console.main([*rest, *SMALL.get(rest[0], "").split()]) == 0
    elif program == "python":
        assert train.main([*rest[1:], *QUICK.split()]) == 0
    else:
        subprocess.run(words, check=True)


def test_a_data_set_of_ones_own_is_registered_distilled_trained_and_predicted(here, monkeypatch):
    (mine,) = MINE
    draw, *others = COMMANDS
    run(draw, monkeypatch)
    exec(compile(mine, "mine.py", "exec"), {"__name__": "mine"})
    assert len(others) == 9
    for words in others:
        run(words, monkeypatch)
    assert (here / "output/mine/maps/000000.png").is_file()
    for task, number in (("semseg", "my_val_sem_seg"), ("detection", "my_val_boxes")):
        assert number in json.dumps(
            json.loads((here / f"output/mine/{task}/results.json").read_text())
        )
    names = json.loads((here / "output/mine/labels/classes.json").read_text())
    assert "red star" in json.dumps(names)
    assert (here / "output/mine/boxes/detections.json").is_file()
