"""Noun phrases of COCO's captions, for training the caption model.

    python tools/prepare_coco_captions.py
    python tools/prepare_coco_captions.py --root /data/datasets --processes 8 --splits train2017

Reads coco/annotations/captions_{train2017,val2017}.json and writes
coco/annotations/panoptic_caption_{train2017,val2017}.json. It needs the package nltk and its
English tagger: pip install nltk; python -m nltk.downloader averaged_perceptron_tagger_eng
What is there already is kept.
"""

from __future__ import annotations

import argparse
import sys

from clipself_seg.data.prepare.common import Options, Prepared, run_prepare
from clipself_seg.errors import report_input_errors


def _prepare(options: Options, arguments: argparse.Namespace) -> list[Prepared]:
    from clipself_seg.data.prepare.coco_captions import prepare_coco_captions

    return prepare_coco_captions(options, arguments.splits)


@report_input_errors
def main() -> None:
    """Prepare, and say what was done."""
    run_prepare(__doc__, _prepare, splits=("train2017", "val2017"))


if __name__ == "__main__":
    sys.exit(main())
