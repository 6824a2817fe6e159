"""Panoptic segmentation: what is trained and what is frozen, where masks and scores come from, masks that are given."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.clip import TextBank, load_clip
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.heads.fusion import Fusion, fuse_scores
from clipself_seg.heads.panoptic import panoptic_merge
from clipself_seg.heads.panoptic.clip_branches import DensePooling
from clipself_seg.heads.panoptic.feature_sources import CLIPPyramid
from clipself_seg.heads.panoptic.panoptic_merge import (
    canvas_labels,
    merge_instances,
    merge_panoptic,
    merge_semantic,
    resize_masks,
)
from clipself_seg.models.panoptic.mask_sources import Generated
from clipself_seg.models.panoptic.panoptic_checkpoint import trained_state, write
from clipself_seg.models.panoptic.panoptic_outputs import GeneratorOutput, make_outputs
from tests.models.panoptic.small import (
    CONFIG,
    FCCLIP,
    GIVEN,
    NAMED_BY_VIT,
    PLAIN,
    SMALL,
    model_of,
    sample,
    training_samples,
    vocabulary,
)
from tests.tiny import clip_logits

FUSIONS = {"clip": Fusion(1.0, 1.0), "generator": Fusion(0.0, 0.0), "fused": Fusion(0.35, 0.65)}


@pytest.mark.parametrize("weight", [0, 0.75])
def test_outputs_are_those_of_the_parts_put_together(weight):
    one, model = sample(), model_of("MODEL.FUSION.VOID_DISCOUNT", weight)
    assert model.void_discount == weight
    (outputs,) = model([one])
    with torch.no_grad():
        generated = model.generate(one)
        texts = model.branch_bank.embed(["red star", "blue ring", "grass", "lawn"])
        image = one["image"].float() / 255
        logits, valid = clip_logits(
            model.branch, image, generated.mask_logits, texts, [1, 1, 2], (64, 96)
        )
    assert generated.canvas == (64, 96) and generated.image_size == (60, 75)
    seen = torch.tensor([True, False, True])
    scores = (generated.class_logits, logits, generated.void_prob, seen, 0.35, 0.65, valid)
    probs = fuse_scores(*scores, weight)
    assert weight == 0 or not torch.equal(probs, fuse_scores(*scores))
    masks = resize_masks(generated.mask_logits, (64, 96), (60, 75), (40, 50))
    ids, segments = merge_panoptic(probs, masks, (0, 1))
    assert torch.equal(outputs["panoptic_seg"][0], ids) and outputs["panoptic_seg"][1] == segments
    assert torch.equal(outputs["sem_seg"], merge_semantic(probs, masks))
    assert outputs["sem_seg"].shape == (3, 40, 50) and not outputs["sem_seg"].requires_grad
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
        monkeypatch.setattr(one.masks, "generate", lambda *_: [made])
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
    monkeypatch.setattr(model.branch, "embed", lambda *_: pytest.fail("CLIP was asked"))
    assert model([sample()])[0]["sem_seg"].shape == (3, 40, 50)


def test_the_generator_alone_has_the_void_that_it_had():
    mode = ("MODEL.FUSION.MODE", "generator")
    models = model_of(*mode), model_of(*mode, "MODEL.FUSION.VOID_DISCOUNT", 1)
    assert torch.equal(*(model([sample()])[0]["sem_seg"] for model in models))


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
    canvas, padding = seen[0][0], model.masks.canvas.padding / 255
    assert canvas.shape == (3, 64, 96) and padding > 0
    torch.testing.assert_close(canvas[:, :60, :75], sample()["image"] / 255)
    assert (canvas[:, 60:] == padding).all() and (canvas[:, :, 75:] == padding).all()


@pytest.mark.parametrize("kind", [(), FCCLIP, PLAIN])
@pytest.mark.cpu
def test_images_of_one_canvas_pass_the_generator_together_where_memory_allows(kind, monkeypatch):
    model = model_of(*kind)
    samples = [sample(seed=0), sample(40, 80, seed=1), sample(100, 75, seed=2), sample(seed=3)]
    alone = [model.generate(one) for one in samples]
    together, own_generate = [], Generated.generate
    places = {id(one): place for place, one in enumerate(samples)}

    def generate(self, given, *arguments):
        together.append([places[id(one)] for one in given])
        return own_generate(self, given, *arguments)

    monkeypatch.setattr(Generated, "generate", generate)
    *_, last = model(samples)
    assert together == [[0], [1], [3], [2]]  # on a CPU
    together.clear()
    monkeypatch.setattr("clipself_seg.models.panoptic.mask_sources.chunk_size", lambda *_: 2)
    outputs = model(samples)
    assert together == [[0, 1], [3], [2]]
    made = own_generate(model.masks, samples[:2], model.classes, model.device)
    for own, expected in zip(made, alone):
        assert own.image_size == expected.image_size and own.canvas == expected.canvas
        for name in ("mask_logits", "class_logits", "void_prob", "backbone_map"):
            of_both = getattr(own, name), getattr(expected, name)
            if of_both[0] is not None or of_both[1] is not None:
                torch.testing.assert_close(*of_both, atol=1e-4, rtol=1e-4)
    assert torch.equal(outputs[3]["panoptic_seg"][0], last["panoptic_seg"][0])


def test_words_change_on_a_live_model(model):
    model.set_vocabulary(["cat", "dog|puppy"])
    try:
        assert model.classes.things == (0, 1) and model.classes.synonyms == [1, 2]
        assert model([sample()])[0]["sem_seg"].shape == (2, 40, 50)
    finally:
        model.set_vocabulary(vocabulary(), np.array([True, False, True]))
    with pytest.raises(ValueError, match="2 classes, there are 3"):
        model.set_vocabulary(vocabulary(), np.array([True, False]))


@pytest.mark.parametrize("size, at_once", [((80, 100), [2, 1]), ((40, 50), [7])])
def test_masks_that_take_part_are_resized_alone_unless_small_ones_would_change(
    monkeypatch, size, at_once
):
    test = "MODEL.MASK_FORMER.TEST"
    model = model_of(f"{test}.OBJECT_MASK_THRESHOLD", 0.4, f"{test}.OVERLAP_THRESHOLD", 0)
    probs = 0.6 * torch.eye(7)[:, [0, 3, 1, 3, 2, 3, 3]] + 0.1
    masks = 9 * torch.randn(7, 16, 24, generator=torch.Generator().manual_seed(0))
    masks[3, :8] = masks[0, :8]  # of equal ones the first wins
    made = GeneratorOutput(masks, probs[:, :3], probs[:, 3], (64, 96), (60, 75))
    resized, fusion = [], Fusion(0.0, 0.0, ("panoptic",))
    monkeypatch.setattr(
        panoptic_merge,
        "resize_masks",
        lambda logits, *sizes: resized.append(len(logits)) or resize_masks(logits, *sizes),
    )
    given = made, {"own": (fusion, probs[:, [0, 1, 2, 3]])}, size, (0, 1), model.settings
    ids, segments = make_outputs(*given)["own"]["panoptic_seg"]
    whole = resize_masks(masks, (64, 96), (60, 75), size)
    expected = merge_panoptic(probs[:, [0, 1, 2, 3]], whole, (0, 1), 0.4, 0)
    assert torch.equal(ids, expected[0]) and segments == expected[1] and segments
    assert resized == at_once
    spoilt = probs[:, [0, 1, 2, 3]].index_fill(0, torch.tensor([3]), torch.nan)
    with pytest.raises(FloatingPointError, match="probabilities are not finite"):
        make_outputs(made, {"own": (fusion, spoilt)}, *given[2:])


@pytest.mark.parametrize("kind", [(), FCCLIP, GIVEN])
def test_a_name_that_clip_would_cut_is_refused(kind):
    model = model_of(*kind)
    with pytest.raises(InputError, match="dog dog.* more than the 77 tokens"):
        model.set_vocabulary(["dog", "puppy|" + "dog " * 100])
    assert len(model.names) == 3  # the classes that it had


def test_an_exported_model_is_the_same_after_loading(tmp_path):
    model, other = model_of(seed=0), model_of(seed=0)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter)
    model.export(tmp_path / "model.pth")
    assert model.weights_hash() != other.weights_hash()
    other.load_checkpoint(read_checkpoint(tmp_path / "model.pth").tensors, "model.pth")
    assert model.weights_hash() == other.weights_hash()
    other = model_of(seed=0)
    other.load_state_dict(model.state_dict())
    assert model.weights_hash() == other.weights_hash()


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
        (("MODEL.MASK_FORMER.SIZE_DIVISIBILITY", 48), "must be a multiple of 32"),
        (("MODEL.PYRAMID.BLOCKS", (9,)), 'no feature "block9"'),
        (("MODEL.CLIP.NAME", "RN50"), "SOURCE pyramid needs a ViT"),
        (("MODEL.MASK_FORMER.HIDDEN_DIM", 48), "HIDDEN_DIM must be a multiple of 32"),
        (GIVEN[:2], "MODEL.FUSION.MODE must be .clip. for masks"),
        ((*GIVEN, "MODEL.FUSION.VOID_DISCOUNT", 0.5), "VOID_DISCOUNT must be 0.0 for masks"),
    ],
)
def test_bad_keys_are_refused_by_name(opts, words):
    with pytest.raises(InputError, match=words):
        model_of(*opts)


def test_a_model_without_classes_is_refused():
    fresh = build_model(load_config(CONFIG, SMALL))
    with pytest.raises(RuntimeError, match="call set_vocabulary"):
        fresh([sample()])


def test_chosen_classes_leave_no_other_class(model):
    one = sample()
    (whole,), (given,) = model([one]), model([one | {"classes": [1, 2]}])
    things = given["instances"]
    assert 0 not in things.pred_classes[things.scores > 0].tolist()
    assert not given["sem_seg"][0].any() and whole["sem_seg"][0].all()
    (every,) = model([one | {"classes": [0, 1, 2]}])
    assert torch.equal(every["sem_seg"], whole["sem_seg"])


def test_void_beside_chosen_classes_is_that_of_the_short_vocabulary():
    logits = torch.tensor([[0.0, -20.7], [0.0, -90.0], [60.0, 20.0]])  # the first class leaves
    void = torch.tensor([-27.6, -80.0, 0.0])
    every = torch.cat([logits, void[:, None]], 1).softmax(1)[:, -1]
    made = GeneratorOutput(torch.zeros(3, 4, 4), logits, every, (4, 4), (4, 4), void_logit=void)
    expected = torch.stack([logits[:, 1], void], 1).double().softmax(1)[:, -1]
    assert made.only([1]).void_prob.double() == pytest.approx(expected, rel=1e-5)


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
    named.load_checkpoint(write(fcclip)["model"], "fcclip")
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
        logits, valid = clip_logits(branch, image, same.mask_logits, texts, [1, 1, 2], same.canvas)
    seen = torch.tensor([True, False, True])
    scores = (same.class_logits, logits, same.void_prob, seen, 0.35, 0.65, valid)
    masks = resize_masks(same.mask_logits, same.canvas, (60, 75), (40, 50))
    assert torch.equal(outputs["sem_seg"], merge_semantic(fuse_scores(*scores), masks))
    assert not torch.equal(outputs["sem_seg"], fcclip([one])[0]["sem_seg"])
    assert "fcclip" == named.generator.variant and named.branch_clip is not named.clip
    with pytest.raises(InputError, match="WEIGHTS must be .* with .*BRANCH.NAME 'ViT-Mini-8'"):
        model_of(*FCCLIP, *NAMED_BY_VIT, "MODEL.CLIP_BRANCH.WEIGHTS", "")
    with pytest.raises(InputError, match="BRANCH.NAME must be empty or equal to MODEL.CLIP.NAME"):
        model_of(*FCCLIP, "MODEL.CLIP_BRANCH.NAME", "ViT-Mini-8")


def test_training_does_not_know_of_the_weight_of_void():
    totals = []
    for weight in (0, 0.5):
        torch.manual_seed(3)
        losses = model_of("MODEL.FUSION.VOID_DISCOUNT", weight).train()(training_samples())
        totals.append(torch.stack(list(losses.values())))
    assert torch.equal(*totals)


@pytest.mark.parametrize("variant", ["label", "caption"])
def test_everything_that_trains_has_a_gradient_and_clip_has_none(variant):
    model = model_of("MODEL.MASK_GENERATOR.VARIANT", variant).train()
    losses = model(training_samples())
    per_layer = 4 if variant == "caption" else 3
    assert len(losses) == per_layer * 4  # initial queries and three layers
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("clip.", "branch_clip."))
        assert parameter.requires_grad != frozen, name
        assert (parameter.grad is None) == frozen, name
        assert frozen or parameter.grad.isfinite().all(), name
    assert not model.clip.training


def test_words_of_captions_are_not_kept():
    model = model_of("MODEL.MASK_GENERATOR.VARIANT", "caption").train()
    kept = []
    for word in ("apple", "pear"):
        first, second = training_samples()
        model([first, second | {"words": [word, "grass"]}])
        kept.append(len(model.masks.bank._memory))
    assert kept == [0, 0]  # nor is the vocabulary, whose scores nothing learns from


KINDS = {
    "dense": (),
    "masked_attention": (),
    # The dense features of a ViT, of the image at its own size.
    "backbone": ("MODEL.CLIP_BRANCH.INPUT_SIZE", 0),
}


def given_sample(masks, scores=None):
    return sample() | {
        "given_masks": masks,
        "given_scores": torch.ones(len(masks)) if scores is None else torch.tensor(scores),
    }


def boxes(*corners):
    masks = torch.zeros(len(corners), 40, 50, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, corners):
        mask[top:bottom, left:right] = True
    return masks


@pytest.mark.parametrize("kind", KINDS)
def test_given_masks_are_drawn_as_they_are_and_named_by_clip_alone(kind):
    model = model_of(*GIVEN, "MODEL.CLIP_BRANCH.KIND", kind, *KINDS[kind])
    model.set_vocabulary(["red star", "blue ring", "grass"])  # all are things
    masks = boxes((0, 0, 20, 25), (20, 0, 40, 25), (5, 30, 9, 36))
    one = given_sample(masks, [0.5, 1.0, 1.0])
    (outputs,) = model([one])
    ids, segments = outputs["panoptic_seg"]
    assert len(segments) == 3
    for segment, mask, score in zip(segments, masks, one["given_scores"].tolist()):
        assert torch.equal(ids == segment["id"], mask)
        image = one["image"].float() / 255
        texts = model.branch_bank.embed(["red star", "blue ring", "grass"])
        logits = 2 * mask[None].float() - 1
        named, valid = clip_logits(model.branch, image, logits, texts, [1, 1, 1])
        best, label = named.softmax(1)[0].max(0)
        assert valid.all() and segment["category_id"] == label
        assert segment["score"] == pytest.approx(score * best.item(), abs=1e-6)
    assert (ids == 0).sum() == 40 * 50 - masks.sum()


def test_the_better_of_two_given_masks_has_their_pixels_and_the_other_goes_if_little_is_left():
    model = model_of(*GIVEN)
    model.set_vocabulary(["red star"])  # every probability is the score
    inner, outer = (10, 10, 20, 20), (5, 5, 25, 25)
    for scores, areas in (((1.0, 0.5), [100]), ((0.5, 1.0), [400])):
        ids, segments = model([given_sample(boxes(inner, outer), scores)])[0]["panoptic_seg"]
        assert [int((ids == segment["id"]).sum()) for segment in segments] == areas
    loose = model_of(*GIVEN, "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.5)
    loose.set_vocabulary(["red star"])
    ids, segments = loose([given_sample(boxes(inner, outer), (1.0, 0.5))])[0]["panoptic_seg"]
    assert sorted(int((ids == segment["id"]).sum()) for segment in segments) == [100, 300]
    # Their probabilities are 1 and 0.5.
    strict = model_of(*GIVEN, "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.5)
    strict.set_vocabulary(["red star"])
    ids, segments = strict([given_sample(boxes(inner, outer), (0.5, 1.0))])[0]["panoptic_seg"]
    assert [int((ids == segment["id"]).sum()) for segment in segments] == [400]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_given_masks_has_no_segments(kind):
    model = model_of(*GIVEN, "MODEL.CLIP_BRANCH.KIND", kind, *KINDS[kind])
    (outputs,) = model([given_sample(boxes())])
    ids, segments = outputs["panoptic_seg"]
    assert not ids.any() and segments == [] and len(outputs["instances"]) == 0


def test_given_masks_are_needed_and_nothing_else_is_fused(model):
    given = model_of(*GIVEN)
    with pytest.raises(InputError, match="MASK_GENERATOR.SOURCE is masks"):
        given([sample()])
    for call, remedy in (
        (lambda: given.generate(sample()), "take a model with a mask generator"),
        (lambda: given.setup_training(["cat"]), "add --eval-only"),
        (lambda: given.load_checkpoint(trained_state(model), "a.pth"), "leave MODEL.WEIGHTS empty"),
    ):
        with pytest.raises(InputError, match=f"SOURCE is masks, so that nothing .*{remedy}"):
            call()
    given.require_trained(load_config(CONFIG, [*SMALL, *GIVEN]))
