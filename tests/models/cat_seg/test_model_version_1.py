"""The first version of CAT-Seg: a backbone's guidance, its weights, prompts as channels."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models import CATSeg
from clipself_seg.models.cat_seg.config import build_backbone
from tests.conftest import ROOT
from tests.models.cat_seg.test_model import build, scores


def test_version_1_has_a_backbone_and_eighty_prompts_as_channels():
    path = ROOT / "configs/semseg/catseg_v1_r101_vitb16.yaml"
    with torch.device("meta"):
        model = CATSeg(load_config(path))
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


def test_the_guidance_backbone_starts_from_detectron2s_pickles(tmp_path):
    opts = ["MODEL.SWIN.EMBED_DIM", "16", "MODEL.SWIN.DEPTHS", "[1, 1, 1]"]
    opts += ["MODEL.SWIN.NUM_HEADS", "[1, 2, 4]", "MODEL.BACKBONE.NAME", "D2SwinTransformer"]
    opts += ["MODEL.SWIN.OUT_FEATURES", "['res2', 'res3', 'res4']"]
    state = build_backbone(load_config(None, opts)).state_dict()
    # A classifier's: no norms between the stages, and a head that has no place here.
    arrays = {n: t.numpy() for n, t in state.items() if not n.startswith("norm")}
    arrays |= {"patch_embed.proj.bias": np.ones(16, np.float32), "head.bias": np.ones(3)}
    path = tmp_path / "swin.pkl"

    def read(content):
        path.write_bytes(pickle.dumps({"model": content, "matching_heuristics": True}))
        return build_backbone(load_config(None, [*opts, *key, str(path)]))

    key = ["MODEL.CAT_SEG.BACKBONE_WEIGHTS"]
    assert read(arrays).patch_embed.proj.bias.eq(1).all()
    with pytest.raises(InputError, match="swin.pkl lacks 1 tensor of .*patch_embed.proj.weight"):
        read({n: a for n, a in arrays.items() if n != "patch_embed.proj.weight"})
    with pytest.raises(InputError, match="swin.pkl does not fit D2SwinTransformer"):
        read(arrays | {"patch_embed.proj.bias": np.ones(5, np.float32)})


@torch.no_grad()
def test_version_1_segments_with_each_backbone():
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
            windows = torch.randint(256, (1, 3, side, side))
            logits = model.window_logits(windows)
            assert logits.shape == (1, 2, 32, 32) and logits.isfinite().all()
        tall = torch.randint(256, (3, 160, 128))
        for sliding in (False, True):
            model.sliding = sliding
            assert scores(model, tall).shape == (2, 20, 30)
    samples = [{"image": tall}, {"image": tall[:, :100]}]
    apart = [result["sem_seg"] for result in model(samples)]
    with pytest.MonkeyPatch.context() as patch:  # as on a GPU, in one pass of CLIP and backbone
        patch.setattr("clipself_seg.models.cat_seg.model.chunk_size", lambda *_: 2)
        torch.testing.assert_close([r["sem_seg"] for r in model(samples)], apart, atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_is_zero_for_both_inputs_of_version_1():
    """After the normalisation of each: CLIP's mean is not zero for a backbone of ImageNet's."""
    opts = ["MODEL.CAT_SEG.GUIDANCE", "backbone", "MODEL.BACKBONE.NAME", "GuidanceSwin"]
    opts += ["MODEL.SWIN.EMBED_DIM", "16", "MODEL.SWIN.DEPTHS", "[1, 1, 1]"]
    opts += ["MODEL.SWIN.NUM_HEADS", "[1, 2, 4]", "MODEL.SWIN.OUT_FEATURES"]
    opts += ["['res2', 'res3', 'res4']", "MODEL.SEM_SEG_HEAD.APPEARANCE_GUIDANCE_DIM", "64"]
    model = build(*opts, "MODEL.SEM_SEG_HEAD.DECODER_GUIDANCE_DIMS", "[32, 16]")
    given = []
    features = model.clip.visual.features
    model.clip.visual.features = lambda x, names: given.append(x) or features(x, names)
    model.backbone.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model.size_divisibility = 64  # the right half is padding
    scores(model, torch.full((3, 64, 32), 255))
    for x in given:
        assert x[..., -x.shape[-1] // 4 :].abs().max() == 0 and x[..., : x.shape[-1] // 4].all()


def test_guidance_that_does_not_fit_the_backbone_is_refused():
    opts = ["MODEL.CAT_SEG.GUIDANCE", "backbone", "MODEL.BACKBONE.NAME", "GuidanceSwin"]
    opts += ["MODEL.SWIN.EMBED_DIM", "16", "MODEL.SWIN.DEPTHS", "[1, 1, 1]"]
    opts += ["MODEL.SWIN.NUM_HEADS", "[1, 2, 4]", "MODEL.SWIN.OUT_FEATURES"]
    head = "MODEL.SEM_SEG_HEAD."
    with pytest.raises(InputError, match="gives res3, res4 and not res2, which guide"):
        build(*opts, "['res3', 'res4']")
    opts += ["['res2', 'res3', 'res4']", f"{head}APPEARANCE_GUIDANCE_DIM"]
    with pytest.raises(InputError, match="APPEARANCE_GUIDANCE_DIM must be 64"):
        build(*opts, "32")
    with pytest.raises(InputError, match=r"DECODER_GUIDANCE_DIMS must be \[32, 16\]"):
        build(*opts, "64", f"{head}DECODER_GUIDANCE_DIMS", "[16, 32]")
