"""Write the proposals of a trained F-ViT's RPN for the images of a data set, for CLIPSelf with proposals.

    python tools/write_proposals.py --config-file configs/detection/ov_coco_eva02_vitb16.yaml \\
        --weights output/detection/ov_coco_eva02_vitb16/model_final.pth \\
        --dataset coco_2017_train --output datasets/coco/annotations/coco_proposals.json
    python train_net.py --config-file configs/distill/coco_proposals_eva02_vitb16.yaml

The second line distils on them: coco/annotations/coco_proposals.json below $DETECTRON2_DATASETS is the
place that it reads. The detector should be trained on base classes alone, and on the original CLIP.
"""

from __future__ import annotations

import argparse
import sys

from clipself_seg.errors import report_input_errors


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--config-file", required=True, help="of an FViT")
    options.add_argument("--weights", help="checkpoint (MODEL.WEIGHTS of the configuration)")
    options.add_argument("--dataset", required=True, help="name of the data set with the images")
    options.add_argument("--output", required=True, help="JSON file to write")
    options.add_argument(
        "--per-image", type=int, default=100, help="most proposals of an image, the best (100)"
    )
    options.add_argument(
        "--overwrite", action="store_true", help="replace a file that is there already"
    )
    options.add_argument("--opts", nargs="*", default=[], help="further KEY VALUE of the config")
    return options


@report_input_errors
def main(arguments: list[str] | None = None) -> None:
    """Write, and say how many."""
    args = parser().parse_args(arguments)
    from clipself_seg.prediction.common import prediction_config
    from clipself_seg.prediction.proposals import write_dataset_proposals

    cfg = prediction_config(args.config_file, args.weights, args.opts)
    done = write_dataset_proposals(cfg, args.dataset, args.output, args.per_image, args.overwrite)
    sys.stdout.write(f"{args.output}: {done.boxes} proposals of {done.images} images\n")
