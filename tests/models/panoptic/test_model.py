"""OpenPanoptic: several fusions from one pass, vocabularies, checkpoints under ODISE's names, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from clipself_seg.clip import TextBank, load_clip
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.heads.fusion import Fusion, fuse_scores
from clipself_seg.heads.panoptic.clip_branches import DensePooling
from clipself_seg.heads.panoptic.clip_maps import CLIPPyramid
from clipself_seg.heads.panoptic.panoptic_merge import (
    canvas_labels,
    merge_instances,
    merge_panoptic,
    merge_semantic,
    resize_masks,
)
from clipself_seg.models.panoptic.model import own_checkpoint, trained_state
from tests.conftest import ROOT
from tests.models.panoptic.small import (
    CONFIG,
    FCCLIP,
    GIVEN,
    NAMED_BY_VIT,
    SMALL,
    model_of,
    sample,
    training_samples,
    vocabulary,
)

FUSIONS = {"clip": Fusion(1.0, 1.0), "generator": Fusion(0.0, 0.0), "fused": Fusion(0.35, 0.65)}


def test_outputs_are_those_of_the_parts_put_together(model):
    one = sample()
    (outputs,) = model([one])
    with torch.no_grad():
        generated = model.generate(one)
        texts = model.branch_bank.embed(["red star", "blue ring", "grass", "lawn"])
        image = one["image"].float() / 255
        logits, valid = model.branch.score(image, generated.mask_logits, texts, [1, 1, 2], (64, 96))
    assert generated.canvas == (64, 96) and generated.image_size == (60, 75)
    seen = torch.tensor([True, False, True])
    scores = (generated.class_logits, logits, generated.void_prob, seen, 0.35, 0.65, valid)
    probs = fuse_scores(*scores)
    masks = resize_masks(generated.mask_logits, (64, 96), (60, 75), (40, 50))
    ids, segments = merge_panoptic(probs, masks, (0, 1))
    assert torch.equal(outputs["panoptic_seg"][0], ids) and outputs["panoptic_seg"][1] == segments
    assert torch.equal(outputs["sem_seg"], merge_semantic(probs, masks))
    assert outputs["sem_seg"].shape == (3, 40, 50)
    expected = merge_instances(probs, masks, (0, 1))
    assert torch.equal(outputs["instances"].scores, expected.scores)


def test_fusions_of_one_pass_equal_a_model_of_each_mode(model):
    (outputs,) = model([sample()], fusions=FUSIONS)
    for mode in FUSIONS:
        (alone,) = model_of("MODEL.FUSION.MODE", mode)([sample()])
        fused = outputs["fusions"][mode]
        assert torch.equal(fused["panoptic_seg"][0], alone["panoptic_seg"][0])
        assert torch.equal(fused["sem_seg_labels"], alone["sem_seg"].argmax(0))
        assert torch.equal(fused["instances"].scores, alone["instances"].scores)


def test_semantic_labels_alone_may_be_of_resized_scores_and_nothing_else_changes(
    model, monkeypatch
):
    ordered = model_of("MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE", False)
    generated = model.generate(sample())
    torch.manual_seed(0)
    masks = 9 * torch.randn_like(generated.mask_logits)
    classes = 3 * torch.randn_like(generated.class_logits)
    made = replace(generated, mask_logits=masks, class_logits=classes)
    for one in (ordered, model):
        monkeypatch.setattr(one, "generate", lambda sample: made)
    asked = {"alone": Fusion(0.0, 0.0, ("semantic",)), "all": Fusion(0.0, 0.0)}
    (new,), (old,) = ordered([sample()], fusions=asked), model([sample()], fusions=asked)
    alone, beside = (new["fusions"][name]["sem_seg_labels"] for name in asked)
    assert torch.equal(old["fusions"]["alone"]["sem_seg_labels"], beside)
    assert torch.equal(old["fusions"]["all"]["sem_seg_labels"], beside)
    probs = fuse_scores(classes, classes, made.void_prob, torch.ones(3).bool(), 0.0, 0.0)
    assert torch.equal(alone, canvas_labels(probs, masks, (64, 96), (60, 75), (40, 50)))
    assert not torch.equal(alone, beside)
    assert "scores are resized" in ordered.reading().size and "resized" not in model.reading().size


def test_a_fusion_makes_only_what_its_tasks_ask_for(model):
    tasks = {"clip": ("panoptic",), "fused": ("semantic",)}
    asked = {name: f._replace(tasks=tasks.get(name, f.tasks)) for name, f in FUSIONS.items()}
    (outputs,) = model([sample()], fusions=asked)
    assert outputs["fusions"]["clip"].keys() == {"panoptic_seg"}
    assert outputs["fusions"]["fused"].keys() == {"sem_seg_labels"}
    assert len(outputs["fusions"]["generator"]) == 3


def test_the_generator_alone_never_asks_clip(monkeypatch):
    model = model_of("MODEL.FUSION.MODE", "generator")
    monkeypatch.setattr(model.branch, "score", lambda *_: pytest.fail("CLIP was asked"))
    assert model([sample()])[0]["sem_seg"].shape == (3, 40, 50)


def test_void_gives_way_to_clip_in_all_fusions_but_the_generators(model):
    one, weight = sample(), 0.75
    discounted = model_of("MODEL.FUSION.VOID_DISCOUNT", weight)
    assert discounted.void_discount == weight and model.void_discount == 0
    with torch.no_grad():
        generated = model.generate(one)
        logits, valid = model.clip_scores(one, generated)
    scores = (
        generated.class_logits,
        logits,
        generated.void_prob,
        torch.tensor([True, False, True]),
    )
    probs = fuse_scores(*scores, 0.35, 0.65, valid, weight)
    masks = resize_masks(generated.mask_logits, (64, 96), (60, 75), (40, 50))
    (outputs,) = discounted([one])
    assert torch.equal(outputs["sem_seg"], merge_semantic(probs, masks))
    assert not torch.equal(outputs["sem_seg"], model([one])[0]["sem_seg"])
    assert not outputs["sem_seg"].requires_grad
    mode = ("MODEL.FUSION.MODE", "generator")
    alone, plain = (
        m([one])[0] for m in (model_of(*mode, "MODEL.FUSION.VOID_DISCOUNT", 1), model_of(*mode))
    )
    assert torch.equal(alone["sem_seg"], plain["sem_seg"])


def test_clip_is_asked_where_only_void_needs_it(model):
    asked = {"void": Fusion(0.0, 0.0, void_discount=1.0), "generator": Fusion(0.0, 0.0)}
    (outputs,) = model([sample()], fusions=asked)
    scores = [outputs["fusions"][name]["instances"].scores for name in asked]
    assert (scores[0].sort().values >= scores[1].sort().values).all()
    assert not torch.equal(*scores)


def test_the_canvas_is_padded_with_the_grey_of_the_configuration(model, monkeypatch):
    seen = []
    monkeypatch.setattr(
        model.backbone,
        "forward",
        lambda x: seen.append(x) or CLIPPyramid.forward(model.backbone, x),
    )
    model.generate(sample())
    canvas, padding = seen[0][0], load_config(CONFIG).MODEL.MASK_GENERATOR.PADDING / 255
    assert canvas.shape == (3, 64, 96) and padding > 0
    torch.testing.assert_close(canvas[:, :60, :75], sample()["image"] / 255)
    assert (canvas[:, 60:] == padding).all() and (canvas[:, :, 75:] == padding).all()


def test_an_image_is_segmented_alike_alone_and_in_a_list(model):
    pair = [sample(seed=1), sample(48, 33, seed=2)]
    together, alone = model(pair), [model([one])[0] for one in pair]
    for left, right in zip(together, alone):
        assert torch.equal(left["panoptic_seg"][0], right["panoptic_seg"][0])


def test_words_change_on_a_live_model(model):
    model.set_vocabulary(["cat", "dog|puppy"])
    try:
        assert model.classes.things == (0, 1) and model.synonyms == [1, 2]
        assert model([sample()])[0]["sem_seg"].shape == (2, 40, 50)
    finally:
        model.set_vocabulary(vocabulary(), np.array([True, False, True]))
    with pytest.raises(ValueError, match="2 classes, there are 3"):
        model.set_vocabulary(vocabulary(), np.array([True, False]))


def test_an_exported_model_is_the_same_after_loading(tmp_path):
    model, other = model_of(seed=0), model_of(seed=0)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter)
    model.export(tmp_path / "model.pth")
    assert model.weights_hash() != other.weights_hash()
    DetectionCheckpointer(other).load(str(tmp_path / "model.pth"))
    assert model.weights_hash() == other.weights_hash()
    other = model_of(seed=0)
    other.load_state_dict(model.state_dict())
    assert model.weights_hash() == other.weights_hash()


def test_the_names_are_those_of_odise_and_nothing_frozen_is_among_them():
    shapes = json.loads((ROOT / "tests/parity/odise_head.shapes.json").read_text())
    model = model_of(
        *("MODEL.MASK_GENERATOR.VARIANT", "caption", "MODEL.MASK_FORMER.DEC_LAYERS", 9),
        *("MODEL.MASK_GENERATOR.ENCODER_LAYERS", 6),
    )
    names = trained_state(model).keys()
    assert {name for name in names if not name.startswith("backbone.")} == shapes.keys()


def test_the_branch_may_be_a_distilled_clip_and_nothing_else():
    opts = ("MODEL.CLIP.WEIGHTS", "mini", "MODEL.CLIP_BRANCH.WEIGHTS", "mini-clipself")
    model = model_of(*opts)
    assert model.branch_clip is not model.clip and model.branch_clip.text is model.clip.text
    assert model_of("MODEL.CLIP.WEIGHTS", "mini").branch_clip is not None
    with pytest.raises(InputError, match="its text tower is not that of"):
        model_of("MODEL.CLIP_BRANCH.WEIGHTS", "mini-clipself")


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("MODEL.FUSION.ALPHA", 1.5), r"MODEL.FUSION.ALPHA must be in \[0, 1\], got 1.5"),
        (("MODEL.FUSION.BETA", -0.1), r"MODEL.FUSION.BETA must be in"),
        (("MODEL.MASK_FORMER.SIZE_DIVISIBILITY", 48), "needs a multiple of 32"),
        (("MODEL.MASK_FORMER.SIZE_DIVISIBILITY", 0), "DIVISIBILITY is 0, .* multiple of 32"),
        (
            ("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 1.5),
            r"OVERLAP_THRESHOLD must be in \[0, 1\]",
        ),
        (("MODEL.CLIP_BRANCH.ALIGN_MASKS", 7), "ALIGN_MASKS must be 1, 0, or -1"),
        (("TEST.DETECTIONS_PER_IMAGE", -1), "DETECTIONS_PER_IMAGE must be at least 1"),
        (("MODEL.PYRAMID.CHANNELS", 48), "give a multiple of 32"),
        (("MODEL.PYRAMID.BLOCKS", (9,)), 'no feature "block9"'),
        (("MODEL.MASK_GENERATOR.SOURCE", "disk"), "OUTPUTS is empty"),
        (("MODEL.CLIP.NAME", "RN50"), "a pyramid needs a ViT"),
        (("MODEL.CLIP_BRANCH.KIND", "pooled"), 'cannot be "pooled"'),
        (("MODEL.FUSION.VOID_DISCOUNT", 1.5), r"VOID_DISCOUNT must be in \[0, 1\], got 1.5"),
        (GIVEN[:2], "MODEL.FUSION.MODE is fused: .* set it to clip"),
        ((*GIVEN, "MODEL.FUSION.VOID_DISCOUNT", 0.5), "VOID_DISCOUNT is 0.5: .* set it to 0"),
    ],
)
def test_bad_keys_are_refused_by_name(opts, words):
    with pytest.raises(InputError, match=words):
        model_of(*opts)


def test_no_classes_and_no_generator_are_refused(model):
    fresh = build_model(load_config(CONFIG, SMALL))
    with pytest.raises(RuntimeError, match="call set_vocabulary"):
        fresh([sample()])
    disk = model_of("MODEL.MASK_GENERATOR.SOURCE", "disk", "MODEL.MASK_GENERATOR.OUTPUTS", "x")
    with pytest.raises(InputError, match="do not train"):
        disk.train()(training_samples())
    with pytest.raises(InputError, match="generator output .* is missing"):
        disk.eval()([sample() | {"image_id": 1, "file_name": "1.jpg"}])
    with pytest.raises(InputError, match="of no use with MODEL.MASK_GENERATOR.SOURCE disk"):
        disk.load_state_dict(trained_state(model))


def test_equal_models_are_exported_as_equal_bytes(tmp_path):
    for name in ("one.pth", "another.pth"):
        model_of(seed=0).export(tmp_path / name)
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "another.pth").read_bytes()


def test_oracle_words_leave_no_other_class(model):
    one = sample()
    (whole,), (given,) = model([one]), model([one | {"classes": [1, 2]}])
    things = given["instances"]
    assert 0 not in things.pred_classes[things.scores > 0].tolist()
    assert not given["sem_seg"][0].any() and whole["sem_seg"][0].all()
    (every,) = model([one | {"classes": [0, 1, 2]}])
    assert torch.equal(every["sem_seg"], whole["sem_seg"])


def test_its_reading_is_what_its_parts_do(model):
    reading = model.reading()
    assert reading.synonyms == "all, the best score of each" and reading.windows == "none"
    assert reading.templates == '"a photo of a {}." for CLIP, "{}" for the generator'
    assert reading.size == 'CLIP reads 64 x 64 px ("pad")'
    assert (reading.features, reading.scale) == ("token", f"{model.clip.logit_scale.exp():.4g}")
    by_attention = model_of("MODEL.CLIP_BRANCH.KIND", "masked_attention")
    assert by_attention.reading().features == "masked attention"
    given = model_of(*GIVEN).reading()
    assert given.templates == '"a photo of a {}." for CLIP' and given.background.startswith("none")


def test_masks_of_fcclip_are_named_by_a_distilled_vit_with_words_of_its_own():
    """One checkpoint, two CLIPs: masks, the generator's scores and void stay, and the ViT's scores are fused in."""
    fcclip = model_of(*FCCLIP)
    named = model_of(*FCCLIP, *NAMED_BY_VIT)
    named.load_state_dict(own_checkpoint(fcclip))
    one = sample()
    (outputs,) = named([one])
    with torch.no_grad():
        generated, same = fcclip.generate(one), named.generate(one)
        for field in ("mask_logits", "class_logits", "void_prob"):
            assert torch.equal(getattr(generated, field), getattr(same, field))
        vit = load_clip("ViT-Mini-8", "mini-clipself")
        texts = TextBank(vit, "odise").embed(["red star", "blue ring", "grass", "lawn"])
        branch = DensePooling(vit, input_size=64)
        image = one["image"].float() / 255
        logits, valid = branch.score(image, same.mask_logits, texts, [1, 1, 2], same.canvas)
    seen = torch.tensor([True, False, True])
    scores = (same.class_logits, logits, same.void_prob, seen, 0.35, 0.65, valid)
    masks = resize_masks(same.mask_logits, same.canvas, (60, 75), (40, 50))
    assert torch.equal(outputs["sem_seg"], merge_semantic(fuse_scores(*scores), masks))
    assert not torch.equal(outputs["sem_seg"], fcclip([one])[0]["sem_seg"])
    assert "fcclip" == named.generator.variant and named.branch_clip is not named.clip
    with pytest.raises(InputError, match="BRANCH.NAME is ViT-Mini-8, and .*WEIGHTS is empty"):
        model_of(*FCCLIP, *NAMED_BY_VIT, "MODEL.CLIP_BRANCH.WEIGHTS", "")
    with pytest.raises(InputError, match="BRANCH.NAME is ViT-Mini-8, and KIND backbone reads"):
        model_of(*FCCLIP, "MODEL.CLIP_BRANCH.NAME", "ViT-Mini-8")
