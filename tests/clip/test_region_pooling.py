"""One-matmul pooling against torchvision's RoIAlign and against naive loops."""

import pytest
import torch
from torchvision.ops import roi_align

from clipself_seg.clip import load_clip
from clipself_seg.clip.region_pooling import (
    box_cells,
    box_weights,
    mask_weights,
    pool,
    strided_box_weights,
)
from clipself_seg.errors import InputError


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


def test_boxes_of_whole_pixels_near_the_border_have_as_many_samples_as_in_roi_align():
    # From pixel 3 to 43 of 640 it is 3 of 48 cells, but for rounding.
    cells = 48
    features = torch.randn(1, cells, cells, generator=torch.Generator().manual_seed(0))
    edges = [(start, start + 40 * number) for start in range(10) for number in range(1, 15)]
    starts, ends = torch.tensor(edges).float().unbind(1)
    boxes = torch.stack([starts, torch.zeros_like(starts), ends, torch.full_like(ends, 640)], 1)
    boxes /= 640
    expected = roi_align(features[None], [boxes * cells], output_size=1, aligned=True)[..., 0, 0]
    pooled = pool(features, box_weights(boxes, (cells, cells)))
    torch.testing.assert_close(pooled, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("stride", [14, 16])
def test_boxes_in_pixels_are_scaled_as_in_roi_align(stride):
    # The border of an image is where proposals are cut off: 672 pixels are 48 cells of 14, but for rounding.
    features = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
    edges = [(start, stride * cells) for start in range(0, 30, 3) for cells in range(8, 65, 4)]
    starts, ends = torch.tensor(edges).float().unbind(1)
    boxes = torch.stack([starts, torch.zeros_like(starts), ends, ends], 1)
    aligned = {"output_size": 1, "spatial_scale": 1 / stride, "aligned": True}
    expected = roi_align(features[None], [boxes], **aligned)[..., 0, 0]
    pooled = pool(features, strided_box_weights(boxes, stride, (64, 64)))
    torch.testing.assert_close(pooled, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_box_weights_are_those_of_float32_under_autocast(precision):
    boxes = torch.tensor([[0.1, 0.2, 0.77, 0.9], [0.013, 0.3, 0.4, 0.451]])
    with torch.autocast("cpu", precision):
        weights = box_weights(boxes, (64, 64))
    assert torch.equal(weights, box_weights(boxes, (64, 64)))


def test_degenerate_box_has_no_weight():
    assert not box_weights(torch.tensor([[0.3, 0.2, 0.3, 0.9]]), (4, 4)).any()


def test_no_boxes_give_no_embeddings():
    assert pool(torch.randn(3, 4, 4), box_weights(torch.empty(0, 4), (4, 4))).shape == (0, 3)


@pytest.mark.parametrize("masked_attention", [False, True])
def test_a_batch_of_no_images_gives_no_embeddings(masked_attention):
    clip, images = load_clip("ViT-Mini-8", None), torch.empty(0, 3, 64, 64)
    for read in (clip.encode_boxes, clip.encode_masks):
        assert read(images, [], masked_attention).shape == (0, clip.embed_dim)


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


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 64.0, 1e6, -1.5])
def test_boxes_in_pixels_and_boxes_that_are_no_numbers_are_refused(mini, masked, wrong):
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, wrong, 0.5]])
    with pytest.raises(InputError, match=r"in \[0, 1\] \(divide .*number 1 .* \[0.0, 0.0"):
        mini.encode_boxes(torch.zeros(1, 3, 64, 64), [boxes], masked)


@pytest.mark.parametrize("masked", [False, True])
def test_boxes_that_reach_over_the_edge_are_read(mini, masked):
    boxes = [torch.tensor([[-0.25, -0.25, 0.75, 1.25], [-1.0, -1.0, 2.0, 2.0]])]
    with torch.no_grad():
        read = mini.encode_boxes(torch.zeros(1, 3, 64, 64), boxes, masked)
    torch.testing.assert_close(read.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("masked", [False, True])
def test_masks_that_are_no_numbers_are_refused(mini, masked):
    masks = torch.ones(2, 8, 8)
    masks[1, 3, 4] = torch.nan
    with pytest.raises(InputError, match="masks must be finite numbers, but number 1"):
        mini.encode_masks(torch.zeros(1, 3, 64, 64), [masks], masked)


def test_what_is_no_tensor_is_refused_by_its_type(mini):
    image, boxes = torch.zeros(1, 3, 64, 64), [[0.0, 0.0, 1.0, 1.0]]
    with pytest.raises(InputError, match=r"boxes .*a tensor \(n, 4\) for each, .*got \[.list"):
        mini.encode_boxes(image, [boxes])
    with pytest.raises(InputError, match=r"masks .*tensor \(n, 8, 8\) .*got \[.ndarray"):
        mini.encode_masks(image, [torch.ones(1, 8, 8).numpy()])
