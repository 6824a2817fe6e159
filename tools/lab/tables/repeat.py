"""One experiment under several seeds: mean and spread of every number."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from tabulate import tabulate

from clipself_seg.errors import InputError
from clipself_seg.files import write_json
from clipself_seg.training.metrics import flatten_numbers
from clipself_seg.yaml_files import option_pairs
from lab.tables.execution import make_all
from lab.tables.runs import Run, make_run
from lab.tables.store import Store

Numbers = dict[str, float]


class Statistics(TypedDict):
    """A number under several seeds; the spread is the standard deviation of a sample."""

    mean: float
    spread: float
    values: list[float]


def repeat(
    configs: Sequence[str], seeds: Sequence[int], output: Path, opts: Sequence[str] = ()
) -> dict[str, dict[str, Statistics]]:
    """Train and evaluate each configuration under each seed; finished runs are not repeated.

    Args:
        configs: files for ``train_net.py``.
        seeds: at least two.
        output: folder of the runs, each in one of its own that follows from all its options, and of
            `seeds.json`.
        opts: further KEY VALUE words of every run.

    Returns:
        {config: {number: {"mean": ..., "spread": ..., "values": [...]}}}; the spread is the
        standard deviation of a sample.

    Raises:
        InputError: fewer than two seeds, or a run that failed.
    """
    if len(set(seeds)) < 2:
        raise InputError(f"a spread needs two different seeds, got {list(seeds)}")
    given = option_pairs(opts)
    runs = {config: [make_run(config, given, seed=seed) for seed in seeds] for config in configs}
    for config, own in runs.items():
        if not own[0].has_numbers:
            raise InputError(f"{config} evaluates nothing: give DATASETS.TEST")
    store = Store(output)
    make_all([run for own in runs.values() for run in own], store)
    results = {
        config: _statistics([_numbers(run, store) for run in own]) for config, own in runs.items()
    }
    write_json(output / "seeds.json", {"seeds": list(seeds), "results": results})
    return results


def _numbers(run: Run, store: Store) -> Numbers:
    record = store.record(run)
    if record is None:
        raise InputError(
            f"{store.folder / run.name} has no complete results: remove it, and call again"
        )
    return dict(flatten_numbers(record["results"]))


def _statistics(runs: Sequence[Numbers]) -> dict[str, Statistics]:
    return {
        name: {
            "mean": statistics.fmean(run[name] for run in runs),
            "spread": float(np.std([run[name] for run in runs], ddof=1)),
            "values": [run[name] for run in runs],
        }
        for name in runs[0]
        if all(name in run for run in runs)
    }


def spread_table(
    results: Mapping[str, Mapping[str, Statistics]], wanted: Sequence[str] = ()
) -> str:
    """One row a number, one column a configuration: ``mean +- spread``.

    Args:
        results: what `repeat` returned.
        wanted: endings of the names to show; () shows all.
    """
    names = dict.fromkeys(name for numbers in results.values() for name in numbers)
    shown = [n for n in names if not wanted or n.endswith(tuple(wanted))]
    body = [[name, *(_cell(numbers.get(name)) for numbers in results.values())] for name in shown]
    titles = [Path(config).stem for config in results]
    return tabulate(body, ["", *titles], disable_numparse=True, stralign="right")


def _cell(number: Statistics | None) -> str:
    return "-" if number is None else f"{number['mean']:.2f} +- {number['spread']:.2f}"
