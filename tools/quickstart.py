#!/usr/bin/env python3
"""Train and evaluate every task on the mini world in six minutes, and write a page of it."""

from __future__ import annotations

import argparse
import sys

from clipself_seg.commands.options import command, flag, value
from clipself_seg.errors import GOES_ON


def _quickstart_options(parser: argparse.ArgumentParser) -> None:
    value(parser, "--output", default="output/quickstart")
    flag(parser, "--full", "train longer, on twice the scenes: twenty minutes")


@command(_quickstart_options, again=GOES_ON)
def quickstart(args: argparse.Namespace) -> None:
    """Train and evaluate every task on the mini world, and write a page: six minutes on two cores.

        python tools/quickstart.py

    1. draws the mini worlds (output/quickstart/worlds),
    2. measures how well the dense features of the mini CLIP recognise regions,
    3. distils it twice for a minute, from image patches and from proposals, and measures again,
    4. measures the shipped weights, which were distilled longer by the same commands,
    5. trains CAT-Seg on the seen classes, once on the original CLIP and once on CLIPSelf, and evaluates it on all
       classes and on the second world,
    6. trains a mask generator on the seen classes; CLIP, the generator, and both together classify its masks,
    7. trains F-ViT, a detector, on boxes of the seen classes, once on the original CLIP and once on CLIPSelf,
    8. prints the paper's Tables 2, 3, 5 and 6 in miniature and writes output/quickstart/index.html.

    Beside the page are a page to click (explore.html), table.md, results.json and images/; the runs are in runs/.
    An interrupted quickstart goes on when it is called again. With --full the trainings are three to four times as
    long, and each world has 200 scenes to measure on instead of 100: docs/quickstart.md has its tables.

    On COCO the same commands are (data below $DETECTRON2_DATASETS, see docs/distillation.md):
        clipself-seg train --config-file configs/regions/coco+openai_vitb16.yaml --eval-only
        clipself-seg train --config-file configs/distill/coco_patches+openai_vitb16.yaml --num-gpus 8
        clipself-seg train --config-file configs/semseg/catseg_token+openai_vitb16.yaml --num-gpus 4
        clipself-seg train --config-file configs/panoptic/pyramid+openai_vitb16.yaml --num-gpus 8
    """
    from lab.quickstart.quickstart import run_quickstart

    run_quickstart(args.output, args.full)


if __name__ == "__main__":
    sys.exit(quickstart())
