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

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from clipself_seg.errors import InputError, report_input_errors

if TYPE_CHECKING:
    import numpy as np

    from clipself_seg.clip import DenseCLIP
    from clipself_seg.data.vocabulary import Vocabulary
    from clipself_seg.explore.content import Content
    from clipself_seg.explore.panoptic_view import PanopticView
    from clipself_seg.prediction.files import ImageFile

# Short names of the models that come with the project.
SHIPPED = {
    "original": "original CLIP=mini",
    "clipself": "CLIPSelf, patches=mini-clipself",
    "clipself-proposals": "CLIPSelf, proposals=mini-clipself-proposals",
}
PANOPTIC_ONLY = ("stuff", "config_file", "weights", "clip_weights")
MEGABYTE = 1_000_000
MANY_BYTES = 200 * MEGABYTE
SIZE_HELP = "longest side of the image in pixels for the models (three times that of their crops)"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("images", nargs="+", metavar="IMAGE", help="images, and folders of them")
    options.add_argument(
        "-o", "--output", default="output/explore.html", help="(output/explore.html)"
    )
    options.add_argument(
        "--words", required=True, help="class names, a .txt, a .json or a built-in vocabulary"
    )
    add_model_options(options)
    group = options.add_argument_group("segments")
    group.add_argument("--panoptic", action="store_true", help="show a panoptic model's, too")
    group.add_argument("--stuff", help='words that are stuff, as --words; "" for none')
    group.add_argument("--config-file", help="of an OpenPanoptic (configs/mini/panoptic.yaml)")
    group.add_argument("--weights", help="its checkpoint, as of predict (the one that is shipped)")
    group.add_argument("--clip-weights", help="of the CLIP that scores masks, as of predict")
    return options


def add_model_options(options: argparse.ArgumentParser) -> None:
    """Add the options that say which models the heat maps are of, and how large images are for them."""
    options.add_argument("--size", type=int, help=SIZE_HELP)
    options.add_argument(
        "--models",
        nargs="+",
        default=list(SHIPPED),
        metavar="[NAME=]WEIGHTS",
        help=f"files, tags or official names; of those that come with the project {' '.join(SHIPPED)} (these)",
    )
    options.add_argument(
        "--clip-name",
        help="open_clip's name of the models (of official names their own, else ViT-Mini-8)",
    )


@report_input_errors
def main(arguments: list[str] | None = None) -> int:
    """Write the page, and say where and how large it is."""
    args = parser().parse_args(arguments)
    refuse_without_panoptic(args)
    from pathlib import Path

    from clipself_seg.explore.page import write_page
    from clipself_seg.prediction.files import find_images

    files = find_images(args.images, args.output)
    content = content_of(args)
    failed = dict(files.failed)
    for path, reason in failed.items():
        _complain(path, reason)
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
    from clipself_seg.commands._predict_options import PANOPTIC_KEYS
    from clipself_seg.commands.predict import PANOPTIC, predictor_of
    from clipself_seg.explore.panoptic_view import PanopticView
    from clipself_seg.prediction.panoptic import PanopticPredictor, panoptic_words

    words: Vocabulary = panoptic_words(args.words, args.stuff)
    given = args.clip_weights
    opts = [] if given is None else [PANOPTIC_KEYS["clip_weights"], given]
    predictor: PanopticPredictor = predictor_of(args, PANOPTIC, PanopticPredictor, opts)
    predictor.set_vocabulary(words)
    return PanopticView(predictor)


def _read(images: Sequence[ImageFile], failed: dict[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and pixels of images; what cannot be read is noted and left out."""
    from clipself_seg.data.images import read_image

    for image in images:
        try:
            pixels = read_image(image.path)
        except InputError as error:
            failed[str(image.path)] = str(error)
            _complain(str(image.path), str(error))
            continue
        yield image.file_name, pixels


def _complain(path: str, reason: str) -> None:
    sys.stderr.write(f"failed: {reason if path in reason else f'{path}: {reason}'}\n")
