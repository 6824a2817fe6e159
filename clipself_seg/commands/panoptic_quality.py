"""Panoptic quality (PQ, SQ, RQ) of a prediction in COCO's format: a JSON and a folder of PNGs.

    python tools/panoptic_quality.py --truth panoptic_val2017.json panoptic_val2017 \\
        --prediction pred.json pred --json quality.json --csv quality.csv
    python tools/panoptic_quality.py --truth ade20k_panoptic_val.json ade20k_panoptic_val \\
        --prediction pred.json pred --split openseg_ade20k_150 openseg_coco_panoptic_133

--split also tells seen from unseen classes: a class of the first vocabulary, the data set's own, is
seen if one of its words is a word of the second, the one trained on. The numbers are panopticapi's.
The status is 0, or 2 if the files cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from clipself_seg.errors import report_input_errors


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
def main(arguments: list[str] | None = None) -> None:
    """Evaluate, print the table and write what was asked for."""
    args = parser().parse_args(arguments)
    from clipself_seg.evaluation.panoptic.files import (
        PanopticFolder,
        evaluate_files,
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
    quality, images = evaluate_files(truth, predicted, max(1, args.processes))
    results = {"images": float(images)}
    results |= panoptic_results(quality, categories.names, categories.isthing, seen)
    sys.stdout.write(f"{quality_table(results)}\n{images} images\n")
    if args.json:
        # JSON has no NaN: a class that is nowhere has no number.
        known = {key: value for key, value in results.items() if value == value}
        write_results(args.json, {"panoptic_seg": known}, provenance())
    if args.csv:
        write_quality_csv(args.csv, categories.names, categories.isthing, quality, seen)
