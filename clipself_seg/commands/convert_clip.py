"""Convert a CLIP checkpoint between the published layouts.

    clipself-seg convert --model EVA02-B-16 --weights student.safetensors --output student.pt
    clipself-seg convert --model EVA02-B-16 --weights EVA02_CLIP_B_psz16_s8B.pt \\
        --layout open_clip --output eva02_b16_open_clip.pt

Reads everything that `load_clip` reads. Layouts to write:
    official    names of OpenAI's, EVA's and CLIPSelf's own files; a .pt output has CLIPSelf's
                wrapper (``epoch``, ``name``, ``state_dict``) and loads in the official code
    open_clip   names of open_clip's state dicts (timm's names for EVA-02)
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
    options.add_argument("--model", required=True, help="open_clip's model name, e.g. ViT-B-16")
    options.add_argument("--weights", required=True, help="checkpoint file, or an open_clip tag")
    options.add_argument("--output", required=True, help="file to write: .safetensors or .pt")
    options.add_argument("--layout", default="official", help="official (default) or open_clip")
    options.add_argument("--half", action="store_true", help="store the weights in float16")
    return options


@report_input_errors
def main(arguments: list[str] | None = None) -> None:
    """Load, save, and say what was done."""
    args = parser().parse_args(arguments)
    import torch

    from clipself_seg.clip import load_clip, save_clip

    clip = load_clip(args.model, args.weights)
    dtype = torch.float16 if args.half else torch.float32
    save_clip(clip, args.output, layout=args.layout, dtype=dtype)
    sys.stdout.write(f"{clip.report}\nwritten: {args.output} ({args.layout} layout)\n")
    sys.stdout.write(f"dense feature of the weights: {clip.distilled}\n")
