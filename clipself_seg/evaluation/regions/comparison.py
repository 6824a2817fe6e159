"""Region evaluations of several models -> one table and one picture for each data set (Fig. 1, 3, A1, Table A1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from clipself_seg.errors import InputError
from clipself_seg.evaluation.named import by_name
from clipself_seg.evaluation.protocol import protocol_lines
from clipself_seg.evaluation.regions.report import Results, plot_size_curve, region_table
from clipself_seg.evaluation.report import FILES, write_tables
from clipself_seg.provenance import read_results

# Side of the input in pixels -> results.
Curve = dict[int, Results]
# Name of a data set -> name of a model -> its curve.
Comparison = dict[str, dict[str, Curve]]

LARGEST = 1e9  # of numbers in percent and of counts; a JSON may have infinite ones
TABLE_FILES = {"markdown": ("github", "tables.md"), **FILES}


def read_comparison(runs: Sequence[str]) -> Comparison:
    """Read the numbers of several runs, in their order.

    Args:
        runs: folders with a results.json, or such files, with a name before them as in "student=output/a" or
            without; the name is then that of the folder.

    Raises:
        InputError: as `evaluation.named.by_name`; a file that is missing, broken or of another task.
    """
    comparison: Comparison = {}
    for name, run in _given(runs).items():
        for dataset, curve in _read_curves(_results_file(run)).items():
            comparison.setdefault(dataset, {})[name] = curve
    return comparison


def comparison_notes(runs: Sequence[str]) -> list[str]:
    """The protocols of several runs, a line for each that differs; runs of before there were any have none.

    Args:
        runs: see `read_comparison`.

    Raises:
        InputError: as `read_comparison`.
    """
    protocols = {
        f"{dataset} ({name})": parts
        for name, run in _given(runs).items()
        for dataset, parts in read_results(_results_file(run))["protocol"].items()
    }
    return protocol_lines(protocols)


def _given(runs: Sequence[str]) -> dict[str, str]:
    return by_name(
        runs,
        "run",
        "folder",
        alone=lambda run: Path(run).exists(),
        name_of=lambda run: _results_file(run).absolute().parent.name,
    )


def _results_file(run: str) -> Path:
    path = Path(run)
    return path if path.suffix == ".json" else path / "results.json"


def _read_curves(path: Path) -> dict[str, Curve]:
    results = read_results(path)["results"]
    if not results or not all(map(_is_curve, results.values())):
        raise InputError(f"{path} has no numbers of region recognition at each input size")
    return {
        dataset: {int(size): numbers for size, numbers in curve.items()}
        for dataset, curve in results.items()
    }


def _is_curve(value: object) -> bool:
    """Whether something is what `RegionEvaluation` writes of a data set."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(size.isascii() and size.isdigit() and len(size) < 7 for size in value)
        and all(isinstance(numbers, dict) for numbers in value.values())
        and all(
            type(number) in (int, float) and abs(number) < LARGEST
            for numbers in value.values()
            for number in numbers.values()
        )
        and any(key.endswith(".top1") for numbers in value.values() for key in numbers)
    )


def comparison_tables(comparison: Comparison, style: str = "simple") -> dict[str, str]:
    """Name of a data set -> table: a row for each model and, where there are several, each input size.

    Args:
        comparison: numbers of the models.
        style: see `evaluation.report.format_table`.
    """
    return {
        dataset: region_table(_rows(curves), style=style) for dataset, curves in comparison.items()
    }


def _rows(curves: Mapping[str, Curve]) -> dict[str, Results]:
    several = len({size for curve in curves.values() for size in curve}) > 1
    return {
        f"{model}, {size} px" if several else model: curve[size]
        for model, curve in curves.items()
        for size in sorted(curve)
    }


def write_comparison(comparison: Comparison, folder: Path, notes: Sequence[str] = ()) -> None:
    """Write tables.md, tables.tex and tables.csv, and of each data set size_curve_NAME.png.

    Args:
        comparison: numbers of the models.
        folder: made if need be.
        notes: lines below each table, see `comparison_notes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for style, name in TABLE_FILES.values():
        write_tables(folder / name, comparison_tables(comparison, style), style, notes)
    for dataset, curves in comparison.items():
        plot_size_curve(curves, folder / f"size_curve_{dataset}.png")
