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

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from clipself_seg.errors import InputError, report_input_errors

if TYPE_CHECKING:
    from clipself_seg.clip import DenseCLIP

# Attribute of a model that holds the CLIP whose dense features it reads.
CLIP_OF = {"CATSeg": "clip", "FViT": "clip", "OpenPanoptic": "branch_clip"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = options.add_mutually_exclusive_group(required=True)
    model.add_argument("--clip-name", help="open_clip's model name, e.g. EVA02-B-16")
    model.add_argument("--config-file", help=f"of a {', '.join(CLIP_OF)}")
    options.add_argument(
        "--weights",
        help="checkpoint: a file, an official one's name or an address; with --clip-name open_clip's tag as well",
    )
    options.add_argument("--output", required=True, help="folder for the files, a new one")
    options.add_argument(
        "--opts", nargs="*", default=[], help="further KEY VALUE of the configuration"
    )
    return options


@report_input_errors
def main(arguments: list[str] | None = None) -> None:
    """Export, check, and say how far the results are from torch's."""
    args = parser().parse_args(arguments)
    if args.clip_name and args.weights is None:
        raise InputError("--clip-name names no weights: give a file or a tag with --weights")
    if args.clip_name and args.opts:
        raise InputError(
            "--opts changes a configuration: give --config-file in place of --clip-name"
        )
    from clipself_seg.clip.export import export_onnx

    clip = _configured_clip(args) if args.config_file else _named_clip(args)
    for file, differences in export_onnx(clip, args.output).items():
        for shape, difference in differences.items():
            sys.stdout.write(f"{file}, {shape}: {difference:.1e} of the largest feature\n")
    sys.stdout.write(f"written: {args.output}\n")


def _named_clip(args: argparse.Namespace) -> DenseCLIP:
    from clipself_seg.clip import load_clip

    return load_clip(args.clip_name, args.weights)


def _configured_clip(args: argparse.Namespace) -> DenseCLIP:
    from clipself_seg.models.build import build_model
    from clipself_seg.prediction.common import prediction_config

    cfg = prediction_config(args.config_file, args.weights, [*args.opts, "MODEL.DEVICE", "cpu"])
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in CLIP_OF:
        raise InputError(
            f"{args.config_file} is of {name}: give a configuration of {', '.join(CLIP_OF)}, or the CLIP "
            "itself with --clip-name, such as clip_final.safetensors of a distillation"
        )
    clip: DenseCLIP = getattr(build_model(cfg), CLIP_OF[name])
    return clip.eval()
