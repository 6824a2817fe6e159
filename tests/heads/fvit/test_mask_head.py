"""Targets of masks at the border of an image."""

import torch
import torch.nn.functional as F

from clipself_seg.heads.fvit.roi_heads import mask_targets


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
