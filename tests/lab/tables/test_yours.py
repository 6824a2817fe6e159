"""Rows, tables, modules and data of a user in the tables of `reproduce`."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clipself_seg import imports
from clipself_seg.data.datasets.own import register_data
from clipself_seg.errors import InputError
from lab.tables import execution
from lab.tables.execution import run_all
from lab.tables.reproduce import Reproduction
from lab.tables.runs import make_run, resolve
from lab.tables.sections import command_text
from lab.tables.store import Store
from lab.tables.table import read_tables, with_data, with_yours
from reproduce import _yours, reproduce
from tests.conftest import ROOT
from tests.lab.tables.worlds import TABLE, write_table

EXAMPLES = ROOT / "docs" / "examples"
OWN_TABLE = EXAMPLES / "my_table.yaml"
BACKBONE = "MODEL.CLIP.BACKBONE"


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """What types files of a text for `--import`; their modules are forgotten afterwards."""
    names = []
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setenv(imports.VARIABLE, str(tmp_path / f"{name}.py"))
        names.append(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)


def backbones(*names):
    head = "from detectron2.modeling import BACKBONE_REGISTRY\n"
    return head + "".join(f"@BACKBONE_REGISTRY.register()\nclass {name}: ...\n" for name in names)


def test_runs_of_yours_alone_have_the_module_and_the_others_are_those_that_are_kept(typed):
    (table,) = read_tables([str(OWN_TABLE)])
    (kept,) = read_tables(["zero_shot"])
    plain = resolve(kept.runs["mini"], "naclip", 0)
    typed("my_nothing", "")
    options = {"MODEL.CLIP.WEIGHTS": "mini-clipself", "MODEL.CLIP.ATTENTION": "naclip"}
    given = with_yours(table, options)
    naclip, mine = (resolve(given.runs["mini"], name, 0) for name in ("naclip", "mine"))
    assert naclip.name == plain.name and not naclip.imports
    assert mine.imports and "imports" in mine.settings and mine.name != plain.name
    assert mine.settings["config"]["MODEL.CLIP.ATTENTION"] == "naclip"
    assert given.rows["mine"].title == "mine: mini-clipself, naclip"
    # Without a module its row and what is said of it are left out.
    without = with_yours(table, None)
    assert [*without.rows] == ["original", "naclip"] and not without.claims
    # A table without such rows has the module in all runs.
    assert resolve(kept.runs["mini"], "naclip", 0).name != plain.name


def test_a_run_without_the_module_is_started_without_it(typed, tmp_path, monkeypatch):
    typed("my_nothing", "")
    seen = {}

    class Finished(subprocess.Popen):
        def __init__(self, words, *, env, **others):
            seen[words[-1]] = env.get(imports.VARIABLE)
            super().__init__([sys.executable, "-c", ""], env=env, **others)

    monkeypatch.setattr(execution.subprocess, "Popen", Finished)
    runs = [
        make_run("mini/zero_shot", {}, evaluate=True, imports=imported)
        for imported in (True, False)
    ]
    run_all(runs, Store(tmp_path / "runs"))
    typed_files = [seen[str(tmp_path / "runs" / run.name)] for run in runs]
    assert typed_files == [os.environ[imports.VARIABLE], None]


def test_the_one_backbone_of_a_module_is_taken_and_of_several_one_has_to_be_named(typed, capsys):
    backbone, two = read_tables(["backbone", "2"])
    assert _yours([], [backbone]) is None
    typed("my_two", backbones("MyOne", "MyOther"))
    with pytest.raises(InputError, match=f"MyOne and MyOther: type --opts {BACKBONE} NAME"):
        _yours([], [backbone])
    assert _yours([BACKBONE, "MyOne"], [backbone]) == {BACKBONE: "MyOne"}
    assert _yours([], [two]) == {}
    with pytest.raises(InputError, match="no table here has a row of yours"):
        _yours(["A", "B"], [two])
    typed("my_none", "")
    with pytest.raises(InputError, match="--import registers no backbone"):
        _yours([], [backbone])
    typed("my_one", backbones("MyOnly"))
    assert reproduce(["--table", "backbone", "--seeds", "0", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"{BACKBONE} MyOnly, which --import registers" in said
    assert said.count(f"{BACKBONE} MyOnly") == 1 + 5


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("evaluate: True", "evaluate: True\n    prepare: -c pass", "a run has `prepare`, which"),
        ("single", "--import=evil.py", "a run of a table has '--import=evil.py'"),
        ("INPUT.REGIONS.STUDENT_SIZE: 64", "--import: evil.py", "a run of a table has '--import'"),
        ("config: configs/mini/regions.yaml", "config: --help", "a run of a table has '--help'"),
        ("about: For tests.", "about: &a [x, x]\nfurther: {b: [*a, *a], c: 1}", "mapping with"),
    ],
)
def test_a_table_of_a_stranger_starts_runs_and_nothing_else(old, new, message, tmp_path):
    assert old in TABLE
    path = write_table(tmp_path, TABLE.replace(old, new, 1), "theirs")
    with pytest.raises(InputError, match=message):
        given = {"scale": "mini", "seeds": [0], "output": tmp_path, "docs": None}
        Reproduction(**given).wanted([str(path)])


@pytest.mark.parametrize(
    "name, message",
    [
        ("theirs.yaml", "no table .*theirs.yaml: there is no such file"),
        ("Zero_Shot.yaml", "there is a table of this name already: rename the file"),
        ("zero_sho", 'did you mean "zero_shot"\\? \\(or give the file of yours, NAME.yaml\\)'),
    ],
)
def test_a_table_that_is_not_there_is_named(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        read_tables([name])


def test_the_page_of_a_table_of_yours_has_it_alone(tmp_path):
    path = write_table(tmp_path, TABLE, "theirs")
    given = Reproduction(scale="mini", seeds=[0], output=tmp_path / "runs", docs=None)
    given.write_page([str(path)])
    pages = sorted(path.name for path in (tmp_path / "runs" / "page" / "tables").glob("*.md"))
    assert pages == ["index.md", "theirs.md"]


@pytest.mark.usefixtures("catalogue")
def test_data_of_yours_take_the_place_of_a_tables_data_sets_and_count_by_their_files(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
        for number in range(2):
            Image.fromarray(np.full((4, 6), 3, np.uint8)).save(
                tmp_path / f"{kind}/train/{number}.png"
            )
    path = tmp_path / "screws.yaml"
    path.write_text("train: images/train\nval: images/train\nnames: {3: dog}\n")
    names = register_data(path, "semantic").test
    zero_shot, backbone, two = read_tables(["zero_shot", "backbone", "2"])
    for table in (zero_shot, backbone):
        given = with_data(table, str(path), names)
        assert [*given.columns] == ["own_screws_val_sem_seg"] and given.claims
        assert {*given.shown_runs("mini")} == {row.run for row in given.rows.values()}
        run = resolve(given.runs["mini"], given.rows["naclip"].run, 0)
        assert [*run.settings["data"]] == [*names] and run.settings["config"]["DATASETS.DATA"]
        assert "zero_shot" in run.config and given.rows["naclip"].runs() == {"": run_name(given)}
    Image.fromarray(np.full((4, 6), 9, np.uint8)).save(
        tmp_path / "masks/train/0.png", compress_level=0
    )
    assert resolve(given.runs["mini"], run_name(given), 0).name != run.name
    with pytest.raises(InputError, match="table 2 has data sets of its own; zero_shot and"):
        with_data(two, str(path), names)


def run_name(table):
    return table.rows["naclip"].run


def test_the_command_of_a_run_names_its_modules(typed, tmp_path):
    typed("my_nothing", "")
    with_it, without = (
        command_text(make_run("mini/zero_shot", {}, evaluate=True, imports=imported), tmp_path)
        for imported in (True, False)
    )
    assert with_it.endswith(f" --import {tmp_path / 'my_nothing.py'}") and "--import" not in without
