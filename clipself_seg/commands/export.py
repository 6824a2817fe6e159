"""Models for other programs: `convert` writes another published layout, `export` ONNX of a model or a CLIP."""

from __future__ import annotations

import argparse
import sys

from clipself_seg.commands import options
from clipself_seg.errors import InputError


def _convert_options(parser: options.CommandLine) -> None:
    options.required(parser, "--clip-name", "open_clip's model name, e.g. ViT-B-16")
    options.required(parser, "--weights", "checkpoint file, or an open_clip tag")
    options.required(parser, "--output", "file to write: .safetensors or .pt")
    options.value(parser, "--layout", "official or open_clip", "official")


@options.command(_convert_options)
def convert(args: argparse.Namespace) -> None:
    """Convert a CLIP checkpoint between the published layouts.

        clipself-seg convert --clip-name EVA02-B-16 --weights student.safetensors --output student.pt
        clipself-seg convert --clip-name EVA02-B-16 --weights EVA02_CLIP_B_psz16_s8B.pt \\
            --layout open_clip --output eva02_b16_open_clip.pt

    Reads everything that `load_clip` reads. Layouts to write:
        official    names of OpenAI's, EVA's and CLIPSelf's own files; a .pt output has CLIPSelf's
                    wrapper (``epoch``, ``name``, ``state_dict``) and loads in the official code
        open_clip   names of open_clip's state dicts (timm's names for EVA-02)
    """
    from clipself_seg.clip import load_clip, save_clip

    clip = load_clip(args.clip_name, args.weights)
    save_clip(clip, args.output, layout=args.layout)
    sys.stdout.write(f"{clip.report}\nwritten: {args.output} ({args.layout} layout)\n")
    sys.stdout.write(f"dense feature of the weights: {clip.distilled}\n")


def _export_options(parser: options.CommandLine) -> None:
    options.value(parser, "--model", "a model, or a CLIP: a name, a file or a folder of a run")
    options.task(parser)
    options.value(parser, "--words", options.WORDS)
    options.value(
        parser, "--stuff", 'panoptic: those of them that are stuff, as --words; "" for none'
    )
    output = "file that ends in .onnx; or a new folder for the towers of the model's CLIP"
    parser.add_argument("-o", "--output", required=True, help=output)
    options.flag(parser, "--text-tower", "the text tower too, for class names given later")
    rare = options.group(parser, rare=True)
    options.value(rare, "--config-file", "configuration in place of the model's")
    options.further_keys(rare, "the configuration")


@options.command(_export_options)
def export(args: argparse.Namespace) -> None:
    """Write ONNX of a model with your class names in one file, or of a CLIP's two towers in a folder.

        clipself-seg export --task semantic --model catseg-base --words "dog, grass, sky" -o model.onnx
        clipself-seg export --task detection --model my_run --words "dog, cat" -o model.onnx
        clipself-seg export --task panoptic --model my_run --words "dog, grass" --stuff grass -o model.onnx
        clipself-seg export --task panoptic --model my_run --text-tower -o model.onnx
        clipself-seg export --model eva02-vitb16 -o onnx/

    Beside model.onnx are model.json (preprocessing, class names, inputs and outputs) and, where something
    happens outside of the graph, model.py, which needs numpy, onnxruntime and Pillow.
    The folder has dense.onnx (normalised images in, dense features out), text.onnx (token ids in,
    embeddings out) and export.json. The CLIP of a model is that of a trained CATSeg or FViT, or the CLIP
    branch of an OpenPanoptic; --task chooses among those that --model mini stands for.
    Each file is run by onnxruntime at sizes that were not traced, and compared with torch; if they differ
    by more than 1e-4 of the largest value, nothing is written.
    Needs: pip install "clipself_seg[export]"
    """
    from clipself_seg.checkpoints.needs import fetch_needed
    from clipself_seg.choice import TRAINED, find_model

    if not (args.model or args.config_file):
        raise InputError(
            f"no model: name one, such as --model {TRAINED.get(args.task, 'eva02-vitb16')}"
        )
    fetch_needed(find_model(args.model, args.task, args.config_file).values(args.opts))
    from clipself_seg.prediction.onnx.export import export as write

    sys.stdout.write(
        "tracing, then comparing with torch: a small model takes up to a minute of one processor\n"
    )
    sys.stdout.flush()
    names = ("words", "stuff", "text_tower", "task", "config_file", "opts")
    written = write(args.model, args.output, **{name: vars(args)[name] for name in names})
    for name, differences in written.items():
        for shape, difference in differences.items():
            sys.stdout.write(f"{name}, {shape}: {difference:.1e} of the largest value\n")
    sys.stdout.write(f"written: {args.output}\n")
