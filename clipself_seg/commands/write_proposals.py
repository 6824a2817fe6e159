"""Write the proposals of a trained RPN for the images of a data set, for CLIPSelf with proposals.

    clipself-seg data proposals --config-file configs/detection/ov_coco_eva02_vitb16.yaml \\
        --weights output/detection/ov_coco_eva02_vitb16/model_final.pth \\
        --dataset coco_2017_train --output datasets/coco/annotations/coco_proposals.json
    clipself-seg train --config-file configs/distill/coco_proposals_eva02_vitb16.yaml

The second line distils on them: coco/annotations/coco_proposals.json below $DETECTRON2_DATASETS is the
place that it reads. The detector should be trained on base classes alone, and on the original CLIP.
clipself-seg train-rpn trains and writes in one.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from clipself_seg.errors import report_input_errors

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from clipself_seg.prediction.proposals import ProposalSelection


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--config-file", required=True, help="of an FViT or a StockRPN")
    options.add_argument("--weights", help="checkpoint (MODEL.WEIGHTS of the configuration)")
    options.add_argument("--dataset", required=True, help="name of the data set with the images")
    options.add_argument("--output", required=True, help="JSON file to write")
    add_selection(options)
    options.add_argument("--opts", nargs="*", default=[], help="further KEY VALUE of the config")
    return options


def add_selection(options: argparse.ArgumentParser) -> None:
    """Add what says which proposals are written, and whether over a file."""
    options.add_argument(
        "--score", type=float, default=0.5, help="lowest score of a proposal, 0 to 1 (0.5)"
    )
    options.add_argument(
        "--min-side", type=float, default=8.0, help="smallest width and height in pixels (8)"
    )
    options.add_argument(
        "--nms", type=float, default=0.5, help="overlap above which the worse of two goes (0.5)"
    )
    options.add_argument(
        "--per-image", type=int, default=50, help="most proposals of an image, the best (50)"
    )
    options.add_argument(
        "--overwrite", action="store_true", help="replace a file that is there already"
    )


def selection_of(args: argparse.Namespace) -> ProposalSelection:
    """Which proposals are written, by the options of `add_selection`."""
    from clipself_seg.prediction.proposals import ProposalSelection

    return ProposalSelection(args.score, args.min_side, args.nms, args.per_image)


def write(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Write by the options of `add_selection`, and say how many and how good they are."""
    from clipself_seg.prediction.proposals import write_dataset_proposals

    selection = selection_of(args)
    done = write_dataset_proposals(cfg, args.dataset, args.output, selection, args.overwrite)
    sys.stdout.write(f"{args.output}: {done.boxes} proposals of {done.images} images\n{done}\n")


@report_input_errors
def main(arguments: list[str] | None = None) -> None:
    """Write, and say how many."""
    args = parser().parse_args(arguments)
    from clipself_seg.prediction.common import prediction_config

    write(prediction_config(args.config_file, args.weights, args.opts), args)
