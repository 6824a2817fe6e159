"""Checkpoints of panoptic segmentation: each check of `full_state` refuses what it is there for, by name."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models import OpenPanoptic
from clipself_seg.models.build import build_model as build_with_weights
from clipself_seg.models.panoptic.model import (
    CLIP_HASH,
    EXPONENTS,
    frozen_hashes,
    full_state,
    own_checkpoint,
    trained_state,
)
from tests.conftest import ROOT

QUERIES = "sem_seg_head.predictor.query_feat.weight"
NORM = "sem_seg_head.predictor.decoder_norm"
# What a checkpoint has in place of or besides the model's tensors (None: it lacks them), and what the
# error says.
WRONG = {
    "no generator": ({QUERIES: None}, "no panoptic checkpoint: it has no mask generator"),
    "missing": (
        {f"{NORM}.weight": None, f"{NORM}.bias": None},
        f"lacks 2 tensors: {NORM}.weight, {NORM}.bias",
    ),
    "unexpected": ({"backbone.more": torch.zeros(1)}, "has 1 unexpected tensor: backbone.more"),
    "other sizes": (
        {QUERIES: torch.zeros(9, 64)},
        r"query_feat.weight of shape \(9, 64\), the model needs \(7, 64\): MODEL.MASK_FORMER",
    ),
    "one row for all": (
        {QUERIES: torch.zeros(1, 64)},
        r"shape \(1, 64\), the model needs \(7, 64\)",
    ),
    "an embedding of another CLIP": (
        {"category_head.null_embed": torch.zeros(1, 1)},
        r"null_embed of shape \(1, 1\).*: MODEL.CLIP.NAME gives the size",
    ),
    "another source": (
        {"backbone.feature_projections.0.weight": torch.zeros(1)},
        "of the SOURCE diffusion/pyramid, the model's is pyramid",
    ),
    "another CLIP": (
        {CLIP_HASH: torch.tensor(list(b"abc"), dtype=torch.uint8)},
        "trained on weights abc, the model has .*MODEL.CLIP_BRANCH.WEIGHTS",
    ),
    "bytes that are no digits": (
        {CLIP_HASH: torch.full((12,), 255, dtype=torch.uint8)},
        r"clip_hash of the panoptic checkpoint, uint8 \(12,\), is no hash",
    ),
    "exponents that are none": (
        {EXPONENTS: torch.tensor([0.35, 1.5])},
        r"fusion_exponents of .*, float32 \(2,\), are not two numbers in \[0, 1\]",
    ),
    "one exponent": ({EXPONENTS: torch.tensor(1.0)}, r"float32 \(\), are not two numbers"),
    "exponents that are bytes": (
        {EXPONENTS: torch.ones(2, dtype=torch.uint8)},
        r"uint8 \(2,\), are not two numbers",
    ),
    "a number for a hash": (
        {CLIP_HASH: torch.tensor(10**12)},
        r"clip_hash of .*, int64 \(\), is no",
    ),
}


def build(*opts: str, seed: int = 0) -> OpenPanoptic:
    torch.manual_seed(seed)
    small = ("MODEL.CLIP.WEIGHTS", "", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "7")
    return build_model(load_config(ROOT / "configs/mini/base_panoptic.yaml", [*small, *opts]))


@pytest.fixture(scope="module")
def model() -> OpenPanoptic:
    return build()


def changed(tensors, changes):
    return {name: value for name, value in (tensors | changes).items() if value is not None}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_checkpoint_that_does_not_fit_is_refused(model, changes, message):
    with pytest.raises(InputError, match=message):
        model.load_state_dict(changed(own_checkpoint(model), changes))


def test_a_checkpoint_of_the_other_variant_is_refused(model):
    caption = build("MODEL.MASK_GENERATOR.VARIANT", "caption")
    with pytest.raises(
        InputError, match="VARIANT caption, the model's is label: set .*VARIANT capt"
    ):
        model.load_state_dict(trained_state(caption))


def test_a_model_that_reads_its_outputs_takes_no_checkpoint(model):
    disk = build("MODEL.MASK_GENERATOR.SOURCE", "disk", "MODEL.MASK_GENERATOR.OUTPUTS", "x")
    with pytest.raises(InputError, match="of no use with MODEL.MASK_GENERATOR.SOURCE disk"):
        disk.load_state_dict(trained_state(model))


@pytest.mark.parametrize("hashes", [True, False])
def test_own_and_official_names_give_a_complete_state(model, hashes):
    state = own_checkpoint(model) if hashes else trained_state(model)
    assert (frozen_hashes(model).keys() <= state.keys()) == hashes
    own = torch.nn.Module.state_dict(model)
    ignored = {"criterion.empty_weight": torch.ones(134), "clip_head.clip.x": torch.ones(1)}
    for given in (state, {f"module.{name}": value for name, value in (state | ignored).items()}):
        complete = full_state(model, given)
        assert complete.keys() == own.keys()
        assert all(torch.equal(complete[name], value) for name, value in own.items())


def test_what_odise_freezes_is_left_out_of_a_checkpoint_that_has_it(model, caplog):
    frozen = ("clip_head.clip.visual.proj", "category_head.clip.logit_scale", "pixel_mean")
    frozen += ("backbone.feature_extractor.ldm_extractor.ldm.x",)
    with caplog.at_level("INFO"):
        model.load_state_dict(trained_state(model) | {name: torch.ones(1) for name in frozen})
    assert "0 unexpected, 4 ignored" in caplog.text


def test_a_generator_of_another_clip_is_refused(model, tmp_path):
    model.export(tmp_path / "model.pth")
    other = build(seed=5)
    with pytest.raises(InputError, match="trained on weights .*MODEL.CLIP_BRANCH.WEIGHTS"):
        other.load_state_dict(read_checkpoint(tmp_path / "model.pth").tensors)


def test_a_generator_of_another_stable_diffusion_is_refused(tmp_path):
    pytest.importorskip("diffusers")
    opts = ("MODEL.MASK_GENERATOR.SOURCE", "diffusion", "MODEL.DIFFUSION.WEIGHTS", "random-small")
    model = build(*opts, "MODEL.DIFFUSION.CROP", "64", "MODEL.DIFFUSION.ANTIALIAS", "True")
    assert model.backbone.antialias
    model.export(tmp_path / "model.pth")
    state = read_checkpoint(tmp_path / "model.pth").tensors
    model.load_state_dict(state)
    before = model.original_hash()
    with torch.no_grad():
        next(model.backbone.stable_diffusion.parameters()).add_(1)
    assert model.original_hash() != before
    with pytest.raises(InputError, match="trained on weights .*MODEL.DIFFUSION.WEIGHTS"):
        model.load_state_dict(state)


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
        model.load_state_dict(official)
        assert model.exponents == before
        model.load_state_dict({f"{prefix}{n}": tensor for n, tensor in official.items()} | carried)
        assert model.fusion.returned()[:2] == expected


def test_an_exported_model_carries_its_exponents(tmp_path):
    build("MODEL.FUSION.ALPHA", "0.35", "MODEL.FUSION.MODE", "generator").export(tmp_path / "a.pth")
    model = build()
    model.load_checkpoint(read_checkpoint(tmp_path / "a.pth").tensors, "a.pth")
    assert model.exponents == (0.35, 0.8)


def test_the_shipped_generator_carries_what_its_card_says():
    cfg = load_config(ROOT / "configs/mini/panoptic.yaml", ["MODEL.WEIGHTS", "mini-open-panoptic"])
    assert build_with_weights(cfg).exponents == (0.35, 0.8)
