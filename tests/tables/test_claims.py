"""Verdicts by hand, and one on every claim of every table."""

from __future__ import annotations

import pytest

from clipself_seg.tables.claims import (
    ABSENT,
    FAILS,
    FEW_SEEDS,
    HOLDS,
    NOISE,
    NOT_RUN,
    claim_verdicts,
    overall,
    verdict,
)
from clipself_seg.tables.table import list_tables, read_table, read_tables
from tests.tables.worlds import TABLE, write_table


@pytest.mark.parametrize(
    ("smaller", "larger", "word"),
    [
        # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3).
        ({0: 1, 1: 1, 2: 1}, {0: 2, 1: 3, 2: 4}, HOLDS),
        ({0: 2, 1: 3, 2: 4}, {0: 1, 1: 1, 2: 1}, FAILS),
        # Differences -1, 1, 3: mean 1, standard error 2 / sqrt(3).
        ({0: 1, 1: 0, 2: 0}, {0: 0, 1: 1, 2: 3}, NOISE),
        ({0: 1, 1: 1}, {0: 2, 1: 2}, FEW_SEEDS),
        ({0: 1, 1: 1, 2: 1}, {0: 2, 1: 2, 5: 9}, FEW_SEEDS),
        ({0: 1}, {1: 2}, NOT_RUN),
        ({}, {0: 2, 1: 2, 2: 2}, NOT_RUN),
        # What no seed moves pairs with every seed; between two such numbers the sign decides.
        ({None: 1}, {0: 2, 1: 3, 2: 4}, HOLDS),
        ({None: 1}, {None: 1.5}, HOLDS),
        ({None: 2}, {None: 1.5}, FAILS),
    ],
)
def test_verdict_by_hand(smaller, larger, word):
    assert verdict(smaller, larger)[0] == word


def test_mean_and_standard_error_by_hand():
    _, mean, error = verdict({0: 1, 1: 1, 2: 1}, {0: 2, 1: 3, 2: 4})
    assert (mean, error) == (2, pytest.approx(3**-0.5))


def made_up(table, claim, sign):
    """The paper's numbers, or numbers in the claim's order; with a sign of -1 the other way round."""
    cells = {}
    for column in claim.columns or ("",):
        for place, term in enumerate(claim.terms):
            for row, own in term.cells:
                paper = table.rows[row].paper.get(own or column)
                number = sign * (place if paper is None else paper)
                cells[row, own or column] = {seed: number + 0.001 * seed for seed in range(3)}
    return cells


@pytest.mark.parametrize("name", list_tables())
@pytest.mark.parametrize(("sign", "word"), [(1, HOLDS), (-1, FAILS)])
def test_every_claim_is_evaluated_on_made_up_numbers(name, sign, word):
    (table,) = read_tables([name])
    for claim in table.claims:
        cells = made_up(table, claim, sign)
        for scale in ("mini", "real"):
            verdicts = claim_verdicts(table, claim, cells, scale)
            absent = ABSENT.format(scale=scale)
            assert verdicts and {one.verdict for one in verdicts} <= {HOLDS, FAILS, absent}
            if sign > 0:
                assert overall(verdicts) in (HOLDS, absent), (claim.says, verdicts)
        real = claim_verdicts(table, claim, cells, "real")
        assert overall(real) == word, (claim.says, real)


def test_the_largest_of_several_cells_is_compared_seed_by_seed(tmp_path):
    text = TABLE.replace("original < patches", '"original < max(original, patches)"')
    table = read_table(write_table(tmp_path, text))
    cells = {("original", "boxes"): {0: 1, 1: 5, 2: 5}, ("patches", "boxes"): {0: 3, 1: 4, 2: 9}}
    (one,) = claim_verdicts(table, table.claims[0], cells, "mini")
    assert (one.detail, one.paper, one.verdict) == ("+2.0 ± 1.2", "18.2 < 72.1", NOISE)
    assert one.text == "Boxes: original CLIP < best of (original CLIP; CLIPSelf, patches)"
    del cells["patches", "boxes"]
    assert claim_verdicts(table, table.claims[0], cells, "mini")[0].verdict == NOT_RUN
    assert (
        claim_verdicts(table, table.claims[0], cells, "real")[0].verdict == "not in the real world"
    )


def test_equal_numbers_are_within_noise_unless_the_claim_allows_them(tmp_path):
    cells = {(row, "boxes"): {0: 1.0, 1: 2.0, 2: 3.0} for row in ("original", "patches")}
    for relation, word in (("<", NOISE), ("<=", HOLDS)):
        text = TABLE.replace("order: original <", f"order: original {relation}")
        table = read_table(write_table(tmp_path, text))
        assert claim_verdicts(table, table.claims[0], cells, "mini")[0].verdict == word
