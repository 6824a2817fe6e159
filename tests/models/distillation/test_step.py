"""What a step computes, and that it computes it once."""

from __future__ import annotations

import torch

from clipself_seg.models.distillation.step import Step
from tests.tiny import tiny_clipself, tiny_samples


def step_of(model, samples):
    return Step(
        samples=samples,
        images=model.teacher.preprocess(torch.stack([s["image"] for s in samples])),
        student=model.student,
        teacher=model.teacher,
        precision=None,
        average="regions",
        synchronised=True,
    )


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
    valid = step.valid_BN.unflatten(1, (8, 8))
    assert valid[0, :6].all() and not valid[0, 6:].any()
    # A cell counts if any of the image is in it, and one always does.
    assert valid[1, :, :5].all() and not valid[1, :, 5:].any()
    assert valid[2, 0].all() and valid[2].sum() == 8
    assert step_of(model, tiny_samples(1)).valid_BN is None


def test_image_embeddings_are_of_the_clips_own_size_and_only_the_students_have_gradients():
    model, samples = tiny_clipself(), tiny_samples(2)
    large = [s | {"image": s["image"].repeat(1, 2, 2)} for s in samples]
    step = step_of(model, large)
    assert step.small_images.shape == (2, 3, 64, 64) and step.images.shape == (2, 3, 128, 128)
    assert step.own_small_BE.requires_grad and not step.teacher_small_BE.requires_grad
    assert step.own_crops_RE.requires_grad and len(step.own_crops_RE) == 3
    torch.testing.assert_close(step.own_small_BE, step.teacher_small_BE)
    torch.testing.assert_close(step.own_crops_RE, step.teacher_RE)
