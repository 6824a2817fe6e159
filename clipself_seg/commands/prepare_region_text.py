"""Give the boxes of a data set nouns of captions, for region-text training (CLIPSelf's Table 7).

    clipself-seg data region-text --config-file configs/distill/coco_region_text_eva02_vitb16.yaml \\
        --proposals datasets/coco/annotations/coco_proposals.json \\
        --captions datasets/coco/annotations/captions_train2017.json --nouns coco_nouns_4764.txt
    clipself-seg train --config-file configs/distill/coco_region_text_eva02_vitb16.yaml

A box is kept with the noun whose text is nearest to CLIP's embedding of its crop, if its probability among
all nouns is above --threshold. The second line trains on them: what is written by default is the file of
DATASETS.TRAIN. Without --nouns they are the --top most frequent nouns of the captions, found with the
package nltk; captions that have "phrases" already need none, and their phrases are taken as they are, with
adjectives. An interrupted call goes on with the same command.
"""

from __future__ import annotations

import argparse
import os
import sys

from clipself_seg.errors import GOES_ON, after_interrupt, report_input_errors


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--config-file", required=True, help="with MODEL.CLIP and DATASETS.TRAIN, of region-text"
    )
    options.add_argument("--proposals", required=True, help="boxes, in COCO's format")
    options.add_argument("--captions", help="of the images, in COCO's format")
    options.add_argument("--nouns", help="text file with a noun a line")
    options.add_argument(
        "--top", type=int, default=4764, help="number of nouns, if there is no list (4764)"
    )
    options.add_argument(
        "--candidates",
        choices=("image", "pool"),
        default="image",
        help="nouns that a box may have: those in its image's captions, or all (image)",
    )
    options.add_argument(
        "--threshold", type=float, default=0.1, help="least probability of a noun (0.1)"
    )
    options.add_argument("--output", help="JSON file to write (that of DATASETS.TRAIN)")
    options.add_argument(
        "--instances", help="ground truth in COCO's format, to print how many boxes are right"
    )
    options.add_argument("--batch", type=int, default=256, help="crops embedded together (256)")
    options.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="to tag captions in (one a core)"
    )
    options.add_argument(
        "--overwrite", action="store_true", help="replace a file that is there, and begin anew"
    )
    options.add_argument("--opts", nargs="*", default=[], help="further KEY VALUE of the config")
    return options


@report_input_errors
@after_interrupt(f"{GOES_ON}, unless it says --overwrite")
def main(arguments: list[str] | None = None) -> None:
    """Label, write, and say how many are kept."""
    args = vars(parser().parse_args(arguments))
    config_file, opts = args.pop("config_file"), args.pop("opts")
    from clipself_seg.config import load_config
    from clipself_seg.config.weights import fetch_addresses
    from clipself_seg.prediction.region_text import Request, label_proposals

    done = label_proposals(fetch_addresses(load_config(config_file, opts)), Request(**args))
    sys.stdout.write(f"{done}\n")
