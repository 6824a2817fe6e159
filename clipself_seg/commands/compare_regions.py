"""Region recognition of several models in one table and one picture.

    clipself-seg compare-regions original=output/regions/coco_eva02_vitb16 \\
        CLIPSelf=output/distill/coco_patches_eva02_vitb16

Reads results.json of runs that are finished, evaluations and trainings alike, and evaluates nothing.
Writes tables.md, tables.tex (for booktabs) and tables.csv, and for each data set size_curve_NAME.png:
a panel for each readout, a curve over the input size for each model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clipself_seg.errors import report_input_errors


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]RUN",
        help="OUTPUT_DIR of a run, or a results.json; the name is the folder's",
    )
    options.add_argument(
        "--output",
        type=Path,
        default=Path("output/compare_regions"),
        help="(output/compare_regions)",
    )
    return options


@report_input_errors
def main(arguments: list[str] | None = None) -> int:
    """Write all files, and print the tables."""
    args = parser().parse_args(arguments)
    from clipself_seg.evaluation.regions.comparison import (
        comparison_notes,
        comparison_tables,
        read_comparison,
        write_comparison,
    )

    comparison = read_comparison(args.runs)
    notes = comparison_notes(args.runs)
    write_comparison(comparison, args.output, notes)
    style = "terminal" if sys.stdout.isatty() else "simple"
    for dataset, table in comparison_tables(comparison, style).items():
        sys.stdout.write(f"{dataset}, top-1/top-5 mean class accuracy in percent:\n{table}\n\n")
    sys.stdout.write("".join(f"{note}\n" for note in notes))
    sys.stdout.write(f"Tables and curves: {args.output}\n")
    return 0
