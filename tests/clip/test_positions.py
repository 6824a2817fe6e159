"""Position tables: identity at their own grid, independence of the axes, official closed form."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from clipself_seg.clip.positions import (
    _rotary_table,
    patch_grid,
    resample_positions,
    rotary_factors,
    rotate,
)
from clipself_seg.errors import InputError


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


def test_rotation_turns_adjacent_pairs():
    factors = torch.tensor([[[0.0, 1.0]]])
    turned = rotate(torch.tensor([[[[3.0, 5.0]]]]), factors)
    torch.testing.assert_close(turned, torch.tensor([[[[-5.0, 3.0]]]]))


def test_square_rotary_table_equals_the_official_one_row_by_row():
    """[t_r w_0, t_r w_0, t_r w_1, ...] then the same for the column."""
    side, table = 7, torch.view_as_complex(rotary_factors((7, 7), 64, torch.device("cpu")))
    for row, column in [(0, 0), (3, 5), (6, 6)]:
        angles = [p * 16 / side * 10000 ** (-2 * j / 32) for p in (row, column) for j in range(16)]
        expected = torch.polar(torch.ones(32), torch.tensor(angles))
        torch.testing.assert_close(table[1 + row * side + column], expected)


@pytest.mark.parametrize("size", [(224, 230), (15, 16), (0, 16)])
def test_size_that_the_patch_does_not_divide_is_refused_with_the_nearest(size):
    with pytest.raises(InputError, match=f"{size[0]}x{size[1]} is not a multiple of 16"):
        patch_grid(torch.zeros(1, 3, *size), 16)


def test_rotary_factors_that_inference_made_serve_training():
    _rotary_table.cache_clear()
    with torch.inference_mode():
        rotary_factors((2, 3), 8, torch.device("cpu"))
    queries = torch.randn(1, 1, 7, 8, requires_grad=True)
    rotate(queries, rotary_factors((2, 3), 8, torch.device("cpu"))).sum().backward()
    assert queries.grad is not None


def test_rotation_is_the_complex_product_to_the_bit_and_rounds_once():
    grid, queries = (3, 5), torch.randn(2, 2, 16, 8)
    factors = rotary_factors(grid, 8, torch.device("cpu"))
    assert factors is rotary_factors(grid, 8, torch.device("cpu"))
    pairs = torch.view_as_complex(queries.unflatten(-1, (-1, 2)))
    product = torch.view_as_real(pairs * torch.view_as_complex(factors)).flatten(-2)
    assert torch.equal(rotate(queries, factors), product)
    low = queries.bfloat16()
    assert torch.equal(rotate(low, factors), rotate(low.float(), factors).bfloat16())


def test_compilers_are_given_the_same_rotation_without_complex_numbers(monkeypatch):
    factors = rotary_factors((3, 5), 8, torch.device("cpu"))
    queries = torch.randn(2, 2, 16, 8)
    wanted = rotate(queries, factors)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.delattr(torch, "view_as_complex")
    torch.testing.assert_close(rotate(queries, factors), wanted)
