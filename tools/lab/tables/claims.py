"""Judges whether the paper's claims hold here, by Student's t test of differences that are paired by seed."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Mapping, Sequence

from lab.tables.table import Cell, Claim, Inequality, Table, Term

HOLDS = "holds"
FAILS = "does not hold"
NOISE = "within noise"
FEW_SEEDS = "no verdict"
NOT_RUN = "not run"
ABSENT = "not in the {scale} world"
PRINTED = {True: "holds in print", False: "does not hold in print"}  # of the paper's numbers alone
UNMEASURED = "not measured"
LEAST_SEEDS = 3
CONFIDENCE = 0.95  # of the interval, on both sides, in which the mean difference lies

# Seed -> number; a number that no seed moves is under None.
Values = Mapping[int | None, float]
Cells = Mapping[Cell, Values]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of one inequality of a claim.

    Attributes:
        text: the inequality in words, such as "original < patches, Boxes".
        paper: the published numbers, such as "18.2 < 72.1", or "23.1 and 21.8: does not hold"; "" where the paper
            prints none.
        here: the means here.
        verdict: one of the words above.
        detail: mean difference and its standard error, if seeds have one; "" without.
        order: the inequality, each cell with its column.
    """

    text: str
    paper: str
    here: str
    verdict: str
    detail: str
    order: Inequality


def verdict(smaller: Values, larger: Values) -> tuple[str, float, float]:
    """True if one number is below another one.

    Pairs are those of equal seeds; a number that no seed moves pairs with every seed. Three seeds at
    least are needed, but where no seed moves either number the sign decides.

    Returns:
        The verdict, the mean difference and its standard error; NaN where they are not known, as the error of a
        difference that no seed moves.
    """
    pairs = _by_seed(smaller, larger).values()
    if not pairs:
        return NOT_RUN, math.nan, math.nan
    differences = [high - low for low, high in pairs]
    mean = statistics.fmean(differences)
    if set(smaller) == set(larger) == {None}:
        return _word(mean, 0.0), mean, math.nan
    if len(differences) < LEAST_SEEDS:
        return FEW_SEEDS, mean, math.nan
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return _word(mean, least_errors(len(differences)) * error), mean, error


@functools.cache
def least_errors(seeds: int) -> float:
    """Standard errors that a mean of paired differences has to exceed: 4.3 of three seeds, 2.8 of five.

    Student's t for `CONFIDENCE` and one degree of freedom less than there are seeds.
    """
    from scipy.special import stdtrit  # half a second, which only verdicts need

    return float(stdtrit(seeds - 1, (1 + CONFIDENCE) / 2))


def _by_seed(*terms: Values) -> dict[int | None, list[float]]:
    """Numbers of all terms under each seed that all have; one that no seed moves counts under every seed."""
    named = sorted({seed for values in terms for seed in values if seed is not None})
    seeds: list[int | None] = [*named] or [None]
    return {
        seed: [values[seed if seed in values else None] for values in terms]
        for seed in seeds
        if all(seed in values or None in values for values in terms)
    }


def _word(mean: float, least: float) -> str:
    if mean > least:
        return HOLDS
    return FAILS if mean < -least else NOISE


def claim_verdicts(table: Table, claim: Claim, cells: Cells, scale: str) -> list[Verdict]:
    """A verdict for every inequality of a claim in every of its columns.

    Args:
        table: table of the claim.
        claim: one of its claims.
        cells: what was measured.
        scale: "mini" or "real".
    """
    orders = [
        Inequality(one.low.in_column(column), one.high.in_column(column), one.strict)
        for column in claim.columns or ("",)
        for one in claim.order
    ]
    return [_judge(table, order, cells, scale) for order in orders]


def _judge(table: Table, order: Inequality, cells: Cells, scale: str) -> Verdict:
    relation = "<" if order.strict else "<="
    terms = (order.low, order.high)
    values = [_values(term, cells) for term in terms]
    word, mean, error = verdict(*values)
    if not order.strict and mean == 0 and word == NOISE:
        word = HOLDS
    published = [paper_number(table, term) for term in terms]
    there = paper_holds(published, order.strict)
    rows = [(table.rows[row], column) for row, column in order.cells()]
    if any(row.cite for row, _ in rows):
        word, scale = NOT_RUN if there is None else PRINTED[there], "real"
    elif any(
        scale in row.absent or row.path(table.columns[column], scale) is None
        for row, column in rows
    ):
        word = ABSENT.format(scale=scale)
    spread = "" if math.isnan(error) else f" ± {error:.1f}"
    return Verdict(
        text=_text(table, order, relation, scale),
        paper=(
            f"{_compared(published, 'and')}: {FAILS}"
            if there is False
            else _compared(published, relation)
        ),
        here=_compared([*map(_mean, values)], relation if word == HOLDS else "and"),
        verdict=word,
        detail="" if math.isnan(mean) else f"{mean:+.1f}{spread}",
        order=order,
    )


def _text(table: Table, order: Inequality, relation: str, scale: str) -> str:
    def headings(cells: Sequence[Cell]) -> list[str]:
        return list(dict.fromkeys(table.columns[column].title(scale) for _, column in cells))

    def of(cells: Sequence[Cell], same: bool) -> str:
        rows = [table.rows[row] for row, _ in cells]
        if len(cells) > 1 and all(row.cite for row in rows):
            return f"best of {len(cells)} other methods"
        words = [
            row.title if same else ", ".join((row.title, *headings([cell])))
            for row, cell in zip(rows, cells)
        ]
        return words[0] if len(words) == 1 else f"best of ({'; '.join(words)})"

    def term(term: Term) -> str:
        own = headings((*term.cells, *term.less))
        parts = (of(cells, same=len(own) == 1) for cells in (term.cells, term.less) if cells)
        return " minus ".join(parts) + ("" if alone or len(own) > 1 else f", {own[0]}")

    every = headings(order.cells())
    alone = len(every) == 1
    return (f"{every[0]}: " if alone else "") + f"{term(order.low)} {relation} {term(order.high)}"


def _values(term: Term, cells: Cells) -> Values:
    """Gives the values of a term seed by seed; {} unless all of its cells are there."""
    parts = [[cells.get(cell, {}) for cell in part] for part in (term.cells, term.less) if part]
    if not all(values for part in parts for values in part):
        return {}
    largest = [{seed: max(of) for seed, of in _by_seed(*part).items()} for part in parts]
    return {seed: number - sum(less) for seed, (number, *less) in _by_seed(*largest).items()}


def paper_number(table: Table, term: Term) -> float | None:
    """Gives the published number of a term; None where one is not published.

    Of other methods those count that have a number.
    """
    numbers = []
    for part in filter(None, (term.cells, term.less)):
        of = [(table.rows[row], table.rows[row].paper.get(column)) for row, column in part]
        known = [number for _, number in of if number is not None]
        if not known or any(number is None and not row.cite for row, number in of):
            return None
        numbers.append(max(known))
    return numbers[0] - sum(numbers[1:])


def paper_holds(numbers: Sequence[float | None], strict: bool) -> bool | None:
    """True if two published numbers are as an inequality says; None where one is not published."""
    low, high = numbers
    if low is None or high is None:
        return None
    return round(low, 6) < round(high, 6) or (not strict and round(low, 6) == round(high, 6))


def overall(verdicts: Sequence[Verdict]) -> str:
    """One word for a claim of several inequalities: the worst one decides."""
    words = [one.verdict for one in verdicts]
    known = [word for word in words if not word.startswith("not in")]
    for word in (FAILS, PRINTED[False], NOT_RUN, FEW_SEEDS, NOISE, HOLDS):
        if word in known:
            return word
    return words[0] if words else UNMEASURED


def _mean(values: Values) -> float | None:
    return statistics.fmean(values.values()) if values else None


def _compared(numbers: Sequence[float | None], relation: str) -> str:
    if any(number is None for number in numbers):
        return ""
    return f" {relation} ".join(f"{number:.1f}" for number in numbers)
