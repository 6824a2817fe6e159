"""Region-text training: what it reads of samples, and processes together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipself_seg.heads.distillation import federated_nouns
from clipself_seg.models.distillation.objectives import RegionText
from tests.tiny import tiny_clipself, tiny_samples
from tests.training.test_trainer_data_parallel import gradients, worst
from tests.two_processes import in_two_processes

NOUNS = ("cat", "dog", "grass", "sky", "red ball")
CAPTIONS = ("a cat", "a dog on grass", "the sky", "a red ball")


def tiny_region_text(loss="bce", negatives=100, **how):
    """A tiny CLIPSelf that learns the five nouns; one sentence a noun."""
    objective = RegionText(loss=loss, negatives=negatives, templates="single")
    model = tiny_clipself(objective=objective, **how)
    model.setup_training(NOUNS)
    return model


def text_samples(count=4):
    """Samples with labels, captions and the box of the image; regions are as uneven as can be."""
    order = (3, 2, 0, 1)[:count]
    samples = [tiny_samples(4)[index] for index in order]
    for sample, caption in zip(samples, CAPTIONS):
        generator = torch.Generator().manual_seed(sample["image_id"])
        sample["labels"] = torch.randint(5, (len(sample["boxes"]),), generator=generator)
        sample |= {"caption": caption, "whole": torch.tensor([[0.0, 0.0, 1.0, 0.75]])}
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


def test_a_batch_without_boxes_has_no_loss():
    model, (sample,) = tiny_region_text(), text_samples(1)
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    loss = model([sample | none])["loss_texts"]
    loss.backward()
    assert loss == 0


def test_mixed_precision_has_its_logits_and_loss_in_float32():
    samples = text_samples(2)
    exact = tiny_region_text()(samples)["loss_texts"]
    mixed = tiny_region_text(precision=torch.bfloat16)(samples)["loss_texts"]
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, atol=0, rtol=0.05)


def test_training_without_nouns_is_refused():
    with pytest.raises(ValueError, match="needs its nouns"):
        tiny_region_text().setup_training(None)


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_gradients_of_two_processes_are_those_of_one(tmp_path, loss):
    def work(rank: int, folder: Path) -> dict[str, torch.Tensor]:
        return gradients(tiny_region_text(loss), text_samples()[2 * rank : 2 * rank + 2])

    first, second = in_two_processes(work, tmp_path)
    whole = gradients(tiny_region_text(loss), text_samples())
    assert all(torch.equal(first[name], second[name]) for name in whole)
    assert worst(first, whole) < 1e-4


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
