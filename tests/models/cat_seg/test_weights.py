"""CAT-Seg's checkpoints: one that does not fit is refused with its way out, official names are read and written."""

import pytest
import torch

from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.checkpoints.zoo import SHIPPED_MODELS
from clipself_seg.clip import load_clip
from clipself_seg.errors import InputError
from clipself_seg.models import CATSeg
from clipself_seg.models.cat_seg.cat_seg_checkpoint import write
from tests.models.cat_seg.test_model import build

CLIP = "sem_seg_head.predictor.clip_model."
FIRST = "sem_seg_head.predictor.transformer.conv1.weight"
DEEPER = f"{CLIP}visual.transformer.resblocks.23.ln_1.weight"
# What a checkpoint has in place of or besides the model's tensors (None: it lacks them), and what the
# error says.
WRONG = {
    "another depth": (
        {DEEPER: torch.zeros(1)},
        r"1 unexpected tensor: .*resblocks.23.*of another CLIP .*catseg\+openai_vitb16",
    ),
    "version 1": (
        {FIRST: torch.zeros(32, 80, 7, 7)},
        r"\(32, 80, 7, 7\).* 80 prompts .*catseg_v1_r101_vitb16",
    ),
    "no kernels": ({FIRST: torch.zeros(32)}, r"conv1.weight of shape \(32,\), the model needs"),
    "a backbone": ({"backbone.stem.weight": torch.zeros(1)}, "unexpected .*guided by a backbone"),
    "missing": ({"upsample1.bias": None}, "lacks 1 tensor: upsample1.bias"),
    "unexpected": ({"extra": torch.zeros(1)}, "has 1 unexpected tensor: extra"),
}


@pytest.fixture(scope="module")
def model() -> CATSeg:
    return build()


def changed(tensors, changes):
    return {name: value for name, value in (tensors | changes).items() if value is not None}


def official(model):
    return write(model)["model"]


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_checkpoint_that_does_not_fit_is_refused(model, changes, message):
    with pytest.raises(InputError, match=message):
        model.load_checkpoint(changed(official(model), changes), "model.pth")


def test_a_clip_alone_and_one_without_the_cost_embedding_are_refused(model):
    for tensors, message in [
        (load_clip("ViT-Mini-8", None).state_dict(), "it has no aggregator.*VISUAL_INIT"),
        (
            read_checkpoint(SHIPPED_MODELS["mini-cat-seg"]).tensors,
            "only a part of its CLIP: .* clipself://mini-cat-seg",
        ),
        (
            changed(model.state_dict(), {"aggregator.conv1.weight": None}),
            "x.pth lacks 1 tensor: aggregator.conv1.weight",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            model.load_checkpoint(tensors, "x.pth")


def test_a_single_number_may_have_a_dimension_and_any_precision(model):
    scale = model.clip.logit_scale.detach().clone()
    given = official(model) | {f"{CLIP}logit_scale": scale.double()[None]}
    model.load_checkpoint(given, "x.pth")
    assert torch.equal(model.clip.logit_scale, scale)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_own_and_official_names_give_the_model_back(model, prefix):
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for state in (own, official(model)):
        other = build("SEED", "3")
        other.load_checkpoint({prefix + name: value for name, value in state.items()}, "x.pth")
        assert all(torch.equal(other.state_dict()[name], value) for name, value in own.items())


def test_load_state_dict_is_torchs_which_takes_official_names_too(model):
    part = changed(official(model), {"upsample1.bias": None, "extra": torch.zeros(1)})
    left = model.load_state_dict(part, strict=False)
    assert (left.missing_keys, left.unexpected_keys) == (["upsample1.bias"], ["extra"])
    with pytest.raises(RuntimeError, match="Missing key.*upsample1.bias"):
        model.load_state_dict(part)
