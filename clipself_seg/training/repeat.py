"""One experiment under several seeds: mean and spread of every number."""

from __future__ import annotations

import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from clipself_seg.errors import InputError, ended_by
from clipself_seg.files import write_json
from clipself_seg.provenance import read_results
from clipself_seg.training.metrics import flatten_numbers
from clipself_seg.training.run import RESULTS_FILE

ROOT = Path(__file__).resolve().parent.parent.parent
TRAINED = "model_final.pth"
Numbers = dict[str, float]


def repeat(
    configs: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    opts: Sequence[str] = (),
    evaluated: Sequence[str] = (),
) -> dict[str, Any]:
    """Train and evaluate each configuration under each seed; finished runs are not repeated.

    Args:
        configs: files for ``train_net.py``.
        seeds: at least two.
        output: folder of the runs and of `seeds.json`.
        opts: further KEY VALUE words of every run.
        evaluated: files under which what the first configuration trained is evaluated as well.

    Returns:
        {config: {number: {"mean": ..., "spread": ..., "values": [...]}}}; the spread is the
        standard deviation of a sample.

    Raises:
        InputError: fewer than two seeds, or a run that failed.
    """
    if len(set(seeds)) < 2:
        raise InputError(f"a spread needs two different seeds, got {list(seeds)}")
    results = {}
    for config in (*configs, *evaluated):
        # What is trained is named by a configuration and a seed.
        trained = [_folder(configs[0], seed, output) / TRAINED for seed in seeds]
        only = [("MODEL.WEIGHTS", str(path)) if config in evaluated else () for path in trained]
        runs = [_run(config, seed, output, opts, more) for seed, more in zip(seeds, only)]
        results[config] = {
            name: {
                "mean": statistics.fmean(run[name] for run in runs),
                "spread": _spread([run[name] for run in runs]),
                "values": [run[name] for run in runs],
            }
            for name in runs[0]
            if all(name in run for run in runs)
        }
    write_json(output / "seeds.json", {"seeds": list(seeds), "results": results})
    return results


def _spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample; NaN if a value is not finite, of which Python's raises an error."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def spread_table(results: Mapping[str, Any], wanted: Sequence[str] = ()) -> str:
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


def _cell(number: Mapping[str, float] | None) -> str:
    return "-" if number is None else f"{number['mean']:.2f} +- {number['spread']:.2f}"


def _folder(config: str, seed: int, output: Path) -> Path:
    return output / f"{Path(config).stem}_seed{seed}"


def _run(
    config: str, seed: int, output: Path, opts: Sequence[str], weights: Sequence[str]
) -> Numbers:
    """Train and evaluate, or with `weights` only evaluate."""
    folder = _folder(config, seed, output)
    path = folder / RESULTS_FILE
    if not path.exists():
        mode = "--eval-only" if weights else "--resume"
        words = ["train_net.py", "--config-file", config, mode, *opts, *weights]
        words += ["SEED", str(seed), "OUTPUT_DIR", str(folder)]
        sys.stdout.write(f"$ python {shlex.join(words)}\n")
        sys.stdout.flush()
        status = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
        if status:
            what = ended_by(status) if status < 0 else "failed"
            raise InputError(f"this run {what}: python {shlex.join(words)}")
    return dict(flatten_numbers(read_results(path)["results"]))
