"""One-matmul pooling against torchvision's RoIAlign and against naive loops."""

from __future__ import annotations

import torch
from torchvision.ops import roi_align

from clipself_seg.clip.region_pooling import box_cells, box_weights, mask_weights, pool


def test_box_weights_equal_roi_align_on_random_boxes_inside_and_outside():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 9, 13, generator=generator)
    corners = torch.rand(300, 2, 2, generator=generator) * 1.4 - 0.2
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=-1)
    boxes[:20, 2:] = boxes[:20, :2] + 1e-3  # far below one cell
    scaled = boxes * torch.tensor([13.0, 9.0, 13.0, 9.0])
    expected = roi_align(features[None], [scaled], output_size=1, aligned=True)[..., 0, 0]
    torch.testing.assert_close(
        pool(features, box_weights(boxes, (9, 13))), expected, atol=1e-5, rtol=0
    )


def test_the_whole_image_is_the_mean_of_all_cells():
    weights = box_weights(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), (4, 5))
    torch.testing.assert_close(weights, torch.full((1, 4, 5), 1 / 20))


def test_box_of_one_cell_reads_that_cell():
    weights = box_weights(torch.tensor([[0.25, 0.5, 0.5, 0.75]]), (4, 4))
    assert weights.nonzero().tolist() == [[0, 2, 1]]


def test_degenerate_box_has_no_weight():
    assert not box_weights(torch.tensor([[0.3, 0.2, 0.3, 0.9]]), (4, 4)).any()


def test_no_boxes_give_no_embeddings():
    assert pool(torch.randn(3, 4, 4), box_weights(torch.empty(0, 4), (4, 4))).shape == (0, 3)


def test_masks_are_averaged_and_an_empty_mask_gives_zero():
    features, masks = torch.randn(5, 3, 4), torch.rand(4, 3, 4) > 0.5
    masks[2] = False
    pooled = pool(features, mask_weights(masks))
    for row, mask in zip(pooled, masks):
        expected = features[:, mask].mean(1) if mask.any() else torch.zeros(5)
        torch.testing.assert_close(row, expected)


def test_gradient_reaches_exactly_the_cells_of_the_region():
    features = torch.randn(2, 4, 4, requires_grad=True)
    pool(features, box_weights(torch.tensor([[0.0, 0.0, 0.5, 0.5]]), (4, 4))).sum().backward()
    touched = features.grad[0] != 0
    assert touched[:2, :2].all() and touched.sum() == 4


def test_masked_attention_sees_floor_to_floor_cells_of_a_box():
    cells = box_cells(torch.tensor([[0.3, 0.1, 0.8, 0.9], [0.3, 0.1, 0.4, 0.2]]), (4, 4))
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0:3, 1:3] = True  # floor(0.4)..floor(3.6), floor(1.2)..floor(3.2)
    assert torch.equal(cells[0], expected) and not cells[1].any()
