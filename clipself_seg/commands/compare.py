"""Numbers of finished runs, side by side."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clipself_seg.commands.options import CommandLine, command, value


def _runs_options(parser: CommandLine) -> None:
    runs = "OUTPUT_DIR of a run, or a results.json; the name is the folder's"
    value(parser, "runs", runs, count="+", metavar="[NAME=]RUN")
    value(parser, "--output", "folder for the tables", Path("output/compare"))


@command(_runs_options)
def compare(args: argparse.Namespace) -> None:
    """Compare finished runs of any task: one table for each data set.

        clipself-seg compare output/semseg/a output/semseg/b
        clipself-seg compare original=output/regions/coco+eva02_vitb16 \\
            CLIPSelf=output/distill/coco_patches+eva02_vitb16

    Reads results.json of evaluations and trainings, and evaluates nothing. Runs of different data sets may share a
    name. Prints the tables and, below them, weights and protocols: what the runs share, and where they differ.
    Writes tables.md, tables.csv and tables.tex (for booktabs), and for region recognition size_curve_NAME.png: a
    panel for each readout, a curve over the input size for each model.
    """
    from clipself_seg.evaluation import comparison

    runs = comparison.read_comparison(args.runs)
    notes = comparison.comparison_notes(args.runs)
    comparison.write_comparison(runs, args.output, notes)
    style = "terminal" if sys.stdout.isatty() else "simple"
    for dataset, table in comparison.comparison_tables(runs, style).items():
        sys.stdout.write(f"{dataset}, percent:\n{table}\n\n")
    sys.stdout.write("".join(f"{note}\n" for note in notes))
    sys.stdout.write(f"Tables: {args.output}\n")
