"""Panoptic quality (PQ, SQ, RQ) of a prediction in COCO's format: a JSON and a folder of PNGs.

    clipself-seg panoptic-quality --truth panoptic_val2017.json panoptic_val2017 \\
        --prediction pred.json pred --json quality.json --csv quality.csv
    clipself-seg panoptic-quality --truth ade20k_panoptic_val.json ade20k_panoptic_val \\
        --prediction pred.json pred --split openseg_ade20k_150 openseg_coco_panoptic_133

--split also gives the numbers of seen and of unseen classes: a class of the first vocabulary, the data set's own, is
seen if one of its names is a name in the second, the one trained on. The numbers are panopticapi's:
--check has its own code evaluate the same files and compares.
The status is 0, 1 if --check finds a difference, or 2 if the files cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from clipself_seg.errors import report_input_errors

# Percent. Sums are taken in another order, which may change last digits.
TOLERANCE = 1e-9
SHOWN = 5  # differences on the terminal


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for side, what in (("truth", "ground truth"), ("prediction", "prediction")):
        options.add_argument(
            f"--{side}",
            nargs=2,
            type=Path,
            required=True,
            metavar=("JSON", "FOLDER"),
            help=f"panoptic JSON of the {what} and the folder of its PNGs",
        )
    options.add_argument(
        "--split",
        nargs=2,
        metavar=("VOCABULARY", "TRAINED"),
        help="names or files of the class lists that tell seen from unseen classes",
    )
    options.add_argument(
        "--check", action="store_true", help="compare all numbers with those of panopticapi itself"
    )
    options.add_argument("--json", type=Path, help="file for the numbers")
    options.add_argument("--csv", type=Path, help="file for the numbers of each class")
    options.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="to work in (one a core)",
    )
    return options


@report_input_errors
def main(arguments: list[str] | None = None) -> int:
    """Evaluate, print the table and write what was asked for."""
    args = parser().parse_args(arguments)
    from clipself_seg.evaluation.panoptic.files import (
        PanopticFolder,
        evaluate_files,
        files_protocol,
        panopticapi_results,
        read_categories,
        seen_categories,
    )
    from clipself_seg.evaluation.panoptic.numbers import panoptic_results
    from clipself_seg.evaluation.panoptic.report import quality_table, write_quality_csv
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
