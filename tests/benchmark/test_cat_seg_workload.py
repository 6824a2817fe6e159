"""CAT-Seg: both formulations agree, in an evaluation and in a training step."""

from __future__ import annotations

import pytest
import torch

from bench import case
from bench.cat_seg_workload import SemSegWorkload
from bench.workloads import build_runs
from clipself_seg.clip import load_clip
from clipself_seg.errors import InputError
from clipself_seg.tables.flops import count_flops, text_flops
from tests.benchmark.small import result, semseg_case, tiny_eva
from tests.small_towers import SMALL as SMALL_TOWERS


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


def check_features(runs):
    ours, plain = result(runs, "features"), result(runs, "plain features")
    for name, other in zip(("dense", "block0", "block1"), plain, strict=True):
        torch.testing.assert_close(ours[name], other, atol=1e-5, rtol=1e-5)


def test_features_of_eva_agree(small_cat_seg, monkeypatch):
    clip = load_clip("ViT-Mini-8", None)
    clip.visual = tiny_eva(clip.embed_dim)
    monkeypatch.setattr(case, "load_clip", lambda *_: clip)
    check_features(build_runs(semseg_case(classes=2)))


@pytest.mark.parametrize("name", SMALL_TOWERS)
def test_features_and_texts_of_every_kind_that_cat_seg_takes_agree(
    small_cat_seg, known_towers, name
):
    runs = build_runs(semseg_case(model=name, classes=2))
    check_features(runs)
    given = []
    counted = count_flops(lambda: given.append(result(runs, "texts")))
    assert counted == runs["texts"].flops
    torch.testing.assert_close(given[0], result(runs, "plain texts"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["small-SigLIP", "small-TIPSv2"])
def test_operations_of_learning_texts_of_every_kind_are_counted(small_cat_seg, known_towers, name):
    model = SemSegWorkload(semseg_case(model=name, classes=2, training=True)).model
    counted = count_flops(lambda: model.texts.embed(model.names).sum().backward())
    assert counted == text_flops(model, torch.device("cpu"), training=True)


def test_towers_of_convolutions_are_refused():
    with pytest.raises(InputError, match="--model ConvNeXt-Mini-32: CAT-Seg needs a ViT"):
        build_runs(semseg_case(model="ConvNeXt-Mini-32"))
