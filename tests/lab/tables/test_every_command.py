"""Every command of the plan on real data, once, for a step, on stand-ins for data sets and CLIPs."""

import dataclasses
import functools
import os
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from clipself_seg.__main__ import main
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip import save_clip
from clipself_seg.commands import train
from clipself_seg.config import load_config
from clipself_seg.models.build import architecture
from clipself_seg.training import run as training
from clipself_seg.training.metrics import flatten_numbers
from lab.tables import execution, runs
from lab.tables.execution import plan, run_all
from lab.tables.reproduce import Reproduction
from lab.tables.runs import Run
from lab.tables.sections import find_number
from lab.tables.table import list_tables
from tests.lab.tables.stand_ins import write_data
from tests.small_configs import small_values
from tests.tiny import random_clip

# Beginning of the name of a large CLIP -> the small one of its kind.
CLIPS = {"EVA02-": "EVA-Mini-8", "ViT-": "ViT-Mini-8", "RN": "RN-Mini"}
# Model -> what makes its evaluation small.
EVALUATED = {
    "CATSeg": {"TEST.SLIDING_WINDOW": False},
    "OpenPanoptic": {"INPUT.MIN_SIZE_TEST": 64, "MODEL.CLIP_BRANCH.INPUT_SIZE": 64},
}
IMPORTED = (train, training)  # once for all forks


class Forked:
    """In the place of `subprocess.Popen`: a command in a fork, which has everything imported."""

    def __init__(
        self, words: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: Any, stderr: Any
    ) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            sys.stdout, sys.stderr = os.fdopen(stdout.fileno(), "w"), os.fdopen(
                stderr.fileno(), "w"
            )
            os.chdir(cwd)
            os.environ.update(env)
            code = main(list(words[3:]))  # behind python -m clipself_seg
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def evaluate_in_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make evaluations in forks, and trainings by interpreters of their own."""

    def start(words: Sequence[str], **how: Any) -> Any:
        return (Forked if "eval" in words else subprocess.Popen)(words, **how)

    monkeypatch.setattr(execution, "subprocess", types.SimpleNamespace(Popen=start))


class Small:
    """Runs with what makes them small, but on the data sets and the weights of other runs that they name.

    Args:
        folder: for files of random weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.of = functools.cache(self._of)
        self.clip = functools.cache(self._clip)

    def _of(self, run: Run) -> Run:
        cfg = load_config(run.config, run.options)
        kind = next(kind for kind in CLIPS if cfg.MODEL.CLIP.NAME.startswith(kind))
        small = small_values(cfg, CLIPS[kind]) | {"MODEL.CLIP.WEIGHTS": self.clip(CLIPS[kind])}
        small |= EVALUATED.get(cfg.MODEL.META_ARCHITECTURE, {})
        if cfg.MODEL.CLIP_BRANCH.KIND == "backbone":  # masks are named on the generator's canvas
            small.pop("MODEL.CLIP_BRANCH.INPUT_SIZE", None)
        options = dict(zip(run.options[::2], run.options[1::2]))
        for key, value in small.items():
            if not key.startswith("DATASETS.") and key not in run.needs:
                options[key] = str(value)
        if options.get("MODEL.WEIGHTS") in zoo():
            options["MODEL.WEIGHTS"] = self.whole(run.config, options)
        words = tuple(word for pair in options.items() for word in pair)
        needs = {key: self.of(need) for key, need in run.needs.items()}
        return dataclasses.replace(run, options=words, needs=needs)

    def _clip(self, name: str) -> str:
        path = self.folder / f"{name}.safetensors"
        save_clip(random_clip(name), path)
        return str(path)

    def whole(self, config: str, options: dict[str, str]) -> str:
        """A file of a whole model with random weights."""
        given = options | {"MODEL.WEIGHTS": "", "MODEL.CLIP_BRANCH.WEIGHTS": ""}
        cfg = load_config(config, [word for pair in given.items() for word in pair])
        path = self.folder / f"{options['MODEL.WEIGHTS']}.pth"
        architecture(cfg)(cfg).export(path)
        return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder of the runs of all tables, which share them, and of the data."""
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
        patch.setenv("CLIPSELF_SEG_WEIGHTS", str(folder / "weights"))
        patch.setattr(execution, "subprocess", types.SimpleNamespace(Popen=Forked))
        patch.setattr(runs, "_count_files", lambda _: sys.maxsize)  # two images are few
        patch.setattr(runs, "_too_few_annotations", lambda _: "")
        yield folder


def data_sets(run: Run) -> set[str]:
    return {name for one in run.with_needs() for name in one.settings["data"]}


@pytest.mark.heavy
@pytest.mark.parametrize("name", list_tables())
def test_every_command_of_a_table_on_real_data_comes_to_its_numbers(name, place):
    torch.set_num_threads(1)  # a fork has no other threads
    made = Reproduction(scale="real", seeds=[0], output=place / "runs", docs=place / "docs")
    write_data({of for run in made.wanted([name]) for of in data_sets(run)})
    wanted = made.wanted([name])  # with the content of the data
    assert not {what for run in wanted for what in run.missing if "licence:" not in what}
    small = Small(place)
    assert run_all(plan(map(small.of, wanted), made.store), made.store) == {}
    (table,) = made.read([name])
    of_table = made.runs_of(table, [0])
    reached: dict[str, bool] = {}  # a row and a column may have no number together, but not alone
    for row in table.own.values():
        for key, column in table.columns.items():
            path = row.path(column, "real")
            run = of_table.get(row.runs().get(column.of, ""), [None])[0]
            if run and path and "TEST.REGIONS.SIZES" not in run.options:
                numbers = dict(flatten_numbers(made.store.record(run)["results"]))
                is_there = find_number(numbers, path) is not None
                for one in (f"column {key}", f"row {row.title}"):
                    reached[one] = reached.get(one, False) or is_there
    assert [name for name, is_there in reached.items() if not is_there] == []
