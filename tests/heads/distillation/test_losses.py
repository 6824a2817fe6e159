"""The CLIPSelf loss as a formula."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.heads.distillation.losses import cosine_distance, loss_count, region_mean


def loss_of(student, teacher, *weighting):
    return region_mean(cosine_distance(student, teacher), *weighting)


def test_loss_of_vectors_whose_angles_are_known():
    student = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, -3.0]])
    teacher = torch.tensor([[5.0, 0.0], [0.0, 7.0], [0.0, 1.0]])
    # 1 - cos: 0 for 0 degrees, 1 - sqrt(1/2) for 45, 2 for 180.
    loss = loss_of(student, teacher, [1, 2])
    torch.testing.assert_close(loss, torch.tensor((0 + 1 - 0.5**0.5 + 2) / 3))


def test_average_over_images_gives_each_image_the_same_weight():
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    teacher = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])  # distances 1, 0, 0
    loss = loss_of(student, teacher, [1, 2], "images")
    torch.testing.assert_close(loss, torch.tensor((1 + 0) / 2))


@pytest.mark.parametrize("average", ["regions", "images"])
def test_mean_over_processes_is_the_loss_of_the_whole_batch(average):
    student, teacher, sizes = torch.randn(9, 4), torch.randn(9, 4), [1, 5, 2, 1]
    whole = loss_of(student, teacher, sizes, average)
    count = (loss_count(sizes[:1], average) + loss_count(sizes[1:], average)) / 2
    parts = [
        loss_of(student[:1], teacher[:1], sizes[:1], average, count),
        loss_of(student[1:], teacher[1:], sizes[1:], average, count),
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_no_regions_give_zero_and_a_gradient_of_zero():
    student = torch.zeros(0, 4, requires_grad=True)
    loss = loss_of(student, torch.zeros(0, 4), [0, 0])
    loss.backward()
    assert loss.item() == 0 and student.grad is not None


def test_teacher_gets_no_gradient_and_length_does_not_matter():
    student = torch.randn(3, 4, requires_grad=True)
    teacher = torch.randn(3, 4, requires_grad=True)
    loss = loss_of(student, teacher, [3])
    loss.backward()
    assert teacher.grad is None
    # Moving along the vector itself changes its length only.
    torch.testing.assert_close((student.grad * student).sum(-1), torch.zeros(3), atol=1e-6, rtol=0)


def test_half_precision_inputs_are_compared_in_float32():
    student, teacher = torch.randn(4, 512), torch.randn(4, 512)
    loss = loss_of(student.half(), teacher.half(), [4])
    assert loss.dtype == torch.float32
    exact = loss_of(student.half().float(), teacher.half().float(), [4])
    torch.testing.assert_close(loss, exact, atol=0, rtol=0)


def test_gradient_turns_the_student_towards_its_teacher():
    student = torch.tensor([[3.0, 4.0]], requires_grad=True)
    cosine_distance(student, torch.tensor([[2.0, 0.0]])).sum().backward()
    # -(unit teacher - cos * unit student) / length of the student = -((1, 0) - 0.6 (0.6, 0.8)) / 5
    torch.testing.assert_close(student.grad, torch.tensor([[-0.128, 0.096]]))
