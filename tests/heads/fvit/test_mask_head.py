"""Targets of masks at the border of an image; masks are pasted as Detectron2 does, and read inside of boxes alone."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers.mask_ops import paste_masks_in_image

from bench.plain_detection import plain_masks
from clipself_seg.heads.fvit import roi_heads as mask_module
from clipself_seg.heads.fvit.roi_heads import mask_targets, paste_masks

SIZE = (90, 120)


def discs(height, width, count):
    """Discs, some of them cut off by the border, and their boxes."""
    generator = torch.Generator().manual_seed(2)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    masks, boxes = [], []
    for _ in range(count):
        cx, cy = torch.rand(2, generator=generator) * torch.tensor([width, height])
        radius = 6 + 10 * torch.rand((), generator=generator)
        mask = (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
        rows, columns = mask.nonzero().T
        masks.append(mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        boxes.append(torch.stack(box).float())
    return torch.stack(masks), torch.stack(boxes)


def test_targets_are_those_of_masks_that_are_padded_as_the_image_is():
    masks, boxes = discs(40, 60, 60)
    padded = F.pad(masks, (0, 20, 0, 40))
    wanted = mask_targets([boxes], [padded], (80, 80))
    assert torch.equal(mask_targets([boxes], [masks], (80, 80)), wanted)
    # Without the zeros around it the border goes on, and some cells at it would be inside.
    border = mask_targets([boxes], [masks], (40, 60))
    assert not torch.equal(border, wanted)


def test_an_image_as_large_as_the_square_has_no_padding():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 7, 3] = True
    # Its cells are smaller than a pixel: at the square's border the last row goes on.
    box = torch.tensor([[3.0, 7.0, 4.0, 8.0]])
    at_border = mask_targets([box], [mask], (8, 8))[0]
    inside = mask_targets([box], [mask], (9, 8))[0]
    assert at_border[-1, 14] == 1
    assert at_border.sum() > inside.sum()


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


@pytest.mark.cpu
def test_nothing_outside_of_a_box_is_read(monkeypatch):
    sizes = []
    sample = F.grid_sample

    def count(masks, grid, **how):
        sizes.append(tuple(grid.shape))
        return sample(masks, grid, **how)

    monkeypatch.setattr(mask_module.F, "grid_sample", count)
    paste_masks(torch.ones(1, 28, 28), torch.tensor([[10.5, 20.0, 30.0, 25.0]]), SIZE)
    assert sizes == [(1, 7, 22, 2)]
