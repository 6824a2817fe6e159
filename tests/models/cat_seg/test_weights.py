"""CAT-Seg's checkpoints: each check of `read_state` refuses what it is there for, by name."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.checkpoints.zoo import SHIPPED_MODELS
from clipself_seg.clip import load_clip
from clipself_seg.errors import InputError
from clipself_seg.models import CATSeg
from clipself_seg.models.cat_seg.model import read_state, to_official
from tests.models.cat_seg.test_model import build

CLIP = "sem_seg_head.predictor.clip_model."
FIRST = "sem_seg_head.predictor.transformer.conv1.weight"
DEEPER = f"{CLIP}visual.transformer.resblocks.23.ln_1.weight"
# What a checkpoint has in place of or besides the model's tensors (None: it lacks them), and what the
# error says.
WRONG = {
    "another depth": (
        {DEEPER: torch.zeros(1)},
        r"CLIP with 24 blocks, the model's has 4.*catseg\+openai_vitb16",
    ),
    "version 1": (
        {FIRST: torch.zeros(32, 80, 7, 7)},
        r"with 80 prompts .* 1: .*catseg_v1_r101_vitb16",
    ),
    "no kernels": ({FIRST: torch.zeros(32)}, r"conv1.weight of shape \(32,\), the model needs"),
    "a backbone": (
        {"backbone.stem.weight": torch.zeros(1)},
        "guided by a backbone, the model by CLIP",
    ),
    "missing": ({"upsample1.bias": None}, "lacks 1 tensor: upsample1.bias"),
    "unexpected": ({"extra": torch.zeros(1)}, "has 1 unexpected tensor: extra"),
    "another shape": (
        {"upsample1.bias": torch.zeros(3)},
        r"upsample1.bias of shape \(3,\), the model needs \(32,\)",
    ),
    "a transposed matrix": (
        {f"{CLIP}text_projection": torch.zeros(128, 64)},
        r"text_projection of shape \(128, 64\), the model needs \(64, 128\)",
    ),
    "one number for many": (
        {"upsample1.bias": torch.zeros(1)},
        r"upsample1.bias of shape \(1,\), the model needs \(32,\)",
    ),
}


@pytest.fixture(scope="module")
def model() -> CATSeg:
    return build()


def changed(tensors, changes):
    return {name: value for name, value in (tensors | changes).items() if value is not None}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_checkpoint_that_does_not_fit_is_refused(model, changes, message):
    with pytest.raises(InputError, match=message):
        model.load_state_dict(changed(to_official(model), changes))


def test_a_checkpoint_of_fewer_prompts_belongs_to_the_later_version():
    ensemble = build("MODEL.PROMPT_ENSEMBLE_TYPE", "imagenet")
    single = changed(to_official(ensemble), {FIRST: torch.zeros(32, 1, 7, 7)})
    with pytest.raises(InputError, match=r"with 1 prompts .* 80: .*catseg\+openai_vitb16"):
        ensemble.load_state_dict(single)


def test_a_clip_alone_and_one_without_the_cost_embedding_are_refused(model):
    with pytest.raises(
        InputError, match="no CAT-Seg checkpoint: it has no aggregator.*VISUAL_INIT"
    ):
        read_state(model, load_clip("ViT-Mini-8", None).state_dict())
    shipped = read_checkpoint(SHIPPED_MODELS["mini-cat-seg"]).tensors
    with pytest.raises(InputError, match="only a part of its CLIP: .* clipself://mini-cat-seg"):
        model.load_state_dict(shipped)
    with pytest.raises(InputError, match="lacks 1 tensor: aggregator.conv1.weight.*another shape"):
        model.load_state_dict(changed(model.state_dict(), {"aggregator.conv1.weight": None}))


def test_a_single_number_may_have_a_dimension_and_any_precision(model):
    scale = model.clip.logit_scale.detach()
    given = to_official(model) | {f"{CLIP}logit_scale": scale.double()[None]}
    tensors, report = read_state(model, given)
    assert torch.equal(tensors["clip.logit_scale"], scale)
    assert tensors["clip.logit_scale"].dtype == torch.float32
    assert "CAT-Seg's names" in report and "0 missing, 0 unexpected" in report


@pytest.mark.parametrize("prefix", ["", "module."])
def test_own_and_official_names_give_the_model_back(model, prefix):
    own = model.state_dict()
    for state in (own, to_official(model)):
        tensors, _ = read_state(model, {prefix + name: value for name, value in state.items()})
        assert tensors.keys() == own.keys()
        assert all(torch.equal(tensors[name], value) for name, value in own.items())
