"""CAT-Seg: both formulations agree, in an evaluation and in a training step."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.benchmark.workloads import build_runs
from clipself_seg.errors import InputError
from tests.benchmark.small import result, semseg_case


@pytest.mark.parametrize("classes", [9, 15])
def test_formulations_of_cat_seg_agree(small_cat_seg, classes):
    runs = build_runs(semseg_case(classes=classes))
    image = result(runs, "image")
    assert image.shape == (classes, 480, 640)
    for name in ("image", "texts", "merge"):
        ours, plain = result(runs, name), result(runs, f"plain {name}")
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
    assert torch.equal(result(runs, "best class"), image.argmax(dim=0))
    ours, plain = result(runs, "features"), result(runs, "plain features")
    for mine, other in zip((ours[name] for name in ("dense", "block0", "block1")), plain):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=0)
    ours, plain = result(runs, "aggregator"), result(runs, "plain aggregator")
    ours = torch.stack([view.all_classes(classes) for view in ours])
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)


def test_training_steps_of_cat_seg_agree(small_cat_seg):
    runs = build_runs(semseg_case(training=True, batch=2))
    step = result(runs, "step")
    assert step == result(runs, "step")  # the weights stay as they are
    assert step == pytest.approx(result(runs, "plain step"), abs=1e-6)
    assert step == pytest.approx(result(runs, "checkpointed step"), abs=1e-6)


def test_more_classes_than_there_are_names_for_are_refused():
    with pytest.raises(InputError, match="847"):
        build_runs(semseg_case(classes=848))
