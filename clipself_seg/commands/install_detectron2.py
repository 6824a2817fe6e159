"""Bring Detectron2 and panopticapi, which PyPI does not have under their own names, into this environment.

    clipself-seg install-detectron2

Fetches re-uploads of their Python sources, pinned by version and sha256 (clipself_seg/pinned_wheels.py), with
pip, and unpacks them beside the other packages; their compiled parts stay out, which nothing here needs.
What can be imported already is kept. pip uninstall sal-detectron2 panopticapi-lite takes them out again.
To build upstream's own instead (git, a C++ compiler and, for CUDA, nvcc):
    pip install --no-build-isolation "git+https://github.com/facebookresearch/detectron2.git"
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from clipself_seg.errors import InputError, after_interrupt, report_input_errors


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )


@report_input_errors
@after_interrupt("the same command goes on with what is missing")
def main(arguments: list[str] | None = None) -> None:
    """Install what is missing, and say what is there."""
    parser().parse_args(arguments)
    from clipself_seg.pinned_wheels import PINS, install

    for pin in PINS:
        if is_there(pin.package):
            sys.stdout.write(f"keeping the {pin.package} that is there\n")
            continue
        folder = packages_folder()
        install(pin, sys.executable, folder, run)
        sys.stdout.write(f"{pin.package}: {pin.project} {pin.version} is in {folder}\n")


def is_there(package: str) -> bool:
    """Whether a package, and not only a folder of that name, can be imported; it is not."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def packages_folder() -> Path:
    """Where pip would put pure Python: the environment, or the user's folder where that is not writable.

    Raises:
        InputError: neither is there for this process.
    """
    folder = Path(sysconfig.get_path("purelib"))
    if os.access(folder, os.W_OK):
        return folder
    if not site.ENABLE_USER_SITE:
        raise InputError(f"{folder} may not be written: make an environment (python -m venv)")
    user = Path(site.getusersitepackages())
    user.mkdir(parents=True, exist_ok=True)
    return user


def run(*command: object) -> None:
    """Run a command with its output shown.

    Raises:
        InputError: it failed.
    """
    words = [str(word) for word in command]
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            f"{sys.executable} has no pip: python -m ensurepip, or uv pip install pip, brings it"
        )
    if status := subprocess.call(words):
        raise InputError(
            f"`{shlex.join(words)}` failed (exit status {status}), see above; the same command tries again"
        )
