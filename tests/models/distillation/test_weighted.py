"""Weighted sums of objectives: each term by itself, what learns from it, and processes together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.clip import load_clip
from clipself_seg.clip.resnet import ResNetTower
from clipself_seg.errors import InputError
from clipself_seg.heads import distillation as correlation
from clipself_seg.models import CLIPSelf
from clipself_seg.models.distillation.objectives import (
    CONTEXTS,
    TERMS,
    CorrelationSettings,
    Original,
    WeightedTerms,
)
from clipself_seg.models.parameter_groups import matrices_and_vectors
from clipself_seg.training.optimizer import build_adamw
from tests.tiny import tiny_clipself, tiny_samples
from tests.training.test_trainer_data_parallel import gradients, worst
from tests.two_processes import in_two_processes

# The images fill three quarters of their squares: 6 of 8 rows of cells.
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 0.75]])


def weighted_samples(count=2):
    return [sample | {"whole": WHOLE} for sample in tiny_samples(count)]


def weighted(context="q", how=None, **weights):
    """A tiny CLIPSelf whose student, in its own weights, is no longer its teacher."""
    settings = CorrelationSettings(teacher=Original(), context=CONTEXTS[context])
    model = tiny_clipself(objective=WeightedTerms(weights, settings), **(how or {}))
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
    cosines = [correlation.cosine_similarities(tokens) for tokens in (dense, target)]
    own_queries = rows(student.features(images, ["queries"])["queries"])
    match name:
        case "CROPS":
            return tiny_crops(model, samples)
        case "CONTEXT":
            queries = correlation.cosine_similarities(own_queries)
            return correlation.context_loss(queries, cosines[1]).mean()
        case "COHERENCE":
            return correlation.coherence_loss(*cosines).mean()
        case "SPATIAL":
            return correlation.spatial_correlation_loss(dense, target).mean()
        case "WHOLE_IMAGES":
            return 1 - F.cosine_similarity(student(small), teacher(small)).mean()
        case "OWN_CROPS":
            return 1 - F.cosine_similarity(student(crops), teacher(crops)).mean()


def tiny_crops(model, samples):
    """The loss of CLIPSelf alone."""
    alone = tiny_clipself()
    alone.student.load_state_dict(model.student.state_dict())
    return alone(samples)["loss_clipself"]


@pytest.mark.parametrize("name", TERMS)
def test_each_term_is_its_formula_on_cells_that_are_no_padding_times_its_weight(name):
    weights = {name: 0.5} | ({"CROPS": 1.0} if name == "CONTEXT" else {})
    model, samples = weighted(**weights), weighted_samples()
    losses = model(samples)
    assert losses.keys() == {TERMS[term].loss for term in weights}
    torch.testing.assert_close(losses[TERMS[name].loss], 0.5 * expected(name, model, samples))


def test_crops_alone_are_clipself_bit_for_bit():
    samples = weighted_samples(3)
    losses = [tiny_clipself(objective=one)(samples) for one in (None, WeightedTerms({"CROPS": 1}))]
    assert losses[0].keys() == losses[1].keys()
    assert torch.equal(losses[0]["loss_clipself"], losses[1]["loss_clipself"])


def test_keys_take_part_in_the_context_by_the_mean_of_both_similarities():
    model, samples = weighted("qk", CROPS=1.0, CONTEXT=1.0), weighted_samples()
    images = images_of(model, samples)
    parts = model.student.features(images, ["queries", "keys"])
    mean = sum(correlation.cosine_similarities(rows(part)) for part in parts.values()) / 2
    target = correlation.cosine_similarities(rows(model.teacher.visual.dense(images)))
    loss = model(samples)["loss_context"]
    torch.testing.assert_close(loss, correlation.context_loss(mean, target).mean())


def test_a_teacher_and_its_copy_preserve_everything():
    objective = WeightedTerms({"CROPS": 1.0, "WHOLE_IMAGES": 1.0, "OWN_CROPS": 1.0})
    losses = tiny_clipself(objective=objective)(weighted_samples())
    assert losses["loss_whole_images"] < 1e-6 and losses["loss_own_crops"] < 1e-6
    assert losses["loss_clipself"] > 0.01


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
    groups = matrices_and_vectors(model.parameters(), 0.1)
    optimizer = build_adamw(groups, betas=(0.9, 0.999), eps=1e-8)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    sum(model(weighted_samples()).values()).backward()
    optimizer.step()
    model.after_optimizer_step()
    changed = {
        name
        for name, old, new in zip(("queries", "keys"), before.chunk(3), packed.chunk(3))
        if not torch.equal(old, new)
    }
    assert changed == LEARNING[terms] and not torch.equal(before.chunk(3)[2], packed.chunk(3)[2])


def test_all_that_trains_gets_a_gradient_in_a_tower_with_matrices_of_its_own():
    objective = WeightedTerms(
        {"CROPS": 1.0, "CONTEXT": 1.0}, CorrelationSettings(teacher=Original())
    )
    model = tiny_clipself("EVA02-B-16", objective=objective, trainable_blocks=1)
    sum(model(weighted_samples(1)).values()).backward()
    for name, parameter in model.student.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    attention = model.student.blocks[-1].attn
    assert attention.q_proj.weight.requires_grad and not attention.k_proj.weight.requires_grad


def test_towers_without_queries_of_a_last_block_refuse_the_context_when_the_model_is_built():
    clip = load_clip("ViT-Mini-8", None)
    clip.visual = ResNetTower(image_size=64, width=8, layers=(1, 1, 1, 1), embed_dim=128)
    settings = CorrelationSettings(teacher=Original(), context=CONTEXTS["qk"])
    with pytest.raises(
        InputError, match="no queries or keys of a last block, which .*CONTEXT compares: leave it 0"
    ):
        CLIPSelf(clip=clip, objective=WeightedTerms({"CROPS": 1.0, "CONTEXT": 1.0}, settings))
    CLIPSelf(clip=clip, objective=WeightedTerms({"CROPS": 1.0, "SPATIAL": 1.0}, settings))


def test_no_regions_and_no_box_of_the_image_are_no_trouble():
    weights = dict.fromkeys(TERMS, 1.0)
    (sample,) = tiny_samples(1)
    none = {"boxes": torch.zeros(0, 4), "crops": sample["crops"][:0]}
    losses = weighted(**weights)([sample | none])
    sum(losses.values()).backward()
    assert losses["loss_clipself"] == 0 and losses["loss_own_crops"] == 0
    assert all(loss.isfinite() for loss in losses.values())


def test_mixed_precision_has_about_the_same_losses_in_float32():
    weights, samples = dict.fromkeys(TERMS, 1.0), weighted_samples()
    exact = weighted(**weights)(samples)
    mixed = weighted(how={"precision": torch.bfloat16}, **weights)(samples)
    for name, loss in mixed.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], atol=0.02, rtol=0.05)


def test_gradients_of_two_processes_are_those_of_one(tmp_path):
    weights, samples = dict.fromkeys(TERMS, 1.0), weighted_samples(4)

    def work(rank: int, folder: Path) -> dict[str, torch.Tensor]:
        return gradients(weighted(**weights), samples[2 * rank : 2 * rank + 2])

    first, second = in_two_processes(work, tmp_path)
    whole = gradients(weighted(**weights), samples)
    assert all(torch.equal(first[name], second[name]) for name in whole)
    assert worst(first, whole) < 1e-3


@pytest.mark.parametrize(
    ("weights", "message"),
    [({}, "no objective"), ({"CROPS": 0.0}, "no objective"), ({"SPATIAL": 1.0}, "need a teacher")],
)
def test_sums_of_nothing_and_correlations_without_a_teacher_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        WeightedTerms(weights)
