"""See CLIPSelf's claims on the mini world: twenty minutes on two cores.

    clipself-seg quickstart

1. draws the mini worlds (output/mini_world),
2. measures how well the dense features of the shipped mini CLIP recognise regions,
3. distils it twice for two minutes, from image patches and from proposals, and measures again,
4. measures the shipped weights, which were distilled by the same commands for longer,
5. trains CAT-Seg on the seen classes twice, on the original CLIP and on CLIPSelf's, and evaluates on all
   classes and on the second world,
6. trains a mask generator on the seen classes and lets its masks be named by both CLIPs, by itself, and by
   both together,
7. trains F-ViT, a detector, on the boxes of the seen classes, on the original CLIP and on CLIPSelf's,
8. prints the paper's Tables 2, 3, 5 and 6 in miniature and writes output/quickstart/index.html with images.

On COCO the same commands are (data below $DETECTRON2_DATASETS, see README.md):
    clipself-seg train --config-file configs/regions/coco_openai_vitb16.yaml --eval-only
    clipself-seg train --config-file configs/distill/coco_patches_openai_vitb16.yaml --num-gpus 8
    clipself-seg train --config-file configs/semseg/catseg_token_vitb16.yaml --num-gpus 4
    clipself-seg train --config-file configs/panoptic/pyramid_vitb16.yaml --num-gpus 8
"""

from __future__ import annotations

import argparse
import os

from clipself_seg.errors import GOES_ON, after_interrupt, report_input_errors


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    worlds = os.environ.get("CLIPSELF_SEG_MINI", "output/mini_world")
    options.add_argument("--output", default="output/quickstart", help="(output/quickstart)")
    options.add_argument("--worlds", default=worlds, help=f"folder of the mini worlds ({worlds})")
    options.add_argument("--fresh", action="store_true", help="forget what earlier calls did")
    return options


@report_input_errors
@after_interrupt(f"{GOES_ON}, unless it says --fresh")
def main(arguments: list[str] | None = None) -> None:
    """Run the quickstart, or what is left of it."""
    args = parser().parse_args(arguments)
    from clipself_seg.quickstart.quickstart import run_quickstart

    run_quickstart(args.output, args.worlds, args.fresh)
