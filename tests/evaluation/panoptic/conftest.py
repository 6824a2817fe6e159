"""Data sets that the tests of the panoptic evaluation share."""

import pytest

from tests.spoiled_panoptic import register, write_datasets


@pytest.fixture
def datasets(tmp_path, catalogue):
    write_datasets(tmp_path)
    for name in ("one", "two"):
        register(tmp_path, name)
    return tmp_path
