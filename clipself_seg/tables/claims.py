"""Judges whether the paper's claims hold here, by Student's t test of differences that are paired by seed."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from clipself_seg.tables.table import Claim, Table, Term

HOLDS = "holds"
FAILS = "does not hold"
NOISE = "within noise"
FEW_SEEDS = "no verdict"
NOT_RUN = "not run"
ABSENT = "not in the {scale} world"
LEAST_SEEDS = 3
CONFIDENCE = 0.95  # of the interval, on both sides, in which the mean difference lies

# Seed -> number; a number that no seed moves is under None.
Values = Mapping[int | None, float]
# (row, column) -> its values.
Cells = Mapping[tuple[str, str], Values]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of one inequality of a claim.

    Attributes:
        text: the inequality in words, such as "original < patches, Boxes".
        paper: the published numbers, such as "18.2 < 72.1"; "" where the paper prints none.
        here: the means here.
        verdict: one of the words above.
        detail: mean difference and its standard error; "" without.
        rows: rows that it is about.
    """

    text: str
    paper: str
    here: str
    verdict: str
    detail: str
    rows: tuple[str, ...]


def verdict(smaller: Values, larger: Values) -> tuple[str, float, float]:
    """Whether one number is below another one.

    Pairs are those of equal seeds; a number that no seed moves pairs with every seed. Three seeds at
    least are needed, but where no seed moves either number the sign decides.

    Returns:
        The verdict, the mean difference and its standard error; NaN where they are not known.
    """
    if not smaller or not larger:
        return NOT_RUN, math.nan, math.nan
    pairs = _by_seed(smaller, larger).values()
    if not pairs:
        return NOT_RUN, math.nan, math.nan
    differences = [high - low for low, high in pairs]
    mean = statistics.fmean(differences)
    if set(smaller) == set(larger) == {None}:
        return _word(mean, 0.0), mean, 0.0
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
    """A verdict for every inequality of a claim.

    Args:
        table: table of the claim.
        claim: one of its claims.
        cells: what was measured.
        scale: "mini" or "real".
    """
    return [
        _judge(table, low, high, strict, cells, scale) for low, high, strict in _inequalities(claim)
    ]


def _inequalities(claim: Claim) -> Iterator[tuple[Term, Term, bool]]:
    """Pairs of terms with a column each, column by column."""
    for column in claim.columns or ("",):
        terms = [
            Term(tuple((row, own or column) for row, own in term.cells)) for term in claim.terms
        ]
        yield from zip(terms, terms[1:], claim.strict)


def _judge(table: Table, low: Term, high: Term, strict: bool, cells: Cells, scale: str) -> Verdict:
    relation = "<" if strict else "<="
    both = (*low.cells, *high.cells)
    absent = any(
        scale in table.rows[row].absent
        or table.rows[row].path(table.columns[column], scale) is None
        for row, column in both
    )
    smaller, larger = largest(low, cells), largest(high, cells)
    word, mean, error = verdict(smaller, larger)
    if not strict and mean == 0 and word == NOISE:
        word = HOLDS
    spread = "" if math.isnan(error) else f" ± {error:.1f}"
    published = [paper_number(table, term) for term in (low, high)]
    means = [_mean(values) for values in (smaller, larger)]
    return Verdict(
        text=_text(table, low, high, relation, scale),
        paper=_compared(published, relation),
        here=_compared(means, relation) if word == HOLDS else _compared(means, "and"),
        verdict=ABSENT.format(scale=scale) if absent else word,
        detail="" if math.isnan(mean) else f"{mean:+.1f}{spread}",
        rows=tuple(dict.fromkeys(row for row, _ in both)),
    )


def _text(table: Table, low: Term, high: Term, relation: str, scale: str) -> str:
    columns = list(dict.fromkeys(column for _, column in (*low.cells, *high.cells)))
    same = len(columns) == 1

    def of(term: Term) -> str:
        words = [
            table.rows[row].title + ("" if same else f", {_heading(table, column, scale)}")
            for row, column in term.cells
        ]
        return words[0] if len(words) == 1 else f"best of ({'; '.join(words)})"

    heading = f"{_heading(table, columns[0], scale)}: " if same else ""
    return f"{heading}{of(low)} {relation} {of(high)}"


def _heading(table: Table, column: str, scale: str) -> str:
    return table.columns[column].title(scale)


def largest(term: Term, cells: Cells) -> Values:
    """Gives the values of a term, of several cells the largest of each seed; {} unless all of them are there."""
    values = [cells.get(cell, {}) for cell in term.cells]
    if not all(values):
        return {}
    return {seed: max(numbers) for seed, numbers in _by_seed(*values).items()}


def paper_number(table: Table, term: Term) -> float | None:
    """Gives the published number of a term, of several the largest; None where one is not published."""
    numbers = [table.rows[row].paper.get(column) for row, column in term.cells]
    known = [number for number in numbers if number is not None]
    return max(known) if len(known) == len(numbers) else None


def overall(verdicts: Sequence[Verdict]) -> str:
    """One word for a claim of several inequalities: the worst one decides."""
    words = [one.verdict for one in verdicts]
    known = [word for word in words if not word.startswith("not in")]
    for word in (FAILS, NOT_RUN, FEW_SEEDS, NOISE, HOLDS):
        if word in known:
            return word
    return words[0]


def _mean(values: Values) -> float | None:
    return statistics.fmean(values.values()) if values else None


def _compared(numbers: Sequence[float | None], relation: str) -> str:
    if any(number is None for number in numbers):
        return ""
    return f" {relation} ".join(f"{number:.1f}" for number in numbers)
