"""What a step computes, and that it computes it once."""

from __future__ import annotations

import torch

from clipself_seg.models.distillation.step import Step
from tests.tiny import tiny_clipself, tiny_samples


def test_features_are_computed_once_and_only_if_they_are_asked_for():
    model, samples, calls = tiny_clipself(), tiny_samples(2), []
    model.student.register_forward_hook(lambda *_: calls.append("student"))
    model.teacher.visual.register_forward_hook(lambda *_: calls.append("teacher"))
    dense, model.student.dense = model.student.dense, lambda x: calls.append("dense") or dense(x)
    step = Step(
        samples=samples,
        images=model.teacher.preprocess(torch.stack([s["image"] for s in samples])),
        student=model.student,
        teacher=model.teacher,
        precision=None,
        average="regions",
        synchronised=True,
    )
    assert not calls
    assert step.student_RE is step.student_RE and len(step.student_RE) == 3
    assert step.dense_BEhw.shape[0] == 2 and calls == ["dense"]
    assert step.teacher_RE is step.teacher_RE and calls == ["dense", "teacher"]
    assert not step.teacher_RE.requires_grad and step.student_RE.requires_grad
    torch.testing.assert_close(step.region_mean(torch.tensor([1.0, 2.0, 6.0])), torch.tensor(3.0))
