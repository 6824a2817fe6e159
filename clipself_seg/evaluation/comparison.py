"""Compares finished runs of any task: one table for each data set, and curves over input sizes (Fig. 1, 3, A1)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from clipself_seg.config.weight_checks import WEIGHTS
from clipself_seg.errors import InputError, shown
from clipself_seg.evaluation import report
from clipself_seg.evaluation.coco_objects import KINDS
from clipself_seg.evaluation.measuring_protocol import protocol_line
from clipself_seg.evaluation.named import name_and_value
from clipself_seg.evaluation.region_report import Results, plot_size_curve, region_table
from clipself_seg.provenance import read_results

# Side of the input in pixels -> results of region recognition.
Curve = dict[int, Results]
# Scores, boxes or masks that a line is of; empty where a model has one line -> its numbers.
Lines = dict[str, report.Numbers]
# Name of a data set -> name of a model -> its numbers.
Comparison = dict[str, dict[str, Curve | Lines]]

LARGEST = 1e9  # of numbers in percent and of counts; a JSON may have infinite ones
TABLE_FILES = {"markdown": ("github", "tables.md"), **report.FILES}
OF_PIXELS = report.PANOPTIC_COLUMNS | report.SEMANTIC_COLUMNS


def read_comparison(runs: Sequence[str]) -> Comparison:
    """Reads the numbers of several runs, in their order.

    Args:
        runs: folders with a results.json, or such files, with a name before them as in "student=output/a" or
            without; the name is then that of the folder. Runs of other data sets may share a name.

    Raises:
        InputError: as `evaluation.named.name_and_value`; a file that is missing or broken, or has no numbers of a task;
            numbers of one data set under one name twice.
    """
    comparison: Comparison = {}
    for name, path in _given(runs):
        results = read_results(path)["results"]
        if not results:
            raise InputError(f"{path} has no numbers: name a run that was evaluated")
        for dataset, content in results.items():
            lines = _curve(content) or _lines(content)
            if lines is None:
                raise InputError(f"{path} has no numbers of a task for {dataset}: leave it out")
            models = comparison.setdefault(dataset, {})
            if models and len({_is_curve(lines), *map(_is_curve, models.values())}) > 1:
                raise InputError(f"{path} is of another task for {dataset}: compare tasks apart")
            if name in models:
                raise InputError(
                    f'two runs called "{name}" have numbers of {dataset}: give each its own, as NAME=folder'
                )
            models[name] = lines
    return comparison


def comparison_notes(runs: Sequence[str]) -> list[str]:
    """Lines for each data set: the common parts of its runs' protocols, and each part in which they differ.

    The weights of a run are one of these parts, and the small worlds where they stand for drawn ones.

    Args:
        runs: see `read_comparison`. Those of before there were protocols have none.

    Raises:
        InputError: as `read_comparison`.
    """
    protocols: dict[str, dict[str, Mapping[str, object]]] = {}
    for name, path in _given(runs):
        content = read_results(path)
        made_by = content["provenance"]
        for dataset, parts in content["protocol"].items():
            said = {key: made_by[key] for key in ("mini worlds",) if key in made_by}
            protocols.setdefault(dataset, {})[name] = parts | _weights(made_by) | said
    return [
        line for dataset, of_runs in protocols.items() for line in _differences(dataset, of_runs)
    ]


def _differences(dataset: str, protocols: Mapping[str, Mapping[str, object]]) -> list[str]:
    parts = {part: None for protocol in protocols.values() for part in protocol}
    shared, lines = dict[str, object](), list[str]()
    for part in parts:
        runs_of: dict[object, list[str]] = {}
        for name, protocol in protocols.items():
            runs_of.setdefault(str(protocol.get(part, "-")), []).append(name)
        if len(runs_of) == 1:
            (shared[part],) = runs_of
        else:
            each = "; ".join(f"{', '.join(names)}: {text}" for text, names in runs_of.items())
            lines.append(f"Different {part} of {dataset}: {each}")
    return [f"Protocol of {dataset}: {protocol_line(shared)}"] * bool(shared) + lines


def _weights(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The files of weights in a run's configuration, and its training steps; where it names none, the hash."""
    words, config = [], None
    with contextlib.suppress(yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError):
        config = yaml.safe_load(str(provenance.get("config")))  # or a command line
    for key in WEIGHTS:
        value = config  # not by `leaves`: a hostile file has more than memory holds
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str) and value:
            words.append(f"{key} {value[:200]}")
    if not words and (digits := provenance.get("weights_hash")):
        words.append(f"hash {shown(digits)}")
    if words and (steps := provenance.get("iterations")):
        words.append(f"{shown(steps)} steps")
    if words and (fraction := provenance.get("fraction of the trained weights")) is not None:
        words.append(f"mixed with the start, {shown(fraction)} of the trained ones")
    return {"weights": ", ".join(words)} if words else {}


def _given(runs: Sequence[str]) -> list[tuple[str, Path]]:
    """Name and file of each run."""
    named = [name_and_value(run, "run", "folder", os.path.exists(run)) for run in runs]
    files = [(name, _results_file(run)) for name, run in named]
    return [(name or path.absolute().parent.name, path) for name, path in files]


def _results_file(run: str) -> Path:
    path = Path(run)
    return path if path.suffix == ".json" else path / "results.json"


def _curve(content: Any) -> Curve | None:
    """The numbers that `RegionEvaluation` writes of a data set; None for anything else."""
    if (
        isinstance(content, dict)
        and content
        and all(size.isascii() and size.isdigit() and len(size) < 7 for size in content)
        and all(map(_are_numbers, content.values()))
        and any(key.endswith(".top1") for numbers in content.values() for key in numbers)
    ):
        return {int(size): numbers for size, numbers in content.items()}
    return None


def _lines(content: Any) -> Lines | None:
    """The numbers that evaluations of the other tasks write of a data set; None for anything else."""
    if not isinstance(content, dict):
        return None
    kinds = {task: content[kind] for task, kind in KINDS.items() if kind in content}
    of_fusions = (*report.FUSION_TITLES, *(name for name in content if name.startswith("void_")))
    fusions = {name: content[name] for name in content if name in of_fusions}
    lines = kinds or fusions or {"": content}
    keys = set(_columns(lines).values())
    known = all(_are_numbers(numbers) and keys & set(numbers) for numbers in lines.values())
    return {report.FUSION_TITLES.get(name, name): lines[name] for name in lines} if known else None


def _columns(lines: Lines) -> dict[str, str]:
    """The columns of a task, which is not region recognition."""
    return report.DETECTION_COLUMNS if lines.keys() <= KINDS.keys() else OF_PIXELS


def _is_curve(results: Curve | Lines) -> bool:
    return any(isinstance(key, int) for key in results)


def _are_numbers(value: object) -> bool:
    """True for a mapping from names to numbers of percent, or counts."""
    return isinstance(value, dict) and all(
        type(number) in (int, float) and abs(number) < LARGEST for number in value.values()
    )


def comparison_tables(comparison: Comparison, style: str = "simple") -> dict[str, str]:
    """Name of a data set -> table: a row for each model and, where there are several, size, scores, boxes or masks.

    Args:
        comparison: numbers of the models.
        style: see `evaluation.report.format_table`.
    """
    return {dataset: _table(models, style) for dataset, models in comparison.items()}


def _table(models: Mapping[str, Any], style: str) -> str:
    several = len({key for results in models.values() for key in results}) > 1
    if any(map(_is_curve, models.values())):
        rows = {
            f"{model}, {size} px" if several else model: curve[size]
            for model, curve in models.items()
            for size in sorted(curve)
        }
        return region_table(rows, style=style)
    lines: dict[tuple[str, ...], report.ByDataset] = {
        (model, name) if several else (model,): {"": numbers}
        for model, own in models.items()
        for name, numbers in own.items()
    }
    columns = _columns({name: {} for own in models.values() for name in own})
    columns = report.with_numbers(columns, [line[""] for line in lines.values()])
    return report.comparison_table(lines, columns, ["model", ""] if several else ["model"], style)


def write_comparison(comparison: Comparison, folder: Path, notes: Sequence[str] = ()) -> None:
    """Writes tables.md, tables.tex and tables.csv, and of regions size_curve_NAME.png for each data set.

    Args:
        comparison: numbers of the models.
        folder: made if need be.
        notes: lines below each table, see `comparison_notes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for style, name in TABLE_FILES.values():
        report.write_tables(folder / name, comparison_tables(comparison, style), style, notes)
    for dataset, models in comparison.items():
        curves = {name: own for name, own in models.items() if _is_curve(own)}
        if curves:
            file = folder / f"size_curve_{dataset.replace('/', '_')}.png"
            plot_size_curve(cast(dict[str, Curve], curves), file)
