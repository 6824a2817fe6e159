"""Sums over cells are torchvision's RoIAlign, for boxes of all shapes and in every corner."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from clipself_seg.heads.fvit import roi_pooling
from clipself_seg.heads.fvit.roi_pooling import pool_boxes
from clipself_seg.heads.fvit.sparse_pooling import pool_cells


def random_boxes(count=60):
    """Boxes of 80 x 64 pixels and beyond: thin, large, without area, outside."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([80.0, 64.0])
    sides = torch.rand(count, 2, generator=generator) ** 3 * 100
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
    boxes[:4] = torch.tensor(
        [[0, 0, 80, 64], [80, 64, 80, 64], [10, 10, 10, 30], [-90, -90, -70, -60]],
        dtype=torch.float32,
    )
    return boxes


@pytest.mark.parametrize(("side", "scale"), [(7, 0.25), (14, 1 / 3.5), (1, 1 / 16), (7, 1.0)])
def test_features_of_cells_are_those_of_samples(side, scale):
    level = torch.randn(1, 5, int(64 * scale), int(80 * scale))
    boxes = random_boxes()
    wanted = roi_align(level, [boxes], side, scale, sampling_ratio=0, aligned=True)
    torch.testing.assert_close(pool_cells(level, boxes, side, scale), wanted, atol=1e-5, rtol=1e-4)
    assert pool_cells(level, boxes[:0], side, scale).shape == (0, 5, side, side)


def test_detection_on_a_cpu_sums_cells_and_training_samples(monkeypatch):
    levels = [torch.randn(1, 3, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32)]
    boxes = torch.tensor([[4.0, 4, 40, 30], [0, 0, 64, 64]])
    with torch.no_grad():
        summed = pool_boxes(levels, (4, 8, 16, 32), [boxes], 7)
    monkeypatch.setattr(roi_pooling, "pool_cells", lambda *_: pytest.fail("no gradient"))
    sampled = pool_boxes(levels, (4, 8, 16, 32), [boxes], 7)
    torch.testing.assert_close(summed, sampled, atol=1e-5, rtol=1e-5)
