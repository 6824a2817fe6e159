"""Data sets that the tests of the panoptic evaluation share."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.spoiled_panoptic import register, write_datasets


@pytest.fixture
def datasets(tmp_path):
    write_datasets(tmp_path)
    for name in ("one", "two"):
        register(tmp_path, name)
    yield tmp_path
    for name in ("one", "two"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
