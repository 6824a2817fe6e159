"""train_net.py and tools/ are thin callers, and every --help is quick."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from clipself_seg.commands.prepare import PREPARATIONS
from tests.conftest import ROOT

SCRIPTS = {
    str(path.relative_to(ROOT)): command[1]
    for path in (ROOT / "train_net.py", *sorted((ROOT / "tools").glob("*.py")))
    if (command := re.search(r"^from clipself_seg\.commands\.(\w+) import", path.read_text(), re.M))
}


# About an environment that has no checkout.
WITHOUT_SCRIPT = {"doctor", "install_detectron2"}


def test_every_command_has_a_script():
    commands = {path.stem for path in (ROOT / "clipself_seg/commands").glob("[!_]*.py")}
    assert set(SCRIPTS.values()) == commands - WITHOUT_SCRIPT
    assert SCRIPTS.keys() >= {f"tools/prepare_{data_set}.py" for data_set in PREPARATIONS}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_quick_because_nothing_heavy_is_imported(script):
    code = (
        f"import sys, runpy; sys.argv = ['{script}', '--help']\n"
        f"try: runpy.run_path('{script}', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'detectron2', 'numpy', 'cv2', 'PIL', 'scipy', 'matplotlib', 'yaml'}\n"
        "assert not heavy & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script.removeprefix('tools/')} ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_and_takes_the_whole_command_line(script):
    done = subprocess.run(
        [sys.executable, script, "--no-such-option"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "error: " in done.stderr.splitlines()[-1]
