"""The linear layer through oneDNN, activations and attention, and position tables."""

import contextlib
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from clipself_seg.clip import layers, levers
from clipself_seg.clip import linear as module
from clipself_seg.clip.layers import ATTENTION
from clipself_seg.clip.levers import LARGEST_ERROR, Lever, stock_products
from clipself_seg.clip.linear import CONVOLUTION, LARGEST_WEIGHT, Linear, linear
from clipself_seg.clip.positions import (
    _rotary_table,
    patch_grid,
    resample_positions,
    rotary_factors,
    rotate,
)
from clipself_seg.clip.precision import SharedSetting
from clipself_seg.errors import InputError


def tensors(rows=(3, 150), inputs=324, outputs=80, bias=True):
    x, weight = torch.randn(*rows, inputs), torch.randn(outputs, inputs)
    return x, weight, torch.randn(outputs) if bias else None


CHOSEN = CONVOLUTION.chosen


@pytest.fixture(autouse=True)
def convolution(monkeypatch):
    """On every machine, as on one where convolutions pay."""
    monkeypatch.setattr(CONVOLUTION, "chosen", True)


@pytest.fixture
def products(monkeypatch):
    """The products that oneDNN computed."""
    taken, original = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args, **how: taken.append(1) or original(*args, **how))
    return taken


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(260,), (3, 150), (2, 13, 20)])
@pytest.mark.cpu
def test_values_are_those_of_torch(rows, bias, products):
    x, weight, shift = tensors(rows, bias=bias)
    result = linear(x, weight, shift)
    assert len(products) == 1 and result.is_contiguous()
    torch.testing.assert_close(result, F.linear(x, weight, shift), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("trained", ["xwb", "x", "w", "b", "xb", "wb", "xw"])
def test_gradients_are_those_of_torch(trained, large, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_WEIGHT", 0 if large else LARGEST_WEIGHT)
    monkeypatch.setattr(module, "amd_family", lambda: 25)
    parts = dict(zip("xwb", tensors()))
    for name in trained:
        parts[name].requires_grad_()
    gradient = torch.randn(3, 150, 80)
    wanted = [parts[name] for name in trained]
    result = torch.autograd.grad(linear(*parts.values()), wanted, gradient)
    expected = torch.autograd.grad(F.linear(*parts.values()), wanted, gradient)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_gradients_of_gradients_and_those_of_torch_func_are_those_of_torch():
    x, *others = [part.requires_grad_() for part in tensors()]

    def twice(function):
        (first,) = torch.autograd.grad(function(x, *others).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().mean(), (x, others[0]))

    def by_func(function):
        return torch.func.grad(lambda x: function(x, *others).square().mean())(x)

    torch.testing.assert_close(twice(linear), twice(F.linear), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(by_func(linear), by_func(F.linear))
    assert "PythonOp" not in str(torch.jit.trace(linear, (x, *others), check_trace=False).graph)


def test_gradients_without_a_bias_of_transposed_and_expanded_tensors():
    x = torch.randn(96, 270).requires_grad_()
    weight = torch.randn(80, 192).requires_grad_()

    def outcome(function):
        y = function(x.T, weight[:, ::2])
        return torch.autograd.grad(y.sum() + (y[:, :3] ** 2).sum(), (x, weight))

    torch.testing.assert_close(outcome(linear), outcome(F.linear), atol=1e-3, rtol=1e-5)


def test_results_may_be_changed_in_place_and_made_again_in_the_backward_pass():
    x, weight, bias = tensors()
    layer = Linear(324, 80)
    with torch.no_grad():
        layer.weight.copy_(weight)

    def function(x):
        return layer(x).add_(1).relu_()

    x.requires_grad_()
    expected = torch.autograd.grad(function(x).sum(), (x, layer.weight))
    again = checkpoint(function, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.sum(), (x, layer.weight)), expected)


def test_transforms_of_torch_func_take_torchs_own(monkeypatch, products):
    parts = [part.requires_grad_() for part in tensors()]
    linear(*parts)
    taken = len(products)
    monkeypatch.setattr(module, "functorch_may_be_active", lambda: True)
    linear(*parts)
    assert taken and len(products) == taken


@pytest.mark.parametrize("case", ["few rows", "no rows", "float64", "autocast", "stock"])
def test_torch_s_own_is_taken_where_it_is_right(case, products):
    x, weight, bias = tensors(
        (70,) if case == "few rows" else (0,) if case == "no rows" else (300,)
    )
    if case == "float64":
        x, weight, bias = x.double(), weight.double(), bias.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        expected = F.linear(x, weight, bias)
        if case == "stock":
            with stock_products():
                result = linear(x, weight, bias)
        else:
            result = linear(x, weight, bias)
    assert torch.equal(result, expected) and result.dtype == expected.dtype and not products


@pytest.mark.parametrize(
    ("capability", "vendor", "expected"),
    [
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),
        ("AVX2", "AuthenticAMD", False),
        ("AVX512", "HygonGenuine", False),
    ],
)
def test_convolutions_are_taken_only_where_mkl_is_held_back(
    capability, vendor, expected, monkeypatch
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(module, "processor", lambda: f"vendor_id\t: {vendor}\n")
    assert module._suits() == expected


@pytest.mark.parametrize("family", [23, 25, 26, 27, None])
def test_gradients_of_large_weights_go_by_the_family_of_the_processor(family, monkeypatch):
    text = "" if family is None else f"vendor_id\t: AuthenticAMD\ncpu family\t: {family}\nmodel\t"
    monkeypatch.setattr(levers, "processor", lambda: text)
    monkeypatch.setattr(module, "amd_family", levers.amd_family.__wrapped__)
    monkeypatch.setattr(module, "_backward", lambda *_: torch.zeros(1025, 256))
    rows = torch.ones(16, 256)
    weight = torch.zeros(1025, 256)  # larger than LARGEST_WEIGHT
    zero = module._of_weight(torch.ones(16, 1025), rows, weight)[0, 0] == 0
    assert zero == (family in (26, 27))


@pytest.mark.skipif(not CHOSEN, reason="this machine takes torch's own products")
@pytest.mark.cpu
def test_one_thread_gives_the_bits_of_two(products):
    """Where oneDNN computes, which one thread leaves for a convolution without a dilation."""
    x, weight, bias = tensors((300,))
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                results.append(linear(x, weight, bias))
            assert "aten::mkldnn_convolution" in {event.key for event in profiled.key_averages()}
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results) and len(products) == 2


SETTING = torch.backends.mkldnn.matmul


@pytest.mark.parametrize("exact", [True, False])
def test_attention_over_many_tokens_is_exact_to_its_error(exact, monkeypatch):
    """By oneDNN where the machine has it in float32; both within the error that is stated."""
    if exact and not ATTENTION.chosen:
        pytest.skip("this processor computes them otherwise")
    monkeypatch.setattr(ATTENTION, "chosen", exact)
    q, k, v = torch.randn(3, 1, 2, layers.MANY_TOKENS, 64)
    with torch.no_grad():
        result = layers.attention(q, k, v)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert (result - expected).norm() < LARGEST_ERROR * expected.norm()


@pytest.mark.parametrize("turned", [False, True], ids=["bfloat16", "turned by float32"])
def test_attention_over_many_tokens_in_bfloat16_is_more_exact_than_torchs(turned, monkeypatch):
    """In float32 where `ATTENTION` is chosen, within autocast and without; else it is torch's own."""
    tokens = torch.randn(1, 130, 3 * 2 * 64).bfloat16()
    q, k, v = (layers.split_heads(x, 2) for x in tokens.chunk(3, dim=-1))
    inputs = (q.float(), k.float(), v) if turned else (q, k, v)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    error = {}
    monkeypatch.setattr(layers, "MANY_TOKENS", 130)
    for chosen in (False, True):
        monkeypatch.setattr(ATTENTION, "chosen", chosen)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            result = layers.attention(*inputs)
        assert result.dtype == (torch.float32 if turned and chosen else torch.bfloat16)
        error[chosen] = (result - exact).norm()
    with torch.no_grad():
        expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(error[False], (expected - exact).norm(), rtol=0.01, atol=0)
    assert error[True] < 0.9 * error[False]


def test_what_is_added_to_the_scores_may_be_in_bfloat16(monkeypatch):
    """Such as NACLIP's bias of places under autocast."""
    monkeypatch.setattr(layers, "MANY_TOKENS", 7)
    monkeypatch.setattr(ATTENTION, "chosen", True)
    q, k, v = torch.randn(3, 1, 2, 7, 16).bfloat16()
    mask = torch.randn(7, 7).bfloat16()
    with torch.no_grad():
        result = layers.attention(q, k, v, mask=mask)
    expected = F.scaled_dot_product_attention(*(x.double() for x in (q, k, v)), mask.double())
    torch.testing.assert_close(result.double(), expected, atol=0.02, rtol=0)


def test_attention_without_gradients_is_one_graph_for_a_compiler(monkeypatch):
    monkeypatch.setattr(layers, "MANY_TOKENS", 5)
    q, k, v = torch.randn(3, 1, 2, 6, 4)
    with torch.no_grad():
        compiled = torch.compile(layers.attention, fullgraph=True, backend="eager")(q, k, v)
        torch.testing.assert_close(compiled, layers.attention(q, k, v))


def test_an_attention_that_is_not_exact_is_refused(monkeypatch):
    def chosen():
        return Lever(layers._suits, layers._results, ATTENTION._setting).chosen

    monkeypatch.setattr(layers, "processor", lambda: "flags\t: avx512f amx_bf16")
    assert not chosen()
    monkeypatch.setattr(layers, "processor", lambda: "flags\t: avx512f")
    fused = F.scaled_dot_product_attention

    def rounded(*inputs):
        if SETTING.fp32_precision == "bf16" and inputs[0].dtype == torch.float32:
            inputs = [x.bfloat16() for x in inputs]
        return fused(*inputs)

    before = SETTING.fp32_precision
    monkeypatch.setattr(F, "scaled_dot_product_attention", rounded)
    assert not chosen()
    monkeypatch.setattr(CONVOLUTION, "chosen", False)
    assert not chosen() and SETTING.fp32_precision == before


def test_a_name_of_torch_that_is_gone_costs_speed_alone(monkeypatch, caplog):
    gone = SharedSetting(None)  # as where torch has no such object
    lever = Lever(lambda: True, layers._results, lambda: gone.set_to("fp32_precision", "bf16"))
    assert not lever.chosen and "slower than need be: torch" in caplog.text
    with lever.used():
        pass

    def changed(*_, **__):
        raise TypeError("convolution_backward() takes other arguments")

    monkeypatch.setattr(torch.ops.aten, "convolution_backward", changed)
    assert not Lever(lambda: True, module._results).chosen
    assert "takes other arguments" in caplog.text


def strided_heads():
    torch.manual_seed(0)
    packed = torch.randn(2, 70, 3 * 48, dtype=torch.float64)
    return [layers.split_heads(x, 3) for x in packed.chunk(3, dim=-1)], torch.randn(2, 3, 70, 16)


def naive_attention(q, k, v):
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


def test_attention_with_gradients_and_these_are_those_of_its_formula():
    heads, gradient = strided_heads()
    exact = [x.clone().requires_grad_() for x in heads]
    leaves = [x.float().requires_grad_() for x in heads]
    expected, found = naive_attention(*exact), layers._Attention.apply(*leaves)
    expected.backward(gradient.double())
    found.backward(gradient)
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=0)
    for leaf, other in zip(leaves, exact):
        error = leaf.grad - other.grad
        assert error.norm() < LARGEST_ERROR * other.grad.norm()


@pytest.mark.parametrize(
    "case", ["many", "few", "mask", "causal", "float64", "autocast", "stock", "not chosen", "math"]
)
def test_attention_with_gradients_is_taken_for_many_tokens_alone(case, monkeypatch):
    monkeypatch.setattr(layers, "MANY_TOKENS", 71 if case == "few" else 70)
    monkeypatch.setattr(ATTENTION, "chosen", case != "not chosen")
    taken, original = [], layers._Attention.apply
    monkeypatch.setattr(layers._Attention, "apply", lambda *x: taken.append(1) or original(*x))
    heads, _ = strided_heads()
    how = {"mask": torch.ones(70, 70) > 0} if case == "mask" else {"causal": case == "causal"}
    inputs = [x if case == "float64" else x.float() for x in heads]
    kernel = sdpa_kernel(SDPBackend.MATH) if case == "math" else contextlib.nullcontext()
    with torch.autocast("cpu", enabled=case == "autocast"), kernel:
        with stock_products() if case == "stock" else contextlib.nullcontext():
            layers.attention(*inputs, **how)
    assert len(taken) == (case == "many")
    with torch.no_grad():
        layers.attention(*inputs, **how)
    assert len(taken) == (case == "many")


def test_gradients_of_attention_that_are_not_exact_are_refused(monkeypatch):
    def chosen():
        return Lever(lambda: True, layers._results).chosen

    assert chosen()
    backward = layers._backward

    def rounded(*inputs):
        return tuple(x.bfloat16().float() for x in backward(*inputs))

    monkeypatch.setattr(layers, "_backward", rounded)
    assert not chosen()


def test_the_setting_of_products_comes_back_when_the_last_thread_has_left(monkeypatch):
    monkeypatch.setattr(ATTENTION, "chosen", True)
    before = SETTING.fp32_precision
    with stock_products(), ATTENTION.used():
        assert SETTING.fp32_precision == before
    entered, leave = threading.Event(), threading.Event()

    def other():
        with ATTENTION.used():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with pytest.raises(RuntimeError, match="stop"):
        with ATTENTION.used():
            thread.start()
            assert entered.wait(10)
            raise RuntimeError("stop")
    assert SETTING.fp32_precision == "bf16"
    leave.set()
    thread.join()
    assert SETTING.fp32_precision == before


def test_quick_gelu_is_the_same_with_and_without_gradients(monkeypatch, two_threads):
    monkeypatch.setattr(layers, "CPU_NUMBERS", 10)  # three rows at once
    x = torch.randn(2, 4, 3)
    expected = x * torch.sigmoid(1.702 * x)
    torch.testing.assert_close(layers.QuickGELU()(x), expected)
    with torch.no_grad():
        overwritten = layers.QuickGELU()(x)
        assert layers.QuickGELU()(x[:0]).shape == (0, 4, 3)
    assert torch.equal(overwritten, x)
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.cpu
def test_attention_of_heads_copied_apart_has_the_same_bits(monkeypatch, masked):
    monkeypatch.setattr(ATTENTION, "chosen", False)
    torch.manual_seed(0)
    tokens, heads = 70, 3
    q, k, v = (
        layers.split_heads(x, heads) for x in torch.randn(2, tokens, 3 * 48).chunk(3, dim=-1)
    )
    mask = torch.rand(tokens, tokens) < 0.7 if masked else None
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    naive = scores.softmax(dim=-1) @ v
    given = []
    fused = F.scaled_dot_product_attention

    def seen(*inputs, **how):
        given.append(all(x.is_contiguous() for x in inputs))
        return fused(*inputs, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    with torch.no_grad():
        few = layers.attention(q, k, v, mask=mask)
        monkeypatch.setattr(layers, "MANY_TOKENS", tokens)
        many = layers.attention(q, k, v, mask=mask)
        layers.attention(q[:, :, :4], k, v)
        with stock_products():
            layers.attention(q, k, v)
    layers.attention(q, k, v)  # with gradients
    assert given == [False, True, False, False, False]
    assert torch.equal(few, many)
    torch.testing.assert_close(many, naive)


def test_tokens_that_are_no_keys_change_nothing_but_themselves():
    torch.manual_seed(0)
    attention = layers.PackedAttention(width=16, heads=2)
    torch.nn.init.normal_(attention.in_proj_weight, std=0.3)
    x = torch.randn(2, 5, 16)
    lengths = torch.tensor([3, 5])
    keys = torch.arange(5) < lengths[:, None]
    padded = attention(x, keys_BL=keys)
    for row, length in enumerate(lengths.tolist()):
        alone = attention(x[row : row + 1, :length])
        torch.testing.assert_close(padded[row : row + 1, :length], alone)
    assert (padded[0] - attention(x)[0]).abs().max() > 1e-3  # the keys matter


def test_resampling_to_the_same_grid_changes_nothing():
    table = torch.randn(1 + 16, 8)
    assert resample_positions(table, (4, 4)) is table


def test_class_row_is_kept_and_patch_rows_are_resized_bicubically():
    table = torch.randn(1 + 9, 5)
    resized = resample_positions(table, (2, 6))
    grid = table[1:].T.reshape(1, 5, 3, 3)
    expected = F.interpolate(grid, (2, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized[0], table[0])
    torch.testing.assert_close(resized[1:], expected[0].flatten(1).T)


def test_rotary_angles_by_hand():
    """Token (row 1, column 2) of a 4 x 8 grid: positions 1 * 16 / 4 = 4 and 2 * 16 / 8 = 4."""
    table = torch.view_as_complex(rotary_factors((4, 8), 8, torch.device("cpu")))
    assert table.shape == (1 + 32, 4)
    expected = torch.tensor([4.0, 4.0 / 100, 4.0, 4.0 / 100])
    torch.testing.assert_close(
        table[1 + 1 * 8 + 2].angle(), (expected + math.pi) % (2 * math.pi) - math.pi
    )
    torch.testing.assert_close(table[0], torch.ones(4, dtype=torch.complex64))


@pytest.mark.parametrize("size", [(224, 230), (15, 16), (0, 16)])
def test_size_that_the_patch_does_not_divide_is_refused_with_the_nearest(size):
    with pytest.raises(InputError, match=f"{size[0]}x{size[1]} is not a multiple of 16"):
        patch_grid(torch.zeros(1, 3, *size), 16)


def test_rotary_factors_that_inference_made_serve_training():
    _rotary_table.cache_clear()
    queries = torch.randn(1, 1, 7, 8, requires_grad=True)
    with torch.inference_mode():
        rotary_factors((2, 3), 8, queries.device)
    rotate(queries, rotary_factors((2, 3), 8, queries.device)).sum().backward()
    assert queries.grad is not None


def test_rotation_is_the_complex_product_to_the_bit_and_rounds_once():
    grid, queries = (3, 5), torch.randn(2, 2, 16, 8)
    factors = rotary_factors(grid, 8, queries.device)
    assert factors is rotary_factors(grid, 8, queries.device)
    pairs = torch.view_as_complex(queries.unflatten(-1, (-1, 2)))
    product = torch.view_as_real(pairs * torch.view_as_complex(factors)).flatten(-2)
    assert torch.equal(rotate(queries, factors), product)
    low = queries.bfloat16()
    assert torch.equal(rotate(low, factors), rotate(low.float(), factors).bfloat16())


def test_compilers_are_given_the_same_rotation_without_complex_numbers(monkeypatch):
    queries = torch.randn(2, 2, 16, 8)
    factors = rotary_factors((3, 5), 8, queries.device)
    wanted = rotate(queries, factors)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.delattr(torch, "view_as_complex")
    torch.testing.assert_close(rotate(queries, factors), wanted)
