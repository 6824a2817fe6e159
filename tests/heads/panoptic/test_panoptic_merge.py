"""From class scores and masks to segments, classes of pixels and instances: by hand, and against plain formulations."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from bench.plain_panoptic import plain_panoptic
from clipself_seg.data.mappers.panoptic import PanopticTestMapper
from clipself_seg.data.masks import EncodedMasks
from clipself_seg.heads.fusion import fuse_scores
from clipself_seg.heads.panoptic import panoptic_merge
from clipself_seg.heads.panoptic.panoptic_merge import (
    canvas_labels,
    first_best,
    merge_instances,
    merge_panoptic,
    merge_semantic,
    resize_masks,
    semantic_labels,
)
from tests.conftest import PARITY
from tests.parity.named_weights import named_input
from tests.parity.uniform_numbers import uniform

CASE = PARITY / "odise_panoptic_merge.npz"
THINGS = [0, 2, 3]
# Masks, canvas, image on it, original image: made smaller, larger, not at all, and masks of the canvas's own size.
SIZES = [
    ((16, 24), (64, 96), (60, 75), (40, 50)),
    ((8, 8), (32, 32), (20, 31), (45, 61)),
    ((16, 24), (64, 96), (60, 75), (60, 75)),
    ((32, 32), (32, 32), (32, 32), (32, 32)),
]


@pytest.fixture(scope="module")
def case():
    return {key: torch.from_numpy(value) for key, value in np.load(CASE).items()}


@pytest.fixture
def official(case):
    return (
        case["class_log_probs"].softmax(1),
        case["mask_logits"].float(),
        case["things"].tolist(),
    )


def random_queries(queries=40, classes=6, size=(48, 64), scale=3.0):
    """Smooth blobs, so that masks have an inside."""
    probs = (2 * torch.randn(queries, classes + 1)).softmax(1)
    coarse = torch.randn(1, queries, 6, 8)
    masks = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0]
    return probs, scale * (masks - 0.5)


@pytest.fixture
def small_pieces(monkeypatch):
    """Every image takes several pieces."""
    monkeypatch.setattr(panoptic_merge, "CPU_NUMBERS", 1)


def assert_same_panoptic(merged, expected):
    assert torch.equal(merged[0], expected[0]) and merged[1] == expected[1]
    assert all(type(segment["isthing"]) is bool for segment in merged[1])


# --- Panoptic


@pytest.mark.parametrize(
    "suffix, thresholds", [("", ()), ("_obj0.4_ov0.5", (0.4, 0.5)), ("_obj0.999", (0.999, 0.8))]
)
def test_official_panoptic_maps(case, official, suffix, thresholds):
    ids, segments = merge_panoptic(*official, *thresholds)
    assert torch.equal(ids, case[f"panoptic{suffix}"].long())
    rows = [[s["id"], s["isthing"], s["category_id"]] for s in segments]
    assert rows == case[f"segments{suffix}"].tolist()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.8])
def test_random_queries_give_what_the_loop_gives(seed, overlap):
    torch.manual_seed(seed)
    inputs = random_queries()
    merged = merge_panoptic(*inputs, THINGS, 0.1 * (seed % 3), overlap)
    assert_same_panoptic(merged, plain_panoptic(*inputs, THINGS, 0.1 * (seed % 3), overlap))
    assert overlap == 0.8 or len(merged[1]) > 2


@pytest.mark.parametrize("seed", range(6))
def test_ties_go_to_the_first_query_and_class_as_in_the_loop(seed, small_pieces):
    torch.manual_seed(seed)
    probs, masks = random_queries()
    probs = (2 * probs).round().add(0.25)  # many equal scores, of void and of classes
    probs /= probs.sum(1, keepdim=True)
    masks = (masks / 4).round() * 4  # many equal masks, many logits of exactly 0
    merged = merge_panoptic(probs, masks, THINGS, 0.0, 0.0)
    assert_same_panoptic(merged, plain_panoptic(probs, masks, THINGS, 0.0, 0.0))
    assert merged[1]


@pytest.mark.parametrize("threshold, kept", [(0.5, 2), (0.51, 1)])
def test_a_query_that_wins_just_the_threshold_of_its_mask_stays(threshold, kept):
    # The second query wins two of its four pixels.
    masks = torch.tensor([[9.0, 9, -9, -9], [9, 9, 9, 9]])[:, None]
    probs = torch.tensor([[0.9, 0.0, 0.1], [0.0, 0.6, 0.4]])
    assert len(merge_panoptic(probs, masks, [1], 0.0, threshold)[1]) == kept


def test_nothing_kept_and_no_query_give_an_empty_map():
    for queries in (3, 0):
        void = torch.tensor([0.1, 0.1, 0.8]).repeat(queries, 1)
        ids, segments = merge_panoptic(void, torch.ones(queries, 4, 5), [0])
        assert ids.shape == (4, 5) and not ids.any() and segments == []


# --- Semantic


def test_official_semantic_scores(case, official):
    scores = merge_semantic(*official[:2])
    expected = case["semantic_scores"]
    torch.testing.assert_close(scores[:, ::4, ::4], expected, rtol=0, atol=1e-5)
    assert torch.equal(scores.argmax(0), case["semantic_argmax"].long())
    assert torch.equal(semantic_labels(*official[:2]), case["semantic_argmax"].long())


def test_semantic_scores_are_sums_over_queries(small_pieces):
    probs, masks = random_queries(7, 3, (5, 6))
    scores = torch.zeros(3, 5, 6)
    for query in range(7):
        scores += probs[query, :3, None, None] * masks[query].sigmoid()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(merge_semantic(probs, masks), scores)
        assert torch.equal(semantic_labels(probs, masks), scores.argmax(0))
    assert not merge_semantic(probs[:0], masks[:0]).any()


def test_the_first_of_equal_rows_is_the_best():
    values = torch.tensor([[0.0, -1, 2], [3, -1, 2], [3, -5, 2], [1, -1, 2]])
    best, first = first_best(values.clone())
    assert best.tolist() == [3, -1, 2] and first.tolist() == [1, 0, 0]


# --- Instances


@pytest.mark.parametrize(
    "name, top_k, things", [("", 100, True), ("_top40", 40, True), ("_allclasses", 100, False)]
)
def test_official_instances(case, official, name, top_k, things):
    probs, masks, thing_ids = official
    merged = merge_instances(
        probs, masks, thing_ids if things else range(probs.shape[1] - 1), top_k
    )
    check_instances(merged, case, f"instance{name}", masks)


def check_instances(merged, case, prefix, masks, slack=0):
    """Against rows sorted by falling score, then query, then label."""
    areas = merged.pred_masks.flatten(1).sum(1)
    # The query of each instance by its mask; several empty ones are ambiguous.
    same = (merged.pred_masks[:, None] == (masks > 0)[None]).flatten(2).all(2)
    queries = torch.where(same.sum(1) == 1, same.int().argmax(1), -1)
    rows = zip(
        merged.scores.tolist(), queries.tolist(), merged.pred_classes.tolist(), areas.tolist()
    )
    rows = sorted(rows, key=lambda row: (-row[0], row[1], row[2]))
    scores, *whole = (torch.tensor(column) for column in zip(*rows))
    torch.testing.assert_close(scores, case[f"{prefix}_scores"], rtol=0, atol=1e-6)
    for merged_values, key in zip(whole, ("queries", "labels", "areas")):
        difference = (merged_values - case[f"{prefix}_{key}"]).abs().max()
        assert difference <= (slack if key == "areas" else 0), key


@pytest.mark.parametrize("tied", [False, True])
def test_random_instances_are_those_of_the_loop(tied, small_pieces):
    probs, masks = random_queries(12, 5, (9, 13))
    probs = (2 * probs).round() if tied else probs
    pairs = [(-probs[q, k].item(), q, k) for q in range(12) for k in range(5)]
    expected = [(s, q, k) for s, q, k in sorted(pairs)[:20] if k in THINGS]
    merged = merge_instances(probs, masks, THINGS, 20)
    assert merged.image_size == (9, 13) and len(merged) == len(expected) > 3
    assert merged.pred_boxes.tensor.shape == (len(merged), 4) and not merged.pred_boxes.tensor.any()
    for index, (score, query, label) in enumerate(expected):
        inside = masks[query] > 0
        mean = (masks[query].sigmoid() * inside).sum() / (inside.sum() + 1e-6)
        assert merged.scores[index].item() == pytest.approx(-score * mean.item(), abs=1e-6)
        assert merged.pred_classes[index] == label
        assert torch.equal(merged.pred_masks[index], inside)


def test_fewer_pairs_than_top_k_and_no_query_are_fine():
    probs, masks = random_queries(2, 3)
    assert len(merge_instances(probs, masks, range(3))) == 6
    empty = merge_instances(probs[:0], masks[:0], [0])
    assert len(empty) == 0 and empty.pred_masks.shape == (0, 48, 64)


# --- From the generator's masks to the image


def test_official_outputs_of_resized_masks(case):
    void = case["resized_object_void_logits"].softmax(1)[:, 1]
    logits = case["resized_generator_logits"]
    seen = torch.ones(logits.shape[1], dtype=torch.bool)
    probs = fuse_scores(logits, torch.zeros_like(logits), void, seen, 0, 0)
    torch.testing.assert_close(probs, case["resized_class_log_probs"].softmax(1), rtol=0, atol=1e-6)
    sizes = [tuple(case[f"resized_{name}"].tolist()) for name in ("canvas", "image_size")]
    output_size = tuple(case["resized_output_size"].tolist())
    masks = resize_masks(case["resized_mask_logits"], *sizes, output_size)
    torch.testing.assert_close(
        masks[:, ::4, ::4], case["resized_mask_logits_out"], rtol=0, atol=1e-4
    )
    things = case["things"].tolist()
    ids, segments = merge_panoptic(probs, masks, things)
    assert (ids != case["resized_panoptic"]).sum() <= 5
    rows = [[s["id"], s["isthing"], s["category_id"]] for s in segments]
    assert rows == case["resized_segments"].tolist()
    assert (semantic_labels(probs, masks) != case["resized_semantic_argmax"]).sum() <= 5
    check_instances(merge_instances(probs, masks, things), case, "resized_instance", masks, 5)


@pytest.mark.parametrize("image, output", [((60, 75), (400, 333)), ((64, 96), (200, 70))])
def test_outputs_of_a_large_image_are_those_of_all_masks_at_once(monkeypatch, image, output):
    sizes = ((64, 96), image, output)
    probs, masks = random_queries(11, 5, (16, 24))
    whole = resize_masks(masks, *sizes)
    monkeypatch.setattr(panoptic_merge, "COLUMN_NUMBERS", 1)
    assert torch.equal(semantic_labels(probs, masks, sizes), semantic_labels(probs, whole))
    scores = merge_semantic(probs, whole)
    torch.testing.assert_close(merge_semantic(probs, masks, sizes), scores, rtol=1e-6, atol=1e-6)
    expected = merge_instances(probs, whole, THINGS, 20)
    resized = merge_instances(probs, masks, THINGS, 20, sizes)
    assert torch.equal(resized.pred_masks, expected.pred_masks)
    monkeypatch.setattr(panoptic_merge, "MASK_BYTES", 0)
    for found in (
        merge_instances(probs, masks, THINGS, 20, sizes),
        merge_instances(probs, whole, THINGS, 20),
    ):
        assert isinstance(found.pred_masks, EncodedMasks) and len(found) > 2
        assert np.array_equal(found.pred_masks.all(), expected.pred_masks.numpy())
        assert torch.equal(found.scores, expected.scores)
        sure = found.scores > found.scores.median()
        assert np.array_equal(found[sure].pred_masks.all(), expected.pred_masks[sure].numpy())


def test_no_query_is_resized_to_no_mask():
    assert resize_masks(torch.zeros(0, 6, 7), (24, 28), (20, 25), (40, 50)).shape == (0, 40, 50)


def test_merges_give_numbers_also_where_gradients_are_tracked():
    probs, masks = random_queries(4, 3)
    tracked = masks.clone().requires_grad_()
    expected = merge_instances(probs, masks, [0]).scores
    assert torch.equal(merge_instances(probs, tracked, [0]).scores, expected)


# --- What does not fit


@pytest.mark.parametrize("poisoned", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_named(poisoned):
    probs, masks = random_queries(4, 3)
    probs[1, 0] = poisoned
    for merge in (merge_semantic, semantic_labels):
        with pytest.raises(FloatingPointError, match="class probabilities"):
            merge(probs, masks)
    with pytest.raises(FloatingPointError, match="class probabilities"):
        canvas_labels(probs, masks, (48, 64), (48, 64), (5, 6))
    with pytest.raises(FloatingPointError, match="mask logits"):
        merge_panoptic(torch.eye(4), masks * math.nan, THINGS[:1])


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
    monkeypatch.setattr(panoptic_merge, "CANVAS_NUMBERS", numbers)
    monkeypatch.setattr(panoptic_merge, "CLASS_NUMBERS", numbers)
    case = random_case(sizes[0])
    labels = canvas_labels(*case, *sizes[1:])
    scores = plain_scores(*case, *sizes[1:])
    assert labels.dtype == torch.int64 and labels.shape == sizes[3]
    best, second = scores.topk(2, dim=0).values
    sure = best - second > 1e-5
    assert sure.float().mean() > 0.99
    assert torch.equal(labels[sure], scores.argmax(0)[sure])


@pytest.mark.parametrize("numbers", [1, 2**25])
def test_of_equal_classes_the_first_wins_within_and_between_groups(numbers, monkeypatch):
    monkeypatch.setattr(panoptic_merge, "CLASS_NUMBERS", numbers)
    probs = torch.tensor([[0.1, 0.3, 0.3, 0.2, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2]])
    logits = torch.tensor([[[9.0, -9.0]], [[-200.0, 9.0]]])
    labels = canvas_labels(probs, logits, (1, 2), (1, 2), (1, 2))
    assert labels.tolist() == [[1, 1]]
    assert not canvas_labels(torch.full((2, 5), 0.2), logits, (1, 2), (1, 2), (1, 2)).any()


@pytest.mark.cpu
def test_memory_holds_some_classes_at_a_time(monkeypatch):
    """847 classes, of which sixteen are resized together."""
    image, output = (20, 30), (45, 60)
    numbers = 16 * (math.prod(image) + 3 * math.prod(output))
    monkeypatch.setattr(panoptic_merge, "CLASS_NUMBERS", numbers)
    case = random_case((8, 8), classes=847)
    expected = canvas_labels(*case, (32, 32), image, output)
    seen = []
    resize = panoptic_merge.F.interpolate

    def resized(maps, size, **how):
        seen.append(maps.shape[1])
        return resize(maps, size, **how)

    monkeypatch.setattr(panoptic_merge.F, "interpolate", resized)
    assert torch.equal(canvas_labels(*case, (32, 32), image, output), expected)
    _, *classes = seen  # the masks, and then the scores
    assert max(classes) == 16 and sum(classes) == 847


def test_no_query_and_no_pixel_give_the_first_class_and_nothing():
    probs, masks = random_case((8, 8), queries=0)
    assert torch.equal(
        canvas_labels(probs, masks, (32, 32), (20, 31), (5, 6)), torch.zeros(5, 6).long()
    )
    assert canvas_labels(*random_case((8, 8)), (32, 32), (20, 31), (0, 6)).shape == (0, 6)


PMT = json.loads((PARITY / "pmt_inference.json").read_text())
PMT_THINGS = [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def pmt() -> dict[str, np.ndarray]:
    return dict(np.load(PARITY / "pmt_inference.npz"))


@pytest.fixture(scope="module")
def pmt_queries(pmt) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Class probabilities and masks of three images that the mapper has brought to the official size."""
    u = uniform(f"{PMT['tag']}:discs", (3, 24, 4))[..., None, None]
    cells = (torch.arange(24) + 0.5) / 24
    u0, u1, u2, u3 = u.unbind(2)
    distance = ((cells[:, None] - u0) ** 2 + (cells - u1) ** 2).sqrt()
    masks = (10 + 30 * u3) * (0.06 + 0.24 * u2 - distance)
    v = uniform(f"{PMT['tag']}:labels", (3, 24, 2))
    wanted = torch.nn.functional.one_hot((9 * v[..., 0]).long(), 9)
    logits = wanted * (2 + 6 * v[..., 1:]) + 0.3 * named_input(f"{PMT['tag']}:classes", (3, 24, 9))
    mapper = PanopticTestMapper(min_size=96, max_size=96)
    queries = []
    for i, (height, width) in enumerate(PMT["sizes"]):
        image = 0.5 + 0.25 * named_input(f"{PMT['tag']}:picture{i}", (3, height, width))
        pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        resized = mapper.resized(pixels)["image"]
        size = tuple(resized.shape[1:])
        padding = (0, 96 - size[1], 0, 96 - size[0])
        padded = torch.nn.functional.pad(torch.as_tensor(resized), padding)
        np.testing.assert_array_equal(padded, pmt["padded_pictures"][i])
        own = resize_masks(masks[i], (96, 96), size, (height, width))
        queries.append((logits[i].softmax(-1), own))
    return queries


@pytest.mark.parametrize("protocol", PMT["thresholds"])
def test_segments_of_plain_mask_transformers_are_official(pmt, pmt_queries, protocol):
    for i, (probs, masks) in enumerate(pmt_queries):
        ids, segments = merge_panoptic(probs, masks, PMT_THINGS, *PMT["thresholds"][protocol])
        rows = [(s["id"] - 1, s["category_id"]) for s in segments]
        assert rows == [tuple(row) for row in pmt[f"panoptic_{protocol}_segments{i}"].tolist()]
        differ = ids.numpy() - 1 != pmt[f"panoptic_{protocol}_segment{i}"]
        classes = np.array([8, *(s["category_id"] for s in segments)])[ids.numpy()]
        differ |= classes != pmt[f"panoptic_{protocol}_class{i}"]
        assert differ.sum() <= 3


def test_instances_of_plain_mask_transformers_are_official(pmt, pmt_queries):
    for i, (probs, masks) in enumerate(pmt_queries):
        found = merge_instances(probs, masks, range(probs.shape[1] - 1), PMT["top"])
        # By falling score, then label, as the case has them.
        order = np.lexsort((found.pred_classes.numpy(), -found.scores.numpy()))
        np.testing.assert_allclose(found.scores[order], pmt[f"instance_scores{i}"], atol=1e-6)
        np.testing.assert_array_equal(found.pred_classes[order], pmt[f"instance_labels{i}"])
        areas = found.pred_masks[order].sum((1, 2)).numpy()
        assert np.abs(areas - pmt[f"instance_areas{i}"]).max() <= 3


@pytest.mark.parametrize(("device", "groups"), [("cpu", [2, 2, 1]), ("meta", [5])])
def test_a_cpu_alone_resizes_segments_a_few_at_a_time(device, groups):
    masks, kept = torch.zeros(7, 4, 4, device=device), torch.arange(5, device=device)
    sizes = ((16, 16), (12, 16), (24, 32))
    parts = list(panoptic_merge._of_output_size(masks, kept, sizes))
    assert [part.stop - part.start for part, _, _ in parts] == groups
    assert all(resized.shape[1:] == (24, 32) for _, resized, _ in parts)
