"""CAT-Seg: classes, views, what trains, its sizes, and the first version, which a backbone guides."""

import copy
import dataclasses
import functools
import logging
import pickle

import numpy as np
import pytest
import torch
import torchvision
import yaml
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from torchvision.models.feature_extraction import create_feature_extractor

from clipself_seg.clip import load_clip, save_clip
from clipself_seg.config import load_config
from clipself_seg.config.semantic_keys import CAT_SEG_UNREAD
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.models import CATSeg
from clipself_seg.models.build import build_model as build_with_weights
from clipself_seg.models.cat_seg.cat_seg_checkpoint import write
from clipself_seg.models.cat_seg.cat_seg_config import CATSegEvaluation, build_backbone
from clipself_seg.yaml_files import leaves
from tests.conftest import ROOT

MINI = ROOT / "configs/mini/semseg.yaml"
SMALL = ("MODEL.CLIP.WEIGHTS", "", "MODEL.SEM_SEG_HEAD.FEATURE_RESOLUTION", "[8, 8]")
SMALL += ("MODEL.SEM_SEG_HEAD.WINDOW_SIZES", "4", "SEED", "1")
HEAD = "MODEL.SEM_SEG_HEAD"
# The configuration starts from a tower that was distilled as token.
RESIDUAL = "MODEL.CAT_SEG.RESIDUAL"
UNDISTILLED = ("MODEL.CLIP.VISUAL_INIT", "")
VALUES = (*UNDISTILLED, RESIDUAL, "none", "MODEL.CLIP.DENSE", "multi_value")
GATED = (*VALUES[:-1], "gated_multi_value")
# Version 1: a small backbone of Detectron2's that guides, whose maps have 64, 32 and 16 channels.
MAPS = "['res2', 'res3', 'res4']"
SWIN = ("MODEL.CAT_SEG.GUIDANCE", "backbone", "MODEL.BACKBONE.NAME", "GuidanceSwin", "INPUT.FORMAT")
SWIN += ("RGB", "MODEL.SWIN.EMBED_DIM", "16", "MODEL.SWIN.DEPTHS", "[1, 1, 1]")
SWIN += ("MODEL.SWIN.NUM_HEADS", "[1, 2, 4]", "MODEL.SWIN.OUT_FEATURES", MAPS)
SWIN += (f"{HEAD}.APPEARANCE_GUIDANCE_DIM", "64", f"{HEAD}.DECODER_GUIDANCE_DIMS", "[32, 16]")
# Keys -> what the error says.
REFUSED = [
    ((f"{HEAD}.TEXT_GUIDANCE_DIM", "512"), "must be 128, the embedding of ViT-Mini-8, it is 512"),
    ((f"{HEAD}.TEXT_GUIDANCE_PROJ_DIM", "0"), "TEXT_GUIDANCE_PROJ_DIM must be at least 1"),
    ((f"{HEAD}.APPEARANCE_GUIDANCE_DIM", "512"), "must be 128, the channels of the guidance"),
    ((f"{HEAD}.POOLING_SIZES", "[1, 0]"), "POOLING_SIZES must be .* at least 1"),
    ((f"{HEAD}.POOLING_SIZES", "[3, 1]"), "divisors of FEATURE_RESOLUTION"),
    ((f"{HEAD}.NUM_HEADS", "3"), "a divisor of HIDDEN_DIMS"),
    ((f"{HEAD}.FEATURE_RESOLUTION", "[16]"), "two whole numbers"),
    ((f"{HEAD}.FEATURE_RESOLUTION", "[16, 8]"), "square"),
    ((f"{HEAD}.WINDOW_SIZES", "7"), "a divisor of FEATURE_RESOLUTION"),
    ((f"{HEAD}.DECODER_DIMS", "[50, 16]"), "groups of 16 channels"),
    ((f"{HEAD}.DECODER_GUIDANCE_PROJ_DIMS", "[16, 32]"), "less than what their steps get"),
    (("MODEL.CAT_SEG.GUIDANCE_BLOCKS", "(0, 9)"), "two of the 4 blocks"),
    (
        (*UNDISTILLED, RESIDUAL, "cls", "MODEL.CLIP.DENSE", "value"),
        "RESIDUAL must be .none. unless .* 'cls' with .*DENSE 'value'",
    ),
    ((RESIDUAL, "none"), "RESIDUAL is none, and MODEL.CLIP.DENSE token adds one"),
    (("MODEL.CLIP.ATTENTION", "kk"), "ATTENTION must be .none., for CAT-Seg is trained"),
    ((*SWIN, "MODEL.SWIN.OUT_FEATURES", "['res3', 'res4']"), "gives res3, res4 and not res2"),
    ((*SWIN, f"{HEAD}.APPEARANCE_GUIDANCE_DIM", "32"), "APPEARANCE_GUIDANCE_DIM must be 64"),
]


def build(*opts: str) -> CATSeg:
    model, drawn = (plain if not opts else built)(*opts)
    torch.set_rng_state(drawn)
    model = copy.deepcopy(model)
    model.set_vocabulary(["cat", "dog"])
    return model


def built(*opts: str) -> tuple[CATSeg, torch.Tensor]:
    """A model without classes, and the state of torch's generator after it."""
    torch.manual_seed(0)
    model = build_model(load_config(MINI, [*SMALL, *opts])).eval()
    return model, torch.get_rng_state()


plain = functools.cache(built)  # of no options, which many tests copy


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


def test_synonyms_are_the_first_or_the_mean(image):
    first, mean = build(), build("MODEL.CAT_SEG.SYNONYMS", "mean")
    for model in (first, mean):
        model.set_vocabulary(["cat, kitten|puss", "dog"])
    assert first.names == (("cat",), ("dog",))
    assert mean.names == (("cat", "kitten", "puss"), ("dog",))
    single = mean.texts.embed((("cat",), ("kitten",), ("puss",)))
    expected = torch.nn.functional.normalize(single.mean(0), dim=-1)
    torch.testing.assert_close(mean.texts.embed(mean.names)[0], expected)


def test_cat_segs_entry_of_a_class_takes_the_place_of_all_its_names():
    first, mean = build(), build("MODEL.CAT_SEG.SYNONYMS", "mean")
    ade = Vocabulary.load("ade20k_150")
    for model in (first, mean):
        model.set_vocabulary(ade)
        assert model.names[7] == ("bed ",) and {len(names) for names in model.names} == {1}


def test_classes_of_one_name_are_warned_about(caplog):
    first, mean = build(), build("MODEL.CAT_SEG.SYNONYMS", "mean")
    double = Vocabulary.of(["door", "sky", "door, gate"], repeats=True)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        mean.set_vocabulary(double)
        assert not caplog.text
        twice = ["Door, gate", "sky", "door,  gate"]
        mean.set_vocabulary(Vocabulary.of(twice, repeats=True))
        assert "wins: door, gate" in caplog.text and "SYNONYMS" not in caplog.text
        caplog.clear()
        first.set_vocabulary(double)
    assert "wins: door." in caplog.text and "SYNONYMS" in caplog.text


def test_a_model_without_words_says_so():
    with pytest.raises(RuntimeError, match="call set_vocabulary"):
        build_model(load_config(MINI, SMALL)).window_logits(torch.zeros(1, 3, 64, 64))


def test_a_label_outside_of_the_vocabulary_is_named(image):
    model = build().train()
    labels = torch.full((64, 64), 255)
    assert model([{"image": image, "sem_seg": labels}])["loss_sem_seg"].isfinite()
    for wrong in (2, -1):
        with pytest.raises(InputError, match=f"label {wrong} is outside of the vocabulary of 2"):
            model([{"image": image, "sem_seg": labels.index_fill(0, torch.tensor(3), wrong)}])


def test_an_image_smaller_than_the_logits_is_cut_as_detectron2_does(image):
    from detectron2.modeling.postprocessing import sem_seg_postprocess

    model = build("MODEL.MASK_FORMER.SIZE_DIVISIBILITY", "0")
    small = image[:, :20, :30]
    with torch.no_grad():
        whole = model.window_logits(small[None])[0].sigmoid()
    expected = sem_seg_postprocess(whole, (20, 30), 40, 60)
    actual = model([{"image": small, "height": 40, "width": 60}])[0]["sem_seg"]
    torch.testing.assert_close(actual, expected)


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
    clip = load_clip("ViT-Mini-8", "mini-clipself").bfloat16().float()
    save_clip(clip, tmp_path / "other.pt")
    build(*opts)  # rounded weights are of the same CLIP
    clip.text.text_projection.data.neg_()
    save_clip(clip, tmp_path / "other.pt")
    with pytest.raises(InputError, match="VISUAL_INIT.*its text tower is not that of MODEL.CLIP"):
        build(*opts)


def test_what_trains_and_how_fast():
    cfg = load_config(MINI, SMALL)
    model = build()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    clip = {name for name in trained if name.startswith("clip.")}
    assert len(clip) == 2 * (4 + 2)
    assert all(name.endswith(("q_proj_weight", "v_proj_weight")) for name in clip)
    groups = {
        (g["lr_multiplier"], g["weight_decay"]): g["params"]
        for g in model.optimizer_groups(cfg.SOLVER)
    }
    assert {id(p) for p in groups[0.01, 1e-4]} == {
        id(p) for n, p in model.named_parameters() if n in clip
    }
    norms = {id(p) for n, p in model.named_parameters() if "norm" in n and "clip." not in n}
    assert norms < {id(p) for p in groups[1.0, 0.0]}
    assert sum(len(parameters) for parameters in groups.values()) == len(trained)


def test_training_without_weights_starts_from_openai():
    cfg = load_config(ROOT / "configs/semseg/catseg+openai_vitb16.yaml")
    assert CATSeg.training_config(cfg).MODEL.CLIP.WEIGHTS == "openai"
    random = load_config(MINI, ["MODEL.CLIP.WEIGHTS", "random"])
    assert CATSeg.training_config(random).MODEL.CLIP.WEIGHTS == ""
    given = load_config(MINI)
    assert CATSeg.training_config(given).MODEL.CLIP.WEIGHTS == "mini"


def test_cat_segs_own_keys_mean_the_same():
    opts = ["MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED", "ViT-B/16"]
    cfg = load_config(None, [*opts, "MODEL.META_ARCHITECTURE", "CATSeg"])
    with torch.device("meta"):
        model = CATSeg(cfg)
    assert (model.clip.name, len(model.state_dict())) == ("ViT-B-16-quickgelu", 482)
    assert model.guidance_blocks == ("block3", "block7")
    assert CATSeg.training_config(cfg).MODEL.CLIP.WEIGHTS == "openai"
    with pytest.raises(InputError, match="CLIP_PRETRAINED"):
        build_model(load_config(None, [opts[0], "ViT-H", "MODEL.META_ARCHITECTURE", "CATSeg"]))
    # Only the default gives way to the key: weights that somebody named are not dropped.
    named = ["MODEL.META_ARCHITECTURE", "CATSeg", "MODEL.CLIP.WEIGHTS", "mini-clipself"]
    with pytest.raises(InputError, match="mini"):
        build_model(load_config(None, [*opts, *named]))


@pytest.mark.parametrize(("opts", "message"), REFUSED)
def test_keys_that_do_not_fit_are_refused(opts, message):
    with pytest.raises(InputError, match=message):
        build(*opts)


def test_training_with_a_random_guidance_backbone_has_to_be_meant():
    preset = ROOT / "configs/semseg/catseg_v1_r101_vitb16.yaml"
    key = "MODEL.CAT_SEG.BACKBONE_WEIGHTS"
    said = f"build_resnet_backbone would be random: give {key}, an official one of resnet101, "
    with pytest.raises(InputError, match=said):
        CATSeg.training_config(load_config(preset))
    for opts in ((key, "random"), (key, "R-101.pkl"), ("MODEL.WEIGHTS", "catseg.pth")):
        CATSeg.training_config(load_config(preset, opts))


def test_training_needs_more_padding_than_classes_or_none():
    names = ["cat", "dog", "sky"]
    for length in (1, 3):
        with pytest.raises(InputError, match=f"PAD_LEN is {length}, .* has 3 classes: raise"):
            build("MODEL.CAT_SEG.PAD_LEN", str(length)).setup_training(names)
    for length in (0, 4):
        model = build("MODEL.CAT_SEG.PAD_LEN", str(length))
        model.setup_training(names)
        assert model.names == (("cat",), ("dog",), ("sky",))


def test_its_reading_is_what_it_does():
    entry = " (of CAT-Seg's entry, where there is one)"
    single = ("MODEL.PROMPT_ENSEMBLE_TYPE", "single")
    plain = build("TEST.SLIDING_WINDOW", "False", *single).reading()
    assert (plain.windows, plain.size) == ("none", "read at 64 x 64 px")
    assert plain.templates == '"A photo of a {} in the scene"'
    options = ("MODEL.CAT_SEG.SYNONYMS", "mean", *single)
    sliding = build("TEST.SLIDING_WINDOW", "True", *options).reading()
    assert sliding.windows == "384 px, stride 256 px, of a canvas of 640 px, and the whole image"
    assert sliding.synonyms == "all, the mean of their embeddings" + entry
    assert (plain.features, plain.scale) == ("token", "")
    adds_class = build(*UNDISTILLED, RESIDUAL, "cls").reading()
    assert adds_class.features == "token, residual of the class token"
    assert build(*VALUES).reading().features == "multi_value of 3 blocks"


@pytest.mark.parametrize("finetune, count", [("attention", 14), ("full", 68), ("none", 0)])
def test_a_gate_trains_with_the_attention_and_nothing_that_no_dense_feature_reads(
    image, finetune, count
):
    model = build(*GATED, f"{HEAD}.CLIP_FINETUNE", finetune, "MODEL.CLIP.DENSE_BLOCKS", "2").train()
    trained = {n: p for n, p in model.clip.named_parameters() if p.requires_grad}
    assert len(trained) == count
    assert ("visual.dense_gate.weight" in trained) == (count > 0)
    sample = {"image": image, "sem_seg": torch.zeros(64, 64, dtype=torch.long)}
    model([sample])["loss_sem_seg"].backward()
    assert all(parameter.grad is not None for parameter in trained.values())
    state = write(model)["model"]
    again = build(*GATED, f"{HEAD}.CLIP_FINETUNE", "none", "MODEL.CLIP.DENSE_BLOCKS", "2")
    again.load_checkpoint(state, "model_final.pth")
    torch.testing.assert_close(scores(again, image), scores(model.eval(), image))


def test_dense_features_of_values_have_no_residual_of_the_class_token(image):
    model, images = build(*VALUES), image[None] / 255
    assert not model.clip.visual.class_residual
    plain = load_clip("ViT-Mini-8", None, dense=model.clip.visual.dense_feature)
    plain.visual.load_state_dict(
        build(*VALUES, f"{HEAD}.CLIP_FINETUNE", "none").clip.visual.state_dict()
    )
    with torch.no_grad():
        expected = plain.visual.dense(images)
        torch.testing.assert_close(model.clip.dense(images), expected)
        model.clip.visual.class_residual = True  # of another dense feature
        torch.testing.assert_close(model.clip.dense(images), expected)


def test_an_export_is_read_with_the_dense_feature_that_it_was_trained_on(tmp_path):
    opts = VALUES
    build(*opts).export(tmp_path / "model_final.pth")
    weights = ("MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))
    build_with_weights(load_config(MINI, [*SMALL, *opts, *weights]))
    with pytest.raises(InputError, match="model_final.pth is for .*multi_value of 3 blocks"):
        build_with_weights(load_config(MINI, [*SMALL, *weights]))
    build().export(tmp_path / "model_final.pth")
    with pytest.raises(InputError, match="model_final.pth is for the dense feature token"):
        build_with_weights(load_config(MINI, [*SMALL, *opts, *weights]))
    override = ("MODEL.CLIP.DENSE_OVERRIDE", "True")
    build_with_weights(load_config(MINI, [*SMALL, *opts, *weights, *override]))


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
    opts = [*SWIN[4:14], "MODEL.BACKBONE.NAME", "D2SwinTransformer"]
    assert "D2SwinTransformer" not in BACKBONE_REGISTRY  # which CAT-Seg's own code registers
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
    with pytest.raises(InputError, match="swin.pkl lacks 1 tensor: patch_embed.proj.weight"):
        read({n: a for n, a in arrays.items() if n != "patch_embed.proj.weight"})
    with pytest.raises(InputError, match="swin.pkl has patch_embed.proj.bias of shape"):
        read(arrays | {"patch_embed.proj.bias": np.ones(5, np.float32)})


@torch.no_grad()
def test_the_guidance_backbone_starts_from_torchvisions_resnet(tmp_path):
    """Under the names of its file, which has a head and one stage more; the maps are torchvision's."""
    theirs = torchvision.models.resnet50().eval()
    path = tmp_path / "resnet50.pth"
    state = theirs.state_dict()
    torch.save({n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}, path)
    opts = ["MODEL.RESNETS.DEPTH", "50", "MODEL.CAT_SEG.BACKBONE_WEIGHTS"]
    config = ROOT / "configs/semseg/catseg_v1_r101_vitb16.yaml"
    images = torch.randn(1, 3, 64, 96)
    maps = build_backbone(load_config(config, [*opts, str(path)])).eval()(images)
    nodes = {"layer1": "res2", "layer2": "res3", "layer3": "res4"}
    wanted = create_feature_extractor(theirs, nodes)(images)
    torch.testing.assert_close(maps, wanted, atol=1e-4, rtol=1e-4)
    torch.save(state | {"layer1.3.conv1.weight": torch.zeros(64, 256, 1, 1)}, path)
    with pytest.raises(InputError, match="resnet50.pth has 1 unexpected tensor: res2.3.conv1.weig"):
        build_backbone(load_config(config, [*opts, str(path)]))


@torch.no_grad()
def test_version_1_segments_with_each_backbone():
    resnet = (*SWIN, "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.STEM_TYPE")
    resnet += ("basic", "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.OUT_FEATURES", MAPS)
    resnet += (f"{HEAD}.APPEARANCE_GUIDANCE_DIM", "1024", f"{HEAD}.DECODER_GUIDANCE_DIMS")
    for opts in ((*resnet, "[512, 256]"), SWIN):
        model = build(*opts)
        for side in (64, 128):
            windows = torch.randint(256, (1, 3, side, side))
            logits = model.window_logits(windows)
            assert logits.shape == (1, 2, 32, 32) and logits.isfinite().all()
        tall = torch.randint(256, (3, 160, 128))
        for sliding in (False, True):
            model.evaluation = dataclasses.replace(model.evaluation, sliding=sliding)
            assert scores(model, tall).shape == (2, 20, 30)
    samples = [{"image": tall}, {"image": tall[:, :100]}]
    apart = [result["sem_seg"] for result in model(samples)]
    with pytest.MonkeyPatch.context() as patch:  # as on a GPU, in one pass of CLIP and backbone
        patch.setattr("clipself_seg.models.cat_seg.cat_seg.chunk_size", lambda *_: 2)
        torch.testing.assert_close([r["sem_seg"] for r in model(samples)], apart, atol=1e-5, rtol=0)


def test_batch_norms_of_a_frozen_guidance_backbone_stay_and_swin_drops_paths_as_officially():
    """They would count, and no checkpoint has the statistics of what does not train."""
    for multiplier in ("0.0", "0.1"):
        model = build(*SWIN, "SOLVER.BACKBONE_MULTIPLIER", multiplier)
        model.backbone.add_module("counts", torch.nn.BatchNorm2d(1))
        model.backbone.counts.requires_grad_(multiplier == "0.1")
        model.train()
        assert model.backbone.counts.training == (multiplier == "0.1")
        paths = [one for one in model.backbone.modules() if type(one).__name__ == "DropPath"]
        assert paths and all(path.training for path in paths)


def test_a_padded_checkpoint_loads_without_padding_and_without_it_alone():
    padded = build("MODEL.CAT_SEG.PAD_LEN", "5")
    whole = build("MODEL.CAT_SEG.PAD_LEN", "0")
    tensors = write(padded)["model"]
    whole.load_checkpoint(tensors, "model.pth")
    assert all(
        torch.equal(of, padded.state_dict()[name]) for name, of in whole.state_dict().items()
    )
    with pytest.raises(InputError, match="lacks 4 tensors: .*padding_tokens"):
        padded.load_checkpoint(write(whole)["model"], "model.pth")


@torch.no_grad()
def test_padding_is_zero_for_both_inputs_of_version_1():
    """After the normalisation of each: CLIP's mean is not zero for a backbone of ImageNet's."""
    model = build(*SWIN)
    given = []
    features = model.clip.visual.features
    model.clip.visual.features = lambda x, names: given.append(x) or features(x, names)
    model.backbone.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model.evaluation = CATSegEvaluation(size_divisibility=64)  # the right half is padding
    scores(model, torch.full((3, 64, 32), 255))
    for x in given:
        assert x[..., -x.shape[-1] // 4 :].abs().max() == 0 and x[..., : x.shape[-1] // 4].all()


# Every key that CAT-Seg's own files have beside Detectron2's, in the form in which they are written there.
CAT_SEG_FILE = """
MODEL:
  META_ARCHITECTURE: CATSeg
  BACKBONE: {NAME: D2SwinTransformer, FREEZE_AT: 0}
  SWIN: {EMBED_DIM: 128, DEPTHS: [2, 2, 18], NUM_HEADS: [4, 8, 16], WINDOW_SIZE: 12, APE: False,
    DROP_PATH_RATE: 0.3, PATCH_NORM: True, PRETRAIN_IMG_SIZE: 384, OUT_FEATURES: [res2, res3, res4]}
  CLIP_PIXEL_MEAN: [122.7709383, 116.7460125, 104.09373615]
  CLIP_PIXEL_STD: [68.5005327, 66.6321579, 70.3231630]
  PROMPT_ENSEMBLE: False
  PROMPT_ENSEMBLE_TYPE: single
  MASK_FORMER: {SIZE_DIVISIBILITY: 32}
  SEM_SEG_HEAD: {NAME: CATSegHead, IN_FEATURES: [res2, res3, res4], IGNORE_VALUE: 255,
    NUM_CLASSES: 171, TRAIN_CLASS_JSON: datasets/coco.json, TEST_CLASS_JSON: datasets/coco.json,
    TRAIN_CLASS_INDEXES: "", TEST_CLASS_INDEXES: "", CLIP_PRETRAINED: "ViT-L/14@336px",
    CLIP_FINETUNE: attention, PROMPT_DEPTH: 0, PROMPT_LENGTH: 0, TEXT_GUIDANCE_DIM: 768,
    TEXT_GUIDANCE_PROJ_DIM: 128, APPEARANCE_GUIDANCE_DIM: 768, APPEARANCE_GUIDANCE_PROJ_DIM: 128,
    DECODER_DIMS: [64, 32], DECODER_GUIDANCE_DIMS: [256, 128], DECODER_GUIDANCE_PROJ_DIMS: [32, 16],
    NUM_LAYERS: 2, NUM_HEADS: 4, HIDDEN_DIMS: 128, POOLING_SIZES: [2, 2], WINDOW_SIZES: 12,
    FEATURE_RESOLUTION: [24, 24], ATTENTION_TYPE: linear}
DATASETS:
  TRAIN: ("coco_2017_train_stuff_all_sem_seg",)
  VAL_ALL: ("coco_2017_val_all_stuff_sem_seg",)
SOLVER: {WEIGHT_DECAY_EMBED: 0.0, OPTIMIZER: ADAMW, CLIP_MULTIPLIER: 0.01, POLY_LR_POWER: 0.9,
  BACKBONE_MULTIPLIER: 0.0, POLY_LR_CONSTANT_ENDING: 0.0,
  CLIP_GRADIENTS: {ENABLED: True, CLIP_TYPE: full_model, CLIP_VALUE: 0.01, NORM_TYPE: 2.0}}
INPUT: {COLOR_AUG_SSD: True, SIZE_DIVISIBILITY: 384, DATASET_MAPPER_NAME: mask_former_semantic,
  CROP: {ENABLED: True, TYPE: absolute, SIZE: [384, 384], SINGLE_CATEGORY_MAX_AREA: 1.0}}
TEST: {SLIDING_WINDOW: True, AUG: {ENABLED: False, FLIP: True}}
SEED: -1
"""


def test_cat_segs_own_files_merge_and_minus_one_is_the_default_seed(tmp_path):
    (tmp_path / "vitl_336.yaml").write_text(CAT_SEG_FILE)
    cfg = load_config(tmp_path / "vitl_336.yaml")
    written = dict(leaves(yaml.safe_load(CAT_SEG_FILE)))
    assert written.keys() <= {*dict(leaves(cfg)), *CAT_SEG_UNREAD}
    assert cfg.SEED == load_config(None).SEED
    assert cfg.MODEL.SEM_SEG_HEAD.TEXT_GUIDANCE_DIM == 768
