"""Images, and calls of `predict` with random weights."""

import numpy as np
import pytest
from PIL import Image

from clipself_seg.commands import predict
from tests.prediction.test_panoptic import CONFIG, SMALL
from tests.prediction.test_semantic import OPTS


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("one.jpg", (40, 60)), ("sub/two.png", (70, 30))):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return tmp_path / "in"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "empty.yaml").write_text("MODEL: {META_ARCHITECTURE: CATSeg}\n")

    def call(*words, weights="random", config=tmp_path / "empty.yaml", opts=OPTS):
        given = ["--config-file", config, "--model", weights, "-o", tmp_path / "out"]
        opts = ["--opts", *opts]
        return predict.main([str(word) for word in (*words, *given, *opts)])

    return call


@pytest.fixture
def panoptic(run):
    def call(*words, weights="random", config=CONFIG, opts=SMALL):
        return run(*words, "--task", "panoptic", weights=weights, config=config, opts=opts)

    return call
