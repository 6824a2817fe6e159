"""The wheel holds what the repository does: every module, configuration, vocabulary and shipped weight."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from clipself_seg.commands import predict
from tests.conftest import ROOT

FOLDERS = ("clipself_seg", "configs")
BUILD = "from setuptools import build_meta; build_meta.build_wheel('..')"


def files(folder: Path) -> set[str]:
    """Paths of the files below a folder of the repository, without what Python leaves there."""
    paths = (path.relative_to(ROOT) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in paths if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """Paths in the wheel, built from a copy, since building leaves folders in the source."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    for name in FOLDERS:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "-c", BUILD]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = source.parent.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        return {name for name in file.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_file_of_the_package_and_every_configuration(wheel):
    wanted = files(ROOT / "clipself_seg") | {f"clipself_seg/{p}" for p in files(ROOT / "configs")}
    assert {".py", ".yaml", ".json", ".safetensors"} <= {Path(name).suffix for name in wanted}
    assert wheel == wanted


def test_configurations_that_commands_fall_back_on_are_in_the_package(wheel):
    for config, _ in (predict.SEMANTIC, predict.PANOPTIC):
        assert f"clipself_seg/{config}" in wheel and (predict.PACKAGE / config).samefile(
            ROOT / config
        )
