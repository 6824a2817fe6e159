"""The pinned wheels are brought where they are missing, and an existing package is kept."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from clipself_seg import pinned_wheels
from clipself_seg.commands import install_detectron2

PIN = pinned_wheels.Pin("up-engine", "1.0", "0" * 64, "engine_of_a_test")
CONTENT = {
    "engine_of_a_test/__init__.py": "answer = 42\n",
    "engine_of_a_test-1.0.dist-info/METADATA": "Name: up-engine\nVersion: 1.0\n",
}


@pytest.fixture
def site(monkeypatch, tmp_path) -> Path:
    """The folder of packages of an environment with one pinned wheel."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(pinned_wheels, "PINS", (PIN,))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop(PIN.package, None)


def fetch(words):
    """What pip does: checks the hash, and puts the wheel into the folder."""
    assert f"{PIN.project}=={PIN.version} --hash=sha256:{PIN.sha256}" in Path(words[-1]).read_text()
    with zipfile.ZipFile(Path(words[-3]) / "up_engine-1.0-cp310-none-any.whl", "w") as archive:
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    return 0


def test_what_is_missing_is_fetched_and_then_kept(site, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "call", fetch)
    assert install_detectron2.main([]) == 0
    assert importlib.import_module(PIN.package).answer == 42
    monkeypatch.setattr(subprocess, "call", lambda words: pytest.fail(str(words)))
    assert install_detectron2.main([]) == 0
    assert "keeping the engine_of_a_test that is there" in capsys.readouterr().out


def test_a_failed_download_is_one_line_and_leaves_nothing(site, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "call", lambda words: 1)
    assert install_detectron2.main([]) == 2
    assert "failed (exit status 1), see above" in capsys.readouterr().err
    assert not list(site.iterdir())


def test_an_environment_without_pip_is_told_how_to_get_it(site, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pip", None)
    assert install_detectron2.main([]) == 2
    assert "has no pip: python -m ensurepip" in capsys.readouterr().err
