#!/usr/bin/env python3
"""Draw the mini worlds and what else is generated beside them, or train their CLIP from scratch.

python tools/mini.py world [--output output/mini_world]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from clipself_seg.commands.options import command, flag, value
from clipself_seg.errors import GOES_ON, InputError, nearest
from clipself_seg.files import home_expanded
from lab.scripts import run_named


def _world_options(parser: argparse.ArgumentParser) -> None:
    folder = os.environ.get("CLIPSELF_SEG_MINI") or "output/mini_world"
    value(parser, "--output", "folder of both worlds", folder)
    value(parser, "--train", "training scenes of each world", 400)
    value(parser, "--val", "validation scenes of each world", 200)
    value(parser, "--base", "scenes without unseen classes, for training", 800)
    value(parser, "--seed", "decides every scene", 0)


@command(_world_options, again=f"{GOES_ON} with the next world")
def mini_world(args: argparse.Namespace) -> None:
    """Write the two mini worlds in COCO's formats: images, panoptic and instance labels, captions, proposals.

        python tools/mini.py world
        python tools/mini.py world --output /tmp/worlds --train 2000 --val 500 --seed 1

    A world that is already there with the same numbers is kept. Data sets `mini_train`, `mini_val_panoptic`,
    `mini2_val_panoptic`, ... are read from $CLIPSELF_SEG_MINI, by default output/mini_world.
    """
    from lab.mini.writer import WorldSize, make_worlds

    size = WorldSize(args.train, args.val, args.seed, args.base)
    written = make_worlds(home_expanded(args.output, "give --output without ~"), size)
    sys.stdout.write(f"{args.output}: {'written' if written else 'complete already'}\n")


def _clip_options(parser: argparse.ArgumentParser) -> None:
    value(parser, "--model", "mini, mini-eva, mini-large, mini-eva-large or mini-resnet", "mini")
    value(parser, "--output", "file to write", "output/mini_clip.safetensors")
    value(parser, "--scenes", "scenes to cut crops from", 9000)
    value(parser, "--steps", "steps (those of the shipped weights)", kind=int)
    value(parser, "--seed", "decides scenes, captions and weights", 0)
    flag(parser, "--image-tower", "write it alone, as the files are that come with the project")


@command(_clip_options)
def mini_clip(args: argparse.Namespace) -> None:
    """Train a mini CLIP from scratch on image-caption pairs of the mini worlds (12 to 40 core-minutes).

        python tools/mini.py clip --output output/mini_clip.safetensors
        python tools/mini.py clip --model mini-eva --output output/eva_mini.safetensors

    The weights that come with the project were made this way; clipself_seg/mini/CARD.md has the numbers. `mini` learns
    both towers; the others an image tower for the text tower of `mini`. Files have both.
    """
    from clipself_seg.checkpoints.zoo import MINI_CLIPS

    if args.model not in MINI_CLIPS:
        raise InputError(f'--model: no mini CLIP "{args.model}"; {nearest(args.model, MINI_CLIPS)}')
    if args.scenes < 1 or args.seed < 0:
        raise InputError("a mini CLIP needs --scenes of 1 or more, and a --seed of 0 or more")
    import torch
    from tqdm import tqdm

    from clipself_seg.clip import save_clip
    from clipself_seg.memory import keep_freed_memory
    from lab.mini import train_clip

    recipe = train_clip.RECIPES[args.model]
    steps = recipe.steps if args.steps is None else args.steps
    settings = dataclasses.replace(recipe, scenes=args.scenes, steps=steps, seed=args.seed)
    keep_freed_memory()
    clip = train_clip.untrained_clip(args.model, settings.seed)
    crops = train_clip.render_crops(
        scenes=settings.scenes, side=clip.image_size, seed=settings.seed
    )
    with tqdm(desc="train", total=settings.steps) as progress:
        for step, loss in train_clip.train(clip, crops, settings):
            progress.set_postfix(loss=f"{loss:.3f}")
            progress.update(step + 1 - progress.n)
    save_clip(clip, args.output, dtype=torch.float16, part="visual." if args.image_tower else "")
    sys.stdout.write(f"{args.output}: weights {clip.weights_hash()}\n")


def _beside_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", nargs="?", help="folder of both worlds ($CLIPSELF_SEG_MINI)")


@command(_beside_options, again=GOES_ON)
def subjects(args: argparse.Namespace) -> None:
    """Draw whole images of one thing each, 20 of each of the 36 things of `mini`, unless they are there.

    python tools/mini.py subjects [output/mini_world]
    """
    from lab.mini.subjects import draw_subjects

    draw_subjects(_root(args))


@command(_beside_options, again=GOES_ON)
def faded(args: argparse.Namespace) -> None:
    """Write ten classes of `mini` as a user's own data, in images whose colours have faded (docs/finetuning.md).

    python tools/mini.py faded [output/mini_world]
    """
    from lab.mini.faded import write_faded

    write_faded(_root(args))


def _root(args: argparse.Namespace) -> Path:
    from clipself_seg.data.datasets.table import MINI

    return Path(args.root) if args.root else MINI.drawn


COMMANDS = {"world": mini_world, "clip": mini_clip, "subjects": subjects, "faded": faded}

if __name__ == "__main__":
    about = "Generated worlds, and the small CLIPs that are trained on them."
    texts = {name: one.text for name, one in COMMANDS.items()}
    sys.exit(run_named(about, texts, COMMANDS.__getitem__))
