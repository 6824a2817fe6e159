"""What this project does, seen in a minute (`demo`) or measured in twenty (`quickstart`), on the mini world."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from pathlib import Path

from clipself_seg.commands.options import command, flag, value
from clipself_seg.errors import GOES_ON


def _quickstart_options(parser: argparse.ArgumentParser) -> None:
    worlds = os.environ.get("CLIPSELF_SEG_MINI", "output/mini_world")
    value(parser, "--output", default="output/quickstart")
    value(parser, "--worlds", "folder of the mini worlds", worlds)
    flag(parser, "--fresh", "forget what earlier calls did")


@command(_quickstart_options, again=f"{GOES_ON}, unless it says --fresh")
def quickstart(args: argparse.Namespace) -> None:
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
    from clipself_seg.quickstart.quickstart import run_quickstart

    run_quickstart(args.output, args.worlds, args.fresh)


def _demo_options(parser: argparse.ArgumentParser) -> None:
    value(parser, "--output", default="output/demo")
    flag(parser, "--no-open", "print the page's path only")


@command(_demo_options)
def demo(args: argparse.Namespace) -> None:
    """See what the weights that come with the project see: less than a minute on two cores, without training.

        clipself-seg demo

    Draws a few generated scenes, asks a CLIP for words in them, before and after CLIPSelf, lets both name the
    segments of a mask generator, and writes a page, with one to click beside it (clipself-seg explore). The page is
    opened if there is a screen; its path is printed.
    """
    from clipself_seg.quickstart.quickstart import run_demo

    page = run_demo(Path(args.output).absolute())
    sys.stdout.write(f"\n{page}\n")
    if not args.no_open and has_screen():
        webbrowser.open(page.as_uri())


def has_screen() -> bool:
    """Whether a browser would have somewhere to show a page; in a terminal's browser it would fill the terminal."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in screens)
