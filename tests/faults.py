"""What tests do to files, disks and processes: cut files, full disks, and Python that is started and killed."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT


def cut(path: Path, size: int) -> None:
    """Leave the first bytes of a file, or, of a negative size, all but the last ones."""
    path.write_bytes(path.read_bytes()[:size])


def full_disk(*_: object, **__: object) -> None:
    """In the place of whatever writes."""
    raise OSError(errno.ENOSPC, "No space left on device")


def start_python(code: str, *words: object, cwd: Path, **how: Any) -> subprocess.Popen[str]:
    """A process that runs code and imports this checkout, whatever its folder; its input and output are pipes."""
    command = [sys.executable, "-c", code, *map(str, words)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, **(pipes | how))


def run_python(
    code: str, *words: object, cwd: Path = ROOT, **how: Any
) -> subprocess.CompletedProcess[str]:
    """The same, when it has ended."""
    process = start_python(code, *words, cwd=cwd, **how)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
