"""The data sets of the repository's neighbour, copied to where a preparation writes."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def copy(data_dir, tmp_path, monkeypatch):
    """Copies a folder of the real data to where the data sets are looked for."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def copy_folder(name):
        for path in sorted((data_dir / name).rglob("*")):
            if path.is_file():
                target = tmp_path / path.relative_to(data_dir)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        return tmp_path / name

    return copy_folder
