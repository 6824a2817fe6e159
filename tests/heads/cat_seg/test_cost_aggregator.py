"""CAT-Seg's aggregator: golden numbers, and every shortcut against the plain formulation."""

import copy
import functools

import numpy as np
import pytest
import torch

from clipself_seg.clip import block_calls
from clipself_seg.heads.cat_seg.attention import linear_attention
from clipself_seg.heads.cat_seg.cost_aggregator import (
    AggregatorLayer,
    AggregatorSizes,
    ClassLogits,
    CostAggregator,
    Guidance,
    UpBlock,
)

SMALL = AggregatorSizes(
    **{"text": 12, "appearance": 12, "decoder_guidance": (6, 5), "hidden": 32, "heads": 2},
    **{"grid": (4, 4), "window": 2, "pooling": (1, 2), "text_projected": 8},
    **{"appearance_projected": 8, "decoder_dims": (16, 16), "pad_len": 0},
    decoder_guidance_projected=(4, 4),
)
# pooling, classes, pad_len -> mean, std, min, max and five values of the official aggregator.
GOLDEN = {
    (1, 5, 256): "0.0793735130 0.0856719155 -0.1656997153 0.3548954766 "
    "-0.0098439303 -0.0030330423 -0.0425326963 -0.0455003322 -0.0133228608",
    (1, 6, 4): "-33.3019493656 47.1627095584 -100 0.3751372420 "
    "-100 -100 -0.0263445118 -0.0263328929 -0.0047998897",
    (2, 5, 8): "0.0795144654 0.0842404945 -0.1599615153 0.3445924986 "
    "-0.0103152753 -0.0017691879 -0.0373382946 -0.0531024230 -0.0141906113",
}


def wave(shape: tuple[int, ...], a: float, b: float) -> torch.Tensor:
    values = np.sin(a * np.arange(np.prod(shape), dtype=np.float64) + b)
    return torch.from_numpy(values).reshape(shape)


def small_inputs(classes: int) -> tuple[torch.Tensor, list[Guidance], torch.Tensor]:
    guidance = Guidance(torch.randn(12, 4, 4), (torch.randn(6, 8, 8), torch.randn(5, 16, 16)))
    return torch.randn(1, 12, 4, 4), [guidance], torch.randn(classes, 1, 12)


def fill(module: torch.nn.Module) -> None:
    """Element j of the i-th tensor by name is 0.05 sin(0.37 j + i); norms' weights are 1 more."""
    state = module.state_dict()
    for index, name in enumerate(sorted(state)):
        values = 0.05 * wave(tuple(state[name].shape), 0.37, index)
        norm = name.endswith(".weight") and values.ndim == 1
        state[name].copy_(values + 1 if norm else values)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("case", GOLDEN)
@torch.no_grad()
def test_official_numbers_to_the_last_digit(case):
    pooling, classes, pad_len = case
    sizes = AggregatorSizes(pooling=(pooling, pooling), pad_len=pad_len)
    aggregator = CostAggregator(sizes, classes_at_once=2).double().eval()
    fill(aggregator)
    dense = wave((1, 512, 24, 24), 0.011, 0.3)[0]
    decoder = wave((256, 48, 48), 0.013, 0.1), wave((128, 96, 96), 0.017, 0.2)
    text = wave((classes, 1, 512), 0.023, 0.7)
    (result,) = aggregator(dense[None], [Guidance(dense, decoder)], text)
    logits = result.all_classes(classes)
    y, n = logits.flatten(), logits.numel()
    actual = [
        y.mean(),
        y.std(correction=0),
        y.min(),
        y.max(),
        y[0],
        y[1],
        y[n // 3],
        y[n // 2],
        y[-1],
    ]
    expected = torch.tensor([float(x) for x in GOLDEN[case].split()], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(actual), expected, atol=2e-10, rtol=1e-9)


@torch.no_grad()
def test_calling_the_aggregator_aggregates_through_the_forward_of_its_parts():
    aggregator = CostAggregator(SMALL)
    called = []
    for name, module in aggregator.named_modules():
        if isinstance(module, CostAggregator | AggregatorLayer | UpBlock):
            # A hook runs where a module is called, and not where another method of it is.
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    (result,) = aggregator(*small_inputs(3))
    assert isinstance(result, ClassLogits) and result.classes is None
    assert result.logits.shape == (3, 16, 16)
    assert called == ["layers.0", "layers.1", "decoder1", "decoder2", ""]


@pytest.mark.heavy
def test_compiled_blocks_give_the_same_logits_and_gradients_for_any_classes(monkeypatch):
    torch._dynamo.reset()
    block_calls._compiled_function.cache_clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    aggregator = CostAggregator(SMALL, classes_at_once=2)
    compiled = copy.deepcopy(aggregator)
    compiled.compile_blocks()
    for classes in (1, 2, 3, 5):
        inputs = small_inputs(classes)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs)[0].logits, aggregator(*inputs)[0].logits)
    for checkpointing in (False, True):
        for model in (aggregator, compiled):
            model.checkpointing = checkpointing
            model.zero_grad()
            model(*inputs)[0].logits.square().sum().backward()
        for name, parameter in compiled.named_parameters():
            torch.testing.assert_close(parameter.grad, aggregator.get_parameter(name).grad)
    block_calls._compiled_function.cache_clear()


def test_classes_that_pass_together_follow_from_the_size_of_the_cost_volume():
    assert AggregatorSizes().classes_in_cache == 4
    assert AggregatorSizes(hidden=32, grid=(16, 16)).classes_in_cache == 36
    assert AggregatorSizes(hidden=512, grid=(64, 64)).classes_in_cache == 1


def test_linear_attention_rounds_its_result_alone():
    q, k, v = torch.randn(3, 2, 4, 200, 8).bfloat16()
    padding = torch.randn(4, 1, 8).bfloat16(), torch.randn(4, 1, 8).bfloat16(), 56
    exact = (padding[0].double(), padding[1].double(), 56)
    expected = linear_attention(q.double(), k.double(), v.double(), exact)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_attention(q, k, v, padding)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=2**-8)


@torch.no_grad()
def test_a_step_is_the_transposed_convolution_beside_the_guidance_and_two_convolutions():
    block = UpBlock(channels=12, out_channels=32, guidance_channels=5).double()
    x, guidance = torch.randn(3, 12, 4, 6).double(), torch.randn(5, 8, 12).double()
    step = block(x, block.corner_weight(), block.guidance_contribution(guidance[None]))
    plain = block.conv(torch.cat([block.up(x), guidance.expand(3, -1, -1, -1)], dim=1))
    assert step.shape == (3, 32, 8, 12)
    torch.testing.assert_close(step, plain)
