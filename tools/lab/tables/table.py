"""A table of the paper as data: a YAML file, read and checked.

    title: "Table 2: image patches and region proposals"
    columns:                       # what a row shows, and where results.json has it in each scale
      boxes: {title: Boxes, mini: mini_val_panoptic/*/boxes.thing.top1, real: ...}
    mini:                          # runs on the mini world; `real` has those on real data
      original: {config: configs/mini/regions.yaml, evaluate: True, minutes: 1}
      detector: {config: ..., options: {KEY: VALUE}, weights: {MODEL.CLIP.WEIGHTS: {run: patches}}, minutes: 4}
    rows:
      original: {title: original CLIP, run: original, paper: {boxes: 18.2}}
      vild: {title: ViLD, cite: "Gu, ICLR 2021", paper: {boxes: 18.9}}   # another method's: the paper's numbers alone
    claims:
      - {says: Patches help., columns: [boxes], order: original < patches, why: ...}
    notes: [What the paper prints twice.]

A path of a number has "/" between the keys of `results.json`, "*" for any one key, and {NAME} for what the
row's `read` gives for NAME; a row whose `read` lacks it has no number in that column. A column with `of: NAME` has
numbers of another run, which follows each row's under `further`:

    further:                       # NAME -> a run on the weights of each row's run (of those in `rows`, if it has that)
      zero-shot: {weights: MODEL.CLIP.WEIGHTS, keep: [MODEL.CLIP.DENSE], mini: {config: ..., evaluate: True}}

A row may name such runs itself, `runs: {NAME: run}`. A figure "plane" has a line for each row through the pairs of
columns of `points`. A weight is a name, such as one of the zoo, or {run: NAME}. In `order` a term is a row, ROW.COLUMN,
max(TERM, ...), or the difference of two of these (A - B), and ";" parts one order from the next. A claim without an
`order` is one that nothing here measures, and its `why` says so. The `source` of a claim is a sentence of the paper
("text"), the paper's numbers without a sentence ("numbers"), or this project ("ours").

A run with `yours: True` is of what a user registers: in such a table it alone has the modules of ``--import`` and the
keys of ``--opts``, and its rows are left out where neither is typed. `data: NAME` says which of a row's runs label
pixels and take other data sets (``--data``); "row" is its own.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from clipself_seg.errors import InputError, check_keys, nearest, shown
from clipself_seg.yaml_files import read_tree
from lab import ROOT

FOLDER = ROOT / "tools/lab/tables"
SCALES = ("mini", "real")
# How names of tables begin: the paper's, its appendix's, its figures', and others.
KINDS = (r"\d", r"A\d", r"fig\w", "")
FIGURES = ("", "curve", "plane")
SOURCES = ("text", "numbers", "ours")
TERM = re.compile(r"{0}(?: - {0})?".format(r"(?:max\([^()]*\)|[\w.]+)"))
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunOf:
    """The weights that another run of the table trains."""

    run: str


Weights = str | RunOf  # a name, such as one of the zoo, or what another run makes


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One call of ``clipself-seg train`` or ``eval``.

    Attributes:
        config: file, relative to the project.
        options: key -> value, as on a command line.
        weights: key -> weights.
        evaluate: whether nothing is trained.
        minutes: core-minutes that are expected; 0 if that is not known.
        prepare: words after ``python`` that write its data, {mini} for the folder of the mini worlds.
        yours: whether it is of what a user registers.
    """

    config: str
    options: Mapping[str, str]
    weights: Mapping[str, Weights]
    evaluate: bool
    minutes: float
    prepare: tuple[str, ...] = ()
    yours: bool = False


@dataclasses.dataclass(frozen=True)
class Further:
    """A run that every row has besides its own, on the weights that its own trains.

    Attributes:
        weights: key that is given those weights, or those that a run that trains nothing has under it.
        keep: keys whose values are those of the row's run, as far as it sets them.
        rows: rows that have it; () for all.
        specs: scale -> the run without what it has from the row's.
    """

    weights: str
    keep: tuple[str, ...]
    rows: tuple[str, ...]
    specs: Mapping[str, RunSpec]

    def on(self, run: str, spec: RunSpec, scale: str) -> RunSpec:
        """The run that follows a row's.

        Args:
            run: name of the row's run.
            spec: the row's run.
            scale: a scale of `specs`.
        """
        own = self.specs[scale]
        kept = {key: spec.options[key] for key in self.keep if key in spec.options}
        handed = spec.weights.get(self.weights) if spec.evaluate else RunOf(run)
        given = {} if handed is None else {self.weights: handed}
        return dataclasses.replace(
            own, options={**kept, **own.options}, weights={**own.weights, **given}
        )


def further_name(run: str, further: str) -> str:
    """Name of the run that follows a row's."""
    return f"{run} {further}"


def with_further(
    runs: Mapping[str, RunSpec],
    further: Mapping[str, Further],
    shown: Iterable[tuple[str, str]],
    scale: str,
) -> dict[str, RunSpec]:
    """The runs of a scale, and after them those that follow the rows' runs.

    Args:
        runs: name -> run.
        further: name -> what follows.
        shown: rows of the scale, each with the name of its run; one of an unknown run is passed over.
        scale: "mini" or "real".
    """
    rows = [(row, run) for row, run in shown if run in runs]
    return dict(runs) | {
        further_name(run, name): one.on(run, runs[run], scale)
        for row, run in rows
        for name, one in further.items()
        if scale in one.specs and row in (one.rows or (row,))
    }


@dataclasses.dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        titles: scale -> heading.
        paths: scale -> path of the number; a scale may lack it.
        of: name of the run that follows the row's, whose number it is; "" for the row's.
    """

    titles: Mapping[str, str]
    paths: Mapping[str, str]
    of: str = ""

    def title(self, scale: str) -> str:
        """Heading in a scale; the paper's where the scale lacks the column."""
        return self.titles[scale if scale in self.paths else "real"]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        title: as the page shows it.
        paper: column -> published number.
        cite: author, venue and year of another method's row, which has no run; "" for other rows.
        run: name of its run in each scale that has one.
        read: what stands for {NAME} in paths.
        absent: scale -> why it has no such row.
        further: what a column is `of` -> name of that run beside its own.
    """

    title: str
    paper: Mapping[str, float]
    cite: str = ""
    run: str = ""
    read: Mapping[str, str] = dataclasses.field(default_factory=dict)
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)
    further: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def runs(self) -> dict[str, str]:
        """The `of` of a column -> name of that run."""
        return {"": self.run, **self.further}

    def path(self, column: Column, scale: str) -> str | None:
        """Path of the row's number in `results.json`; None if it has none in this column."""
        if self.cite or column.of not in self.runs():
            return None
        try:
            return column.paths[scale].format_map(self.read)
        except KeyError:
            return None


Cell = tuple[str, str]  # row and column


@dataclasses.dataclass(frozen=True)
class Term:
    """A number that a claim compares: the largest of some cells, without the largest of others.

    Attributes:
        cells: cells; a column "" stands for each column of the claim.
        less: cells whose largest is taken away; () for none.
    """

    cells: tuple[Cell, ...]
    less: tuple[Cell, ...] = ()

    def in_column(self, column: str) -> Term:
        """The term with a column in place of "", which stands for each."""
        named = ([(row, own or column) for row, own in part] for part in (self.cells, self.less))
        return Term(*map(tuple, named))


@dataclasses.dataclass(frozen=True)
class Inequality:
    """Two terms of a claim, the smaller one and the larger one; `strict` is whether equality breaks it."""

    low: Term
    high: Term
    strict: bool

    def cells(self) -> list[Cell]:
        """All cells of its terms."""
        return [cell for term in (self.low, self.high) for cell in (*term.cells, *term.less)]


@dataclasses.dataclass(frozen=True)
class Claim:
    """Inequalities between rows.

    Attributes:
        says: the claim in words.
        columns: columns in which it is made; () where the terms name theirs.
        order: its inequalities; () where nothing here measures it.
        why: reason why it does not hold in the mini world, where it does not, or why nothing measures it.
        source: whose it is: one of `SOURCES`.
    """

    says: str
    columns: tuple[str, ...]
    order: tuple[Inequality, ...]
    why: str
    source: str

    def rows(self) -> set[str]:
        """Rows that it compares."""
        return {row for one in self.order for row, _ in one.cells()}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: name of its file, such as "1a".
        title: heading.
        about: sentences below the heading.
        figure: "curve", "plane" or "".
        points: pairs of columns, across and up, that a line of a "plane" goes through.
        columns: name -> column.
        runs: scale -> name -> run.
        rows: name -> row.
        claims: what is said about the rows.
        notes: what has to be known of its numbers.
        data: what the columns are `of` that a user's data take the place of, "row" for a row's own run; "" for none.
    """

    name: str
    title: str
    about: str
    figure: str
    points: tuple[tuple[str, str], ...]
    columns: Mapping[str, Column]
    runs: Mapping[str, Mapping[str, RunSpec]]
    rows: Mapping[str, Row]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...] = ()
    data: str = ""

    @property
    def of_paper(self) -> bool:
        """True if it is a table or a figure of the paper."""
        return _kind(self.name) < len(KINDS) - 1

    @property
    def own(self) -> dict[str, Row]:
        """Rows that have runs: all but those of other methods."""
        return {name: row for name, row in self.rows.items() if not row.cite}

    @property
    def published(self) -> bool:
        """True if the paper prints any of its numbers."""
        return any(row.paper for row in self.rows.values())

    def shown_runs(self, scale: str) -> list[str]:
        """Names of the runs whose numbers rows of a scale show."""
        rows = (row for row in self.rows.values() if scale not in row.absent)
        names = dict.fromkeys(name for row in rows for name in row.runs().values())
        return [name for name in names if name in self.runs[scale]]


class Part:
    """A mapping in a table's file, whose keys are taken one by one; errors say where they stand."""

    def __init__(self, place: str, content: object) -> None:
        self.place = place
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise InputError(f"{place} must be a mapping with names as keys, got {shown(content)}")
        self.content = content
        self.known: list[str] = []

    def take(self, key: str, kinds: type | UnionType, default: object = None) -> Any:
        """Take a value of some types; an error if it is missing and has no default."""
        self.known.append(key)
        value = self.content.get(key, default)
        if value is None:
            raise InputError(f'{self.place}: "{key}" is missing')
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise InputError(f"{self.place}: {key} cannot be {shown(value)}: correct its type")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Take a string."""
        return str(self.take(key, str, default))

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """Take one of some strings, by default the first."""
        value = self.text(key, choices[0])
        if value not in choices:
            raise InputError(
                f"{self.place}: {key} cannot be {shown(value)}; {nearest(value, choices)}"
            )
        return value

    def mapping(self, key: str) -> dict[str, object]:
        """Take a mapping, by default an empty one."""
        return Part(f"{self.place}: {key}", self.take(key, dict, {})).content

    def texts(self, key: str) -> dict[str, str]:
        """Take a mapping with its values as strings."""
        return {name: str(value) for name, value in self.mapping(key).items()}

    def each(self, key: str, read: Callable[[Part], T], needed: bool = True) -> dict[str, T]:
        """Take a mapping of mappings, each read by a function."""
        content = self.take(key, dict, None if needed else {})
        sections = {name: Part(f"{self.place}: {key}: {name}", of) for name, of in content.items()}
        return {name: section.read(read) for name, section in sections.items()}

    def pair(self, key: str, value: object) -> tuple[str, str]:
        """Read an entry of a list: two strings."""
        if not isinstance(value, list) or len(value) != 2 or not all(map(_is_text, value)):
            raise InputError(
                f"{self.place}: {key} cannot have {shown(value)}: give pairs of columns, [across, up]"
            )
        return value[0], value[1]

    def words(self, key: str) -> tuple[str, ...]:
        """Take a list of strings."""
        value = self.take(key, list, [])
        if not all(map(_is_text, value)):
            raise InputError(f"{self.place}: {key} cannot be {shown(value)}: give a list of names")
        return tuple(value)

    def listed(self, key: str) -> list[Part]:
        """Take a list of mappings."""
        content = self.take(key, list, [])
        return [Part(f"{self.place}: {key}: {n}", of) for n, of in enumerate(content, 1)]

    def read(self, read: Callable[[Part], T]) -> T:
        """Take all by a function, and refuse keys that it did not take."""
        value = read(self)
        check_keys(self.content, self.known, self.place)
        return value


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def runs_of_yours(table: Table) -> set[str]:
    """Names of the runs of what a user registers."""
    return {name for runs in table.runs.values() for name, spec in runs.items() if spec.yours}


def with_yours(table: Table, options: Mapping[str, str] | None) -> Table:
    """A table whose rows of what a user registers have it, or without these rows.

    Args:
        table: any.
        options: key -> value, which are the user's; None where nothing is.
    """
    yours, given = runs_of_yours(table), dict(options or {})
    rows = dict(table.rows)
    for name, row in table.rows.items():
        if yours.isdisjoint(row.runs().values()):
            continue
        title = ": ".join(filter(None, (row.title, ", ".join(given.values()))))
        rows[name] = dataclasses.replace(row, title=title)
        if options is None:
            del rows[name]
    return _changed(table, rows, yours, given)


def with_data(table: Table, data: str, names: Sequence[str]) -> Table:
    """A table whose runs that label pixels do so on other data sets, each of which is a column.

    Args:
        table: any.
        data: value of ``DATASETS.DATA``.
        names: names under which it is registered.

    Raises:
        InputError: no run of the table can.
    """
    if not table.data:
        raise InputError(
            f"--data: table {table.name} has data sets of its own; zero_shot and backbone take others, and a table of "
            'yours with "data: row"'
        )
    of = "" if table.data == "row" else table.data
    rows = {
        key: dataclasses.replace(row, run=row.runs()[of], further={}, paper={})
        for key, row in table.rows.items()
        if of in row.runs()
    }
    given = {"DATASETS.DATA": data, "DATASETS.TEST": repr(tuple(names))}
    columns = {
        name: Column(
            titles=dict.fromkeys(SCALES, f"{name.removesuffix('_sem_seg')} mIoU"),
            paths=dict.fromkeys(SCALES, f"{name}/mIoU"),
        )
        for name in names
    }
    claims = [claim for claim in table.claims if claim.columns]
    claims = [dataclasses.replace(claim, columns=tuple(names)) for claim in claims]
    table = dataclasses.replace(table, columns=columns, claims=tuple(claims))
    return _changed(table, rows, {row.run for row in rows.values()}, given)


def _changed(
    table: Table, rows: dict[str, Row], names: Collection[str], options: dict[str, str]
) -> Table:
    """A table with other rows and the claims about these, some of its runs with further options."""
    runs = {scale: dict(own) for scale, own in table.runs.items()}
    for own in runs.values():
        for name in own.keys() & names:
            given = {**own[name].options, **options}
            own[name] = dataclasses.replace(own[name], options=given)
    claims = tuple(claim for claim in table.claims if claim.rows() <= rows.keys())
    return dataclasses.replace(table, rows=rows, runs=runs, claims=claims)


def list_tables() -> list[str]:
    """Names of all tables: those of the paper's text, of its appendix, its figures, and those of this project.

    Raises:
        InputError: the folder of tables has none.
    """
    names = [path.stem for path in FOLDER.glob("*.yaml")]
    if not names:
        raise InputError(f"{FOLDER} has no tables: run this in a clone of the project")
    return sorted(names, key=lambda name: (_kind(name), name))


def _kind(name: str) -> int:
    return next(place for place, kind in enumerate(KINDS) if re.match(kind, name))


def read_tables(names: Iterable[str] = ()) -> list[Table]:
    """Some tables, or all.

    Args:
        names: names of tables, in any case, or files of a user's (.yaml); () for all.

    Raises:
        InputError: an unknown name, or as `read_table`; a user's table by the name of another one, or with `prepare`.
    """
    known = {name.lower(): FOLDER / f"{name}.yaml" for name in list_tables()}
    files = []
    for name in names:
        if is_file(name):
            files.append(Path(name))
            if files[-1].stem.lower() in {*known, "index"}:
                raise InputError(f"{name}: there is a table of this name already: rename the file")
        elif name.lower() in known:
            files.append(known[name.lower()])
        else:
            hint = nearest(name, list_tables())
            raise InputError(f'no table "{name}": {hint} (or give the file of yours, NAME.yaml)')
    tables = {file: read_table(file) for file in files or known.values()}
    for file, table in tables.items():
        specs = [spec for runs in table.runs.values() for spec in runs.values()]
        if file.parent != FOLDER and any(spec.prepare for spec in specs):
            raise InputError(
                f"table {file}: a run has `prepare`, which tables of the project alone may have: a table of yours "
                "starts trainings and evaluations, and nothing else"
            )
    return list(tables.values())


def is_file(name: str) -> bool:
    """True if the name of a table is that of a file."""
    return name.endswith((".yaml", ".yml"))


def read_table(path: Path) -> Table:
    """Read and check a table.

    Raises:
        InputError: no usable YAML, unknown or missing keys, values of another type, and names of runs,
            rows and columns that are not there; names the file and the place.
    """
    if not path.is_file():
        raise InputError(f"no table {path}: there is no such file")
    place = f"table {path}"
    table, further = Part(place, read_tree(path)).read(functools.partial(_table, path.stem))
    _check_names(table, further, place)
    return table


def _table(stem: str, top: Part) -> tuple[Table, dict[str, Further]]:
    columns = top.each("columns", _column)
    runs = {scale: top.each(scale, _run, needed=False) for scale in SCALES}
    further = top.each("further", _further, needed=False)
    rows = top.each("rows", _row)
    for scale in SCALES:
        shown = [(name, row.run) for name, row in rows.items() if scale not in row.absent]
        runs[scale] = with_further(runs[scale], further, shown, scale)
    for name, row in rows.items():
        follow = [key for key, one in further.items() if name in (one.rows or (name,))]
        own = {key: further_name(row.run, key) for key in follow}
        rows[name] = dataclasses.replace(row, further={**own, **row.further})
    table = Table(
        name=stem,
        title=top.text("title"),
        about=" ".join(top.text("about", "").split()),
        figure=top.choice("figure", FIGURES),
        points=tuple(top.pair("points", pair) for pair in top.take("points", list, [])),
        columns=columns,
        runs=runs,
        rows=rows,
        claims=tuple(section.read(_claim) for section in top.listed("claims")),
        notes=tuple(" ".join(note.split()) for note in top.words("notes")),
        data=top.text("data", ""),
    )
    return table, further


def _column(section: Part) -> Column:
    title = section.take("title", str | dict)
    titles = title if isinstance(title, dict) else dict.fromkeys(SCALES, title)
    paths = {scale: section.text(scale, "") for scale in SCALES}
    return Column(
        titles={scale: str(titles.get(scale, "")) for scale in SCALES},
        paths={scale: path for scale, path in paths.items() if path},
        of=section.text("of", ""),
    )


def _run(section: Part) -> RunSpec:
    weights = section.mapping("weights")
    return RunSpec(
        config=section.text("config"),
        options=section.texts("options"),
        weights={key: _weights(f"{section.place}: {key}", of) for key, of in weights.items()},
        evaluate=section.take("evaluate", bool, False),
        minutes=float(section.take("minutes", int | float, 0)),
        prepare=tuple(section.text("prepare", "").split()),
        yours=section.take("yours", bool, False),
    )


def _further(section: Part) -> Further:
    return Further(
        weights=section.text("weights"),
        keep=section.words("keep"),
        rows=section.words("rows"),
        specs={
            scale: Part(f"{section.place}: {scale}", section.take(scale, dict)).read(_run)
            for scale in SCALES
            if scale in section.content
        },
    )


def _weights(place: str, value: object) -> Weights:
    match value:
        case str():
            return value
        case {"run": str(name), **more} if not more:
            return RunOf(name)
    raise InputError(f"{place} cannot be {shown(value)}: give a name or {{run: NAME}}")


def _row(section: Part) -> Row:
    paper: dict[str, float] = {}
    for column, number in section.mapping("paper").items():
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise InputError(
                f"{section.place}: paper: {column} cannot be {shown(number)}: give a number"
            )
        paper[column] = float(number)
    row = Row(title=section.text("title"), paper=paper, cite=section.text("cite", ""))
    if row.cite:
        return row  # of the paper alone: what belongs to a run is an unknown key
    return dataclasses.replace(
        row,
        run=section.text("run", ""),
        read=section.texts("read"),
        absent=section.texts("absent"),
        further=section.texts("runs"),
    )


def _claim(section: Part) -> Claim:
    order = section.text("order", "")
    chains = [_chain(section.place, chain) for chain in order.split(";")] if order else []
    return Claim(
        says=section.text("says"),
        columns=tuple(map(str, section.take("columns", list, []))),
        order=tuple(one for chain in chains for one in chain),
        why=" ".join(section.text("why", "" if order else None).split()),
        source=section.choice("source", SOURCES),
    )


def _chain(place: str, order: str) -> list[Inequality]:
    words = re.split(r"(<=?)", order)
    terms, relations = [word.strip() for word in words[::2]], words[1::2]
    if not relations or not all(map(TERM.fullmatch, terms)):
        raise InputError(
            f'{place}: order cannot be {shown(order)}: give rows with "<" or "<=" between them'
        )
    read = [_term(term) for term in terms]
    pairs = zip(read, read[1:], relations)
    return [Inequality(low, high, relation == "<") for low, high, relation in pairs]


def _term(text: str) -> Term:
    parts = []
    for part in text.split(" - "):
        words = part.removeprefix("max(").removesuffix(")").split(",")
        split = [word.strip().partition(".") for word in words]
        parts.append(tuple((row, column) for row, _, column in split))
    return Term(*parts)


def _check_names(table: Table, further: Mapping[str, Further], place: str) -> None:
    """Refuse names of runs, rows and columns that the table does not have, and columns without a number."""
    for where, name, known in _names(table, further):
        if name not in known:
            raise InputError(f"{place}: {where}: there is no {shown(name)}; {nearest(name, known)}")
    for name, column in table.columns.items():
        if not column.paths and not any(name in row.paper for row in table.rows.values()):
            raise InputError(
                f"{place}: columns: {name} has no number: give it a path under mini or real, or its numbers under "
                "`paper` of the rows, or leave it out"
            )
    if table.figure == "plane" and not table.points:
        raise InputError(
            f'{place}: figure "plane" needs points: give pairs of columns, [across, up]'
        )


def _names(
    table: Table, further: Mapping[str, Further]
) -> Iterator[tuple[str, str, Collection[str]]]:
    """Every name of a run, row or column in a table: where it stands, the name, and those that there are."""
    named = [key for row in table.rows.values() for key in row.further if key not in further]
    for name, column in table.columns.items():
        for scale in column.paths if column.of else ():
            there = [*named, *(key for key, one in further.items() if scale in one.specs)]
            yield f"columns: {name}: of, in {scale}", column.of, there
    for name in (name for pair in table.points for name in pair):
        yield "points", name, table.columns
    for name, one in further.items():
        for row in one.rows:
            yield f"further: {name}: rows", row, table.rows
    for scale in SCALES:
        above: list[str] = []  # so that no run needs itself
        for name, spec in table.runs[scale].items():
            for source in spec.weights.values():
                if isinstance(source, RunOf):
                    yield f"{scale}: {name}: weights of a run above it", source.run, above
            above.append(name)
    for name, shown_row in table.rows.items():
        for column_name in shown_row.paper:
            yield f"rows: {name}: paper", column_name, table.columns
        for scale in shown_row.absent:
            yield f"rows: {name}: absent", scale, SCALES
        filled = (scale for scale in SCALES if table.runs[scale] and not shown_row.cite)
        for scale in (scale for scale in filled if scale not in shown_row.absent):
            yield f"rows: {name}: run of {scale}", shown_row.run, table.runs[scale]
            for key, run in shown_row.further.items():
                if key not in further:
                    yield f"rows: {name}: runs: {key}, of {scale}", run, table.runs[scale]
    for number, claim in enumerate(table.claims, 1):
        where = f"claims: {number}"
        for column_name in claim.columns:
            yield where, column_name, table.columns
        for row, column_name in (cell for one in claim.order for cell in one.cells()):
            yield where, row, table.rows
            if column_name or not claim.columns:
                yield where, column_name, table.columns
