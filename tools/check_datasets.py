#!/usr/bin/env python3
"""Lists data sets that are present, complete, unprepared or broken, and the command that mends each.

    python tools/check_datasets.py
    python tools/check_datasets.py ade20k_150_test_sem_seg voc_2012_test_sem_seg --full
    python tools/check_datasets.py coco_2017_val_panoptic --allow-subset --json check.json

Counts images and ground truth, and reads a sample of both: sizes, label ranges, blank maps.
Without names it checks all data sets that have one here. The status is 0 if all are complete, 1 if
not, 2 if something was asked for that cannot be checked.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from clipself_seg.commands.options import command, flag, processes, value

if TYPE_CHECKING:
    from lab.prepare.check import Finding


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", help="data sets to check (all)")
    flag(parser, "--full", "read every image, not a sample")
    value(parser, "--sample", "images of each set to read", 200)
    subset = "fewer images than the official split are fine if all have ground truth"
    flag(parser, "--allow-subset", subset)
    value(parser, "--json", "file for the findings")
    processes(parser, "to read in")


@command(_options, __doc__)
def main(args: argparse.Namespace) -> int:
    """Check, and print the findings."""
    from clipself_seg import detectron2_needed  # noqa: F401  (says what to do where it is missing)
    from clipself_seg.files import write_json
    from lab.prepare.check import Options, check_datasets

    sample = 0 if args.full else max(1, args.sample)
    options = Options(sample, args.processes)
    findings = check_datasets(args.names, options)
    if args.allow_subset:
        findings = [finding.subset_allowed() for finding in findings]
    _show(findings)
    if args.json:
        write_json(args.json, [f._asdict() | {"fine": f.fine} for f in findings])
    return 0 if all(finding.fine for finding in findings) else 1


def _show(findings: list[Finding]) -> None:
    from tabulate import tabulate

    headers = ("data set", "state", "images", "with labels", "official", "read", "broken", "blank")
    rows = [(f.name, f.state, *f[2:8]) for f in findings]
    sys.stdout.write(tabulate(rows, headers, tablefmt="simple") + "\n")
    for finding in findings:
        lines = [*finding.notes, *([f"mend: {finding.mend}"] if finding.mend else [])]
        if lines:
            text = "\n".join(lines).replace("\n", "\n    ")
            sys.stdout.write(f"\n{finding.name}: {finding.state}\n    {text}\n")


if __name__ == "__main__":
    sys.exit(main())
