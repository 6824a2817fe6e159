"""Run the mask generator over a data set once, and keep its outputs for every image.

    clipself-seg generator-outputs --config-file configs/mini/panoptic.yaml \\
        --weights mini-open-panoptic --dataset mini_val_panoptic_with_sem_seg --output outputs/mini_val
    clipself-seg train --config-file configs/mini/panoptic.yaml --eval-only MODEL.WEIGHTS "" \\
        MODEL.MASK_GENERATOR.SOURCE disk MODEL.MASK_GENERATOR.OUTPUTS outputs/mini_val \\
        DATASETS.TEST "('mini_val_panoptic_with_sem_seg',)"

The second line compares a CLIP branch or exponents on them without the generator. Files that are
there are kept, so that an interrupted run goes on; those of other weights or class names are refused.
"""

from __future__ import annotations

import argparse
import sys

from clipself_seg.errors import GOES_ON, after_interrupt, report_input_errors


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--config-file", required=True, help="of an OpenPanoptic")
    options.add_argument("--weights", help="checkpoint (MODEL.WEIGHTS of the configuration)")
    options.add_argument(
        "--dataset", required=True, help="name of a data set, panoptic or semantic"
    )
    options.add_argument("--output", required=True, help="folder for the files")
    options.add_argument(
        "--overwrite", action="store_true", help="write what is there already again"
    )
    options.add_argument("--opts", nargs="*", default=[], help="further KEY VALUE of the config")
    return options


@report_input_errors
@after_interrupt(f"{GOES_ON}, unless it says --overwrite")
def main(arguments: list[str] | None = None) -> None:
    """Write, and say how many."""
    args = parser().parse_args(arguments)
    from clipself_seg.prediction.common import prediction_config
    from clipself_seg.prediction.generator_outputs import write_dataset_outputs

    cfg = prediction_config(args.config_file, args.weights, args.opts)
    done = write_dataset_outputs(cfg, args.dataset, args.output, args.overwrite)
    sys.stdout.write(f"{args.output}: {done.written} written, {done.kept} there already\n")
