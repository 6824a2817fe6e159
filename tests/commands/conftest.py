"""Images, and calls of `predict` with random weights."""

import pytest

from clipself_seg.commands import predict
from tests.prediction import test_semantic as semantic
from tests.prediction.test_panoptic import CONFIG, SMALL
from tests.tiny import save_noise


@pytest.fixture
def photos(tmp_path):
    for number, (name, size) in enumerate([("one.jpg", (40, 60)), ("sub/two.png", (70, 30))]):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_noise(path, *size, number)
    return tmp_path / "in"


@pytest.fixture
def run(tmp_path):
    def call(*words, weights="random", config=semantic.CONFIG, opts=semantic.OPTS):
        given = ["--config-file", config, "--model", weights, "-o", tmp_path / "out"]
        opts = ["--opts", *opts]
        return predict.main([str(word) for word in (*words, *given, *opts)])

    return call


@pytest.fixture
def panoptic(run):
    def call(*words, weights="random", config=CONFIG, opts=SMALL):
        return run(*words, "--task", "panoptic", weights=weights, config=config, opts=opts)

    return call
