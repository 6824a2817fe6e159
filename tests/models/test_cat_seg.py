"""CAT-Seg as a model: words, texts that are never stale, checkpoints of other kinds, initial weights."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from detectron2.modeling import build_model

from clipself_seg.clip import load_clip, save_clip
from clipself_seg.config import load_config
from clipself_seg.engine.optimizer import cat_seg_groups
from clipself_seg.engine.run import with_initial_weights
from clipself_seg.errors import InputError
from clipself_seg.models import CATSeg
from clipself_seg.models.cat_seg_config import build_backbone
from clipself_seg.models.cat_seg_weights import to_official
from tests.conftest import ROOT

MINI = ROOT / "configs/mini/semseg.yaml"
SMALL = ("MODEL.CLIP.WEIGHTS", "", "MODEL.SEM_SEG_HEAD.FEATURE_RESOLUTION", "[8, 8]")
SMALL += ("MODEL.SEM_SEG_HEAD.WINDOW_SIZES", "4", "SEED", "1")


def build(*opts: str) -> CATSeg:
    torch.manual_seed(0)
    model = build_model(load_config(MINI, [*SMALL, *opts])).eval()
    model.set_vocabulary(["cat", "dog"])
    return model


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randint(256, (3, 64, 64), generator=torch.Generator().manual_seed(0)).float()


def scores(model: CATSeg, image: torch.Tensor) -> torch.Tensor:
    return model([{"image": image, "height": 20, "width": 30}])[0]["sem_seg"]


def test_words_changed_on_a_live_model_take_effect(image):
    model = build()
    before = scores(model, image)
    model.set_vocabulary(["dog", "cat", "sky"])
    after = scores(model, image)
    assert before.shape == (2, 20, 30) and after.shape == (3, 20, 30)
    model.set_vocabulary(["cat", "dog"])
    assert torch.equal(scores(model, image), before)


@pytest.mark.parametrize("way", ["optimiser", "load_state_dict", "replaced"])
@torch.no_grad()
def test_weights_that_change_never_meet_the_texts_of_earlier_ones(way):
    model = build()
    old = model.texts.embed(model.names)
    assert model.texts.embed(model.names) is old
    weight = next(iter(model.clip.text.transformer.resblocks)).attn.q_proj_weight
    if way == "optimiser":
        weight.grad = torch.ones_like(weight)
        torch.optim.AdamW([weight], lr=0.1, fused=True).step()
    elif way == "load_state_dict":
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for name in state:
            if name.startswith("clip.text.") and name.endswith("v_proj_weight"):
                state[name] += 0.3
        model.load_state_dict(state)
    else:
        model.clip.text.text_projection = torch.nn.Parameter(model.clip.text.text_projection * -1)
    new = model.texts.embed(model.names)
    assert not torch.allclose(new, old)


def test_texts_get_gradients_in_training_and_are_kept_in_evaluation():
    model = build().train()
    assert model.texts.embed(model.names).requires_grad
    with torch.no_grad():
        assert not model.texts.embed(model.names).requires_grad


def test_synonyms_are_the_first_or_the_mean(image):
    first, mean = build(), build("MODEL.CAT_SEG.SYNONYMS", "mean")
    for model in (first, mean):
        model.set_vocabulary(["cat, kitten|puss", "dog"])
    assert first.names == (("cat",), ("dog",))
    assert mean.names == (("cat", "kitten", "puss"), ("dog",))
    single = mean.texts.embed((("cat",), ("kitten",), ("puss",)))
    expected = torch.nn.functional.normalize(single.mean(0), dim=-1)
    torch.testing.assert_close(mean.texts.embed(mean.names)[0], expected)


def test_classes_of_one_name_are_warned_about(caplog):
    with caplog.at_level(logging.WARNING):
        build().set_vocabulary(["door", "sky", "door, gate"])
    assert "door" in caplog.text and "SYNONYMS" in caplog.text


@pytest.mark.parametrize("words", [[], [""], ["cat", " "], ["cat, "]])
def test_no_words_and_empty_words_are_refused(words):
    with pytest.raises(InputError, match="empty"):
        build().set_vocabulary(words)


def test_a_distilled_tower_is_where_training_starts(tmp_path):
    clip = load_clip("ViT-Mini-8", "mini-clipself")
    save_clip(clip, tmp_path / "student.pt")
    opts = ("MODEL.CLIP.WEIGHTS", "mini", "MODEL.CLIP.VISUAL_INIT")
    for weights in (str(tmp_path / "student.pt"), "mini-clipself"):
        model = build(*opts, weights)
        projection = model.clip.visual.blocks[1].mlp.c_fc.weight
        assert torch.equal(projection, clip.visual.blocks[1].mlp.c_fc.weight)


def test_a_tower_of_another_clip_is_refused(tmp_path):
    clip = load_clip("ViT-Mini-8", None)
    save_clip(clip, tmp_path / "other.pt")
    opts = ("MODEL.CLIP.WEIGHTS", "mini", "MODEL.CLIP.VISUAL_INIT", str(tmp_path / "other.pt"))
    with pytest.raises(InputError, match="VISUAL_INIT.*(stem|positions|head)"):
        build(*opts)


def test_checkpoints_of_other_kinds_are_told_apart():
    model = build()
    official = to_official(model)
    first = "sem_seg_head.predictor.transformer.conv1.weight"
    version_1 = official | {first: torch.zeros(32, 80, 7, 7)}
    with pytest.raises(InputError, match="80 prompts.*catseg_v1"):
        model.load_state_dict(version_1)
    with pytest.raises(InputError, match="no CAT-Seg checkpoint.*VISUAL_INIT"):
        model.load_state_dict(load_clip("ViT-Mini-8", None).state_dict())
    with pytest.raises(InputError, match="guided by a backbone"):
        model.load_state_dict(official | {"backbone.stem.conv1.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="lacks 1 tensors: upsample1.bias"):
        model.load_state_dict({n: t for n, t in official.items() if n != "upsample1.bias"})
    with pytest.raises(InputError, match="has unexpected 1 tensors: extra"):
        model.load_state_dict(official | {"extra": torch.zeros(1)})
    with pytest.raises(InputError, match=re.escape("shape (3,)")):
        model.load_state_dict(official | {"upsample1.bias": torch.zeros(3)})


def test_packed_and_split_attention_load_into_each_other(image):
    split, packed = build(), build("MODEL.SEM_SEG_HEAD.CLIP_FINETUNE", "none", "SEED", "2")
    packed.load_state_dict(to_official(split))
    torch.testing.assert_close(scores(packed, image), scores(split, image))
    again = build("SEED", "3")
    again.load_state_dict(to_official(packed))
    assert torch.equal(scores(again, image), scores(split, image))


def test_what_trains_and_how_fast():
    cfg = load_config(MINI, SMALL)
    model = build()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    clip = {name for name in trained if name.startswith("clip.")}
    assert len(clip) == 2 * (4 + 2)
    assert all(name.endswith(("q_proj_weight", "v_proj_weight")) for name in clip)
    groups = {
        (g["lr_multiplier"], g["weight_decay"]): g["params"] for g in cat_seg_groups(cfg, model)
    }
    assert {id(p) for p in groups[0.01, 1e-4]} == {
        id(p) for n, p in model.named_parameters() if n in clip
    }
    norms = {id(p) for n, p in model.named_parameters() if "norm" in n and "clip." not in n}
    assert norms < {id(p) for p in groups[1.0, 0.0]}
    assert sum(len(parameters) for parameters in groups.values()) == len(trained)


def test_training_without_weights_starts_from_openai():
    cfg = load_config(ROOT / "configs/semseg/catseg_cvpr_vitb16.yaml")
    assert with_initial_weights(cfg).MODEL.CLIP.WEIGHTS == "openai"
    random = load_config(MINI, ["MODEL.CLIP.WEIGHTS", "random"])
    assert with_initial_weights(random).MODEL.CLIP.WEIGHTS == ""
    given = load_config(MINI)
    assert with_initial_weights(given).MODEL.CLIP.WEIGHTS == "mini"


def test_cat_segs_own_keys_mean_the_same():
    opts = ["MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED", "ViT-B/16", "MODEL.DEVICE", "meta"]
    cfg = load_config(None, [*opts, "MODEL.META_ARCHITECTURE", "CATSeg"])
    with torch.device("meta"):
        model = build_model(cfg)
    assert (model.clip.name, len(model.state_dict())) == ("ViT-B-16-quickgelu", 482)
    assert model.guidance_blocks == ("block3", "block7")
    assert with_initial_weights(cfg).MODEL.CLIP.WEIGHTS == "openai"
    with pytest.raises(InputError, match="CLIP_PRETRAINED"):
        build_model(load_config(None, [opts[0], "ViT-H", "MODEL.META_ARCHITECTURE", "CATSeg"]))


def test_version_1_has_a_backbone_and_eighty_prompts_as_channels():
    path = ROOT / "configs/semseg/catseg_v1_r101_vitb16.yaml"
    cfg = load_config(path, ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    state = model.state_dict()
    assert state["aggregator.conv1.weight"].shape == (128, 80, 7, 7)
    assert not any("padding" in name or name.startswith("upsample") for name in state)
    frozen = [p.requires_grad for p in model.clip.text.parameters()]
    assert not any(frozen)
    assert model.clip.visual.positional_embedding.requires_grad
    assert model.clip.visual.blocks[0].attn.in_proj_bias.requires_grad
    assert not model.clip.visual.class_residual


@pytest.mark.parametrize("preset", ["v1_r101_vitb16", "v1_swinb_vitl14_336"])
def test_guidance_of_version_1_has_the_channels_of_its_backbone(preset):
    cfg = load_config(ROOT / f"configs/semseg/catseg_{preset}.yaml")
    shapes = build_backbone(cfg).output_shape()
    head = cfg.MODEL.SEM_SEG_HEAD
    assert shapes["res4"].channels == head.APPEARANCE_GUIDANCE_DIM
    assert [shapes[name].channels for name in ("res3", "res2")] == head.DECODER_GUIDANCE_DIMS
    assert [shapes[name].stride for name in ("res4", "res3", "res2")] == [16, 8, 4]


@torch.no_grad()
def test_version_1_segments_with_each_backbone(image):
    common = ["MODEL.CAT_SEG.GUIDANCE", "backbone", "INPUT.FORMAT", "RGB"]
    head = "MODEL.SEM_SEG_HEAD."
    resnet = [*common, "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.STEM_TYPE"]
    resnet += ["basic", "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.OUT_FEATURES"]
    resnet += ["['res2', 'res3', 'res4']", f"{head}APPEARANCE_GUIDANCE_DIM", "1024"]
    resnet += [f"{head}DECODER_GUIDANCE_DIMS", "[512, 256]"]
    swin = [*common, "MODEL.BACKBONE.NAME", "GuidanceSwin", "MODEL.SWIN.EMBED_DIM", "32"]
    swin += ["MODEL.SWIN.DEPTHS", "[1, 1, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2, 4]"]
    swin += ["MODEL.SWIN.OUT_FEATURES", "['res2', 'res3', 'res4']"]
    swin += [f"{head}APPEARANCE_GUIDANCE_DIM", "128", f"{head}DECODER_GUIDANCE_DIMS", "[64, 32]"]
    for opts in (resnet, swin):
        model = build(*opts)
        for side in (64, 128):
            windows = torch.nn.functional.interpolate(image[None], side)
            logits = model.window_logits(windows)
            assert logits.shape == (1, 2, 32, 32) and logits.isfinite().all()
        tall = torch.nn.functional.interpolate(image[None], (160, 128))[0]
        for sliding in (False, True):
            model.sliding = sliding
            assert scores(model, tall).shape == (2, 20, 30)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.SEM_SEG_HEAD.TEXT_GUIDANCE_DIM", "512", "has 128"),
        ("MODEL.SEM_SEG_HEAD.POOLING_SIZES", "[1]", "NUM_LAYERS"),
        ("MODEL.CAT_SEG.GUIDANCE_BLOCKS", "(0, 9)", "two of the 4 blocks"),
        ("MODEL.SEM_SEG_HEAD.PROMPT_LENGTH", "4", "must be 0"),
        ("TEST.WINDOW.CANVAS", "700", "do not cover"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(key, value, message):
    with pytest.raises(InputError, match=message):
        build(key, value)
