#!/usr/bin/env python3
"""Compute once over a data set what later runs read: proposals, and nouns of boxes.

`proposals` writes those of a trained RPN, and `train_rpn` trains one first; `region_text` gives boxes nouns of
captions.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clipself_seg.commands import options, train
from clipself_seg.commands.options import command, flag, required, value, within
from clipself_seg.errors import InputError
from clipself_seg.imports import OPTION, take_imports
from lab.scripts import run_named

if TYPE_CHECKING:
    from lab.precompute.proposals import ProposalSelection

RPN_CONFIG = "configs/mini/detection_original.yaml"
REPLACE = "replace a file that is there already"


def _selection_options(parser: argparse.ArgumentParser) -> None:
    """Adds what says which proposals are written, and whether over a file."""
    value(parser, "--score", "lowest score of a proposal, 0 to 1", 0.5, kind=within(float, 0, 1))
    value(parser, "--min-side", "smallest width and height in pixels", 8.0, kind=within(float, 0))
    value(
        parser, "--nms", "overlap above which the worse of two goes", 0.5, kind=within(float, 0, 1)
    )
    value(parser, "--per-image", "most proposals of an image, the best", 50, kind=within(int, 1))
    flag(parser, "--overwrite", REPLACE)


def _selection(args: argparse.Namespace) -> ProposalSelection:
    from lab.precompute.proposals import ProposalSelection

    return ProposalSelection(args.score, args.min_side, args.nms, args.per_image)


def _write_proposals(args: argparse.Namespace, weights: str | None) -> None:
    """Writes the proposals of a checkpoint, and says how many they are."""
    from clipself_seg.choice import ModelChoice
    from clipself_seg.prediction.load import prediction_config
    from lab.precompute.proposals import write_dataset_proposals

    cfg = prediction_config(ModelChoice("detection", args.config_file, weights), args.opts)
    boxes, images = write_dataset_proposals(
        cfg, args.dataset, args.output, _selection(args), args.overwrite
    )
    sys.stdout.write(f"{args.output}: {boxes} proposals of {images} images\n")


def _proposals_options(parser: argparse.ArgumentParser) -> None:
    required(parser, "--config-file", "of an FViT or a StockRPN")
    value(parser, "--weights", "checkpoint (MODEL.WEIGHTS of the configuration)")
    required(parser, "--dataset", "name of the data set with the images")
    required(parser, "--output", "JSON file to write")
    _selection_options(parser)
    options.device(parser)
    options.further_keys(parser)


@command(_proposals_options)
def proposals(args: argparse.Namespace) -> None:
    """Write the proposals of a trained RPN for the images of a data set, for CLIPSelf with proposals.

        python tools/precompute.py proposals --config-file configs/detection/ov_coco+eva02_vitb16.yaml \\
            --weights output/detection/ov_coco+eva02_vitb16/model_final.pth \\
            --dataset coco_2017_train --output datasets/coco/annotations/coco_proposals.json
        clipself-seg train --config-file configs/distill/coco_proposals+eva02_vitb16.yaml

    The second line distils on them: coco/annotations/coco_proposals.json below $DETECTRON2_DATASETS is the
    place that it reads. The detector should be trained on base classes alone, and on the original CLIP.
    python tools/precompute.py train-rpn trains and writes in one.
    """
    options.take_device(args)
    _write_proposals(args, args.weights)


def _rpn_options(parser: argparse.ArgumentParser) -> None:
    value(parser, "--config-file", "of an FViT or a StockRPN", RPN_CONFIG)
    value(parser, "--dataset", "name of the data set with the images", "mini_train")
    required(parser, "--output", "JSON file to write")
    options.resume(parser)
    value(parser, "--num-gpus", "processes of the training", "1")
    _selection_options(parser)
    options.device(parser)
    options.keys_at_the_end(parser)


@command(_rpn_options, again="the training goes on with --resume, the proposals are written anew")
def train_rpn(args: argparse.Namespace) -> int:
    """Train an RPN on base classes and write its proposals, which CLIPSelf with proposals distils on.

        python tools/precompute.py train-rpn --output output/mini_world/mini/annotations/rpn_proposals_train.json
        python tools/precompute.py train-rpn --config-file configs/detection/ov_coco+openai_vitb16.yaml --num-gpus 8 \\
            --dataset coco_2017_train --output datasets/coco/annotations/coco_proposals.json
        python tools/precompute.py train-rpn --config-file configs/detection/rpn_r50_ov_coco.yaml --num-gpus 8 \\
            --dataset coco_2017_train --output datasets/coco/annotations/coco_proposals.json \\
            MODEL.STOCK_RPN.BACKBONE_WEIGHTS R-50.pkl

    The first line is for the mini world, the second takes the RPN of an F-ViT on the original CLIP, the third
    Detectron2's R50-FPN. Each is clipself-seg train, which writes into OUTPUT_DIR, and then
    python tools/precompute.py proposals.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("start train-rpn without torchrun: --num-gpus starts the processes")
    from clipself_seg.config import load_config
    from lab.precompute.proposals import check_writing

    options.take_device(args)
    # What is wrong with the second half is better said before the first.
    cfg = load_config(args.config_file, args.opts)
    check_writing(cfg, args.dataset, args.output, args.overwrite)
    words = ["--config-file", args.config_file, "--num-gpus", args.num_gpus]
    status = train.main([*words, *(["--resume"] if args.resume else []), *args.opts])
    if not status:
        _write_proposals(args, str(Path(cfg.OUTPUT_DIR) / "model_final.pth"))
    return status


def _region_text_options(parser: argparse.ArgumentParser) -> None:
    required(parser, "--config-file", "with MODEL.CLIP and DATASETS.TRAIN, of region-text")
    required(parser, "--proposals", "boxes, in COCO's format")
    value(parser, "--captions", "of the images, in COCO's format")
    value(parser, "--nouns", "text file with a noun a line")
    value(parser, "--top", "number of nouns, if there is no list", 4764, kind=within(int, 1))
    candidates = "nouns that a box may have: those in its image's captions, or all"
    value(parser, "--candidates", candidates, "image", choices=("image", "pool"))
    value(parser, "--threshold", "least probability of a noun", 0.1, kind=within(float, 0, 1))
    value(parser, "--output", "JSON file to write (that of DATASETS.TRAIN)")
    value(parser, "--batch", "crops embedded together", 256, kind=within(int, 1))
    options.processes(parser, "to tag captions in")
    flag(parser, "--overwrite", REPLACE)
    options.device(parser)
    options.further_keys(parser)


@command(_region_text_options)
def region_text(args: argparse.Namespace) -> None:
    """Give the boxes of a data set nouns of captions, for region-text training (CLIPSelf's Table 7).

        python tools/precompute.py region-text --config-file configs/distill/coco_region_text+eva02_vitb16.yaml \\
            --proposals datasets/coco/annotations/coco_proposals.json \\
            --captions datasets/coco/annotations/captions_train2017.json --nouns coco_nouns_4764.txt
        clipself-seg train --config-file configs/distill/coco_region_text+eva02_vitb16.yaml

    A box is kept with the noun whose text is nearest to CLIP's embedding of its crop, if its probability among
    all nouns is above --threshold. The second line trains on them: what is written by default is the file of
    DATASETS.TRAIN. Without --nouns they are the --top most frequent nouns of the captions, found with the
    package nltk; captions that have "phrases" already need none, and their phrases are taken as they are, with
    adjectives.
    """
    from clipself_seg.config import load_config
    from clipself_seg.config.weight_checks import fetch_addresses
    from lab.precompute.region_text import Request, label_proposals

    options.take_device(args)
    request = {name: value for name, value in vars(args).items() if name != "device"}
    cfg = fetch_addresses(load_config(request.pop("config_file"), request.pop("opts")))
    sys.stdout.write(f"{label_proposals(cfg, Request(**request))}\n")


COMMANDS = {"proposals": proposals, "train-rpn": train_rpn, "region-text": region_text}

if __name__ == "__main__":
    take_imports([OPTION, "lab.precompute.stock_rpn"])  # in all processes of a training
    about = "What a model computes once over a data set, for later runs to read."
    texts = {name: one.text for name, one in COMMANDS.items()}
    sys.exit(run_named(about, texts, COMMANDS.__getitem__))
