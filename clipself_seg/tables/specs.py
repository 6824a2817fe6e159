"""Specifications of train_net.py runs in a table's file, and of evaluations that follow the run of a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """A published file of weights.

    Attributes:
        file: its name.
        source: where to get it.
    """

    file: str
    source: str


@dataclasses.dataclass(frozen=True)
class RunOf:
    """The weights that another run of the table trains."""

    run: str


Weights = str | WeightsFile | RunOf


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One call of train_net.py.

    Attributes:
        config: file, relative to the project.
        options: key -> value, as on a command line.
        weights: key -> weights.
        evaluate: whether nothing is trained.
        minutes: core-minutes that are expected; 0 if that is not known.
        prepare: words after ``python`` that write its data, {mini} for the folder of the mini worlds.
    """

    config: str
    options: Mapping[str, str]
    weights: Mapping[str, Weights]
    evaluate: bool
    minutes: float
    prepare: tuple[str, ...] = ()


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
