"""The data sets of the repository's neighbour, copied to where a preparation writes."""

import shutil

import pytest


@pytest.fixture
def copy(data_dir, datasets_root):
    """Copies a folder of the real data to where the data sets are looked for."""

    def copy_folder(name):
        for path in sorted((data_dir / name).rglob("*")):
            if path.is_file():
                target = datasets_root / path.relative_to(data_dir)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        return datasets_root / name

    return copy_folder
