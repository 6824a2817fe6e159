"""What a CPU computes in pieces, a GPU computes at once, with few operations: the numbers are the same."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench.accelerator import ACCELERATOR, Accelerator, on_host
from bench.launches import Launches
from clipself_seg.clip import layers, runtime
from clipself_seg.clip.layers import QuickGELU
from clipself_seg.clip.runtime import chunk_size
from clipself_seg.heads.cat_seg import attention, outputs
from clipself_seg.heads.cat_seg.attention import ClassAggregation
from clipself_seg.heads.cat_seg.cost_aggregator import (
    AggregatorSizes,
    ClassLogits,
    CostAggregator,
    Guidance,
)
from clipself_seg.heads.cat_seg.outputs import sliding_probabilities
from clipself_seg.heads.fvit import masks
from clipself_seg.heads.fvit.masks import MaskHead, paste_masks
from clipself_seg.heads.fvit.pyramid import FeaturePyramid, TapResizers
from clipself_seg.heads.panoptic import clip_branches, panoptic_merge
from clipself_seg.heads.panoptic.clip_branches import visible_cells
from clipself_seg.heads.panoptic.panoptic_merge import (
    canvas_labels,
    first_best,
    merge_instances,
    merge_panoptic,
    resize_masks,
    semantic_labels,
)
from clipself_seg.heads.windows import WindowLayout, best_class

GPU = torch.device("cuda")


def test_a_cpu_takes_what_its_cache_holds_and_a_gpu_what_its_memory_holds(monkeypatch):
    monkeypatch.setattr(runtime, "CHUNK_ELEMENTS", 1000)
    assert chunk_size(torch.device("cpu"), 4, 10) == 4 and chunk_size(GPU, 4, 10) == 100
    assert chunk_size(torch.device("cpu"), 0, 10) == chunk_size(GPU, 4, 2000) == 1
    assert chunk_size(GPU, 4, 0) == 1000


def class_aggregation_of(tokens):
    torch.manual_seed(0)
    shape = {"width": 16, "guidance_width": 8, "heads": 2, "grid": (6, 6), "pad_to": 8}
    layer = ClassAggregation(pooling=1, **shape)
    return layer.to(tokens.device)(tokens.clone(), torch.ones(1, 5, 8, device=tokens.device))


def aggregator_of(dense):
    torch.manual_seed(0)
    sizes = AggregatorSizes(
        hidden=32,
        grid=(4, 4),
        window=2,
        text=8,
        appearance=8,
        pooling=(1, 1),
        pad_len=0,
        decoder_guidance=(4, 2),
        decoder_dims=(32, 16),
        decoder_guidance_projected=(8, 4),
    )
    aggregator = CostAggregator(sizes, classes_at_once=2).eval()
    noise = torch.Generator().manual_seed(1)
    first, second, texts = (
        torch.randn(shape, generator=noise).to(dense.device)
        for shape in ((4, 8, 8), (2, 16, 16), (6, 1, 8))
    )
    guidance = Guidance(dense, (first, second))
    return aggregator.to(dense.device)(dense, guidance, texts).logits


def labels_of_windows(logits):
    layout = WindowLayout(size=12, overlap=0.5, canvas=18)
    views = [ClassLogits(logits + number, None) for number in range(5)]
    return best_class(sliding_probabilities(views, 7, layout, (9, 14)), (9, 14))


def cells_of(binarise, logits):
    return visible_cells(logits, (4, 5), 4, shown=(14, 19), binarise=binarise)


def merged_from(logits):
    probs = torch.eye(10, 11, device=logits.device)
    ids, segments = merge_panoptic(probs, logits, range(4))
    scores = torch.tensor([segment["score"] for segment in segments])
    instances = merge_instances(probs, logits, range(4), 20)
    return ids, scores, semantic_labels(probs, logits), instances.pred_masks, instances.scores


def pasted_from(probs):
    boxes = 40 * torch.rand(10, 4, generator=torch.Generator().manual_seed(2)).to(probs.device)
    boxes = torch.cat([boxes[:, :2] - 8, boxes[:, :2] + boxes[:, 2:] + 0.5], dim=1)
    return paste_masks(probs.abs(), boxes, (30, 40))


def mask_logits_of(features):
    torch.manual_seed(0)
    return MaskHead(4).eval().to(features.device)(features)


def pyramid_of(taps):
    torch.manual_seed(0)
    resizers, pyramid = (
        part.eval().to(taps.device) for part in (TapResizers(6), FeaturePyramid(6, 4))
    )
    return pyramid(list(taps[:, None]), resizers)


MASKS = (10, 9, 13)
CANVAS = ((36, 52), (30, 50), (20, 33))  # with padding, the image on it, the original image
# What computes, from noise of which shape, the number that a CPU takes at once, and the most operations of a GPU.
CASES = {
    "activation": (lambda x: QuickGELU()(x.clone()), (30, 8), (layers, "CPU_NUMBERS"), 4),
    "class aggregation": (
        class_aggregation_of,
        (5, 36, 16),
        (attention, "VALUES_AT_ONCE"),
        48,
    ),
    "aggregator": (aggregator_of, (8, 4, 4), (attention, "VALUES_AT_ONCE"), 242),
    "windows": (labels_of_windows, (7, 6, 6), (outputs, "AT_ONCE"), 39),
    "first best": (lambda x: first_best(x.clone()), (40, 70), (panoptic_merge, "CPU_NUMBERS"), 2),
    "merge": (merged_from, MASKS, (panoptic_merge, "CPU_NUMBERS"), 78),
    "resized masks": (
        lambda x: resize_masks(x, *CANVAS),
        MASKS,
        (panoptic_merge, "CANVAS_NUMBERS"),
        3,
    ),
    "labels of resized scores": (
        lambda x: canvas_labels(torch.eye(10, 11, device=x.device), x, *CANVAS),
        MASKS,
        (panoptic_merge, "CLASS_NUMBERS"),
        24,
    ),
    "any cell": (partial(cells_of, "any"), MASKS, (clip_branches, "MASKS_AT_ONCE"), 8),
    "centre": (partial(cells_of, "centre_or_any"), MASKS, (clip_branches, "MASKS_AT_ONCE"), 25),
    "pasting": (pasted_from, (10, 7, 7), (masks, "PASTED"), 25),
    "mask head": (mask_logits_of, (10, 4, 14, 14), (masks, "ROIS"), 21),
    "pyramid": (pyramid_of, (4, 6, 8, 8), (masks, "ROIS"), 50),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_gpu_computes_at_once_what_a_cpu_computes_in_pieces(case, monkeypatch):
    compute, shape, (module, name), most = CASES[case]
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(module, name, 1)
    with Accelerator():
        there = values.to(ACCELERATOR)
    with Launches() as counted:
        computed = compute(there)
    moved = counted.operations["aten._to_copy"]  # weights and the like
    assert counted.operations.total() - moved <= most, counted.operations
    torch.testing.assert_close(on_host(computed), compute(values), atol=2e-6, rtol=2e-6)


@torch.no_grad()
def test_memory_bounds_what_a_gpu_computes_at_once(monkeypatch):
    with Launches() as counted:
        class_aggregation_of(torch.ones(5, 36, 16).to(ACCELERATOR))
    monkeypatch.setattr(runtime, "CHUNK_ELEMENTS", 12 * 5 * 16 * 18)  # half of the locations
    with Launches() as in_two:
        class_aggregation_of(torch.ones(5, 36, 16).to(ACCELERATOR))
    assert counted.operations["aten.native_layer_norm"] == 3  # one of them for the padding
    assert in_two.operations["aten.native_layer_norm"] == 5
