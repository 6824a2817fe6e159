"""Train the mini CLIP from scratch on image-caption pairs of the mini worlds (about twenty minutes on two cores).

    clipself-seg mini-clip --output output/mini_clip.safetensors

The weights that come with the project (tag `mini`) were made this way; clipself_seg/mini/CARD.md has the numbers.
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
    options.add_argument("--output", default="output/mini_clip.safetensors", help="file to write")
    options.add_argument("--scenes", type=int, default=9000, help="scenes to cut crops from (9000)")
    options.add_argument("--steps", type=int, default=3300, help="steps of 128 crops (3300)")
    options.add_argument("--seed", type=int, default=0, help="decides scenes, captions and weights")
    return options


@report_input_errors
def main(arguments: list[str] | None = None) -> None:
    """Draw, train, save."""
    args = parser().parse_args(arguments)
    import torch
    from tqdm import tqdm

    from clipself_seg.checkpoints.shipped import MINI_CLIP
    from clipself_seg.clip import load_clip, save_clip
    from clipself_seg.memory import keep_freed_memory
    from clipself_seg.mini import train_clip

    settings = train_clip.TrainSettings(scenes=args.scenes, steps=args.steps, seed=args.seed)
    keep_freed_memory()
    torch.manual_seed(settings.seed)
    clip = load_clip(MINI_CLIP, None)
    crops = train_clip.render_crops(
        scenes=settings.scenes, side=clip.image_size, seed=settings.seed
    )
    with tqdm(train_clip.train(clip, crops, settings), "train", settings.steps) as progress:
        for _, loss in progress:
            progress.set_postfix(loss=f"{loss:.3f}")
    save_clip(clip, args.output, dtype=torch.float16)
    sys.stdout.write(f"{args.output}: weights {clip.weights_hash()}\n")
