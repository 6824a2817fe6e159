"""Votes of masks by hand, and cells of masks by counting pixels."""

from __future__ import annotations

import pytest
import torch

from clipself_seg.heads.zero_shot.mask_votes import mask_cells, vote_in_masks
from clipself_seg.heads.zero_shot.windows import StridedWindows


def test_a_mask_has_the_class_of_most_of_its_pixels_and_their_mean_probability():
    labels = torch.tensor([[0, 1, 1, 2]])
    best = torch.tensor([[0.8, 0.2, 0.5, 0.9]])
    masks = torch.tensor([[[True, True, True, False]]])
    voted, probabilities = vote_in_masks(labels, best, masks, 3)
    assert voted.tolist() == [[1, 1, 1, 2]]
    assert probabilities[0].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.9])
    assert labels.tolist() == [[0, 1, 1, 2]]


def test_the_smallest_mask_counts_whatever_their_order_and_votes_are_of_what_was():
    labels = torch.tensor([[0, 0, 0, 1, 1]])
    large, small = [[True] * 5], [[False, False, True, True, True]]
    for masks in ([large, small], [small, large]):
        voted, _ = vote_in_masks(labels, torch.ones(1, 5), torch.tensor(masks), 2)
        assert voted.tolist() == [[0, 0, 1, 1, 1]]


def test_without_masks_or_with_an_empty_one_nothing_changes():
    labels, best = torch.tensor([[1, 0]]), torch.rand(1, 2)
    for masks in (torch.zeros(0, 1, 2).bool(), torch.zeros(1, 1, 2).bool()):
        voted, probabilities = vote_in_masks(labels, best, masks, 2)
        assert voted.equal(labels) and probabilities.equal(best)


@pytest.mark.parametrize("count", [0, 3, 20])
def test_a_cell_is_in_a_mask_that_covers_half_of_it(count):
    generator = torch.Generator().manual_seed(count)
    masks = torch.rand(count, 21, 27, generator=generator) < 0.5
    windows = StridedWindows(16, 8)
    cells = mask_cells(masks, (21, 27), windows, 8, 2)
    corners = windows.corners((21, 27))
    assert cells.shape == (len(corners), count, 4, 4) and cells.dtype == torch.bool
    for window, (top, left) in zip(cells, corners):
        for mask, own in zip(masks, window):
            cut = mask[top : top + 16, left : left + 16]
            covered = [
                [cut[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].sum() >= 8 for j in range(4)]
                for i in range(4)
            ]
            assert own.tolist() == covered


def test_masks_of_another_size_are_resized_and_what_is_padded_is_in_none():
    masks = torch.ones(1, 20, 40, dtype=torch.bool)
    cells = mask_cells(masks, (10, 20), StridedWindows(0, 1), 8, 2)
    assert cells.shape == (1, 1, 4, 6)
    # 10 x 20 pixels in cells of 4: the third row is half covered, the fourth not at all.
    assert cells[0, 0].int().tolist() == [[1, 1, 1, 1, 1, 0]] * 3 + [[0] * 6]
