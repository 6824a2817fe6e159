"""Fixtures that make the cases of the benchmark small."""

from __future__ import annotations

import pytest

from tests.bench.small import shrink_cat_seg, shrink_detection, shrink_panoptic
from tests.small_towers import small_towers


@pytest.fixture(scope="module")
def known_towers(tmp_path_factory):
    with small_towers(tmp_path_factory.mktemp("weights")):
        yield


@pytest.fixture
def small_cat_seg(monkeypatch):
    shrink_cat_seg(monkeypatch)


@pytest.fixture
def small_panoptic(monkeypatch):
    shrink_panoptic(monkeypatch)


@pytest.fixture
def small_detection(monkeypatch):
    shrink_detection(monkeypatch)
