"""Every table by one command: what is missing is run, and the page is written from what is there."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipself_seg.data.datasets.table import DATASETS, MINI
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in, read_json
from lab import ROOT
from lab.mini.writer import WorldSize, make_worlds
from lab.tables.claims import LEAST_SEEDS
from lab.tables.execution import AT_ONCE, affordable, plan, run_all, say
from lab.tables.marks import unmark
from lab.tables.page import NAMES, write_page
from lab.tables.rehearse import rehearsals
from lab.tables.runs import COSTS, Run, config_name, missing_data, resolve
from lab.tables.sections import command_text, make_section
from lab.tables.store import Store
from lab.tables.table import Table, is_file, read_tables, with_data, with_yours

DOCS = ROOT / "docs"  # with the results that the project brings


class Reproduction:
    """Tables, their runs, and where those are.

    Args:
        scale: "mini" or "real".
        seeds: seeds to run.
        output: folder of the runs.
        docs: folder of the page, and of what is kept of finished runs. None: ``page`` below the runs, and what the
            project brings of finished runs counts, too.
        yours: key -> value, of the rows of what the user registers; None where nothing is registered.
        data: the user's data for tables that can be made on other data sets; "" for their own.
        data_sets: names under which these data are registered.
    """

    def __init__(
        self,
        *,
        scale: str,
        seeds: Sequence[int],
        output: Path,
        docs: Path | None,
        yours: Mapping[str, str] | None = None,
        data: str = "",
        data_sets: Sequence[str] = (),
    ) -> None:
        self.scale = scale
        self.seeds = list(dict.fromkeys(seeds))
        self.docs = docs or output / "page"
        self.yours = yours
        self.data = data
        self.data_sets = data_sets
        kept = [self.docs, *([] if docs else [DOCS])]
        self.store = Store(output, *(folder / NAMES[scale] / "runs" for folder in kept))

    def read(self, names: Sequence[str]) -> list[Table]:
        """Some tables, () for all, with what is the user's."""
        tables = [with_yours(table, self.yours) for table in read_tables(names)]
        if not self.data:
            return tables
        return [with_data(table, self.data, self.data_sets) for table in tables]

    def runs_of(self, table: Table, seeds: Sequence[int]) -> dict[str, list[Run]]:
        """The runs that rows of a table show: name -> a run for each seed, or one that no seed moves."""
        runs = {}
        for name in table.shown_runs(self.scale):
            of_seeds = (resolve(table.runs[self.scale], name, seed) for seed in seeds)
            runs[name] = list({run.name: run for run in of_seeds}.values())
        return runs

    def wanted(self, names: Sequence[str]) -> list[Run]:
        """All runs of some tables (() for all), each once."""
        runs = [
            run
            for table in self.read(names)
            for own in self.runs_of(table, self.seeds).values()
            for run in own
        ]
        return list({run.name: run for run in runs}.values())

    def runnable(self, todo: Sequence[Run]) -> tuple[list[Run], list[str]]:
        """The runs to make that can be made, and what the others lack, each thing once."""
        lacking = {run.name for run in todo if any(one.missing for one in run.with_needs())}
        missing = dict.fromkeys(what for run in todo for what in run.missing)
        return [run for run in todo if run.name not in lacking], list(missing)

    def within(self, todo: Sequence[Run], names: Sequence[str], hours: float) -> list[Run]:
        """The runs that a budget pays for (`affordable`); says which tables are whole with them."""
        if hours == math.inf:
            return list(todo)
        cells, tables = Counter[str](), dict[str, dict[str, list[Run]]]()
        for table in self.read(names):
            tables[table.name] = self.runs_of(table, self.seeds)
            for row in (row for row in table.own.values() if self.scale not in row.absent):
                for of, name in row.runs().items():
                    columns = (one for one in table.columns.values() if one.of == of)
                    shown = sum(row.path(one, self.scale) is not None for one in columns)
                    cells.update({run.name: shown for run in tables[table.name].get(name, ())})
        chosen = affordable(todo, cells, self.seeds, hours)
        made = {run.name for run in chosen}
        say(
            f"{hours:g} hours pay for {len(chosen)} of {len(todo)} runs, in the order of most numbers of tables an "
            "hour, seed by seed:"
        )
        for seed in self.seeds:
            whole = [
                name
                for name, runs in tables.items()
                if (own := [run for of in runs.values() for run in of if run.seed in (None, seed)])
                and all(run.name in made or self.store.record(run) is not None for run in own)
            ]
            say(f"  seed {seed}: {', '.join(whole) or 'no table'} complete")
        return chosen

    def run(self, names: Sequence[str], *, gpus: int = 0, hours: float = math.inf) -> int:
        """Make what is missing, and write the page; 1 if a run failed or could not be made.

        Args:
            names: names of tables, () for all.
            gpus: GPUs of each run; 0 for a CPU.
            hours: of GPUs, or of cores, that are spent.

        Raises:
            InputError: an unknown table, or a table that cannot be used.
        """
        runs = self.wanted(names)
        todo, missing = self.runnable(plan(runs, self.store))
        _say_what_is_missing(todo, missing)
        self._say_what_is_finished(runs)
        todo = self.within(todo, names, hours)
        with alone_in(self.store.folder):
            failed = run_all(todo, self.store, gpus=gpus, hours=hours)
            self.store.keep(runs)
        for name, problem in failed.items():
            say(f"failed: {name}: {problem}")
        self.write_page(names)
        return 1 if failed or missing else 0

    def rehearse(self, names: Sequence[str], *, gpus: int = 0) -> int:
        """Make two steps of one run of each recipe, as `rehearsals` says; 1 if one failed or lacks something."""
        runs, lacking = rehearsals(self.read(names), self.scale, gpus)
        for name in dict.fromkeys(config_name(run.config) for run in runs if not run.evaluate):
            if name in (memory := COSTS["GiB of a GPU"]):
                images = COSTS["images of a GPU"][name]
                say(f"{memory[name]:>6g} GiB of a GPU, at least: {name}, {images} images each")
        for what in lacking:
            say(f"not rehearsed: {what}")
        store = Store(self.store.folder / "rehearsal")
        with alone_in(store.folder):
            # Of two steps nobody knows the minutes.
            todo = [dataclasses.replace(run, minutes=0.0) for run in plan(runs, store)]
            failed = run_all(todo, store, gpus=gpus)
        for name, problem in failed.items():
            say(f"failed: {name}: {problem}")
        say(f"{sum(run.name not in failed for run in runs)} of {len(runs)} recipes ran")
        return 1 if failed or lacking else 0

    def write_page(self, names: Sequence[str] = ()) -> None:
        """Write the page of all tables from the runs of `seeds`, and of seeds 0 to 2, that are finished.

        Where something is the user's it is that of `names` alone: other tables have other runs.
        """
        alone = self.yours is not None or self.data or any(map(is_file, names))
        seeds = sorted({*self.seeds, *range(LEAST_SEEDS)})
        sections = [
            make_section(table, self.scale, self.runs_of(table, seeds), self.store)
            for table in self.read(names if alone else ())
        ]
        say(f"{write_page(sections, self.docs, self.scale)}")

    def unmark(self) -> None:
        """Take "+dirty" from the project's records where `unmark` shows that it can go."""
        runs = {one.name: one for run in self.wanted(()) for one in run.with_needs()}.values()
        finished = [run for run in runs if self.store.record(run) is not None]
        for line in unmark(finished, DOCS / NAMES[self.scale] / "runs"):
            say(line)

    def list_rows(self, names: Sequence[str]) -> None:
        """Print rows and claims of some tables, and which runs are finished."""
        for table in self.read(names):
            runs = self.runs_of(table, self.seeds)
            say(f"\n{table.name}: {table.title}")
            for row in table.rows.values():
                if self.scale in row.absent:
                    say(f"  {row.title}: not in the {self.scale} world: {row.absent[self.scale]}")
                    continue
                own = [run for name in row.runs().values() for run in runs.get(name, ())]
                there = sum(self.store.record(run) is not None for run in own)
                of_seed = [runs[name][0] for name in row.runs().values() if name in runs]
                once = {run.name: run for one in of_seed for run in one.with_needs()}
                cost = self._cost(sum(run.minutes for run in once.values()))
                say(f"  {row.title}: {there} of {len(own)} finished, {cost} a seed")
            for claim in table.claims:
                say(f"  claim: {claim.says}")

    def dry_run(self, names: Sequence[str], *, gpus: int = 0, hours: float = math.inf) -> None:
        """Print the commands that would run, and what each costs, also of those that lack something."""
        runs = self.wanted(names)
        todo = self.within(plan(runs, self.store), names, hours)
        able, missing = self.runnable(todo)
        names_of_able = {run.name for run in able}
        shown: dict[str, list[str]] = {}
        for table in self.read(names):
            own = (run for of in self.runs_of(table, self.seeds).values() for run in of)
            for name in dict.fromkeys(one.name for run in own for one in run.with_needs()):
                shown.setdefault(name, []).append(table.name)
        for run in todo:
            lacks = "" if run.name in names_of_able else "; lacks what is missing"
            command = command_text(run, self.store.folder, gpus)
            tables = ", ".join(shown[run.name])
            say(f"{self._cost(run.minutes):>20}  {command}   # {tables}{lacks}")
        for table in self.read(names):
            of_table = [run for run in todo if table.name in shown[run.name]]
            cost = self._cost(sum(run.minutes for run in of_table))
            say(
                f"{cost:>20}  table {table.name}: {len(of_table)} runs, those that it shares among them"
            )
        _say_what_is_missing(todo, missing)
        if self.scale == "real":
            disk = sum(run.gigabytes for run in todo)
            say(f"disk: about {disk:,.0f} GB of runs, beside data sets and weights")
        minutes = sum(run.minutes for run in todo)
        cores = f": about {minutes / AT_ONCE:.0f} minutes on {AT_ONCE} cores"
        say(
            f"{len(todo)} runs, {self._cost(minutes)}{cores if self.scale == 'mini' and not gpus else ''}"
        )
        self._say_what_is_finished(runs)

    def _cost(self, minutes: float) -> str:
        """Expected duration of runs; a table of a user may not say it."""
        if self.scale == "mini":
            return f"{minutes:.3g} core-minutes"
        if 0 < minutes < 60:
            return f"{minutes:.0f} A100 minutes"
        return f"{minutes / 60:,.0f} A100 hours" if minutes else "hours not known"

    def _say_what_is_finished(self, runs: Sequence[Run]) -> None:
        finished = sum(self.store.record(run) is not None for run in runs)
        if finished:
            folders = " and ".join(map(str, (self.store.folder, *self.store.kept)))
            say(
                f"{finished} of {len(runs)} are finished: what {folders} have is not run again. To make all anew give "
                "another --docs, and another --output if it has runs of yours"
            )


def _say_what_is_missing(todo: Sequence[Run], missing: Sequence[str]) -> None:
    for what in missing:
        say(f"missing: {what}")
    data = dict.fromkeys(name for run in todo for name in run.settings["data"])
    for root in dict.fromkeys(DATASETS[name].root for name in data if missing_data(name)):
        size = (
            f"{root.gigabytes:g} GB, unpacked as much again" if root.gigabytes else "not published"
        )
        say(f"to download: {root.title}; size: {size}; licence: {root.licence}")
    for words in dict.fromkeys(words for run in todo for words in run.fetched):
        say(f"fetched unless it is here: {words}")


def refuse_other_worlds() -> None:
    """Refuse worlds of other sizes than the tables are of, which drawing would replace.

    Raises:
        InputError: such worlds are where the mini worlds are read.
    """
    manifest, wanted = MINI.drawn / "mini" / "manifest.json", dataclasses.asdict(WorldSize())
    here = read_json(manifest, "file") if manifest.is_file() else wanted
    if not isinstance(here, dict) or any(here.get(key) != wanted[key] for key in wanted):
        sizes = ", ".join(f"{key} {value}" for key, value in wanted.items())
        raise InputError(
            f"{MINI.drawn} has mini worlds of other sizes than the tables are of ({sizes}): set {MINI.variable} to "
            "another folder, or remove them"
        )


def write_worlds() -> None:
    """Draw the mini worlds where they are read, if they are not there."""
    folder = MINI.drawn
    if make_worlds(folder, WorldSize()):
        say(f"the mini worlds are in {folder}")
