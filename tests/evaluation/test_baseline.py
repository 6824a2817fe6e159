"""Every evaluation of shipped weights gives the numbers that it gave before the package was rearranged."""

import json

import pytest

import train_net
from tests.baseline import runs
from tests.conftest import BASELINE

RESULTS = json.loads((BASELINE / "results.json").read_text())
# Percentage points: another CPU may see a pixel in a tie differently. On one machine the numbers are equal.
ATOL = 0.05


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """The small worlds, as long as they are known."""
    folder = tmp_path_factory.mktemp("baseline")
    with runs.surroundings(folder):
        yield folder


def leaves(results, path=()):
    """Way to a number -> the number, of nested results."""
    if not isinstance(results, dict):
        return {path: results}
    return {k: v for key, one in results.items() for k, v in leaves(one, (*path, key)).items()}


@pytest.mark.parametrize("name", runs.EVALUATIONS)
def test_shipped_weights_give_the_numbers_that_they_gave(name, worlds):
    assert train_net.main(runs.evaluation(name, worlds / name)) == 0
    written = json.loads((worlds / name / "results.json").read_text())
    numbers, before = leaves(written["results"]), leaves(RESULTS[name])
    assert not before.keys() - numbers.keys()  # further ones may have come since
    kept = {way: numbers[way] for way in before}
    assert kept == pytest.approx(before, rel=0, abs=ATOL)
