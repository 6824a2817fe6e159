"""The small model of most tests."""

import pytest

from tests.models.panoptic.small import model_of


@pytest.fixture(scope="module")
def model():
    return model_of()
