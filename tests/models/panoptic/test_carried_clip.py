"""Checkpoints of FC-CLIP and its successors: what of a CLIP they carry, and what becomes of it."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.modeling import build_model

from clipself_seg import models  # noqa: F401 (registers OpenPanoptic)
from clipself_seg.clip import load_clip, save_clip
from clipself_seg.clip.weights import to_layout
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models.panoptic.model import own_checkpoint, trained_state
from tests.conftest import ROOT

SMALL = {
    "MODEL.CLIP.NAME": "ConvNeXt-Mini-32",
    "MODEL.CLIP_BRANCH.TEMPLATES": "odise",
    "MODEL.MASK_GENERATOR.ENCODER_LAYERS": 1,
    "MODEL.MASK_FORMER.DEC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 7,
}
CLIP = "backbone.clip_model."
GAMMA = f"{CLIP}visual.trunk.stages.0.blocks.0.conv_dw.weight"


def build(weights, seed=0, config="fcclip_base", **changes):
    torch.manual_seed(seed)
    values = SMALL | {"MODEL.CLIP.WEIGHTS": weights} | changes
    opts = [str(part) for pair in values.items() for part in pair]
    return build_model(load_config(ROOT / f"configs/panoptic/{config}.yaml", opts)).eval()


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_clip(load_clip("ConvNeXt-Mini-32", None), path)
    return path


@pytest.fixture(scope="module")
def model(clip_file):
    return build(clip_file)


@pytest.fixture(scope="module")
def official(model):
    """A checkpoint as FC-CLIP's code saves it, with the whole CLIP."""
    clip = to_layout(model.clip.state_dict(), model.clip.architecture.kind, "open_clip")
    carried = {CLIP + name: tensor.clone() for name, tensor in clip.items()}
    losses = {"criterion.empty_weight": torch.ones(134)}
    return {name: t.clone() for name, t in trained_state(model).items()} | carried | losses


def of_text(name):
    return name.startswith(CLIP) and ".visual." not in name and not name.endswith("logit_scale")


def without_text(official, kept=("positional_embedding", "text_projection")):
    return {n: t for n, t in official.items() if not of_text(n) or n.endswith(kept)}


def report(caplog, model, state):
    with caplog.at_level(logging.INFO):
        model.load_state_dict(state)
    return caplog.text


def test_a_checkpoint_without_a_text_tower_takes_the_one_of_open_clips_file(
    model, official, clip_file, caplog
):
    other = build(clip_file, seed=3)
    text = report(caplog, other, without_text(official))
    assert "image tower of MODEL.CLIP.WEIGHTS, which the checkpoint's 66 tensors agree with" in text
    assert "text tower of MODEL.CLIP.WEIGHTS, of which the checkpoint has 2 of 29 tensors" in text
    assert "0 missing, 0 unexpected, 1 ignored" in text
    torch.testing.assert_close(other.state_dict(), model.state_dict(), atol=0, rtol=0)


def test_a_checkpoint_without_any_clip_loads(model, official, clip_file):
    alone = {n: t for n, t in official.items() if not n.startswith(CLIP)}
    other = build(clip_file, seed=3)
    other.load_state_dict({f"module.{n}": t for n, t in alone.items()})
    torch.testing.assert_close(other.state_dict(), model.state_dict(), atol=0, rtol=0)
    again = build(clip_file, seed=4)
    again.load_state_dict(own_checkpoint(model))
    torch.testing.assert_close(again.state_dict(), model.state_dict(), atol=0, rtol=0)


def test_a_model_without_clip_weights_takes_a_whole_clip_and_nothing_less(model, official, caplog):
    other = build("", seed=3)
    assert "are the checkpoint's" in report(caplog, other, official)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), atol=0, rtol=0)
    with pytest.raises(InputError, match="lacks 27 tensors of ConvNeXt-Mini-32 .text.token_em"):
        build("").load_state_dict(without_text(official))


@pytest.mark.parametrize("twin", ["frozen_backbone.", "backbone_t."])
def test_a_tuned_image_tower_is_taken_and_its_frozen_twin_ignored(
    official, clip_file, twin, caplog
):
    tuned = {n: t + 0.5 if ".visual." in n else t for n, t in official.items()}
    twins = {
        n.replace("backbone.", twin, 1): torch.zeros_like(t)
        for n, t in official.items()
        if n.startswith(CLIP)
    }
    model = build(clip_file, config="ovrcoat_convnext_large")
    before = model.clip.text.state_dict()
    text = report(caplog, model, without_text(tuned) | twins)
    assert "66 tensors tuned by its training" in text
    assert f"ignored: {len(twins)} of the frozen twin {twin[:-1]}" in text
    weight = model.clip.visual.trunk.stages[0].blocks[0].conv_dw.weight
    torch.testing.assert_close(weight.data, tuned[GAMMA], atol=0, rtol=0)
    torch.testing.assert_close(model.clip.text.state_dict(), before, atol=0, rtol=0)
    assert (model.void_discount, model.settings.overlap_threshold) == (0.5, 0.7)


WRONG = {
    "a tuned tower without its twin": (
        lambda state: state | {GAMMA: state[GAMMA] + 0.5},
        "MODEL.CLIP.WEIGHTS is not the ConvNeXt-Mini-32 that .* 1 tensors differ .visual.trunk",
    ),
    "another text": (
        lambda s: s | {f"{CLIP}text_projection": s[f"{CLIP}text_projection"] + 0.5},
        "1 tensors differ .text.text_projection",
    ),
    "a part of an image tower": (
        lambda state: {n: t for n, t in state.items() if n != f"{CLIP}visual.trunk.head.norm.bias"},
        "not whole: visual.trunk.head.norm.bias missing",
    ),
    "not finite": (
        lambda state: state | {GAMMA: state[GAMMA] / 0},
        "not finite: visual.trunk.stages.0",
    ),
    "texts that attend to images": (
        lambda state: state | {"cdt.norm.weight": torch.ones(128)},
        "is MAFT[+]'s .cdt",
    ),
    "ODISE's": (
        lambda s: {n: t for n, t in s.items() if not n.startswith((CLIP, "void"))}
        | {"category_head.null_embed": torch.zeros(1, 128)},
        "of the VARIANT label, the model's is fcclip",
    ),
    "no void": (
        lambda s: {n: t for n, t in s.items() if n != "void_embedding.weight"},
        "lacks 1 tensor: void_embedding.weight",
    ),
    "another width": (
        lambda s: {n: t for n, t in s.items() if not n.startswith(CLIP)}
        | {"void_embedding.weight": torch.zeros(1, 64)},
        "MODEL.CLIP.NAME gives the size",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_checkpoint_that_does_not_fit_is_refused(model, official, change, message):
    with pytest.raises(InputError, match=message):
        model.load_state_dict(change(official))


def test_a_checkpoint_of_another_clip_is_refused_by_its_name(official, clip_file):
    resnet = build("", **{"MODEL.CLIP.NAME": "RN50-quickgelu"})
    with pytest.raises(
        InputError, match="its image tower is ConvNeXt .* MODEL.CLIP.NAME RN50-quickgelu is ResNet"
    ):
        resnet.load_state_dict(official)
    pyramid = {"MODEL.MASK_GENERATOR.VARIANT": "label", "MODEL.MASK_GENERATOR.SOURCE": "clip"}
    with pytest.raises(InputError, match="VARIANT fcclip, the model's is label"):
        build(clip_file, **pyramid).load_state_dict(official)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.CLIP.NAME": "ViT-Mini-8"}, "needs a ConvNeXt or a ResNet, MODEL.CLIP.NAME is ViT"),
        ({"MODEL.CLIP_BRANCH.INPUT_SIZE": 64}, "INPUT_SIZE is set, and KIND backbone"),
        ({"MODEL.CLIP_BRANCH.WEIGHTS": "mine.pt"}, "KIND backbone reads the features of"),
        (
            {"MODEL.CLIP.NAME": "ViT-Mini-8", "MODEL.CLIP_BRANCH.KIND": "dense"},
            "SOURCE clip reads the stages of a ConvNeXt or a ResNet",
        ),
        ({"MODEL.MASK_GENERATOR.PADDING": -2}, "or -1 for the mean colour of CLIP"),
    ],
    ids=str,
)
def test_keys_that_do_not_fit_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        build("", **changes)


def test_a_twin_without_the_tower_that_was_tuned_is_refused(official, clip_file):
    alone = {n: t for n, t in official.items() if ".visual." not in n or not n.startswith(CLIP)}
    twin = {"frozen_backbone.clip_model.logit_scale": torch.zeros(())}
    with pytest.raises(InputError, match="its image tower was tuned, and lacks that"):
        build(clip_file).load_state_dict(alone | twin)


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda t: t * torch.nan, "NaN or infinite numbers"),
        (lambda t: t.to(torch.int8), "integers"),
    ],
)
def test_a_generator_of_other_than_finite_numbers_is_refused(model, official, change, what):
    name = "void_embedding.weight"
    with pytest.raises(InputError, match=f"{what} in {name}"):
        model.load_state_dict(official | {name: change(official[name])})
