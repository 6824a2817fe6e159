"""Text of the page about a table: cells, claims and commands as text, whatever the format."""

from __future__ import annotations

import dataclasses
import math
import shlex
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from clipself_seg.errors import InputError
from clipself_seg.evaluation.measuring_protocol import protocol_lines
from clipself_seg.imports import OPTION, typed_modules
from clipself_seg.provenance import protocols_of
from clipself_seg.training.metrics import flatten_numbers
from lab import ROOT
from lab.tables.claims import (
    FAILS,
    LEAST_SEEDS,
    NOISE,
    UNMEASURED,
    Cells,
    Values,
    Verdict,
    claim_verdicts,
    least_errors,
    overall,
)
from lab.tables.runs import Run, resolve
from lab.tables.store import Record, Store
from lab.tables.table import Row, Table, Term

# Run of a table -> seed -> the run.
TableRuns = Mapping[str, Sequence[Run]]
# Where the page's commands put their runs, wherever those ran.
RUNS_FOLDER = Path("output/reproduce")
ROUNDED = 0.05  # of a printed number
SOURCES = {"text": "the paper's text", "numbers": "the paper's numbers", "ours": "ours"}
SAID = {
    FAILS: "does not hold here",
    NOISE: "is within noise here",
    UNMEASURED: "is not measured here",
}
CLAIM_HEADINGS = ("claim", "paper", "here", "difference", "verdict")
COMPARED_HEADINGS = (*("row", "number", "paper", "ours", "difference"), "within run-to-run spread?")
COMMAND_HEADINGS = (
    *("row", "command", "seeds: end of the record's name"),
    *("commit", "weights", "core-minutes a seed"),
)


@dataclasses.dataclass(frozen=True)
class JudgedClaim:
    """A claim with its verdict.

    Attributes:
        number: its number in the table, from 1.
        says: the claim in words.
        source: whose it is, a key of `SOURCES`; "" in a table that the paper does not have.
        verdict: the worst of those of its inequalities.
        compared: the runs and paths that each inequality compares, equal if the runs are, and its verdict.
    """

    number: int
    says: str
    source: str
    verdict: str
    compared: tuple[tuple[Hashable, str], ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """A table of the page.

    Attributes:
        table: the table.
        scale: "mini" or "real".
        cells: what was measured.
        headings: headings of the rows' table.
        body: its cells.
        others: headings, and rows of other methods below them; [] without any.
        judged: its claims with their verdicts.
        claims: cells of the claims, below `CLAIM_HEADINGS`.
        reasons: notes, why claims do not hold, and why rows are absent.
        protocols: protocols of the numbers.
        commands: cells below `COMMAND_HEADINGS`.
        minutes: core-minutes of the finished runs, by name.
    """

    table: Table
    scale: str
    cells: Cells
    headings: list[str]
    body: list[list[str]]
    others: list[list[str]]
    judged: list[JudgedClaim]
    claims: list[list[str]]
    reasons: list[str]
    protocols: list[str]
    commands: list[list[str]]
    minutes: dict[str, float]


def make_section(table: Table, scale: str, runs: TableRuns, store: Store) -> Section:
    """The section of the page about a table.

    Args:
        table: a table.
        scale: "mini" or "real".
        runs: name of a run -> that run under each seed, for all that rows show.
        store: where finished runs are.

    Raises:
        InputError: a path of the table fits several numbers of a run.
    """
    cells = measure(table, scale, runs, store)
    verdicts = [claim_verdicts(table, claim, cells, scale) for claim in table.claims]
    headings = ["row"]
    for column in table.columns.values():
        headings += [f"{column.titles['real']}: paper"] if table.published else []
        headings += [f"{column.title(scale)}: here"] if scale in column.paths else []
    ran = {name for name, own in runs.items() if any(map(store.record, own))}
    body = [_row_cells(table, name, cells, scale, ran) for name in table.own]
    claims, reasons = _claim_cells(table, verdicts, scale)
    if scale == "real" and table.published:
        headings = list(COMPARED_HEADINGS)
        body = _beside_the_paper(table, cells, ran)
    elif claims:
        headings.append("claims")
        for name, cells_of_row in zip(table.own, body):
            cells_of_row.append(_verdicts_of(name, verdicts))
    judged = [
        JudgedClaim(
            number,
            claim.says,
            claim.source if table.of_paper else "",
            overall(own),
            tuple((_compared(table, one, scale, runs), one.verdict) for one in own),
        )
        for number, (claim, own) in enumerate(zip(table.claims, verdicts), 1)
    ]
    commands = [
        _command_cells(f"{row.title}, {of}" if of else row.title, runs[run], store)
        for row in table.own.values()
        if scale not in row.absent
        for of, run in row.runs().items()
        if run in runs
    ]
    return Section(
        table,
        scale,
        cells,
        headings,
        body,
        _others(table),
        judged,
        claims,
        [*table.notes, *reasons, *_absences(table, scale)],
        _protocols(runs, store),
        commands,
        _minutes(runs, store),
    )


def _others(table: Table) -> list[list[str]]:
    """Headings and cells of other methods' rows, of the columns that the paper prints."""
    rows = [row for row in table.rows.values() if row.cite]
    printed = {name for row in table.rows.values() for name in row.paper}
    columns = {name: column for name, column in table.columns.items() if name in printed}
    headings = ["row", "by", *(column.titles["real"] for column in columns.values())]
    body = [[row.title, row.cite, *(_paper(row, name) for name in columns)] for row in rows]
    return [headings, *body] if rows else []


def _compared(table: Table, verdict: Verdict, scale: str, runs: TableRuns) -> Hashable:
    """The runs and paths that an inequality compares; of real data where the scale lacks them."""

    def cell(name: str, column: str) -> Hashable:
        row, path = table.rows[name], table.rows[name].path(table.columns[column], scale)
        run = row.runs().get(table.columns[column].of, "")
        if path and run in runs and scale not in row.absent:
            return runs[run][0].name, path
        path = row.path(table.columns[column], "real")
        if path and run in table.runs["real"]:
            return resolve(table.runs["real"], run, 0).name, path
        return table.name, name, column

    def cells(term: Term) -> Hashable:
        parts = (term.cells, term.less)
        return tuple(frozenset(cell(*of) for of in part) for part in parts)

    return cells(verdict.order.low), cells(verdict.order.high)


def measure(table: Table, scale: str, runs: TableRuns, store: Store) -> Cells:
    """(row, column) -> seed -> the finite number of a finished run."""
    cells: dict[tuple[str, str], dict[int | None, float]] = {}
    for name, row in table.rows.items():
        if scale in row.absent:
            continue
        for of, run_name in row.runs().items():
            for run in runs.get(run_name, ()):
                record = store.record(run)
                numbers = dict(flatten_numbers(record["results"])) if record else {}
                for key, column in table.columns.items():
                    path = row.path(column, scale) if column.of == of else None
                    number = find_number(numbers, path) if path and numbers else None
                    if number is not None and math.isfinite(number):
                        cells.setdefault((name, key), {})[run.seed] = number
    return cells


def find_number(numbers: Mapping[str, float], path: str) -> float | None:
    """The number at a path, in which "*" stands for any one key; None if there is none.

    Raises:
        InputError: it fits several numbers.
    """
    wanted = path.split("/")
    fitting = [
        name
        for name in numbers
        if len(keys := name.split("/")) == len(wanted)
        and all(want in ("*", key) for want, key in zip(wanted, keys))
    ]
    if len(fitting) > 1:
        raise InputError(
            f"the path {path} fits {' and '.join(fitting)}: name one of them in the table"
        )
    return numbers[fitting[0]] if fitting else None


def _absences(table: Table, scale: str) -> list[str]:
    """The rows that a scale lacks, those of one reason together."""
    titles: dict[str, list[str]] = {}
    for row in table.rows.values():
        if scale in row.absent:
            titles.setdefault(row.absent[scale], []).append(row.title)
    return [
        f"Not in the {scale} world ({why}). Rows: {'; '.join(own)}" for why, own in titles.items()
    ]


def _row_cells(table: Table, name: str, cells: Cells, scale: str, ran: set[str]) -> list[str]:
    row = table.rows[name]
    words = [row.title]
    for column in table.columns:
        words += [_paper(row, column)] if table.published else []
        if scale in table.columns[column].paths:
            words.append(_here(table, name, column, cells, scale, ran))
    return words


def _beside_the_paper(table: Table, cells: Cells, ran: set[str]) -> list[list[str]]:
    """A line for each number of real data, below `COMPARED_HEADINGS`."""
    return [
        [row.title, table.columns[key].titles["real"], _paper(row, key)]
        + [_here(table, name, key, cells, "real", ran), *spread_cells(row.paper.get(key), values)]
        for name, row in table.own.items()
        for key in table.columns
        if key in row.paper or row.path(table.columns[key], "real") is not None
        for values in [cells.get((name, key), {})]
    ]


def spread_cells(paper: float | None, values: Values) -> list[str]:
    """Difference of a number from the paper's, and whether another run would lie as far with 5 % probability."""
    if paper is None or not values:
        return ["", ""]
    gap = statistics.fmean(values.values()) - paper
    if set(values) == {None}:
        within = "yes" if abs(gap) <= ROUNDED else "no seed moves it"
    elif len(values) < LEAST_SEEDS:
        within = f"fewer than {LEAST_SEEDS} seeds"
    else:
        errors = least_errors(len(values)) * math.sqrt(1 + 1 / len(values))
        within = "yes" if abs(gap) <= errors * statistics.stdev(values.values()) else "no"
    return [f"{gap:+.1f}", within]


def _paper(row: Row, column: str) -> str:
    return f"{row.paper[column]:.1f}" if column in row.paper else ""


def _here(table: Table, name: str, column: str, cells: Cells, scale: str, ran: set[str]) -> str:
    """A number; "-" for what the row does not have, although its run finished."""
    row = table.rows[name]
    of = table.columns[column].of
    if scale in row.absent or row.path(table.columns[column], scale) is None:
        return "-"
    if values := cells.get((name, column)):
        return number_text(values)
    return "-" if row.runs()[of] in ran else "not run"


def number_text(values: Values) -> str:
    """Mean, and standard deviation of several seeds."""
    numbers = list(values.values())
    text = f"{statistics.fmean(numbers):.1f}"
    return text if len(numbers) == 1 else f"{text} ± {statistics.stdev(numbers):.1f}"


def _claim_cells(
    table: Table, verdicts: Sequence[Sequence[Verdict]], scale: str
) -> tuple[list[list[str]], list[str]]:
    body, reasons = [], []
    for number, (claim, own) in enumerate(zip(table.claims, verdicts), 1):
        source = SOURCES[claim.source] if table.of_paper else ""
        body.append([f"{number}. {claim.says}", source, "", "", overall(own)])
        body += [[one.text, one.paper, one.here, one.detail, one.verdict] for one in own]
        said = SAID.get(overall(own))
        if claim.why and said and (scale == "mini" or not own):
            reasons.append(f"Claim {number} {said}: {claim.why}")
    return body, reasons


def _verdicts_of(row: str, verdicts: Sequence[Sequence[Verdict]]) -> str:
    """The verdict of each claim that is about a row."""
    about = {
        number: [one for one in own if row in {name for name, _ in one.order.cells()}]
        for number, own in enumerate(verdicts, 1)
    }
    return "; ".join(f"{number} {overall(own)}" for number, own in about.items() if own)


def _command_cells(title: str, runs: Sequence[Run], store: Store) -> list[str]:
    finished = {run.name: record for run in runs if (record := store.record(run)) is not None}
    commands = "; then ".join(command_text(run, RUNS_FOLDER) for run in runs[0].with_needs())
    records = [
        f"{'any' if run.seed is None else run.seed}: {run.name.rpartition('-')[2]}"
        for run in runs
        if run.name in finished
    ]
    provenance = [record["provenance"] for record in finished.values()]
    return [
        title,
        commands,
        ", ".join(dict.fromkeys(records)) or "not run",
        _distinct(provenance, "commit"),
        _distinct(provenance, "weights_hash"),
        _mean_minutes(finished.values()),
    ]


def command_text(run: Run, folder: Path, gpus: int = 1) -> str:
    """The command of a run, its folders below the project if they are there."""
    words = [word.replace(f"{ROOT}/", "") for word in run.command(folder, gpus)]
    typed = {module.partition(".")[0]: named for named, module in typed_modules()}
    for name in run.settings.get("imports", ()):
        words += [OPTION, typed.get(name, name).replace(f"{ROOT}/", "")]
    return " ".join(["clipself-seg", *(_quoted(word) for word in words)])


def _quoted(word: str) -> str:
    """A word for a shell, as people write it: single quotes inside of double ones."""
    plain = "'" in word and not any(character in word for character in '"$`\\')
    return f'"{word}"' if plain else shlex.quote(word)


def _distinct(provenance: Sequence[Mapping[str, object]], key: str) -> str:
    return " ".join(dict.fromkeys(str(one.get(key)) for one in provenance))


def _mean_minutes(records: Iterable[Record]) -> str:
    minutes = [record["minutes"] for record in records]
    return f"{statistics.fmean(minutes):.1f}" if minutes else ""


def _protocols(runs: TableRuns, store: Store) -> list[str]:
    """The protocol of each data set that the rows were measured with; what differs between rows has an "or"."""
    merged: dict[str, dict[str, dict[str, None]]] = {}
    for record in (store.record(one) for own in runs.values() for one in own):
        for name, protocol in protocols_of(record).items() if record else ():
            for key, value in protocol.items():
                merged.setdefault(name, {}).setdefault(key, {})[str(value)] = None
    return protocol_lines(
        {
            name: {key: " or ".join(values) for key, values in one.items()}
            for name, one in merged.items()
        }
    )


def _minutes(runs: TableRuns, store: Store) -> dict[str, float]:
    every = [run for own in runs.values() for one in own for run in one.with_needs()]
    records = {run.name: store.record(run) for run in every}
    return {name: record["minutes"] for name, record in records.items() if record is not None}
