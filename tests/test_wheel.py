"""The wheel holds what the repository does, and is enough: without Detectron2 for dense features, with it for all.

What is marked heavy installs it, made from the sdist, in an environment of its own: minutes, and PyPI.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = ("clipself_seg", "configs")
BUILD = "from setuptools import build_meta; build_meta.build_wheel('..')"
BUILD_SDIST = "from setuptools import build_meta; build_meta.build_sdist('..')"


def files(folder: Path) -> set[str]:
    """Paths of the files below a folder of the repository, without what Python leaves there."""
    paths = (path.relative_to(ROOT) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in paths if "__pycache__" not in path.parts}


def build(tmp_path_factory, code: str, pattern: str) -> Path:
    """A file that setuptools builds from a copy, since building leaves folders in the source."""
    source = tmp_path_factory.mktemp("build") / "source"
    for name in FOLDERS:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    run([sys.executable, "-c", code], source)
    (path,) = source.parent.glob(pattern)
    return path


def run(command: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command that has to end well, in an environment that knows nothing of this checkout."""
    done = attempt(command, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def attempt(command: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """The same, of a command that may fail."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["CLIPSELF_SEG_MINI"] = "worlds"
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """Paths in the wheel."""
    with zipfile.ZipFile(build(tmp_path_factory, BUILD, "*.whl")) as file:
        return {name for name in file.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_file_of_the_package_and_every_configuration(wheel):
    wanted = files(ROOT / "clipself_seg") | {f"clipself_seg/{p}" for p in files(ROOT / "configs")}
    assert {".py", ".yaml", ".json", ".safetensors"} <= {Path(name).suffix for name in wanted}
    assert wheel == wanted


DENSE = """
import sys, torch
from clipself_seg.clip import TextBank, load_clip

clip = load_clip("ViT-Mini-8", "mini")
images = torch.rand(2, 3, 96, 128)
assert clip.encode_dense(images).shape == (2, clip.embed_dim, 12, 16)
boxes = torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.0, 0.0, 1.0, 1.0]])
scores = clip.encode_boxes(images, [boxes, boxes]) @ TextBank(clip).embed(["red star", "grass"]).T
assert scores.shape == (4, 2) and scores.isfinite().all()
try:
    import clipself_seg.prediction.semantic
except ModuleNotFoundError as error:
    print(error)
"""
MISSING = "detectron2 is not installed, and this needs it: clipself-seg install-detectron2\n"


@pytest.mark.heavy
def test_an_environment_with_the_wheel_alone_walks_the_whole_road(tmp_path_factory, tmp_path):
    run([sys.executable, "-m", "venv", tmp_path / "venv"], tmp_path)
    bin = tmp_path / "venv" / "bin"
    run([bin / "pip", "install", build(tmp_path_factory, BUILD_SDIST, "*.tar.gz")], tmp_path)
    run([bin / "pip", "check"], tmp_path)

    assert run([bin / "python", "-c", DENSE], tmp_path).stdout == MISSING
    clipself_seg = bin / "clipself-seg"
    assert "detectron2 is missing" in attempt([clipself_seg, "doctor"], tmp_path).stdout
    size = ("--train", "2", "--val", "2", "--base", "2")
    run([clipself_seg, "data", "mini-world", "--output", "worlds", *size], tmp_path)
    predict_words = ("predict", "worlds/mini/val", "--words", "red star, grass", "--model", "mini")
    refused = attempt([clipself_seg, *predict_words], tmp_path)
    assert (refused.returncode, refused.stderr) == (2, f"error: {MISSING}")

    run([clipself_seg, "install-detectron2"], tmp_path)
    assert "keeping the detectron2" in run([clipself_seg, "install-detectron2"], tmp_path).stdout
    assert "2 of 2 segmented" in run([clipself_seg, *predict_words], tmp_path).stdout
    evaluation = ("eval", "--config-file", "mini/regions.yaml", "OUTPUT_DIR", "out")
    run([bin / "python", "-m", "clipself_seg", *evaluation], tmp_path)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["provenance"]["command"].startswith("clipself-seg eval ")
    run([clipself_seg, "doctor"], tmp_path)
    (elsewhere := tmp_path / "elsewhere").mkdir()  # tables are of larger worlds than these
    dry_run = ("reproduce", "--dry-run", "--table", "2", "--seeds", "0")
    planned = run([clipself_seg, *dry_run], elsewhere)
    assert "clipself-seg train --config-file configs/mini/" in planned.stdout
