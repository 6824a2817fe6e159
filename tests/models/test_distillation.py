"""Targets of the student: what a configuration names, what a step computes, each objective, and their teachers."""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss

from clipself_seg.clip.resnet import ResNetTower
from clipself_seg.config import load_config
from clipself_seg.config.declare import KEYS as DECLARED
from clipself_seg.config.relations import CORRELATED, RELATIONS
from clipself_seg.errors import InputError
from clipself_seg.heads import distillation_losses as correlation
from clipself_seg.heads.distillation_losses import federated_nouns
from clipself_seg.models import CLIPSelf
from clipself_seg.models.distillation import (
    CONTEXTS,
    OBJECTIVES,
    TARGETS,
    CaptionContrast,
    Original,
    RegionText,
    Step,
    TimmBackbone,
    WeightedObjectives,
    build_target,
    correlation_teacher,
    valid_cells,
)
from tests.tiny import one_step, random_clip, tiny_clipself, tiny_samples
from tests.training.test_trainer_data_parallel import gradients, worst
from tests.two_processes import in_two_processes

TARGET = "MODEL.CLIPSELF.TARGET"


def test_every_target_that_is_allowed_is_built():
    assert tuple(TARGETS) == DECLARED[TARGET].choices


def target(*opts):
    return build_target(load_config(None, list(opts)))


KEYS = "MODEL.CLIPSELF.OBJECTIVES."
TEACHER = ("MODEL.CLIPSELF.CORRELATION.TEACHER", "original")


def test_every_key_of_a_weight_has_its_objective_and_every_objective_its_key():
    weights = load_config(None).MODEL.CLIPSELF.OBJECTIVES
    assert list(weights) == list(OBJECTIVES) and dict(weights) == {
        name: float(name == "CROPS") for name in OBJECTIVES
    }
    relations = [one.keys for one in RELATIONS if len(one.keys) == 2]
    assert all((f"{KEYS}{name}", TARGET) in relations for name in OBJECTIVES)
    assert {key for key, other in relations if other == TEACHER[0]} == {*CORRELATED}
    assert tuple(CONTEXTS) == DECLARED["MODEL.CLIPSELF.CORRELATION.CONTEXT"].choices


def test_weights_of_a_configuration_are_those_of_its_objectives():
    opts = [word for n, name in enumerate(OBJECTIVES) for word in (f"{KEYS}{name}", str(n / 2))]
    made = target(*opts, *TEACHER, "MODEL.CLIPSELF.CORRELATION.CONTEXT", "qk")
    assert isinstance(made, WeightedObjectives)
    assert made.weights == {name: n / 2 for n, name in enumerate(OBJECTIVES) if n}
    assert made.reads == ("queries", "keys", "dense", "image")
    assert isinstance(made.teacher, Original)
    assert correlation.TEMPERATURE == 0.2


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SPATIAL", "1"], "SPATIAL must be 0 without a teacher of correlations"),
        (["CROPS", "-1"], "CROPS must be 0 or more"),
        (["CROPS", "0"], "OBJECTIVES must be greater than 0 for one .*{'COHERENCE': 0.0,"),
        (["CROPS", "0", "CONTEXT", "1", "TEACHER"], "beside CONTEXT, such as CROPS: CONTEXT alone"),
        (["OWN_CROPS", "1", "TEACHER"], "TEACHER must be none unless .*, got 'original' with"),
        (["OWN_CROPS", "1", "MODEL.CLIPSELF.TARGET", "texts"], "OWN_CROPS must be 0.0 unless"),
        (["CROPS", "0.5", "MODEL.CLIPSELF.TARGET", "captions"], "CROPS must be 1.0 unless"),
        (["COHERENCE", "1", TEACHER[0], "vit_bas_patch14_dinov2"], 'did you mean "vit_base_patch'),
    ],
)
def test_weights_that_do_not_go_together_are_refused_in_one_line(opts, message):
    words = [f"{KEYS}{word}" if word in OBJECTIVES else word for word in opts]
    if "TEACHER" in words:
        words[-1:] = TEACHER
    with pytest.raises(InputError, match=message) as caught:
        target(*words)
    assert len(str(caught.value).splitlines()) == 1


def step_of(model, samples):
    return Step(
        samples=samples,
        images=model.teacher.preprocess(torch.stack([s["image"] for s in samples])),
        student=model.learner,
        teacher=model.teacher,
        precision=None,
        average="regions",
        synchronised=True,
    )


def test_what_a_loss_shares_is_computed_once_and_a_step_each():
    model, calls = tiny_clipself(), []

    def shared(step):
        calls.append(step)
        return len(step.samples)

    first, second = step_of(model, tiny_samples(1)), step_of(model, tiny_samples(2))
    assert [step.once(shared) for step in (first, second, first)] == [1, 2, 1]
    assert calls == [first, second]


def test_features_are_computed_once_and_only_if_they_are_asked_for():
    model, samples, calls = tiny_clipself(), tiny_samples(2), []
    model.student.register_forward_hook(lambda *_: calls.append("student"))
    model.teacher.visual.register_forward_hook(lambda *_: calls.append("teacher"))
    features = model.student.features
    model.student.features = lambda x, names: calls.append(names) or features(x, names)
    step = step_of(model, samples)
    assert not calls
    assert step.student_RE is step.student_RE and len(step.student_RE) == 3
    assert step.dense_BEhw.shape[0] == 2 and calls == [["dense"]]
    assert step.teacher_RE is step.teacher_RE and calls == [["dense"], "teacher"]
    assert not step.teacher_RE.requires_grad and step.student_RE.requires_grad
    torch.testing.assert_close(step.region_mean(torch.tensor([1.0, 2.0, 6.0])), torch.tensor(3.0))


def test_cells_of_padding_alone_do_not_count():
    model, samples = tiny_clipself(), tiny_samples(3)
    boxes = [[0.0, 0.0, 1.0, 0.75], [0.0, 0.0, 0.51, 1.0], [0.0, 0.0, 1.0, 0.001]]
    samples = [s | {"whole": torch.tensor([box])} for s, box in zip(samples, boxes)]
    step = step_of(model, samples)
    valid = valid_cells(step).unflatten(1, (8, 8))
    assert valid[0, :6].all() and not valid[0, 6:].any()
    # A cell counts if any of the image is in it, and one always does.
    assert valid[1, :, :5].all() and not valid[1, :, 5:].any()
    assert valid[2, 0].all() and valid[2].sum() == 8


def test_whole_images_are_compared_at_the_clips_own_size_and_only_the_student_learns():
    model = tiny_clipself(target=WeightedObjectives({"WHOLE_IMAGES": 1.0}))
    sizes = []
    model.student.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:]))
    large = [s | {"image": s["image"].repeat(1, 2, 2)} for s in tiny_samples(2)]
    loss = model(large)["loss_whole_images"]
    assert sizes == [(64, 64)] and loss.requires_grad
    assert loss.item() == pytest.approx(0, abs=1e-6)


CAPTIONS = ["a cat on grass", "two dogs", "a red kite", "grass"]


def captioned(**how):
    """A model that trains on captions, and four samples."""
    samples = [s | {"caption": text} for s, text in zip(tiny_samples(4), CAPTIONS)]
    return tiny_clipself(target=CaptionContrast(), **how), samples


def test_loss_is_open_clips_on_image_embeddings_and_captions():
    model, samples = captioned()
    images = model.teacher.preprocess(torch.stack([s["image"] for s in samples]))
    embeddings = model.teacher.encode_image(images), model.teacher.encode_text(CAPTIONS)
    expected = ClipLoss()(*embeddings, model.teacher.logit_scale.exp())
    (loss,) = model(samples).values()
    torch.testing.assert_close(loss, expected)


def test_all_of_the_last_block_learns_and_the_text_tower_nothing():
    model, samples = captioned(trainable_blocks=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    one_step(model, samples, decay=0)  # only a gradient changes anything
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    last = "student.transformer.resblocks.3."
    assert changed == {k for k in before if k.startswith(last)}
    packed = f"{last}attn.in_proj_weight"
    rows = (model.state_dict()[packed] != before[packed]).any(dim=1)
    assert rows[: 2 * model.student.width].float().mean() > 0.9


# The images fill three quarters of their squares: 6 of 8 rows of cells.
def whole():
    """The box of an image, on the CPU as a loader gives it."""
    return torch.tensor([[0.0, 0.0, 1.0, 0.75]], device="cpu")


def weighted_samples(count=2):
    return [sample | {"whole": whole()} for sample in tiny_samples(count)]


def weighted(context="q", how=None, **weights):
    """A tiny CLIPSelf whose student, in its own weights, is no longer its teacher."""
    target = WeightedObjectives(weights, Original(), CONTEXTS[context])
    model = tiny_clipself(target=target, **(how or {}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.student.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * parameter.std(correction=0) * noise)
    return model


def images_of(model, samples):
    return model.teacher.preprocess(torch.stack([s["image"] for s in samples]))


def rows(maps):
    """Tokens (B, 48, D) of the cells that are no padding."""
    return maps[:, :, :6].flatten(2).mT


def expected(name, model, samples):
    """The term by public functions of the towers."""
    images, student, teacher = images_of(model, samples), model.student, model.teacher.visual
    crops = model.teacher.preprocess(torch.cat([s["crops"] for s in samples]))
    pixels = torch.stack([s["image"] for s in samples]).float() / 255
    small = model.teacher.normalise(
        F.interpolate(pixels, (64, 64), mode="bilinear", antialias=True)
    )
    dense, target = rows(student.dense(images)), rows(teacher.dense(images))
    valid = torch.ones(dense.shape[:2], dtype=torch.bool)
    cosines = [correlation.cosine_similarities(tokens) for tokens in (dense, target)]
    own_queries = rows(student.features(images, ["queries"])["queries"])
    match name:
        case "CROPS":
            return tiny_crops(model, samples)
        case "CONTEXT":
            queries = correlation.cosine_similarities(own_queries)
            return correlation.context_loss(queries, cosines[1], valid).mean()
        case "COHERENCE":
            return correlation.coherence_loss(*cosines, valid).mean()
        case "SPATIAL":
            return correlation.spatial_correlation_loss(dense, target, valid).mean()
        case "WHOLE_IMAGES":
            return 1 - F.cosine_similarity(student(small), teacher(small)).mean()
        case "OWN_CROPS":
            return 1 - F.cosine_similarity(student(crops), teacher(crops)).mean()
        case _:
            pytest.fail(f"no formula of {name} to compare with: write it here")


def tiny_crops(model, samples):
    """The loss of CLIPSelf alone."""
    alone = tiny_clipself()
    alone.student.load_state_dict(model.student.state_dict())
    return alone(samples)["loss_clipself"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_term_is_its_formula_on_cells_that_are_no_padding_times_its_weight(name):
    weights = {name: 0.5} | ({"CROPS": 1.0} if name == "CONTEXT" else {})
    model, samples = weighted(**weights), weighted_samples()
    losses = model(samples)
    assert losses.keys() == {OBJECTIVES[term].loss for term in weights}
    torch.testing.assert_close(losses[OBJECTIVES[name].loss], 0.5 * expected(name, model, samples))


def test_keys_take_part_in_the_context_by_the_mean_of_both_similarities():
    model, samples = weighted("qk", CROPS=1.0, CONTEXT=1.0), weighted_samples()
    images = images_of(model, samples)
    parts = model.student.features(images, ["queries", "keys"])
    mean = sum(correlation.cosine_similarities(rows(part)) for part in parts.values()) / 2
    target = correlation.cosine_similarities(rows(model.teacher.dense(images)))
    loss = model(samples)["loss_context"]
    valid = torch.ones(mean.shape[:2], dtype=torch.bool)
    torch.testing.assert_close(loss, correlation.context_loss(mean, target, valid).mean())


# Terms -> parts of the last block's attention that learn of query and key.
LEARNING = {
    ("SPATIAL", "COHERENCE"): set(),
    ("CROPS", "CONTEXT"): {"queries"},
    ("CROPS", "CONTEXT", "qk"): {"queries", "keys"},
    ("WHOLE_IMAGES",): {"queries", "keys"},
    ("CROPS", "OWN_CROPS"): {"queries", "keys"},
}


@pytest.mark.parametrize("terms", LEARNING, ids=str)
def test_only_what_a_term_reads_learns_whatever_weight_decay_would_do(terms):
    context = "qk" if "qk" in terms else "q"
    model = weighted(context, **{name: 1.0 for name in terms if name != "qk"})
    # The student begins where the teacher is, in what does not learn.
    model.after_optimizer_step()
    packed = model.student.blocks[-1].attn.in_proj_weight
    before = packed.detach().clone()
    one_step(model, weighted_samples())
    changed = {
        name
        for name, old, new in zip(("queries", "keys"), before.chunk(3), packed.chunk(3))
        if not torch.equal(old, new)
    }
    assert changed == LEARNING[terms] and not torch.equal(before.chunk(3)[2], packed.chunk(3)[2])


def test_towers_without_queries_of_a_last_block_refuse_the_context_when_the_model_is_built():
    clip = random_clip()
    clip.visual = ResNetTower(image_size=64, width=8, layers=(1, 1, 1, 1), embed_dim=128)
    terms = functools.partial(WeightedObjectives, teacher=Original(), context=CONTEXTS["qk"])
    with pytest.raises(
        InputError, match="no queries or keys of a last block, which .*CONTEXT compares: leave it 0"
    ):
        CLIPSelf(clip=clip, target=terms({"CROPS": 1.0, "CONTEXT": 1.0}))
    CLIPSelf(clip=clip, target=terms({"CROPS": 1.0, "SPATIAL": 1.0}))


def test_no_regions_are_no_trouble():
    weights = dict.fromkeys(OBJECTIVES, 1.0)
    (sample,) = tiny_samples(1)
    none = {"boxes": torch.zeros(0, 4), "crops": sample["crops"][:0]}
    losses = weighted(**weights)([sample | none])
    sum(losses.values()).backward()
    assert losses["loss_clipself"] == 0 and losses["loss_own_crops"] == 0
    assert all(loss.isfinite() for loss in losses.values())


def tiny_step(model, count=2):
    return step_of(model, tiny_samples(count))


def backbone(name="test_vit"):
    torch.manual_seed(0)
    teacher = TimmBackbone(name, pretrained=False)
    teacher.setup(torch.empty(0).device)
    return teacher


def test_names_mean_nobody_the_original_and_backbones_of_timm():
    assert correlation_teacher("none") is None
    assert isinstance(correlation_teacher("original"), Original)
    teacher = correlation_teacher("vit_base_patch14_dinov2.lvd142m")
    assert isinstance(teacher, TimmBackbone) and teacher.pretrained


@pytest.mark.parametrize("name", ["vit_bas_patch14_dinov2", "hf-hub:timm/resnet18", "", "a/b"])
def test_what_is_no_model_of_timm_is_refused_by_name(name):
    with pytest.raises(InputError, match=f'CORRELATION.TEACHER "{name}" is neither none nor'):
        correlation_teacher(name)


def test_weights_that_cannot_be_fetched_are_said_in_one_line(monkeypatch):
    def offline(*args, **how):
        raise OSError("no network\nand a page of reasons")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match="timm cannot load it .no network.") as caught:
        TimmBackbone("test_vit").setup(torch.device("cpu"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_backbone_sees_the_image_at_the_size_at_which_its_grid_is_the_students():
    model, teacher = tiny_clipself(), backbone()
    step = tiny_step(model)
    # 8 x 8 cells of the student of 64 pixels; patches of 16 pixels need 128.
    pixels = F.interpolate(step.pixels, (128, 128), mode="bilinear", antialias=True)
    mean, std = (
        torch.tensor(teacher._network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std")
    )
    with torch.no_grad():
        tokens = teacher._network.forward_features((pixels - mean) / std)
    prefix = teacher._network.num_prefix_tokens
    expected = tokens[:, prefix:].mT.unflatten(2, (8, 8))
    torch.testing.assert_close(teacher.features(step), expected)


def test_convolutions_whose_grid_is_another_are_resized_to_the_students():
    teacher = backbone("test_convnext")
    maps = teacher.features(tiny_step(tiny_clipself()))
    assert maps.shape[0] == 2 and maps.shape[2:] == (8, 8) and maps.isfinite().all()


def test_a_backbone_of_one_size_is_refused_before_training(monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **how: real(name, **how | {"dynamic_img_size": False})
    )
    with pytest.raises(InputError, match="gives no feature map of an image of 128 x 64 pixels"):
        backbone()


def test_only_the_student_learns_from_a_backbone_which_no_checkpoint_has():
    teacher = TimmBackbone("test_vit", pretrained=False)
    target = WeightedObjectives({"COHERENCE": 1.0, "SPATIAL": 1.0, "CROPS": 1.0}, teacher)
    model = tiny_clipself(target=target)
    before = set(model.state_dict())
    model.setup_training(None)
    losses = model(tiny_samples(2))
    sum(losses.values()).backward()
    assert set(model.state_dict()) == before
    network = teacher._network
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not any(module.training for module in network.modules())


def test_timm_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="timm is not installed, and .* pip install"):
        TimmBackbone("test_vit")


NOUNS = ("cat", "dog", "grass", "sky", "red ball")
NOUN_CAPTIONS = ("a cat", "a dog on grass", "the sky", "a red ball")


def tiny_region_text(loss="bce", negatives=100, **how):
    """A tiny CLIPSelf that learns the five nouns; one sentence a noun."""
    target = RegionText(loss=loss, negatives=negatives, templates="single")
    model = tiny_clipself(target=target, **how)
    model.setup_training(NOUNS)
    return model


def text_samples(count=4):
    """Samples with labels, captions and the box of the image; regions are as uneven as can be."""
    order = (3, 2, 0, 1)[:count]
    samples = [tiny_samples(4)[index] for index in order]
    for sample, caption in zip(samples, NOUN_CAPTIONS):
        generator = torch.Generator().manual_seed(sample["image_id"])
        labels = torch.randint(5, (len(sample["boxes"]),), generator=generator, device="cpu")
        sample |= {"labels": labels, "caption": caption, "whole": whole()}
    return samples


def expected_logits(model, samples):
    images = model.teacher.preprocess(torch.stack([s["image"] for s in samples]))
    dense = F.normalize(model.student.dense(images), dim=1)
    rows = torch.cat([_pooled(model, d, s["boxes"]) for d, s in zip(dense, samples)])
    text = torch.stack([_text(model.teacher, noun) for noun in NOUNS])
    return model.teacher.logit_scale.exp() * F.normalize(rows, dim=-1) @ text.T


def _pooled(model, dense, boxes):
    from torchvision.ops import roi_align

    cells = [boxes * dense.shape[-1]]
    return roi_align(dense[None], cells, 1, 1.0, -1, aligned=True)[..., 0, 0]


def _text(clip, noun):
    with torch.no_grad():
        return F.normalize(clip.encode_text(clip.tokenize(f"a photo of a {noun}")), dim=-1)[0]


@pytest.mark.parametrize("negatives", [3, 100])
def test_official_loss_is_the_sum_over_drawn_nouns_and_the_mean_over_boxes(negatives):
    model, samples = tiny_region_text(negatives=negatives), text_samples(2)
    labels = torch.cat([s["labels"] for s in samples])
    rng = np.random.default_rng((0, samples[0]["iteration"]))
    nouns = federated_nouns(labels.numpy(), 5, negatives, rng)
    logits = expected_logits(model, samples)[:, nouns]
    right = (labels[:, None] == torch.from_numpy(nouns)).float()
    expected = F.binary_cross_entropy_with_logits(logits, right, reduction="sum") / len(labels)
    losses = model(samples)
    assert losses.keys() == {"loss_texts"}
    torch.testing.assert_close(losses["loss_texts"], expected)


def test_softmax_is_over_all_nouns():
    model, samples = tiny_region_text("softmax"), text_samples(2)
    labels = torch.cat([s["labels"] for s in samples])
    expected = F.cross_entropy(expected_logits(model, samples), labels)
    torch.testing.assert_close(model(samples)["loss_texts"], expected)


def test_regionclip_has_its_three_losses_and_only_the_student_learns():
    model, samples = tiny_region_text("regionclip"), text_samples(3)
    losses = model(samples)
    assert losses.keys() == {"loss_concepts", "loss_teacher", "loss_image_text"}
    logits, labels = expected_logits(model, samples), torch.cat([s["labels"] for s in samples])
    crops = model.teacher.preprocess(torch.cat([s["crops"] for s in samples]))
    text = torch.stack([_text(model.teacher, noun) for noun in NOUNS])
    scale = model.teacher.logit_scale.exp()
    theirs = scale * F.normalize(model.teacher.encode_image(crops), dim=-1) @ text.T
    divergence = F.kl_div(
        logits.log_softmax(1), theirs.log_softmax(1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(losses["loss_teacher"], divergence)
    chances = logits[:, labels].softmax(1) * (labels[:, None] == labels)
    torch.testing.assert_close(losses["loss_concepts"], -chances.sum(1).log().mean())
    sum(losses.values()).backward()
    assert all(p.grad is None for p in model.teacher.parameters())


# What is learned -> the model, by its further arguments, and samples.
LEARNERS = {
    "terms": (lambda **how: weighted(how=how, **dict.fromkeys(OBJECTIVES, 1.0)), weighted_samples),
    "captions": (lambda **how: captioned(**how)[0], lambda count: captioned()[1][:count]),
    "bce": (tiny_region_text, text_samples),
    "softmax": (lambda **how: tiny_region_text("softmax", **how), text_samples),
}


@pytest.mark.parametrize("learner", ["terms", "captions", "bce"])
def test_mixed_precision_has_about_the_same_losses_in_float32(learner):
    make, samples = LEARNERS[learner]
    exact = make()(samples(2))
    for name, loss in make(precision=torch.bfloat16)(samples(2)).items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], atol=0.02, rtol=0.05)


@pytest.mark.parametrize(
    ("learner", "limit"),
    [("terms", 1e-3), ("captions", 1e-4), ("bce", 1e-4), ("softmax", 1e-4)],
)
def test_gradients_of_two_processes_are_those_of_one(tmp_path, learner, limit):
    make, samples = LEARNERS[learner]

    def work(rank: int, folder: Path) -> dict[str, torch.Tensor]:
        return gradients(make(), samples(4)[2 * rank : 2 * rank + 2])

    first, second = in_two_processes(work, tmp_path)
    whole = gradients(make(), samples(4))
    assert all(torch.equal(first[name], second[name]) for name in whole)
    assert worst(first, whole) < limit


def test_training_without_nouns_is_refused():
    with pytest.raises(AssertionError, match="needs its nouns"):
        tiny_region_text().setup_training(None)


def test_negatives_of_two_processes_are_those_of_each(tmp_path):
    def parts(rank: int) -> list[dict]:
        return text_samples()[2 * rank : 2 * rank + 2]

    def work(rank: int, folder: Path) -> dict[str, torch.Tensor]:
        return gradients(tiny_region_text("bce", negatives=1), parts(rank))

    first, _ = in_two_processes(work, tmp_path)
    alone = [gradients(tiny_region_text("bce", negatives=1), parts(rank)) for rank in (0, 1)]
    boxes = [sum(len(sample["boxes"]) for sample in parts(rank)) for rank in (0, 1)]
    expected = {
        name: sum(n * own[name] for n, own in zip(boxes, alone)) / sum(boxes) for name in first
    }
    assert worst(first, expected) < 1e-4


def test_images_and_captions_of_all_processes_are_contrasted(tmp_path):
    def work(rank: int, folder: Path) -> dict[str, torch.Tensor]:
        losses = tiny_region_text("regionclip")(text_samples()[2 * rank : 2 * rank + 2])
        return {"loss": losses["loss_image_text"].detach()}

    first, second = in_two_processes(work, tmp_path)
    whole = tiny_region_text("regionclip")(text_samples())["loss_image_text"]
    torch.testing.assert_close(first["loss"], whole.detach())
    torch.testing.assert_close(second["loss"], whole.detach())
