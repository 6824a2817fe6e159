"""The mini worlds, and the CLIP that is trained on them from scratch: `mini_world` and `mini_clip`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from clipself_seg.commands.options import command, value
from clipself_seg.errors import GOES_ON


def _world_options(parser: argparse.ArgumentParser) -> None:
    folder = os.environ.get("CLIPSELF_SEG_MINI", "output/mini_world")
    value(parser, "--output", "folder of both worlds", folder)
    value(parser, "--train", "training scenes of each world", 400)
    value(parser, "--val", "validation scenes of each world", 200)
    value(parser, "--base", "scenes without unseen classes, for training", 800)
    value(parser, "--seed", "decides every scene", 0)


@command(_world_options, again=f"{GOES_ON} with the next world")
def mini_world(args: argparse.Namespace) -> None:
    """Write the two mini worlds in COCO's formats: images, panoptic and instance labels, captions, proposals.

        clipself-seg data mini-world
        clipself-seg data mini-world --output /tmp/worlds --train 2000 --val 500 --seed 1

    A world that is already there with the same numbers is kept. Data sets `mini_train`, `mini_val_panoptic`,
    `mini2_val_panoptic`, ... are read from $CLIPSELF_SEG_MINI, by default output/mini_world.
    """
    from clipself_seg.mini.writer import WorldSize, make_worlds

    size = WorldSize(args.train, args.val, args.seed, args.base)
    written = make_worlds(args.output, size)
    sys.stdout.write(f"{args.output}: {'written' if written else 'complete already'}\n")


def _clip_options(parser: argparse.ArgumentParser) -> None:
    from clipself_seg.checkpoints.zoo import MINI_CLIPS

    value(parser, "--model", "which of the mini CLIPs", "mini", choices=tuple(MINI_CLIPS))
    default = "output/mini_clip.safetensors"
    parser.add_argument("--output", default=default, help="file to write")
    value(parser, "--scenes", "scenes to cut crops from", 9000)
    value(parser, "--steps", "steps (those of the shipped weights)", kind=int)
    parser.add_argument("--seed", type=int, default=0, help="decides scenes, captions and weights")


@command(_clip_options)
def mini_clip(args: argparse.Namespace) -> None:
    """Train a mini CLIP from scratch on image-caption pairs of the mini worlds (about twenty minutes on two cores).

        clipself-seg tools mini-clip --output output/mini_clip.safetensors
        clipself-seg tools mini-clip --model mini-eva --output output/eva_mini.safetensors

    The weights that come with the project were made this way; clipself_seg/mini/CARD.md has the numbers. `mini` learns
    both towers; the others an image tower, which is all that their files hold, for the text tower of `mini`.
    """
    import torch
    from tqdm import tqdm

    from clipself_seg.clip import save_clip
    from clipself_seg.memory import keep_freed_memory
    from clipself_seg.mini import train_clip

    recipe = train_clip.RECIPES[args.model]
    steps = recipe.steps if args.steps is None else args.steps
    settings = dataclasses.replace(recipe, scenes=args.scenes, steps=steps, seed=args.seed)
    keep_freed_memory()
    clip = train_clip.untrained_clip(args.model, settings.seed)
    crops = train_clip.render_crops(
        scenes=settings.scenes, side=clip.image_size, seed=settings.seed
    )
    with tqdm(train_clip.train(clip, crops, settings), "train", settings.steps) as progress:
        for _, loss in progress:
            progress.set_postfix(loss=f"{loss:.3f}")
    part = "" if args.model == "mini" else "visual."
    save_clip(clip, args.output, dtype=torch.float16, part=part)
    sys.stdout.write(f"{args.output}: weights {clip.weights_hash()}\n")
