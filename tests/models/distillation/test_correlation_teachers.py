"""Teachers of correlations: the original, and a small backbone of timm with random weights."""

from __future__ import annotations

import sys

import pytest
import timm
import torch
import torch.nn.functional as F

from clipself_seg.errors import InputError
from clipself_seg.models.distillation.objectives import (
    CorrelationSettings,
    Original,
    TimmBackbone,
    WeightedTerms,
    correlation_teacher,
)
from tests.models.distillation.test_step import step_of
from tests.tiny import tiny_clipself, tiny_samples


def tiny_step(model, count=2):
    return step_of(model, tiny_samples(count))


def backbone(name="test_vit"):
    torch.manual_seed(0)
    teacher = TimmBackbone(name, pretrained=False)
    teacher.setup(torch.device("cpu"))
    return teacher


def test_names_mean_nobody_the_original_and_backbones_of_timm():
    assert correlation_teacher("none") is None
    assert isinstance(correlation_teacher("original"), Original)
    teacher = correlation_teacher("vit_base_patch14_dinov2.lvd142m")
    assert isinstance(teacher, TimmBackbone) and teacher.pretrained


@pytest.mark.parametrize("name", ["vit_bas_patch14_dinov2", "hf-hub:timm/resnet18", "", "a/b"])
def test_what_is_no_model_of_timm_is_refused_by_name(name):
    with pytest.raises(InputError, match=f'CORRELATION.TEACHER "{name}" is neither none nor'):
        correlation_teacher(name)


def test_weights_that_cannot_be_fetched_are_said_in_one_line(monkeypatch):
    def offline(*args, **how):
        raise OSError("no network\nand a page of reasons")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match="timm cannot load it .no network.") as caught:
        TimmBackbone("test_vit").setup(torch.device("cpu"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_backbone_sees_the_image_at_the_size_at_which_its_grid_is_the_students():
    model, teacher = tiny_clipself(), backbone()
    step = tiny_step(model)
    # 8 x 8 cells of the student of 64 pixels; patches of 16 pixels need 128.
    pixels = F.interpolate(step.pixels, (128, 128), mode="bilinear", antialias=True)
    mean, std = (
        torch.tensor(teacher._network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std")
    )
    with torch.no_grad():
        tokens = teacher._network.forward_features((pixels - mean) / std)
    prefix = teacher._network.num_prefix_tokens
    expected = tokens[:, prefix:].mT.unflatten(2, (8, 8))
    torch.testing.assert_close(teacher.features(step), expected)


def test_convolutions_whose_grid_is_another_are_resized_to_the_students():
    teacher = backbone("test_convnext")
    maps = teacher.features(tiny_step(tiny_clipself()))
    assert maps.shape[0] == 2 and maps.shape[2:] == (8, 8) and maps.isfinite().all()


def test_a_backbone_of_one_size_is_refused_before_training(monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **how: real(name, **how | {"dynamic_img_size": False})
    )
    with pytest.raises(InputError, match="gives no feature map of an image of 128 x 64 pixels"):
        backbone()


def test_only_the_student_learns_from_a_backbone_which_no_checkpoint_has():
    settings = CorrelationSettings(teacher=TimmBackbone("test_vit", pretrained=False))
    objective = WeightedTerms({"COHERENCE": 1.0, "SPATIAL": 1.0, "CROPS": 1.0}, settings)
    model = tiny_clipself(objective=objective)
    before = set(model.state_dict())
    model.setup_training(None)
    losses = model(tiny_samples(2))
    sum(losses.values()).backward()
    assert set(model.state_dict()) == before
    network = settings.teacher._network
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not any(module.training for module in network.modules())


def test_timm_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="names a backbone of timm: pip install"):
        TimmBackbone("test_vit")
