"""Train an RPN on base classes and write its proposals, which CLIPSelf with proposals distils on.

    clipself-seg train-rpn --output output/mini_world/mini/annotations/rpn_proposals_train.json
    clipself-seg train-rpn --config-file configs/detection/ov_coco_openai_vitb16.yaml --num-gpus 8 \\
        --dataset coco_2017_train --output datasets/coco/annotations/coco_proposals.json
    clipself-seg train-rpn --config-file configs/detection/rpn_r50_ov_coco.yaml --num-gpus 8 \\
        --dataset coco_2017_train --output datasets/coco/annotations/coco_proposals.json \\
        MODEL.STOCK_RPN.BACKBONE_WEIGHTS R-50.pkl

The first line is for the mini world, the second takes the RPN of an F-ViT on the original CLIP, the third
Detectron2's R50-FPN. Each is train_net.py, which writes into OUTPUT_DIR, and then clipself-seg data proposals.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from clipself_seg.commands import train, write_proposals
from clipself_seg.errors import InputError, after_interrupt, report_input_errors

DEFAULT = "configs/mini/detection_original.yaml"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--config-file",
        default=DEFAULT,
        help=f"of an FViT or a StockRPN ({DEFAULT})",
    )
    options.add_argument(
        "--dataset", default="mini_train", help="name of the data set with the images (mini_train)"
    )
    options.add_argument("--output", required=True, help="JSON file to write")
    options.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in OUTPUT_DIR"
    )
    options.add_argument("--num-gpus", default="1", help="processes of the training (1)")
    write_proposals.add_selection(options)
    options.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change"
    )
    return options


@report_input_errors
@after_interrupt("the training goes on with --resume, the proposals are written anew")
def main(arguments: list[str] | None = None) -> int:
    """Train, then write; returns the exit status."""
    args = parser().parse_args(arguments)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("start train_rpn.py without torchrun: --num-gpus starts the processes")
    from clipself_seg.config import load_config
    from clipself_seg.prediction.common import prediction_config
    from clipself_seg.prediction.proposals import check_writing

    # What is wrong with the second half is better said before the first.
    cfg = load_config(args.config_file, args.opts)
    selection = write_proposals.selection_of(args)
    check_writing(cfg, args.dataset, args.output, selection, args.overwrite)
    words = ["--config-file", args.config_file, "--num-gpus", args.num_gpus]
    status = train.main([*words, *(["--resume"] if args.resume else []), *args.opts])
    if not status:
        weights = Path(cfg.OUTPUT_DIR) / "model_final.pth"
        write_proposals.write(prediction_config(args.config_file, weights, args.opts), args)
    return status
