"""Labels of class scores that are made on the padded canvas, cut and resized, as FC-CLIP does for label maps alone."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import interpolate

from clipself_seg.heads.panoptic import mask_pieces, panoptic_merge
from clipself_seg.heads.panoptic.mask_pieces import resize_masks
from clipself_seg.heads.panoptic.panoptic_merge import canvas_labels, semantic_labels

# Masks, canvas, image on it, original image: made smaller, larger, not at all, and masks of the canvas's own size.
SIZES = [
    ((16, 24), (64, 96), (60, 75), (40, 50)),
    ((8, 8), (32, 32), (20, 31), (45, 61)),
    ((16, 24), (64, 96), (60, 75), (60, 75)),
    ((32, 32), (32, 32), (32, 32), (32, 32)),
]


def random_case(masks, queries=20, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probs = (2 * torch.randn(queries, classes + 1, generator=generator)).softmax(1)
    return probs, 4 * torch.randn(queries, *masks, generator=generator)


def plain_scores(probs, mask_logits, canvas, image, output):
    """Scores (K, H, W) in float64, a query and a class at a time, of the canvas as a whole."""
    scores = torch.zeros(probs.shape[1] - 1, *canvas, dtype=torch.float64)
    for probs_of_query, logits in zip(probs.double(), mask_logits.double()):
        mask = interpolate(logits[None, None], canvas, mode="bilinear")[0, 0].sigmoid()
        for label in range(len(scores)):
            scores[label] += probs_of_query[label] * mask
    cut = scores[:, : image[0], : image[1]]
    resized = [interpolate(one[None, None], output, mode="bilinear")[0, 0] for one in cut]
    return torch.stack(resized)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("numbers", [1, 2**25])
def test_labels_are_those_of_the_plain_order(sizes, numbers, monkeypatch):
    monkeypatch.setattr(mask_pieces, "CANVAS_NUMBERS", numbers)
    monkeypatch.setattr(panoptic_merge, "CLASS_NUMBERS", numbers)
    case = random_case(sizes[0])
    labels = canvas_labels(*case, *sizes[1:])
    scores = plain_scores(*case, *sizes[1:])
    assert labels.dtype == torch.int64 and labels.shape == sizes[3]
    best, second = scores.topk(2, dim=0).values
    sure = best - second > 1e-5
    assert sure.float().mean() > 0.99
    assert torch.equal(labels[sure], scores.argmax(0)[sure])


def test_labels_are_those_of_transformers_mask2former():
    """Its post-processing has this order for canvases of 384 pixels without padding."""
    theirs = pytest.importorskip("transformers", reason="needs transformers (the extra [dev])")
    probs, masks = random_case((24, 24))
    outputs = SimpleNamespace(
        class_queries_logits=probs.log()[None], masks_queries_logits=masks[None]
    )
    process = theirs.Mask2FormerImageProcessor().post_process_semantic_segmentation
    (expected,) = process(outputs, target_sizes=[(90, 130)])
    labels = canvas_labels(probs, masks, (384, 384), (384, 384), (90, 130))
    assert len(expected.unique()) > 4
    assert (
        labels != expected
    ).sum() <= 2  # of 11,700, where two classes are equal but for rounding


def test_a_row_of_pixels_by_hand():
    """Two pixels of a canvas of four become four: weights 1, 3/4, 1/4, 0 of the first one."""
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    # Class 0 scores 1/2 everywhere. Class 1 scores 0.982 and 0, so 0.737 and 0.246 between; on padding it would win.
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0]], [[4.0, -20.0, 9.0, 9.0]]])
    sizes = ((1, 4), (1, 2), (1, 4))
    assert canvas_labels(probs, logits, *sizes).tolist() == [[1, 1, 0, 0]]
    # Resized logits of the second pixel are 4 * 3/4 - 20 / 4 = -2, so class 1 scores 0.119 there.
    masks = resize_masks(logits, *sizes)
    assert masks[1, 0].tolist() == [4.0, -2.0, -14.0, -20.0]
    assert semantic_labels(probs, masks).tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize("numbers", [1, 2**25])
def test_of_equal_classes_the_first_wins_within_and_between_groups(numbers, monkeypatch):
    monkeypatch.setattr(panoptic_merge, "CLASS_NUMBERS", numbers)
    probs = torch.tensor([[0.1, 0.3, 0.3, 0.2, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2]])
    logits = torch.tensor([[[9.0, -9.0]], [[-200.0, 9.0]]])
    labels = canvas_labels(probs, logits, (1, 2), (1, 2), (1, 2))
    assert labels.tolist() == [[1, 1]]
    assert not canvas_labels(torch.full((2, 5), 0.2), logits, (1, 2), (1, 2), (1, 2)).any()


def test_memory_holds_some_classes_at_a_time(monkeypatch):
    """847 classes, of which sixteen are resized together."""
    image, output = (20, 30), (45, 60)
    numbers = 16 * (math.prod(image) + 3 * math.prod(output))
    monkeypatch.setattr(panoptic_merge, "CLASS_NUMBERS", numbers)
    case = random_case((8, 8), classes=847)
    expected = canvas_labels(*case, (32, 32), image, output)
    seen = []
    resize = panoptic_merge.resize_bilinear

    def resized(maps, size):
        seen.append(maps.shape[1])
        return resize(maps, size)

    monkeypatch.setattr(panoptic_merge, "resize_bilinear", resized)
    assert torch.equal(canvas_labels(*case, (32, 32), image, output), expected)
    assert max(seen) == 16 and sum(seen) == 847


def test_no_query_and_no_pixel_give_the_first_class_and_nothing():
    probs, masks = random_case((8, 8), queries=0)
    assert torch.equal(
        canvas_labels(probs, masks, (32, 32), (20, 31), (5, 6)), torch.zeros(5, 6).long()
    )
    assert canvas_labels(*random_case((8, 8)), (32, 32), (20, 31), (0, 6)).shape == (0, 6)


def test_probabilities_that_are_not_finite_are_refused():
    probs, masks = random_case((8, 8))
    probs[3, 2] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        canvas_labels(probs, masks, (32, 32), (20, 31), (5, 6))
