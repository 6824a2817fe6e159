"""Visible cells of masks: the rules by hand, and the shortcuts against the plain formulation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.heads.panoptic import clip_branches
from clipself_seg.heads.panoptic.clip_branches import BINARISATIONS, visible_cells

GRID, PATCH = (5, 7), 6


def smooth(count: int, rows: int, columns: int) -> torch.Tensor:
    return F.avg_pool2d(torch.randn(count, rows, columns), 5, 1, 2)


def test_any_is_the_max_pooled_probability_at_full_size():
    masks = torch.cat([smooth(10, 23, 31), smooth(2, 23, 31) - 9, smooth(10, 23, 31)])
    size = GRID[0] * PATCH, GRID[1] * PATCH
    pixels = F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0].sigmoid()
    assert pixels.sub(0.5).abs().min() > 1e-7, "no pixel on the threshold"
    expected = F.max_pool2d(pixels, PATCH) >= 0.5
    assert torch.equal(visible_cells(masks, GRID, PATCH), expected)


def test_centre_is_the_logit_interpolated_to_the_grid():
    masks = smooth(20, 23, 31)
    expected = F.interpolate(masks[None], GRID, mode="bilinear", align_corners=False)[0] > 0
    assert torch.equal(visible_cells(masks, GRID, PATCH, binarise="centre"), expected)


@pytest.mark.parametrize("rule", ["centre", "any"])
def test_a_whole_map_is_rounded_as_the_official_resizing_rounds(rule):
    torch.manual_seed(0)
    patch = 1 if rule == "centre" else PATCH
    size = GRID[0] * patch, GRID[1] * patch

    def pooled(masks):
        resized = F.interpolate(masks[None], size, mode="bilinear", align_corners=False)
        return F.max_pool2d(resized[0], patch)

    masks = smooth(20, 96, 128)
    # A cell of each mask is at the threshold, but for rounding.
    masks = masks - pooled(masks)[:, 2, 3, None, None]
    expected = pooled(masks) > 0 if rule == "centre" else pooled(masks) >= 0
    assert torch.equal(visible_cells(masks, GRID, PATCH, binarise=rule), expected)


def test_a_fraction_of_the_map_is_that_part_cut_out():
    masks = smooth(9, 20, 42)
    part = masks[:, :10, :28]
    # Only cells whose samples do not reach over the cut are the same.
    whole = visible_cells(masks, GRID, PATCH, fraction=(10 / 20, 28 / 42))[:, :-1, :-1]
    assert torch.equal(whole, visible_cells(part, GRID, PATCH)[:, :-1, :-1])


def test_small_masks_fall_back_to_any_touched_cell_and_the_others_do_not():
    masks = torch.full((3, 30, 42), -4.0)
    masks[0, 6:8, 6:8] = 4  # in the corner of cell (1, 1), away from its centre
    masks[1, 0:20, 0:20] = 4
    cells = visible_cells(masks, GRID, PATCH, binarise="centre_or_any")
    assert cells[0].nonzero().tolist() == [[1, 1]]
    assert torch.equal(cells[1:], visible_cells(masks[1:], GRID, PATCH, binarise="centre"))
    assert not cells[2].any()


@pytest.mark.parametrize("binarise", BINARISATIONS)
def test_padding_is_never_visible(binarise):
    cells = visible_cells(torch.ones(1, 8, 8), (4, 4), 10, shown=(26, 40), binarise=binarise)
    # The centre of the third row, 25, is inside; that of the fourth is not, nor is any pixel.
    assert cells[0].any(dim=1).tolist() == [True, True, True, False]


def test_masks_without_a_positive_logit_are_not_resampled(monkeypatch):
    resampled = []
    monkeypatch.setattr(
        clip_branches, "_resample", lambda masks, *_: resampled.append(masks) or masks
    )
    masks = torch.full((3, *GRID), -1.0)
    masks[1, 2, 3] = 0  # one half: visible
    cells = visible_cells(masks, GRID, 1)
    assert cells.nonzero().tolist() == [[1, 2, 3]]
    assert torch.equal(torch.cat(resampled), masks[1:2])


@pytest.mark.parametrize("binarise", BINARISATIONS)
def test_no_masks(binarise):
    assert visible_cells(torch.zeros(0, 8, 8), GRID, PATCH, binarise=binarise).shape == (0, 5, 7)
