"""`clipself-seg` and `python -m clipself_seg`: every command by one name, and none slower for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from clipself_seg import __main__ as console
from clipself_seg.commands import make_mini_world, prepare, train
from tests.conftest import ROOT

HEAVY = "{'torch', 'detectron2', 'numpy', 'cv2', 'PIL', 'scipy', 'matplotlib', 'yaml'}"


def test_every_command_has_a_name():
    modules = {path.stem for path in (ROOT / "clipself_seg/commands").glob("[!_]*.py")}
    assert {command.module for command in console.COMMANDS.values()} == modules


def test_help_lists_all_commands_and_imports_nothing_heavy():
    code = (
        "import runpy, sys; sys.argv = ['clipself-seg', '--help']\n"
        "try: runpy.run_module('clipself_seg', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"assert not {HEAVY} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in console.COMMANDS)


@pytest.mark.parametrize("name", console.COMMANDS)
def test_a_command_knows_its_name(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    words = [*name.split(), "--help"]
    if name == "data prepare":
        assert console.main(words) == 0
    else:
        with pytest.raises(SystemExit) as end:
            console.main(words)
        assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: clipself-seg {name} ")


def test_eval_is_training_without_training(monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    given = []
    monkeypatch.setattr(train, "main", lambda: given.append(train.parse(sys.argv[1:])))
    assert console.main(["eval", "--config-file", "mini/patches.yaml", "SEED", "3"]) == 0
    (args,) = given
    assert args.eval_only and args.config_file == "mini/patches.yaml" and args.opts == ["SEED", "3"]


def test_the_exit_status_is_that_of_the_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(make_mini_world, "main", lambda: 7)
    assert console.main(["data", "mini-world"]) == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predcit"], 'no command "predcit"; did you mean "predict"'),
        (["data"], "data is followed by one of: check, prepare, mini-world"),
        ([], "usage: clipself-seg COMMAND"),
        (["data", "prepare", "ade15"], 'no data set "ade15" to prepare; did you mean "ade150"'),
        (["data", "prepare"], ""),
    ],
)
def test_names_that_are_none_are_refused_with_the_nearest(words, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    assert console.main(words) == 2
    assert message in capsys.readouterr().err


def test_a_data_set_is_prepared_by_its_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(SystemExit):
        console.main(["data", "prepare", "voc20", "--help"])
    assert capsys.readouterr().out.startswith("usage: clipself-seg data prepare voc20 ")
    assert prepare.by_name(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in prepare.PREPARATIONS)


def test_without_detectron2_a_command_says_what_brings_it(tmp_path):
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "from clipself_seg.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["predict", "--vocabulary", "red star", "--input", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: detectron2 is not installed, and this needs it: clipself-seg install-detectron2\n"
    )


def test_a_call_from_python_without_detectron2_says_it_too(monkeypatch):
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "try: import clipself_seg.prediction.semantic\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("clipself-seg install-detectron2"), done.stderr
