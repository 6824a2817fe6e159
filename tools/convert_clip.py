"""Convert a CLIP checkpoint between the published layouts.

    python tools/convert_clip.py --model EVA02-B-16 --weights student.safetensors --output student.pt
    python tools/convert_clip.py --model EVA02-B-16 --weights EVA02_CLIP_B_psz16_s8B.pt \\
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


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="open_clip's model name, e.g. ViT-B-16")
    parser.add_argument("--weights", required=True, help="checkpoint file, or an open_clip tag")
    parser.add_argument("--output", required=True, help="file to write: .safetensors or .pt")
    parser.add_argument("--layout", default="official", help="official (default) or open_clip")
    parser.add_argument("--half", action="store_true", help="store the weights in float16")
    return parser.parse_args()


@report_input_errors
def main() -> None:
    """Load, save, and say what was done."""
    arguments = parse_arguments()
    import torch

    from clipself_seg.clip import load_clip, save_clip

    clip = load_clip(arguments.model, arguments.weights)
    dtype = torch.float16 if arguments.half else torch.float32
    save_clip(clip, arguments.output, layout=arguments.layout, dtype=dtype)
    sys.stdout.write(f"{clip.report}\nwritten: {arguments.output} ({arguments.layout} layout)\n")


if __name__ == "__main__":
    sys.exit(main())
