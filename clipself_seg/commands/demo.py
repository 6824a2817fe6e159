"""The shipped models and scenes: `demo` shows the models on the scenes, `scenes` copies them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clipself_seg.commands.options import CommandLine, command, value
from clipself_seg.errors import InputError

EXPLORE = "explore.html"


def _demo_options(parser: CommandLine) -> None:
    value(parser, "--output", default="output/demo")


@command(_demo_options)
def demo(args: argparse.Namespace) -> None:
    """Write a page of heat maps and segments of the shipped weights: no training, a minute on two cores.

        clipself-seg demo

    Compares a CLIP before and after CLIPSelf on a few generated scenes: heat maps of words, and names of segments.
    Writes output/demo/index.html and a page to click beside it (explore.html), and prints the path.
    """
    from clipself_seg.files import alone_in

    folder = Path(args.output)
    with alone_in(folder):
        page = write_demo(folder)
    sys.stdout.write(f"Page: {page}\n")


def write_demo(folder: Path) -> Path:
    """Writes the page, `index.html`, and a page to click, `explore.html`; returns the first.

    Args:
        folder: folder for both.
    """
    from clipself_seg.checkpoints.zoo import MINI_CLIP
    from clipself_seg.clip import load_clip
    from clipself_seg.explore.demo import SHOWN, ask, segment_rows, shown_scenes
    from clipself_seg.pages import write_page

    _say("heat maps: where a CLIP finds a word, before and after CLIPSelf")
    questions = ask({title: load_clip(MINI_CLIP, tag) for title, tag in SHOWN.items()})
    _say("segments of generated scenes, named by both CLIPs")
    segments = segment_rows()
    _say("a page to click")
    write_explore(shown_scenes(), folder)
    path = folder / "index.html"
    write_page(path, "demo.html", questions=questions, segments=segments, explore=EXPLORE)
    return path


def write_explore(images: Sequence[Path], folder: Path) -> None:
    """Writes EXPLORE, a page to click: the CLIP before and after CLIPSelf on scenes of `mini`.

    Args:
        images: the scenes.
        folder: folder for the page.

    Raises:
        InputError: it could not be written.
    """
    from clipself_seg.commands.explore import MINI, explore
    from clipself_seg.explore.demo import WORLD

    models = ["--model", MINI[0], MINI[2], "--words", WORLD]
    if explore([*map(str, images), *models, "--output", str(folder / EXPLORE)]):
        raise InputError(f"the page to click, {folder / EXPLORE}, could not be written: see above")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _scenes_options(parser: CommandLine) -> None:
    value(parser, "--output", "folder for them", "output/scenes")


@command(_scenes_options)
def scenes(args: argparse.Namespace) -> None:
    """Copy the generated scenes that come with the package into a folder: images and labels in COCO's formats.

        clipself-seg scenes --output my_data

    32 scenes to train on and 13 to evaluate on, 12 of seen classes alone (`base`), and 13 of a second world, whose
    layouts, textures and words are others. Data sets mini_train, mini_val_panoptic, mini2_val_boxes, ... are these
    scenes as they lie in the package, unless $CLIPSELF_SEG_MINI or output/mini_world has others.
    """
    import shutil

    from clipself_seg.data.datasets.table import SHIPPED_WORLD
    from clipself_seg.files import atomic_folder, home_expanded

    root = home_expanded(args.output, "give --output without ~")
    names = sorted(os.listdir(SHIPPED_WORLD))
    if there := [name for name in names if (root / name).exists()]:
        raise InputError(f"{root / there[0]} exists: name another folder with --output")
    for name in names:
        with atomic_folder(root / name) as folder:
            shutil.copytree(SHIPPED_WORLD / name, folder, dirs_exist_ok=True)
    sys.stdout.write(f"{root}: the scenes of {' and '.join(names)}\n")
