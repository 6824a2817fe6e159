"""Sizes of chunks, random parameters, what blocks keep for the backward pass, and compiled blocks."""

import functools
import shutil
from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from bench.accelerator import ACCELERATOR, Accelerator, on_host
from clipself_seg.clip import block_calls, layers, load_clip, runtime
from clipself_seg.clip.block_calls import run_block
from clipself_seg.clip.eva import EvaBlock, EvaTransformer
from clipself_seg.clip.find_kind import find_architecture
from clipself_seg.clip.layers import QuickGELU, Transformer, initialise_blocks
from clipself_seg.clip.levers import Lever
from clipself_seg.clip.model import CLIP
from clipself_seg.clip.positions import rotary_factors
from clipself_seg.clip.precision import autocast, lower_precision, tf32
from clipself_seg.clip.resnet import ResNetTower
from clipself_seg.clip.runtime import chunk_size, without_values
from clipself_seg.clip.tower import TowerOptions
from clipself_seg.errors import InputError
from clipself_seg.heads.cat_seg import attention, cost_aggregator
from clipself_seg.heads.cat_seg.attention import ClassAggregation
from clipself_seg.heads.cat_seg.cost_aggregator import (
    AggregatorSizes,
    ClassLogits,
    CostAggregator,
    Guidance,
    kept_classes,
    sliding_probabilities,
)
from clipself_seg.heads.fvit import roi_heads
from clipself_seg.heads.fvit.pyramid import FeaturePyramid, TapResizers
from clipself_seg.heads.fvit.roi_heads import MaskHead
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
from tests.launches import Launches

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
    (made,) = aggregator.to(dense.device)(dense[None], [guidance], texts)
    return made.logits


def labels_of_windows(logits):
    layout = WindowLayout(size=12, overlap=0.5, canvas=18)
    views = [ClassLogits(logits + number, None) for number in range(5)]
    return best_class(
        sliding_probabilities(views, kept_classes(views, 7), layout, (9, 14)), (9, 14)
    )


def cells_of(binarise, logits):
    return visible_cells(logits, (4, 5), 4, shown=(14, 19), binarise=binarise)


def merged_from(logits):
    probs = torch.eye(10, 11, device=logits.device)
    ids, segments = merge_panoptic(probs, logits, range(4))
    scores = torch.tensor([segment["score"] for segment in segments])
    instances = merge_instances(probs, logits, range(4), 20)
    return ids, scores, semantic_labels(probs, logits), instances.pred_masks, instances.scores


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
    "class aggregation": (class_aggregation_of, (5, 36, 16), (attention, "VALUES_AT_ONCE"), 48),
    "aggregator": (aggregator_of, (8, 4, 4), (attention, "VALUES_AT_ONCE"), 242),
    "windows": (labels_of_windows, (7, 6, 6), (cost_aggregator, "AT_ONCE"), 39),
    "first best": (lambda x: first_best(x.clone()), (40, 70), (panoptic_merge, "CPU_NUMBERS"), 2),
    "merge": (merged_from, MASKS, (panoptic_merge, "CPU_NUMBERS"), 79),
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
    "mask head": (mask_logits_of, (10, 4, 14, 14), (roi_heads, "ROIS"), 21),
    "pyramid": (pyramid_of, (4, 6, 8, 8), (roi_heads, "ROIS"), 50),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
@pytest.mark.cpu
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


def test_torchs_newer_name_of_the_tf32_setting_is_left_as_it_was():
    setting, cuda = torch.backends.cuda.matmul, torch.device("cuda")
    before = setting.fp32_precision
    try:
        setting.fp32_precision = "tf32"
        with tf32(False):
            assert setting.fp32_precision == "ieee" and lower_precision(cuda) == (None, False)
        assert setting.fp32_precision == "tf32" and lower_precision(cuda) == (None, "tf32")
    finally:
        setting.fp32_precision = before
    assert setting.allow_tf32 is False  # both names agree again


def test_contexts_of_tf32_that_overlap_leave_the_setting_as_it_was():
    cuda, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    cuda.allow_tf32 = True
    try:
        first, second = tf32(False), tf32(False)  # of two threads
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not cuda.allow_tf32
        second.__exit__(None, None, None)
        assert cuda.allow_tf32
        with tf32(True), tf32(False):
            assert not cuda.allow_tf32
        assert cuda.allow_tf32
    finally:
        cuda.allow_tf32 = before


def test_a_clip_without_values_draws_nothing():
    before = torch.get_rng_state()
    architecture = find_architecture("ViT-Mini-8")
    with without_values():
        clip = CLIP(architecture=architecture, quick_gelu=True)
    assert all(p.is_meta for p in clip.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    assert not nn.init.normal_(torch.zeros(64)).eq(0).any()  # outside all is as it was


ALL, SELECTED, INPUT = "all", "selected", "input"


@pytest.fixture(params=["OpenAI", "EVA", "EVA, many tokens"])
def block_and_others(request, monkeypatch):
    torch.manual_seed(0)
    if "many" in request.param:
        monkeypatch.setattr(layers, "MANY_TOKENS", 1)
        monkeypatch.setattr(layers.ATTENTION, "chosen", True)
    if request.param == "OpenAI":
        transformer = Transformer(1, width=64, heads=2, quick_gelu=True)
        initialise_blocks(transformer.resblocks)
        return transformer.resblocks[0], ()
    return EvaBlock(width=64, heads=2, hidden=176), (
        rotary_factors((7, 9), 32, torch.empty(0).device),
    )


class Operations(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[operator.overloadpacket.__name__] += 1
        return operator(*args, **(kwargs or {}))


def run(kept, block, others, monkeypatch):
    """Result, gradients, the backward pass's operators, and bytes alive after the forward pass."""
    monkeypatch.setattr(block_calls, "FEWEST_ELEMENTS", 10**9 if kept == ALL else 0)
    torch.manual_seed(1)
    x = torch.randn(2, 64, 64, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = run_block(block, x, *others, checkpointing=kept == INPUT)
    alive = sum(event.self_cpu_memory_usage for event in profiled.key_averages())
    with Operations() as operations:
        gradients = torch.autograd.grad(result.square().sum(), [x, *block.parameters()])
    return [result, *gradients], operations.counts, alive


def test_every_choice_has_the_same_bits(block_and_others, monkeypatch):
    plain, *others = (
        run(kept, *block_and_others, monkeypatch)[0] for kept in (ALL, SELECTED, INPUT)
    )
    for found in others:
        for one, other in zip(found, plain, strict=True):
            assert torch.equal(one, other)


def test_no_product_and_no_attention_is_computed_twice(block_and_others, monkeypatch):
    plain, selected, whole = (
        run(kept, *block_and_others, monkeypatch)[1] for kept in (ALL, SELECTED, INPUT)
    )
    heavy = [name for name in whole if name.endswith("mm") or "dot_product" in name]
    assert {name: plain[name] for name in heavy} == {name: selected[name] for name in heavy}
    # Of the checkpointed block neither attention nor the product that narrows, but all others.
    again = {name: whole[name] - plain[name] for name in heavy if whole[name] > plain[name]}
    assert sum(again.values()) == (2 + 1 if len(block_and_others[1]) == 0 else 3 + 1 + 2)
    assert not any("dot_product" in name for name in again)
    assert plain["native_layer_norm"] == 0 < selected["native_layer_norm"]


def test_a_lever_is_tested_outside_of_the_modes_of_its_first_use():
    with Operations() as operations:
        assert Lever(lambda: True, layers._results).chosen
    assert not operations.counts


def test_bytes_kept_fall_from_choice_to_choice(block_and_others, monkeypatch):
    plain, selected, whole = (
        run(kept, *block_and_others, monkeypatch)[2] for kept in (ALL, SELECTED, INPUT)
    )
    assert selected < 0.72 * plain
    assert whole < 0.4 * selected


def test_without_gradients_and_below_the_threshold_the_block_is_simply_called(monkeypatch):
    calls = []
    monkeypatch.setattr(block_calls, "checkpoint", lambda *args, **kwargs: calls.append(1))
    x = torch.ones(2, 3, requires_grad=True)
    assert torch.equal(run_block(torch.neg, x, checkpointing=False), -x)
    with torch.no_grad():
        assert torch.equal(run_block(torch.neg, x, checkpointing=True), -x)
    assert not calls
    run_block(torch.neg, x, checkpointing=True)
    assert calls


CPU = torch.device("cpu")
COMPILER = shutil.which("c++") is not None


def openai_tower():
    torch.manual_seed(0)
    return load_clip("ViT-Mini-8", None).visual


def eva_tower():
    torch.manual_seed(0)
    return EvaTransformer(
        image_size=32, patch_size=8, width=64, layers=3, heads=2, hidden=96, embed_dim=16
    )


TOWERS = pytest.mark.parametrize("make_tower", [openai_tower, eva_tower])


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that were compiled, which compute as they are."""
    compiled = []

    def kept(graph, inputs):
        compiled.append(graph)
        return graph

    _use(monkeypatch, kept)
    yield compiled
    _forget()


def _use(monkeypatch, backend):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    _forget()


def _forget():
    block_calls._compiled_function.cache_clear()
    torch._dynamo.reset()


def dense_and_gradients(tower, images, precision=None):
    """Dense features, and gradients of their mean square in the blocks."""
    with autocast(CPU, precision):
        dense = tower.dense(images)
    learning = list(tower.blocks.parameters())
    gradients = torch.autograd.grad(dense.float().square().mean(), learning, allow_unused=True)
    return [dense.detach(), *(gradient for gradient in gradients if gradient is not None)]


@torch.no_grad()
def embeddings(tower, images, precision=None):
    """Embeddings of images, dense features, and embeddings by masked attention."""
    masks = [torch.eye(images.shape[2] // tower.patch_size, dtype=torch.bool)[None]] * len(images)
    with autocast(CPU, precision):
        return [tower(images), tower.dense(images), tower.masked_attention(images, masks)]


def difference(compute, make_tower, precision=None, checkpointing=False):
    """Largest difference of compiled from eager blocks, as a fraction of the largest value of a tensor."""
    images = torch.randn(2, 3, 32, 32)
    plain = compute(make_tower(), images, precision)
    tower = make_tower()
    tower.configure(TowerOptions(compiled=True))
    tower.checkpointing = checkpointing
    results = compute(tower, images, precision)
    return max(
        float((one.float() - other.float()).abs().max() / other.float().abs().max())
        for one, other in zip(results, plain, strict=True)
    )


@TOWERS
def test_all_blocks_are_one_graph_without_breaks_and_compute_the_same(graphs, make_tower):
    assert difference(dense_and_gradients, make_tower) < 1e-6
    # The forward pass of a block, and the value path of the last one.
    assert len(graphs) == 2


@pytest.mark.heavy
@TOWERS
def test_every_method_of_a_block_is_one_graph(graphs, make_tower):
    assert difference(embeddings, make_tower) < 1e-6
    assert len(graphs) == 3
    assert difference(embeddings, make_tower, torch.bfloat16) == 0


@pytest.mark.heavy
@TOWERS
def test_blocks_that_are_compiled_and_recomputed_have_the_same_gradients(monkeypatch, make_tower):
    _use(monkeypatch, "aot_eager")
    assert difference(dense_and_gradients, make_tower, checkpointing=True) < 1e-5
    _forget()


@pytest.mark.heavy
@pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler on a CPU")
@TOWERS
@pytest.mark.parametrize("compute", [embeddings, dense_and_gradients])
@pytest.mark.parametrize("precision, tolerance", [(None, 1e-5), (torch.bfloat16, 0.05)])
def test_compiled_blocks_differ_by_rounding(make_tower, compute, precision, tolerance):
    assert difference(compute, make_tower, precision) < tolerance
    _forget()


def test_what_cannot_be_compiled_is_refused():
    resnet = ResNetTower(image_size=32, width=8, layers=(1, 1, 1, 1), embed_dim=8)
    with pytest.raises(InputError, match="MODEL.CLIP.COMPILE is True"):
        resnet.configure(TowerOptions(compiled=True))


def test_weights_that_autocast_has_cast_before_are_cast_again():
    """torch refuses an operator of the backward pass that the forward pass did not have."""
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    gradients = []
    for call in (block_calls.recomputed, lambda layer, x: layer(x)):
        with torch.autocast("cpu", torch.bfloat16):
            result = call(layer, x) + call(layer, 2 * x)
        gradients.append(torch.autograd.grad(result.float().sum(), layer.weight))
    torch.testing.assert_close(*gradients, rtol=0.01, atol=0.1)  # sums of bfloat16 in another order
