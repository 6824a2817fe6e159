"""Run the mask generator over a data set once, and keep what it says of every picture.

    python tools/write_generator_outputs.py --config-file configs/mini/panoptic.yaml \\
        --weights mini-open-panoptic --dataset mini_val_panoptic_with_sem_seg --output outputs/mini_val
    python train_net.py --config-file configs/mini/panoptic.yaml --eval-only MODEL.WEIGHTS "" \\
        MODEL.MASK_GENERATOR.SOURCE disk MODEL.MASK_GENERATOR.OUTPUTS outputs/mini_val \\
        DATASETS.TEST "('mini_val_panoptic_with_sem_seg',)"

The second line compares a CLIP branch or exponents on them without the generator. Files that are
there are kept, so that an interrupted run goes on; those of other weights or words are refused.
"""

from __future__ import annotations

import argparse
import sys

from clipself_seg.errors import report_input_errors


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="of an OpenPanoptic")
    parser.add_argument("--weights", help="checkpoint (MODEL.WEIGHTS of the configuration)")
    parser.add_argument("--dataset", required=True, help="name of a panoptic data set")
    parser.add_argument("--output", required=True, help="folder for the files")
    parser.add_argument(
        "--overwrite", action="store_true", help="write what is there already again"
    )
    parser.add_argument("--opts", nargs="*", default=[], help="further KEY VALUE of the config")
    return parser.parse_args()


@report_input_errors
def main() -> None:
    """Write, and say how many."""
    arguments = parse_arguments()
    from clipself_seg.prediction.common import prediction_config
    from clipself_seg.prediction.generator_outputs import write_dataset_outputs

    cfg = prediction_config(arguments.config_file, arguments.weights, arguments.opts)
    done = write_dataset_outputs(cfg, arguments.dataset, arguments.output, arguments.overwrite)
    sys.stdout.write(f"{arguments.output}: {done.written} written, {done.kept} there already\n")


if __name__ == "__main__":
    sys.exit(main())
