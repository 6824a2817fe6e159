"""Clusters and heat maps of dense features, as PNGs (`dense_maps`) and as a page to click (`explore`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipself_seg.commands import options
from clipself_seg.commands.options import CommandLine, Options, command, flag, value, within
from clipself_seg.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from clipself_seg.clip import VisionLanguageBackbone
    from clipself_seg.explore.content import Content, PanopticView
    from clipself_seg.prediction.files import ImageFile

# Those of --model mini, the CLIPs that come with the project for generated scenes.
MINI = (
    "original CLIP=mini",
    "CLIPSelf, patches=mini-clipself",
    "CLIPSelf, proposals=mini-clipself-proposals",
)
# Those of photographs; the second has no address that a program can fetch.
MODELS = ("eva02-vitb16", "clipself-eva02-vitb16-coco-patches")
PANOPTIC_ONLY = ("stuff", "panoptic_model", "clip_weights")
MEGABYTE = 1_000_000


def _maps_options(parser: CommandLine) -> None:
    options.images(parser)
    value(parser, "--words", f"a heat map for each: {options.WORDS}")
    add_model_options(parser)
    value(parser, "--clusters", "of K-Means, at most", 8, kind=within(int, 1, 255))
    options.output(parser, "output/dense_maps")


@command(_maps_options)
def dense_maps(args: argparse.Namespace) -> int:
    """Draw dense features: clusters of K-Means, and a heat map for each word, for several CLIPs.

        clipself-seg dense-maps photo.jpg --words "dog, kite" \\
            --model eva02-vitb16 clipself-eva02-vitb16-coco-patches
        clipself-seg dense-maps photo.jpg folder/ --size 1024 --words "dog, kite" --model original=eva02-vitb16 \\
            CLIPSelf=output/distill/coco_patches+eva02_vitb16/clip_final.safetensors
        clipself-seg dense-maps output/mini_world/mini/val/000000.jpg --words "red star, grass" --model mini

    Writes a PNG for each image (paper, Fig. 4) with a row for each model: the image, the clusters of its
    dense features, and their cosines with each word, on one scale a row, from black to yellow.
    Exit status: 0, 1 if an image failed and the others were done, 2 if nothing was done.
    """
    choose_clips(args)
    from clipself_seg.data.vocabulary import Vocabulary
    from clipself_seg.prediction.dense_maps import DenseMapResults
    from clipself_seg.prediction.files import find_images
    from clipself_seg.prediction.loop import predict_files

    files = find_images(args.images, args.output)
    words = None if args.words is None else Vocabulary.of(args.words)
    clips = heat_models(args)
    results = DenseMapResults(
        clips=clips,
        folder=args.output,
        side=3 * next(iter(clips.values())).image_size if args.size is None else args.size,
        clusters=args.clusters,
        words=words,
    )
    failed = predict_files(results, files)
    total = len(files.images) + len(files.failed)
    sys.stdout.write(f"{total - len(failed)} of {total} drawn, in {args.output}\n")
    return 2 if len(failed) == total else 1 if failed else 0


def _explore_options(parser: CommandLine) -> None:
    options.images(parser)
    options.output(parser, "output/explore.html", "the page")
    options.required(parser, "--words", options.WORDS)
    add_model_options(parser)
    flag(parser, "--panoptic", "show segments of a panoptic model, too")
    value(parser, "--stuff", 'words that are stuff, as --words; "" for none')
    value(parser, "--panoptic-model", "as --model of predict (fcclip-convnext-large)")
    value(parser, "--clip-weights", "of the CLIP that scores masks, as of predict")


def add_model_options(parser: Options) -> None:
    """Adds the options that say which CLIPs the heat maps are of, and how large images are for them."""
    text = "longest side of the image in pixels for the models (three times that of their crops)"
    value(parser, "--size", text, kind=int)
    models = f"{MODELS[0]}, and {MODELS[1]} if it is here; mini: the three of the generated scenes"
    text = f"CLIPs: names, files, or folders of a distillation ({models})"
    value(parser, "--model", text, count="+", metavar="[TITLE=]NAME")
    value(parser, "--clip-name", "open_clip's name, for a file without a configuration beside it")
    options.device(parser, "the CPU; other models: cuda where there is one")


@command(_explore_options)
def explore(args: argparse.Namespace) -> int:
    """Write an interactive page: heat maps of words and of places, for several CLIPs, in one file without a server.

        clipself-seg explore photo.jpg folder/ --words "dog|puppy, kite, grass" -o page.html
        clipself-seg explore photo.jpg --words "dog, kite" --size 1024 \\
            --model original=eva02-vitb16 CLIPSelf=output/distill/coco_patches+eva02_vitb16/clip_final.safetensors
        clipself-seg explore scenes/ --words "red star, grass" --panoptic --stuff grass --model mini

    Everything is computed in the browser from dense features in the file, of 8 bits a number: at most 5 MB an image
    and model for ViT-L/14 at 896 pixels. With --panoptic there are segments too, and sliders that fuse the scores of
    generator and CLIP anew.
    Exit status: 0, 1 if an image failed and the others are on the page, 2 if there is no page.
    """
    for name in PANOPTIC_ONLY:
        if not args.panoptic and getattr(args, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} needs --panoptic")
    choose_clips(args)
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
    return 1 if failed else 0


def content_of(args: argparse.Namespace) -> Content:
    """Models and words as they were typed."""
    from clipself_seg.data.vocabulary import Vocabulary
    from clipself_seg.explore.content import Content

    words = Vocabulary.of(args.words)
    panoptic = _panoptic(args) if args.panoptic else None
    return Content(clips=heat_models(args), words=words, side=args.size, panoptic=panoptic)


def choose_clips(args: argparse.Namespace) -> None:
    """Settles the CLIPs of the heat maps, as `args.clips`, and fetches them before torch is imported."""
    from clipself_seg.checkpoints.needs import fetch_parts, missing_parts
    from clipself_seg.choice import of_weights

    args.clips = _default_models() if args.model is None else args.model
    if args.clips == ["mini"]:
        args.clips = MINI
    choices = [of_weights(name.rpartition("=")[2]) for name in args.clips]
    fetch_parts(part for choice in choices if choice for part in missing_parts(choice.values()))


def heat_models(args: argparse.Namespace) -> dict[str, VisionLanguageBackbone]:
    """The CLIPs of the heat maps by title, once `choose_clips` has settled which."""
    from clipself_seg.prediction.dense_maps import load_models

    options.take_device(args)
    return load_models(args.clip_name, args.clips, args.device or "cpu")


def of_scenes(args: argparse.Namespace) -> bool:
    """True if every named CLIP is one of the generated scenes, which decides the other models, too."""
    mini = {name.rpartition("=")[2] for name in MINI}
    return bool(args.model) and mini.issuperset(name.rpartition("=")[2] for name in args.model)


def _default_models() -> list[str]:
    """The CLIPs of photographs that are here or can be fetched; says on the terminal which ones."""
    from clipself_seg.checkpoints.locate import present_file, weights_folder
    from clipself_seg.checkpoints.zoo import zoo

    other = zoo()[MODELS[1]]
    reason = f"fetch {other.file} from {other.pages[-1]} into {weights_folder()} to see CLIPSelf's beside it"
    if present_file(other):
        reason = f"and {other.name}, licence {other.licence}"
    options.say_model(MODELS[0], reason)
    return list(MODELS[: 2 if present_file(other) else 1])


def _panoptic(args: argparse.Namespace) -> PanopticView:
    from clipself_seg.choice import TRAINED
    from clipself_seg.commands.predict import KEYS, predictor_of
    from clipself_seg.explore.content import PanopticView
    from clipself_seg.prediction.task_predictors import panoptic_words

    words = panoptic_words(args.words, args.stuff)
    given = args.clip_weights
    opts = [] if given is None else [KEYS["clip_weights"], given]
    opts += [] if args.device is None else [KEYS["device"], args.device]
    model = args.panoptic_model
    if model is None:
        # Of a CLIP alone there would be no two scores to fuse.
        model = "mini" if of_scenes(args) else TRAINED["panoptic"]
    predictor = predictor_of(model, "panoptic", None, opts)
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
