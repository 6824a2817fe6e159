"""`clipself-seg` and `python -m clipself_seg`: every command by one name, and none slower for it."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from clipself_seg import __main__ as console
from clipself_seg.commands import mini, prepare, train
from clipself_seg.commands.options import Command
from tests.conftest import ROOT

CALLS = {
    "train_net.py": "runpy.run_path('train_net.py', run_name='__main__')",
    "clipself-seg": "runpy.run_module('clipself_seg', run_name='__main__')",
}


@pytest.fixture(autouse=True)
def argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", [])


def test_every_command_has_a_name():
    files = (ROOT / "clipself_seg/commands").glob("[!_]*.py")
    modules = {path.stem for path in files} - {"options"}
    made = {
        value
        for name in modules
        for value in vars(importlib.import_module(f"clipself_seg.commands.{name}")).values()
        if isinstance(value, Command)
    }
    entries = console.COMMANDS.values()
    assert made <= {console.body(entry) for entry in entries}
    assert {entry.place.split(".")[0] for entry in entries} == modules


@pytest.mark.parametrize("program", CALLS)
def test_help_is_quick_because_nothing_heavy_is_imported(program):
    names = ["", *console.COMMANDS] if program == "clipself-seg" else [""]
    code = (
        "import runpy, sys\n"
        f"for name in {names}:\n"
        f"    sys.argv = ['{program}', *name.split(), '--help']\n"
        f"    try: {CALLS[program]}\n"
        "    except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'detectron2', 'numpy', 'cv2', 'PIL', 'scipy', 'matplotlib', 'yaml'}\n"
        "assert not heavy & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: {program} {name}".rstrip() in done.stdout for name in names)


def test_train_net_takes_the_whole_command_line():
    words = [sys.executable, "train_net.py", "--no-such-option"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "error: " in done.stderr.splitlines()[-1]


def test_help_lists_few_commands_and_the_help_of_a_group_its_own(capsys):
    assert console.main(["--help"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:3] > "  "}
    short = {name for name in console.COMMANDS if " " not in name}
    assert short | console.GROUPS.keys() <= listed and len(short | console.GROUPS.keys()) <= 16
    for group in console.GROUPS:
        assert console.main([group, "--help"]) == 0
        said = capsys.readouterr().out
        assert all(f"\n  {name} " in said for name in console.COMMANDS if name.startswith(group))


def test_eval_is_training_without_training(monkeypatch):
    given = []
    monkeypatch.setattr(train.main, "body", given.append)
    assert not console.main(["eval", "--config-file", "mini/patches.yaml", "SEED", "3"])
    (args,) = given
    assert args.eval_only and args.config_file == "mini/patches.yaml" and args.opts == ["SEED", "3"]


def test_the_exit_status_is_that_of_the_command(monkeypatch):
    monkeypatch.setattr(mini, "mini_world", lambda: 7)
    assert console.main(["data", "mini-world"]) == 7


@pytest.mark.parametrize("name", console.RENAMED)
def test_an_old_spelling_goes_on_to_work_and_names_the_new_one(name, capsys):
    with pytest.raises(SystemExit) as end:
        console.main([name, "--help"])
    said = capsys.readouterr()
    assert end.value.code == 0 and said.out.startswith(f"usage: clipself-seg tools {name} ")
    assert said.err == f"clipself-seg {name} is clipself-seg tools {name} now\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predcit"], 'no command "predcit"; did you mean "predict"'),
        (["data"], "data is followed by one of: check, prepare, mini-world"),
        ([], "usage: clipself-seg COMMAND"),
        (["benchmark", "all"], "python tools/benchmark.py"),
        (["data", "prepare", "ade15"], 'no data set "ade15" to prepare; did you mean "ade150"'),
        (["data", "prepare"], ""),
    ],
)
def test_names_that_are_none_are_refused_with_the_nearest(words, message, capsys):
    assert console.main(words) == 2
    assert message in capsys.readouterr().err


def test_a_data_set_is_prepared_by_its_name(capsys):
    with pytest.raises(SystemExit):
        console.main(["data", "prepare", "voc20", "--help"])
    assert capsys.readouterr().out.startswith("usage: clipself-seg data prepare voc20 ")
    assert prepare.by_name(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for names in prepare.CONTENTS.values() for name in names)


@pytest.mark.parametrize(
    ("call", "begin"),
    [
        ("from clipself_seg.__main__ import main; main(sys.argv[1:])", "error: "),
        ("import clipself_seg.prediction.semantic", ""),
    ],
)
def test_without_detectron2_it_is_said_what_brings_it(tmp_path, call, begin):
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        f"try: {call}\n"
        "except ModuleNotFoundError as error: print(error, file=sys.stderr)"
    )
    words = ["predict", "--vocabulary", "red star", "--input", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True
    )
    brings = "detectron2 is not installed, and this needs it: clipself-seg install-detectron2\n"
    assert done.stderr.endswith(begin + brings)
