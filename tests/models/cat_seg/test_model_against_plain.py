"""CAT-Seg against its plain formulation, in float64: every shortcut gives the same numbers."""

import dataclasses
import functools

import pytest
import torch

from bench import plain_cat_seg as plain
from clipself_seg.clip import load_clip
from clipself_seg.clip.templates import TEMPLATES
from clipself_seg.heads.cat_seg.cost_aggregator import LEFT_OUT, AggregatorSizes, CostAggregator
from clipself_seg.heads.windows import WindowLayout
from clipself_seg.models import CATSeg
from clipself_seg.models.cat_seg.cat_seg_config import CATSegEvaluation, CATSegTraining

WORDS = ("cat", "dog", "wild grass", "sky", "red apple", "road", "old brick wall")
SIDE = 32  # of a window, 4 x 4 cells
SIZES = AggregatorSizes(
    text=128,
    appearance=128,
    decoder_guidance=(24, 16),
    hidden=32,
    grid=(4, 4),
    window=2,
    pooling=(1, 1),
    text_projected=16,
    appearance_projected=24,
    decoder_dims=(32, 16),
    decoder_guidance_projected=(8, 4),
    pad_len=12,
)
# Name -> what differs from `SIZES`; there are seven classes.
CASES = {
    "fewer classes than the padding": {},
    "as many classes as the padding": {"pad_len": 7},
    "the best classes of more": {"pad_len": 5},
    "no padding": {"pad_len": 0},
    "pooled": {"pooling": (2, 2)},
    "pooled, the best classes": {"pooling": (2, 2), "pad_len": 5},
    "prompts as channels": {"prompts": 3},
    "prompts as channels, the best classes": {"prompts": 3, "pad_len": 5},
    "one window": {"window": 4},
    "as many cells as CLIP has positions": {"grid": (8, 8), "window": 4},
    "pooled in one of two layers": {"pooling": (2, 1)},
    "one layer": {"pooling": (1,)},
}


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """Everything in float64, also what the model turns into float32 out of care."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    three = ("a photo of a {}.", "{} in the scene, from afar", "a {}")
    monkeypatch.setitem(TEMPLATES, "three", three)


def scramble(module):
    """Away from the special values that weights start from, such as ones of norms."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


@functools.cache
def tiny_clip():
    torch.manual_seed(0)
    return scramble(load_clip("ViT-Mini-8", None).double())


def tiny_model(*, classes_at_once=0, sizes=None, words=WORDS, mask_ignored=False, **how) -> CATSeg:
    torch.manual_seed(1)
    sizes = AggregatorSizes(**{**vars(SIZES), **(sizes or {})})
    model = CATSeg(
        clip=tiny_clip(),
        aggregator=CostAggregator(sizes, classes_at_once),
        guidance_blocks=(0, 1),
        templates="three" if sizes.prompts == 3 else "cat_seg",
        training=CATSegTraining(mask_ignored=mask_ignored),
        evaluation=CATSegEvaluation(**how),
    )
    model.layout = WindowLayout(size=SIDE, canvas=53)
    for name, part in model.named_children():
        if name != "clip":  # shared by all
            scramble(part)
    model.zero_grad()
    model.set_vocabulary(words)
    return model.eval()


def windows(count=2, side=SIDE):
    return torch.randint(256, (count, 3, side, side)).double()


def plain_logits(model, images):
    return plain.window_logits(model, plain.normalise(model, images), plain.text_embeddings(model))


def close(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_of_windows(case):
    model = tiny_model(sizes=CASES[case], classes_at_once=2)
    images = windows()
    expected = plain_logits(model, images)
    assert expected.std() > 0.01
    left_out = (expected == LEFT_OUT).sum() // (4 * 4) ** 2
    assert left_out == (4 if CASES[case].get("pad_len") == 5 else 0)
    close(model.window_logits(images), expected)


@pytest.mark.parametrize("residual", [True, False])
@torch.no_grad()
def test_logits_with_both_residuals_and_another_size_than_clip_s(residual, monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(model.clip.visual, "class_residual", residual)
    images = windows(side=24)
    close(model.window_logits(images), plain_logits(model, images))


@pytest.mark.parametrize("pooling", [(1, 1), (2, 2)])
@torch.no_grad()
def test_a_second_call_gives_the_same_and_inputs_stay(pooling):
    model, images = tiny_model(sizes={"pooling": pooling}, classes_at_once=4), windows()
    kept = images.clone()
    first = model.window_logits(images)
    assert torch.equal(model.window_logits(images), first) and torch.equal(images, kept)
    sample = {"image": images[0].to(torch.uint8)}
    (scores,) = model([sample])
    (again,) = model([sample])
    assert torch.equal(scores["sem_seg"], again["sem_seg"])


@pytest.mark.parametrize(("sliding", "pad_len"), [(True, 5), (False, 5), (False, 12)])
@torch.no_grad()
def test_a_flipped_image_gives_exactly_the_flipped_result_and_another_without_flips(
    sliding, pad_len
):
    model = tiny_model(sizes={"pad_len": pad_len}, sliding=sliding, flip=True)
    image = windows(1, 35)[0].to(torch.uint8)
    samples = [{"image": one, "height": 30, "width": 41} for one in (image, image.flip(-1))]
    for output in ("labels", "scores"):
        own, other = (model([one], output=output)[0] for one in samples)
        assert all(torch.equal(own[name].flip(-1), other[name]) for name in own)
    model.evaluation = dataclasses.replace(model.evaluation, flip=False)
    own, other = (model([one])[0]["sem_seg"] for one in samples)
    assert not torch.equal(own.flip(-1), other)


def labels_of(count, ignored=255):
    labels = torch.randint(len(WORDS), (count, SIDE, SIDE))
    labels[:, 2:15, 10:25] = ignored
    return labels


TRAINED = [(c, False) for c in CASES if CASES[c].get("pad_len") != 5]
TRAINED += [("pooled", True), ("prompts as channels", True)]


@pytest.mark.parametrize(("case", "checkpointing"), TRAINED)
def test_loss_and_gradients_of_all_that_trains(case, checkpointing):
    model = tiny_model(sizes=CASES[case], classes_at_once=4).train()
    images, labels = windows(), labels_of(2)
    model.aggregator.checkpointing = model.texts.checkpointing = checkpointing
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    expected = plain.loss(model, images, labels)
    gradients = torch.autograd.grad(expected, list(trained.values()), allow_unused=True)
    samples = [{"image": i, "sem_seg": s} for i, s in zip(images, labels)]
    loss = model(samples)["loss_sem_seg"]
    loss.backward()
    close(loss, expected)
    for (name, parameter), gradient in zip(trained.items(), gradients):
        # Padding tokens of as many classes as there are have no part in either formulation.
        assert (gradient is None) == (parameter.grad is None), name
        if gradient is not None:
            close(parameter.grad, gradient)


@pytest.mark.parametrize("mask_ignored", [False, True])
@pytest.mark.parametrize("ignored", ["some", "none", "all"])
def test_loss_is_that_of_one_hot_targets(mask_ignored, ignored):
    model, images, labels = tiny_model(mask_ignored=mask_ignored), windows(1), labels_of(1)
    labels[:] = {"some": labels, "none": labels.clamp(max=6), "all": torch.tensor(255)}[ignored]
    (loss,) = model.losses([{"image": images[0], "sem_seg": labels[0]}]).values()
    if ignored == "all" and mask_ignored:
        assert loss == 0  # the plain one has nothing to average
    else:
        close(loss, plain.loss(model, images, labels))


def two_images():
    """Two images, tall and wide, and the sizes that are asked for."""
    tall, wide = torch.randint(256, (3, 45, 35)), torch.randint(256, (3, 25, 62))
    return [
        {"image": tall.to(torch.uint8)},
        {"image": wide.to(torch.uint8), "height": 38, "width": 100},
    ]


@pytest.mark.parametrize("sliding", [True, False])
@pytest.mark.parametrize("pad_len", [12, 5, 0])
def test_inference_of_several_images(sliding, pad_len):
    model = tiny_model(sizes={"pad_len": pad_len}, classes_at_once=2, sliding=sliding)
    samples = two_images()
    probs = [result["sem_seg"] for result in model(samples)]
    labels = [result["sem_seg_labels"] for result in model(samples, output="labels")]
    for sample, scores, best in zip(samples, probs, labels):
        expected = plain.scores(model, sample)
        close(scores, expected)
        assert torch.equal(best, expected.argmax(dim=0))


@torch.no_grad()
def test_texts_at_their_own_length_are_those_at_full_length():
    model = tiny_model(words=[f"{'very ' * (i % 7)}old tree {i}" for i in range(40)])
    close(model.texts.embed(model.names), plain.text_embeddings(model), atol=1e-12)


@pytest.mark.parametrize(
    "how", [{}, {"sliding": False}, {"sizes": {"pad_len": 5, "pooling": (2, 2)}}]
)
def test_views_and_images_that_pass_together_give_the_same(how, monkeypatch):
    """As on a GPU, where they do as long as memory allows it."""
    how = {"sliding": True, "classes_at_once": 2, **how}
    model, samples = tiny_model(**how), two_images()
    apart = [result["sem_seg"] for result in model(samples)]
    passed = []
    refine = model.aggregator._together

    def together(dense, *others):
        passed.append(len(dense))
        return refine(dense, *others)

    monkeypatch.setattr(model.aggregator, "_together", together)
    for part in ("models.cat_seg.cat_seg", "heads.cat_seg.cost_aggregator"):
        monkeypatch.setattr(f"clipself_seg.{part}.chunk_size", lambda *asked: 1000)
    for scores, expected in zip(model(samples), apart):
        close(scores["sem_seg"], expected, atol=1e-12)
    assert passed == [10 if how["sliding"] else 2]
