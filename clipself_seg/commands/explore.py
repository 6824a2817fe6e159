"""What dense features see: as PNGs (`dense_maps`), and as a page to click (`explore`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipself_seg.commands.options import Options, command, flag, value
from clipself_seg.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from clipself_seg.clip import DenseCLIP
    from clipself_seg.explore.content import Content, PanopticView
    from clipself_seg.prediction.files import ImageFile

MODELS = ("mini", "mini-clipself", "mini-clipself-proposals")
# Short names of the models that come with the project.
SHIPPED = {
    "original": "original CLIP=mini",
    "clipself": "CLIPSelf, patches=mini-clipself",
    "clipself-proposals": "CLIPSelf, proposals=mini-clipself-proposals",
}
CLIP_NAME = "open_clip's name of the models (of official names their own, else ViT-Mini-8)"
PANOPTIC_ONLY = ("stuff", "config_file", "weights", "clip_weights")
MEGABYTE = 1_000_000
MANY_BYTES = 200 * MEGABYTE


def _images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images, and folders of them")


def _size(options: Options) -> None:
    text = "longest side of the image in pixels for the models (three times that of their crops)"
    value(options, "--size", text, kind=int)


def _maps_options(parser: argparse.ArgumentParser) -> None:
    _images(parser)
    models = "files or tags, of a row each"
    value(parser, "--models", models, MODELS, count="+", metavar="[NAME=]WEIGHTS")
    value(parser, "--clip-name", CLIP_NAME)
    words = "a heat map for each: class names, a .txt, a .json or a built-in vocabulary"
    value(parser, "--words", words)
    value(parser, "--clusters", "of K-Means, at most", 8)
    smallest = "fraction of the cells below which a cluster is dropped"
    value(parser, "--smallest", smallest, 0.02)
    _size(parser)
    value(parser, "--output", default="output/dense_maps")


@command(_maps_options)
def dense_maps(args: argparse.Namespace) -> int:
    """See what dense features see: K-Means of images, and a heat map for each word, for several CLIPs.

        clipself-seg dense-maps output/mini_world/mini/val/000000.jpg --words "red star, grass"
        clipself-seg dense-maps photo.jpg folder/ --clip-name EVA02-B-16 --size 1024 --words "dog, kite" \\
            --models original=merged2b_s8b_b131k \\
            CLIPSelf=output/distill/coco_patches_eva02_vitb16/clip_final.safetensors

    Writes a PNG for each image (paper, Fig. 4) with a row for each model: the image, the clusters of its
    dense features, and their cosines with each word, on one scale a row, from black to yellow.
    Exit status: 0, 1 if an image failed and the others were done, 2 if nothing was done.
    """
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


def _explore_options(parser: argparse.ArgumentParser) -> None:
    _images(parser)
    default = "output/explore.html"
    parser.add_argument("-o", "--output", default=default, help=f"({default})")
    words = "class names, a .txt, a .json or a built-in vocabulary"
    parser.add_argument("--words", required=True, help=words)
    add_model_options(parser)
    segments = parser.add_argument_group("segments")
    flag(segments, "--panoptic", "show a panoptic model's, too")
    value(segments, "--stuff", 'words that are stuff, as --words; "" for none')
    value(segments, "--config-file", "of an OpenPanoptic (configs/mini/panoptic.yaml)")
    value(segments, "--weights", "its checkpoint, as of predict (the one that is shipped)")
    value(segments, "--clip-weights", "of the CLIP that scores masks, as of predict")


def add_model_options(options: Options) -> None:
    """Add the options that say which models the heat maps are of, and how large images are for them."""
    _size(options)
    options.add_argument(
        "--models",
        nargs="+",
        default=list(SHIPPED),
        metavar="[NAME=]WEIGHTS",
        help=f"files, tags or official names; of those that come with the project {' '.join(SHIPPED)} (these)",
    )
    value(options, "--clip-name", CLIP_NAME)


@command(_explore_options)
def explore(args: argparse.Namespace) -> int:
    """Write a page to click: heat maps of words and of places, for several CLIPs, in one file that needs no server.

        clipself-seg explore output/mini_world/mini/val/000000.jpg --words "red star, blue ring, grass" -o page.html
        clipself-seg explore folder/ --words "dog|puppy, kite, grass" --models openai-vitb16 eva02-vitb16
        clipself-seg explore photo.jpg --words "dog, kite" --clip-name EVA02-B-16 --size 1024 \\
            --models original=eva02-vitb16 CLIPSelf=output/distill/coco_patches_eva02_vitb16/clip_final.safetensors
        clipself-seg explore folder/ --words "red star, grass" --panoptic --stuff grass

    Everything is computed in the browser from dense features in the file, of 8 bits a number: at most 5 MB an image
    and model for ViT-L/14 at 896 pixels. With --panoptic there are segments too, and sliders that fuse the scores of
    generator and CLIP anew.
    Exit status: 0, 1 if an image failed and the others are on the page, 2 if there is no page.
    """
    refuse_without_panoptic(args)
    from clipself_seg.explore.page import write_page
    from clipself_seg.prediction.files import find_images
    from clipself_seg.prediction.loop import complain

    files = find_images(args.images, args.output)
    content = content_of(args)
    failed = dict(files.failed)
    for path, reason in failed.items():
        complain(path, reason)
    count = write_page(args.output, content, _read(files.images, failed))
    size = Path(args.output).stat().st_size
    sys.stdout.write(
        f"{count} of {count + len(failed)} images, {len(content.clips)} models: {args.output}, "
        f"{size / MEGABYTE:.1f} MB\n"
    )
    if size > MANY_BYTES:
        sys.stderr.write("browsers are slow with a page of this size: give fewer images\n")
    return 1 if failed else 0


def refuse_without_panoptic(args: argparse.Namespace) -> None:
    """Refuse options of the panoptic model where there is none.

    Raises:
        InputError: names the first.
    """
    for name in PANOPTIC_ONLY:
        if not args.panoptic and getattr(args, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} needs --panoptic")


def content_of(args: argparse.Namespace) -> Content:
    """Models and words as they were typed."""
    from clipself_seg.data.vocabulary import read_words
    from clipself_seg.explore.content import Content

    words = read_words(args.words)
    panoptic = _panoptic(args) if args.panoptic else None
    return Content(clips=heat_models(args), words=words, side=args.size, panoptic=panoptic)


def heat_models(args: argparse.Namespace) -> dict[str, DenseCLIP]:
    """The CLIPs of the heat maps by title, see `add_model_options`."""
    from clipself_seg.prediction.dense_maps import load_models

    return load_models(args.clip_name, list(map(_model, args.models)))


def _model(typed: str) -> str:
    """What was typed as [NAME=]WEIGHTS, with the weights of the short names that come with the project."""
    name, named, weights = typed.partition("=")
    if typed in SHIPPED or weights not in SHIPPED:
        return SHIPPED.get(typed, typed)
    return f"{name}{named}{SHIPPED[weights].partition('=')[2]}"


def _panoptic(args: argparse.Namespace) -> PanopticView:
    from clipself_seg.commands.predict import PANOPTIC, PANOPTIC_KEYS, predictor_of
    from clipself_seg.explore.content import PanopticView
    from clipself_seg.prediction.panoptic import PanopticPredictor, panoptic_words

    words = panoptic_words(args.words, args.stuff)
    given = args.clip_weights
    opts = [] if given is None else [PANOPTIC_KEYS["clip_weights"], given]
    predictor: PanopticPredictor = predictor_of(args, PANOPTIC, PanopticPredictor, opts)
    predictor.set_vocabulary(words)
    return PanopticView(predictor)


def _read(images: Sequence[ImageFile], failed: dict[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and pixels of images; what cannot be read is noted and left out."""
    from clipself_seg.data.images import read_image
    from clipself_seg.prediction.loop import complain

    for image in images:
        try:
            pixels = read_image(image.path)
        except InputError as error:
            failed[str(image.path)] = str(error)
            complain(str(image.path), str(error))
            continue
        yield image.file_name, pixels
