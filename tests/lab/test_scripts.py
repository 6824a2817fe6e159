"""The scripts of the laboratory: each by its name, none slower for it, and what it promises after Ctrl-C."""

import importlib
import subprocess
import sys

import pytest

import mini
from lab.scripts import run_named
from tests.conftest import ROOT

# Script -> what is true of it the next time, for each of its commands, by the first word if it has several.
SAME = "the same command goes on"
SCRIPTS = {
    "check_datasets.main": "the same command begins anew",
    "mini.mini_clip": "the same command begins anew",
    "mini.mini_world": f"{SAME} with the next world",
    "mini.faded": SAME,
    "mini.subjects": SAME,
    "precompute.proposals": "the same command begins anew",
    "precompute.region_text": "the same command begins anew",
    "precompute.train_rpn": "the training goes on with --resume, the proposals are written anew",
    "quickstart.quickstart": SAME,
    "repeat_seeds.repeat_seeds": SAME,
    "reproduce.reproduce": SAME,
}
# Script and first words -> words of its help text.
CALLS = {
    "check_datasets": "--allow-subset",
    "mini": "world",
    "mini world": "--train",
    "precompute": "region-text",
    "precompute train-rpn": "--num-gpus",
    "prepare": "ade150",
    "quickstart": "--full",
    "repeat_seeds": "--show",
    "reproduce": "--table",
}


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("call", CALLS)
def test_help_is_quick_because_nothing_heavy_is_imported(call):
    script, *words = call.split()
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{script}.py', *{words}, '--help']\n"
        f"sys.path.insert(0, '{ROOT / 'tools'}')\n"
        f"try: runpy.run_path('{ROOT / 'tools' / script}.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'detectron2', 'numpy', 'cv2', 'PIL', 'scipy', 'matplotlib'}\n"
        "assert not heavy & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {call.replace(script, f'{script}.py', 1)} ")
    assert CALLS[call] in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_interrupted_script_promises_what_it_keeps(monkeypatch, capsys, name):
    module, function = name.split(".")
    command = getattr(importlib.import_module(module), function)
    monkeypatch.setattr(command, "parser", interrupted)
    assert command([]) == 130
    said = capsys.readouterr().err
    assert said == f"interrupted; what is complete stays: {SCRIPTS[name]}\n"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["wrold"], 2, '"wrold": did you mean "world"'),
        ([], 2, "usage: script.py COMMAND"),
        (["--help"], 0, "\n  subjects  Draw whole images"),
    ],
)
def test_names_are_listed_and_those_that_are_none_refused(
    words, status, message, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    texts = {name: one.text for name, one in mini.COMMANDS.items()}
    assert run_named("", texts, mini.COMMANDS.__getitem__) == status
    assert message in "".join(capsys.readouterr())
