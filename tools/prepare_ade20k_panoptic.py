"""Panoptic and instance labels of ADE20K's 150 classes.

    python tools/prepare_ade20k_panoptic.py
    python tools/prepare_ade20k_panoptic.py --root /data/datasets --processes 8 --splits validation

Reads images, annotations and annotations_instance of ADEChallengeData2016 and writes beside them
ade20k_panoptic_{train,val}, its JSON and ade20k_instance_{train,val}.json. As in the files that
published numbers come from, areas of stuff are those before things are pasted over it.
What is there already is kept; an interrupted run is completed by the next.
"""

from __future__ import annotations

import argparse
import sys

from clipself_seg.data.prepare.common import Options, Prepared, run_prepare
from clipself_seg.errors import report_input_errors


def _add_areas(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clean-areas",
        action="store_true",
        help="state the areas that stuff has in the end, which gives another panoptic quality",
    )


def _prepare(options: Options, arguments: argparse.Namespace) -> list[Prepared]:
    from clipself_seg.data.prepare.ade_panoptic import prepare_ade_panoptic

    return prepare_ade_panoptic(options, arguments.splits, arguments.clean_areas)


@report_input_errors
def main() -> None:
    """Prepare, and say what was done."""
    run_prepare(__doc__, _prepare, splits=("training", "validation"), more=_add_areas)


if __name__ == "__main__":
    sys.exit(main())
