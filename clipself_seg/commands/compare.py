"""Numbers of finished work: `compare` of several runs, `panoptic_quality` of files in COCO's format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clipself_seg.commands.options import command, flag, processes, required, value

# Percent. Sums are taken in another order, which may change last digits.
TOLERANCE = 1e-9
SHOWN = 5  # differences on the terminal


def _runs_options(parser: argparse.ArgumentParser) -> None:
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
    from clipself_seg.evaluation.comparison import (
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
        sys.stdout.write(f"{dataset}, percent:\n{table}\n\n")
    sys.stdout.write("".join(f"{note}\n" for note in notes))
    sys.stdout.write(f"Tables: {args.output}\n")


def _quality_options(parser: argparse.ArgumentParser) -> None:
    for side, what in (("truth", "ground truth"), ("prediction", "prediction")):
        text = f"panoptic JSON of the {what} and the folder of its PNGs"
        required(parser, f"--{side}", text, nargs=2, type=Path, metavar=("JSON", "FOLDER"))
    split = "names or files of the class lists that tell seen from unseen classes"
    value(parser, "--split", split, count=2, metavar=("VOCABULARY", "TRAINED"))
    flag(parser, "--check", "compare all numbers with those of panopticapi itself")
    value(parser, "--json", "file for the numbers", kind=Path)
    value(parser, "--csv", "file for the numbers of each class", kind=Path)
    processes(parser)


@command(_quality_options)
def panoptic_quality(args: argparse.Namespace) -> int:
    """Panoptic quality (PQ, SQ, RQ) of a prediction in COCO's format: a JSON and a folder of PNGs.

        clipself-seg tools panoptic-quality --truth panoptic_val2017.json panoptic_val2017 \\
            --prediction pred.json pred --json quality.json --csv quality.csv
        clipself-seg tools panoptic-quality --truth ade20k_panoptic_val.json ade20k_panoptic_val \\
            --prediction pred.json pred --split openseg_ade20k_150 openseg_coco_panoptic_133

    --split also gives the numbers of seen and of unseen classes: a class of the first vocabulary, the data set's own,
    is seen if one of its names is a name in the second, the one trained on. The numbers are panopticapi's:
    --check has its own code evaluate the same files and compares.
    The status is 0, 1 if --check finds a difference, or 2 if the files cannot be used.
    """
    from clipself_seg.evaluation.panoptic.evaluator import write_quality_csv
    from clipself_seg.evaluation.panoptic.files import (
        PanopticFolder,
        evaluate_files,
        files_protocol,
        panopticapi_results,
        read_categories,
        seen_categories,
    )
    from clipself_seg.evaluation.panoptic.numbers import panoptic_results
    from clipself_seg.evaluation.report import quality_table
    from clipself_seg.provenance import provenance, write_results

    truth = PanopticFolder(*args.truth)
    categories = read_categories(truth.json)
    seen = seen_categories(categories, *args.split) if args.split else None
    predicted = PanopticFolder(*args.prediction)
    processes = max(1, args.processes)
    quality, images = evaluate_files(truth, predicted, processes)
    results = {"images": float(images)}
    results |= panoptic_results(quality, categories.names, categories.isthing, seen)
    protocol = files_protocol(truth, categories, seen, args.split)
    sys.stdout.write(f"{quality_table(results)}\nProtocol: {protocol.line()}\n{images} images\n")
    if args.json:
        protocols = {"panoptic_seg": protocol.as_dict()}
        write_results(args.json, {"panoptic_seg": _known(results)}, provenance(), protocols)
    if args.csv:
        write_quality_csv(args.csv, categories.names, categories.isthing, quality, seen)
    if not args.check:
        return 0
    ours = _known(panoptic_results(quality, categories.names, categories.isthing))
    return 0 if _same(ours, panopticapi_results(truth, predicted, processes)) else 1


def _known(results: dict[str, float]) -> dict[str, float]:
    """Results without NaN, which JSON lacks: a class that is nowhere has no number."""
    return {key: value for key, value in results.items() if value == value}


def _same(ours: dict[str, float], theirs: dict[str, float]) -> bool:
    """Compare with panopticapi's results, and say on the terminal what came of it."""
    different = [
        f"{key}: {ours.get(key)}, panopticapi {theirs.get(key)}"
        for key in {**ours, **theirs}
        if key not in ours or key not in theirs or abs(ours[key] - theirs[key]) > TOLERANCE
    ]
    if different:
        shown = "\n".join(different[:SHOWN])
        sys.stdout.write(f"{len(different)} of {len(ours)} numbers differ:\n{shown}\n")
    else:
        sys.stdout.write(f"panopticapi gives the same {len(ours)} numbers\n")
    return not different
