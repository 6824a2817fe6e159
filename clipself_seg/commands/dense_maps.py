"""See what dense features see: K-Means of images, and a heat map for each word, for several CLIPs.

    clipself-seg dense-maps output/mini_world/mini/val/000000.jpg --words "red star, grass"
    clipself-seg dense-maps photo.jpg folder/ --clip-name EVA02-B-16 --size 1024 --words "dog, kite" \\
        --models original=merged2b_s8b_b131k CLIPSelf=output/distill/coco_patches_eva02_vitb16/clip_final.safetensors

Writes a PNG for each image (paper, Fig. 4) with a row for each model: the image, the clusters of its
dense features, and their cosines with each word, on one scale a row, from black to yellow.
Exit status: 0, 1 if an image failed and the others were done, 2 if nothing was done.
"""

from __future__ import annotations

import argparse
import sys

from clipself_seg.errors import report_input_errors

MODELS = ("mini", "mini-clipself", "mini-clipself-proposals")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("images", nargs="+", metavar="IMAGE", help="images, and folders of them")
    options.add_argument(
        "--models",
        nargs="+",
        default=MODELS,
        metavar="[NAME=]WEIGHTS",
        help=f"files or tags, of a row each ({' '.join(MODELS)})",
    )
    options.add_argument(
        "--clip-name", default="ViT-Mini-8", help="open_clip's name of the models (ViT-Mini-8)"
    )
    options.add_argument(
        "--words", help="a heat map for each: class names, a .txt, a .json or a built-in vocabulary"
    )
    options.add_argument("--clusters", type=int, default=8, help="of K-Means, at most (8)")
    options.add_argument(
        "--smallest",
        type=float,
        default=0.02,
        help="fraction of the cells below which a cluster is dropped (0.02)",
    )
    options.add_argument(
        "--size",
        type=int,
        help="longest side of the image in pixels for the models (three times that of their crops)",
    )
    options.add_argument("--output", default="output/dense_maps", help="(output/dense_maps)")
    return options


@report_input_errors
def main(arguments: list[str] | None = None) -> int:
    """Draw, and say where."""
    args = parser().parse_args(arguments)
    from clipself_seg.data.vocabulary import read_words
    from clipself_seg.prediction.dense_maps import DenseMapResults, load_models
    from clipself_seg.prediction.files import find_images
    from clipself_seg.prediction.loop import predict_files

    files = find_images(args.images, args.output)
    words = None if args.words is None else read_words(args.words)
    clips = load_models(args.clip_name, args.models)
    results = DenseMapResults(
        clips=clips,
        folder=args.output,
        side=3 * next(iter(clips.values())).image_size if args.size is None else args.size,
        clusters=args.clusters,
        smallest=args.smallest,
        words=words,
    )
    failed = predict_files(results, files)
    total = len(files.images) + len(files.failed)
    sys.stdout.write(f"{total - len(failed)} of {total} drawn, in {args.output}\n")
    return 2 if len(failed) == total else 1 if failed else 0
