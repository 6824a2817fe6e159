"""Checkpoints of panoptic segmentation: each check of `panoptic_checkpoint.read` refuses what it is there for, by name.

First those of ODISE and of this project, then those of FC-CLIP and its successors: what of a CLIP they carry, and what
becomes of it.
"""

import logging

import pytest
import torch
from detectron2.modeling import build_model

from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.clip import load_clip, save_clip
from clipself_seg.clip.weights import to_layout
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models import OpenPanoptic
from clipself_seg.models.build import build_model as build_with_weights
from clipself_seg.models.panoptic.panoptic_checkpoint import (
    CLIP_HASH,
    EXPONENTS,
    frozen_hashes,
    trained_state,
    write,
)
from tests.conftest import ROOT

QUERIES = "sem_seg_head.predictor.query_feat.weight"
NORM = "sem_seg_head.predictor.decoder_norm"
# What a checkpoint has in place of or besides the model's tensors (None: it lacks them), and what the
# error says.
WRONG = {
    "no generator": (
        {QUERIES: None},
        f"a.pth lacks 1 tensor: {QUERIES}; .*a CLIP belongs in MODEL.CLIP.WE",
    ),
    "missing": (
        {f"{NORM}.weight": None, f"{NORM}.bias": None},
        f"lacks 2 tensors: {NORM}.weight, {NORM}",
    ),
    "other sizes": (
        {QUERIES: torch.zeros(9, 64)},
        r"query_feat.weight of shape \(9, 64\), the model needs \(7, 64\): .*MODEL.MASK_FORMER",
    ),
    "another CLIP": (
        {CLIP_HASH: torch.tensor(list(b"abc"), dtype=torch.uint8)},
        "trained on clip_hash abc, the model has .*MODEL.CLIP_BRANCH.WEIGHTS",
    ),
    "exponents that are none": (
        {EXPONENTS: torch.tensor([0.35, 1.5])},
        r"has fusion_exponents that are not two numbers in \[0, 1\]",
    ),
}


def build(*opts: str, seed: int = 0) -> OpenPanoptic:
    torch.manual_seed(seed)
    small = ("MODEL.CLIP.WEIGHTS", "", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "7")
    return build_model(load_config(ROOT / "configs/mini/panoptic_original.yaml", [*small, *opts]))


@pytest.fixture(scope="module")
def model() -> OpenPanoptic:
    return build()


def changed(tensors, changes):
    return {name: value for name, value in (tensors | changes).items() if value is not None}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_checkpoint_that_does_not_fit_is_refused(model, changes, message):
    with pytest.raises(InputError, match=message):
        model.load_checkpoint(changed(write(model)["model"], changes), "a.pth")


@pytest.mark.parametrize("hashes", [True, False])
def test_own_and_official_names_give_the_whole_state(model, hashes):
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    written = write(model)["model"] if hashes else trained_state(model)
    state = {name: tensor.clone() for name, tensor in written.items()}
    assert (frozen_hashes(model).keys() <= state.keys()) == hashes
    ignored = {"criterion.empty_weight": torch.ones(134), "clip_head.clip.x": torch.ones(1)}
    for given in (state, {f"module.{name}": value for name, value in (state | ignored).items()}):
        for parameter in model.generator.parameters():
            torch.nn.init.zeros_(parameter)
        model.load_checkpoint(given, "a.pth")
        assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())


def test_a_generator_of_another_stable_diffusion_is_refused(tmp_path):
    pytest.importorskip("diffusers")
    opts = ("MODEL.MASK_GENERATOR.SOURCE", "diffusion", "MODEL.DIFFUSION.WEIGHTS", "random-small")
    model = build(*opts, "MODEL.DIFFUSION.CROP", "64")
    model.export(tmp_path / "model.pth")
    state = read_checkpoint(tmp_path / "model.pth").tensors
    model.load_checkpoint(state, "a.pth")
    before = model.original_hash()
    with torch.no_grad():
        next(model.backbone.stable_diffusion.parameters()).add_(1)
    assert model.original_hash() != before
    with pytest.raises(InputError, match="trained on feature_source_hash .*DIFFUSION.WEIGHTS"):
        model.load_checkpoint(state, "a.pth")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_exponents_that_a_checkpoint_carries_take_the_place_of_the_configured_ones(prefix):
    carried = {f"{prefix}{EXPONENTS}": torch.tensor([0.1, 0.25], dtype=torch.float64)}
    for opts, expected in (
        ((), (0.1, 0.25)),
        (("MODEL.FUSION.MODE", "clip"), (1, 1)),
        (("MODEL.FUSION.SOURCE", "config"), (0.65, 0.8)),
        (("MODEL.FUSION.ALPHA", "0.5"), (0.5, 0.25)),
        (("MODEL.FUSION.ALPHA", "0.5", "MODEL.FUSION.BETA", "1"), (0.5, 1)),
    ):
        model = build(*opts)
        official = trained_state(model)
        before = model.exponents
        model.load_checkpoint(official, "a.pth")
        assert model.exponents == before
        model.load_checkpoint(
            {f"{prefix}{n}": tensor for n, tensor in official.items()} | carried, "a.pth"
        )
        assert model.fusion.returned()[:2] == expected


def test_an_exported_model_carries_its_exponents(tmp_path):
    build("MODEL.FUSION.ALPHA", "0.35", "MODEL.FUSION.MODE", "generator").export(tmp_path / "a.pth")
    model = build()
    model.load_checkpoint(read_checkpoint(tmp_path / "a.pth").tensors, "a.pth")
    assert model.exponents == (0.35, 0.8)


def test_the_shipped_generator_carries_what_its_card_says():
    cfg = load_config(ROOT / "configs/mini/panoptic.yaml", ["MODEL.WEIGHTS", "mini-open-panoptic"])
    assert build_with_weights(cfg).exponents == (0.35, 0.8)


# FC-CLIP's kind of checkpoint, which carries a CLIP.
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


def fcclip(weights, seed=0, **changes):
    torch.manual_seed(seed)
    values = SMALL | {"MODEL.CLIP.WEIGHTS": weights} | changes
    opts = [str(part) for pair in values.items() for part in pair]
    return build_model(load_config("panoptic/fcclip+convnext_large", opts)).eval()


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_clip(load_clip("ConvNeXt-Mini-32", None), path)
    return path


@pytest.fixture(scope="module")
def convnext(clip_file):
    return fcclip(clip_file)


@pytest.fixture(scope="module")
def official(convnext):
    """A checkpoint as FC-CLIP's code saves it, with the whole CLIP."""
    clip = to_layout(convnext.clip.state_dict(), convnext.clip.architecture.kind, "open_clip")
    carried = {CLIP + name: tensor.clone() for name, tensor in clip.items()}
    losses = {"criterion.empty_weight": torch.ones(134)}
    return {name: t.clone() for name, t in trained_state(convnext).items()} | carried | losses


def of_text(name):
    return name.startswith(CLIP) and ".visual." not in name and not name.endswith("logit_scale")


def without_text(official, kept=("positional_embedding", "text_projection")):
    return {n: t for n, t in official.items() if not of_text(n) or n.endswith(kept)}


def report(caplog, model, state):
    with caplog.at_level(logging.INFO):
        model.load_checkpoint(state, "a.pth")
    return caplog.text


def test_a_checkpoint_without_a_text_tower_takes_the_one_of_open_clips_file(
    convnext, official, clip_file, caplog
):
    other = fcclip(clip_file, seed=3)
    text = report(caplog, other, without_text(official))
    assert "that of MODEL.CLIP.WEIGHTS, of which the checkpoint has 69 of 96" in text
    assert "0 missing, 0 unexpected, 1 ignored" in text
    torch.testing.assert_close(other.state_dict(), convnext.state_dict(), atol=0, rtol=0)


def test_a_checkpoint_without_any_clip_loads(convnext, official, clip_file):
    alone = {n: t for n, t in official.items() if not n.startswith(CLIP)}
    other = fcclip(clip_file, seed=3)
    other.load_checkpoint({f"module.{n}": t for n, t in alone.items()}, "a.pth")
    torch.testing.assert_close(other.state_dict(), convnext.state_dict(), atol=0, rtol=0)
    again = fcclip(clip_file, seed=4)
    again.load_checkpoint(write(convnext)["model"], "a.pth")
    torch.testing.assert_close(again.state_dict(), convnext.state_dict(), atol=0, rtol=0)


@pytest.fixture(scope="module", params=["ConvNeXt-Mini-32", "RN-Mini"])
def carrying(request, tmp_path_factory):
    """The file of a CLIP, what builds a model with it, and that model's checkpoint with all of the CLIP."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_clip(load_clip(request.param, None), path)
    how = {"weights": path, "MODEL.CLIP.NAME": request.param}
    model = fcclip(**how)
    clip = model.clip.file_tensors(model.clip.state_dict(), "open_clip")
    state = trained_state(model) | {CLIP + name: tensor.clone() for name, tensor in clip.items()}
    return how, state


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("stem", [True, False])
@pytest.mark.parametrize("stages", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_every_part_of_the_same_clip_is_accepted_and_of_another_refused(
    carrying, text, stem, stages, head
):
    how, whole = carrying
    parts = {
        ("trunk.stem", "conv", "bn"): stem,
        ("trunk.stages", "layer"): stages,
        ("trunk.head", "head", "attnpool"): head,
    }
    lacking = [
        f"{CLIP}visual.{start}" for part, kept in parts.items() if not kept for start in part
    ]
    state = {n: tensor for n, tensor in whole.items() if not n.startswith(tuple(lacking))}
    state = {n: tensor for n, tensor in state.items() if text or not of_text(n)}
    model = fcclip(**how, seed=3)
    model.load_checkpoint(state, "a.pth")
    last = [name for name in state if name.startswith(CLIP)][-1]
    with pytest.raises(
        InputError,
        match=f"MODEL.CLIP.WEIGHTS is not the .* 1 tensors differ, such as {last.removeprefix(CLIP)}",
    ):
        model.load_checkpoint(state | {last: state[last] + 0.5}, "a.pth")


WRONG_CLIP = {
    "another shape": (
        lambda state: state | {f"{CLIP}text_projection": torch.ones(3)},
        r"CLIP of .*a.pth, .* has text_projection of shape \(3,\)",
    ),
    "a frozen twin of a tuned tower": (
        lambda state: state | {f"frozen_{GAMMA}": state[GAMMA]},
        "has 1 unexpected tensor: frozen_backbone",
    ),
    "ODISE's": (
        lambda s: {n: t for n, t in s.items() if not n.startswith((CLIP, "void"))}
        | {"category_head.null_embed": torch.zeros(1, 128)},
        "lacks 1 tensor: void_embedding.weight; .*KIND, VARIANT and SOURCE",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG_CLIP.values(), ids=WRONG_CLIP)
def test_a_checkpoint_whose_clip_does_not_fit_is_refused(convnext, official, change, message):
    with pytest.raises(InputError, match=message):
        convnext.load_checkpoint(change(official), "a.pth")


def test_a_checkpoint_of_another_clip_is_refused_by_its_name(official, clip_file):
    resnet = fcclip("", **{"MODEL.CLIP.NAME": "RN50-quickgelu"})
    with pytest.raises(InputError, match="CLIP of .*, for MODEL.CLIP.NAME RN50-quickgelu"):
        resnet.load_checkpoint(official, "a.pth")
    pyramid = {"MODEL.MASK_GENERATOR.VARIANT": "label", "MODEL.MASK_GENERATOR.SOURCE": "clip"}
    with pytest.raises(InputError, match="lacks .*; MODEL.MASK_GENERATOR.KIND, VARIANT and SOURCE"):
        fcclip(clip_file, **pyramid).load_checkpoint(official, "a.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.CLIP_BRANCH.INPUT_SIZE": 64}, "INPUT_SIZE must be 0 for KIND backbone"),
        ({"MODEL.CLIP_BRANCH.WEIGHTS": "mine.pt"}, "WEIGHTS must be empty or equal"),
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
        fcclip("", **changes)


def test_a_model_without_clip_weights_takes_a_whole_clip_and_nothing_less(convnext, official):
    other = fcclip("", seed=3)
    other.load_checkpoint(official, "a.pth")
    torch.testing.assert_close(other.state_dict(), convnext.state_dict(), atol=0, rtol=0)
    with pytest.raises(InputError, match="ConvNeXt-Mini-32, lacks 27 tensors: token_em"):
        fcclip("").load_checkpoint(without_text(official), "a.pth")
