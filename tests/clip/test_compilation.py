"""Compiled blocks: what they compute, in one graph each, and where the compiler is refused."""

from __future__ import annotations

import functools
import shutil

import pytest
import torch

from clipself_seg.clip import load_clip, runtime
from clipself_seg.clip.eva import EvaTransformer
from clipself_seg.clip.resnet import ResNetTower
from clipself_seg.clip.runtime import autocast
from clipself_seg.errors import InputError

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
    runtime._compiled_function.cache_clear()
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
    tower.compile_blocks()
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


@TOWERS
def test_bfloat16_differs_from_float32_by_its_rounding(make_tower):
    images = torch.randn(2, 3, 32, 32)
    low, full = (embeddings(make_tower(), images, p) for p in (torch.bfloat16, None))
    for one, other in zip(low, full):
        assert torch.cosine_similarity(one.float(), other, dim=1).min() > 0.999


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    resnet = ResNetTower(image_size=32, width=8, layers=(1, 1, 1, 1), embed_dim=8)
    with pytest.raises(InputError, match="MODEL.CLIP.COMPILE is True"):
        resnet.compile_blocks()
    monkeypatch.setattr(torch, "__version__", "2.4.1+cpu")
    with pytest.raises(InputError, match="needs torch 2.5 or later, here is 2.4.1"):
        eva_tower().compile_blocks()
