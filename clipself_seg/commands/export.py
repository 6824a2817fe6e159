"""A CLIP's weights for other programs: `convert` writes another published layout, `export` ONNX."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from clipself_seg.commands.options import command, flag, further_keys, required, value
from clipself_seg.errors import InputError

if TYPE_CHECKING:
    from clipself_seg.clip import DenseCLIP

# Attribute of a model that holds the CLIP whose dense features it reads.
CLIP_OF = {"CATSeg": "clip", "FViT": "clip", "OpenPanoptic": "branch_clip"}


def _convert_options(parser: argparse.ArgumentParser) -> None:
    # "--model" is an older spelling; it names weights in other commands.
    name = "open_clip's model name, e.g. ViT-B-16"
    parser.add_argument("--clip-name", "--model", required=True, metavar="NAME", help=name)
    required(parser, "--weights", "checkpoint file, or an open_clip tag")
    required(parser, "--output", "file to write: .safetensors or .pt")
    parser.add_argument("--layout", default="official", help="official (default) or open_clip")
    flag(parser, "--half", "store the weights in float16")


@command(_convert_options)
def convert(args: argparse.Namespace) -> None:
    """Convert a CLIP checkpoint between the published layouts.

        clipself-seg tools convert --clip-name EVA02-B-16 --weights student.safetensors --output student.pt
        clipself-seg tools convert --clip-name EVA02-B-16 --weights EVA02_CLIP_B_psz16_s8B.pt \\
            --layout open_clip --output eva02_b16_open_clip.pt

    Reads everything that `load_clip` reads. Layouts to write:
        official    names of OpenAI's, EVA's and CLIPSelf's own files; a .pt output has CLIPSelf's
                    wrapper (``epoch``, ``name``, ``state_dict``) and loads in the official code
        open_clip   names of open_clip's state dicts (timm's names for EVA-02)
    """
    import torch

    from clipself_seg.clip import load_clip, save_clip

    clip = load_clip(args.clip_name, args.weights)
    dtype = torch.float16 if args.half else torch.float32
    save_clip(clip, args.output, layout=args.layout, dtype=dtype)
    sys.stdout.write(f"{clip.report}\nwritten: {args.output} ({args.layout} layout)\n")
    sys.stdout.write(f"dense feature of the weights: {clip.distilled}\n")


def _export_options(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    value(model, "--clip-name", "open_clip's model name, e.g. EVA02-B-16")
    value(model, "--config-file", f"of a {', '.join(CLIP_OF)}")
    checkpoint = "checkpoint: a file, an official one's name or an address; with --clip-name open_clip's tag as well"
    value(parser, "--weights", checkpoint)
    required(parser, "--output", "folder for the files, a new one")
    further_keys(parser, "the configuration")


@command(_export_options)
def export(args: argparse.Namespace) -> None:
    """Write ONNX of a CLIP's dense features and of its text embeddings, for images of any size.

        clipself-seg export --clip-name EVA02-B-16 --weights clip_final.safetensors --output onnx/
        clipself-seg export --config-file configs/semseg/catseg_cvpr_vitb16.yaml --weights model_base.pth --output onnx/

    Writes dense.onnx (normalised images in, dense features of unit length out), text.onnx (token ids in,
    embeddings of unit length out) and export.json (mean, standard deviation, patch size, and what goes in
    and comes out). Each is run by onnxruntime at sizes that were not traced, and compared with torch; if
    they differ by more than 1e-4 of the largest feature, nothing is written.
    With --config-file the CLIP is that of a trained CATSeg or FViT, or the CLIP branch of an OpenPanoptic.
    Needs: pip install "clipself_seg[export]"
    """
    if args.clip_name and args.weights is None:
        raise InputError("--clip-name names no weights: give a file or a tag with --weights")
    if args.clip_name and args.opts:
        raise InputError(
            "--opts changes a configuration: give --config-file in place of --clip-name"
        )
    from clipself_seg.clip import load_clip
    from clipself_seg.clip.export import export_onnx

    clip = _clip_of_model(args) if args.config_file else load_clip(args.clip_name, args.weights)
    for file, differences in export_onnx(clip, args.output).items():
        for shape, difference in differences.items():
            sys.stdout.write(f"{file}, {shape}: {difference:.1e} of the largest feature\n")
    sys.stdout.write(f"written: {args.output}\n")


def _clip_of_model(args: argparse.Namespace) -> DenseCLIP:
    from clipself_seg.models.build import build_model
    from clipself_seg.prediction.predictor import prediction_config

    cfg = prediction_config(args.config_file, args.weights, [*args.opts, "MODEL.DEVICE", "cpu"])
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in CLIP_OF:
        raise InputError(
            f"{args.config_file} is of {name}: give a configuration of {', '.join(CLIP_OF)}, or the CLIP "
            "itself with --clip-name, such as clip_final.safetensors of a distillation"
        )
    clip: DenseCLIP = getattr(build_model(cfg), CLIP_OF[name])
    return clip.eval()
