"""Masks read inside of their boxes alone are those that are read all over the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers.mask_ops import paste_masks_in_image

from bench.plain_detection import plain_masks
from clipself_seg.heads.fvit import mask_pasting
from clipself_seg.heads.fvit.mask_pasting import paste_masks

SIZE = (90, 120)


def random_masks(count=60):
    """Smooth, random and full ones, in boxes of all sizes that touch the borders or have no area."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(count, 1, 5, 5, generator=generator)
    probs = F.interpolate(rough, (28, 28), mode="bilinear")[:, 0]
    probs[::3] = 1.0
    probs[1::3] = torch.rand(len(probs[1::3]), 28, 28, generator=generator)
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([120.0, 90.0])
    sides = torch.rand(count, 2, generator=generator) ** 2 * 150
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=1).clamp(min=0)
    boxes = torch.minimum(boxes, torch.tensor([120.0, 90, 120, 90]))
    boxes[0] = torch.tensor([0.0, 0, 120, 90])
    boxes[1] = torch.tensor([120.0, 90, 120, 90])
    boxes[2::9] = boxes[2::9].round()  # pixels at the very edge of a mask of 1 are 1/2 or more
    return probs, boxes


def test_pasted_masks_are_those_of_the_whole_image_and_detectron2s():
    probs, boxes = random_masks()
    pasted = paste_masks(probs, boxes, SIZE)
    assert pasted.dtype == torch.bool and pasted.flatten(1).any(1).sum() > 40
    assert torch.equal(pasted, paste_masks_in_image(probs, boxes, SIZE))
    assert torch.equal(pasted, plain_masks(probs, boxes, SIZE))
    assert paste_masks(probs[:0], boxes[:0], SIZE).shape == (0, *SIZE)


def test_nothing_outside_of_a_box_is_read(monkeypatch):
    sizes = []
    sample = F.grid_sample

    def count(masks, grid, **how):
        sizes.append(tuple(grid.shape))
        return sample(masks, grid, **how)

    monkeypatch.setattr(mask_pasting.F, "grid_sample", count)
    paste_masks(torch.ones(1, 28, 28), torch.tensor([[10.5, 20.0, 30.0, 25.0]]), SIZE)
    assert sizes == [(1, 7, 22, 2)]
