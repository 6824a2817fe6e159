"""Segment images with your own class names.

    python tools/predict.py --vocabulary "red star, blue ring, grass" --input photo.jpg
    python tools/predict.py --config-file configs/semseg/catseg_cvpr_vitb16.yaml --weights model_base.pth \\
        --vocabulary "dog|puppy, grass, sky" --background --input photo.jpg folder/ --output out/
    python tools/predict.py --panoptic --vocabulary "red star, blue ring, grass" --stuff grass --input photo.jpg

Commas separate classes, bars synonyms. Every pixel gets the best class; with --background, those
that no class reaches --threshold on get the background. "--background background|wall|floor" adds
names that compete for pixels, all of which are background. With --panoptic every thing is a segment of
its own; classes that are not in --stuff are things, unless a built-in vocabulary says otherwise.

Writes overlays/*.png with a legend, labels/*.png (8 bits, or 16 for more than 255 classes), with
--scores scores/*.npz (float32), and classes.json: the class of each label, the
fraction of each image that every class covers, and the images that failed.
With --panoptic overlays/*.png, and panoptic/*.png and panoptic.json in COCO's format.
Exit status: 0, 1 if an image failed and the others were done, 2 if nothing was done.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clipself_seg.errors import InputError, report_input_errors

if TYPE_CHECKING:
    from clipself_seg.prediction.files import InputFiles, Results

# Default configuration and its shipped weights, without and with --panoptic.
SEMANTIC = ("configs/mini/semseg.yaml", "mini-cat-seg")
PANOPTIC = ("configs/mini/panoptic.yaml", "mini-open-panoptic")
# Options that only one of the tasks has; PANOPTIC_KEYS also has the configuration key that each sets.
SEMANTIC_ONLY = ("background", "threshold", "scores")
PANOPTIC_KEYS = {
    "clip_weights": "MODEL.CLIP_BRANCH.WEIGHTS",
    "mode": "MODEL.FUSION.MODE",
    "alpha": "MODEL.FUSION.ALPHA",
    "beta": "MODEL.FUSION.BETA",
}
PANOPTIC_ONLY = ("stuff", "trained", *PANOPTIC_KEYS)
# The package's folder, which holds configs/ too (in a checkout as a link).
PACKAGE = Path(__file__).resolve().parent.parent


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    task = options.add_mutually_exclusive_group()
    task.add_argument("--semantic", action="store_true", help="give every pixel a class (default)")
    task.add_argument("--panoptic", action="store_true", help="find things and stuff")
    options.add_argument(
        "--config-file", help=f"of a CATSeg ({SEMANTIC[0]}) or an OpenPanoptic ({PANOPTIC[0]})"
    )
    options.add_argument(
        "--weights",
        help="checkpoint (MODEL.WEIGHTS of the configuration; of the mini ones what is shipped)",
    )
    options.add_argument(
        "--vocabulary",
        required=True,
        help="class names, a .txt with a class a line, a .json, or a built-in one such as ade20k_150",
    )
    options.add_argument("--input", nargs="+", required=True, help="images, and folders of them")
    options.add_argument("--output", default="output/predict", help="(output/predict)")
    options.add_argument("--opts", nargs="*", default=[], help="further KEY VALUE of the config")
    _add_semantic(options.add_argument_group("without --panoptic"))
    _add_panoptic(options.add_argument_group("with --panoptic"))
    return options


def _add_semantic(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--background",
        nargs="?",
        const="background",
        metavar="NAME|NAME...",
        help="for what is none of the classes (background)",
    )
    group.add_argument(
        "--threshold",
        type=float,
        help="score that a class needs against the background (0.5, or 0 if names compete for it)",
    )
    group.add_argument(
        "--scores", action="store_true", default=None, help="write the scores of all classes"
    )


def _add_panoptic(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--stuff", help='classes that are stuff, as --vocabulary; "" for none')
    group.add_argument(
        "--clip-weights", help="file or tag of the CLIP that scores masks, such as a distilled one"
    )
    group.add_argument(
        "--trained",
        metavar="VOCABULARY",
        help="its classes are the seen ones (the vocabulary of DATASETS.TRAIN)",
    )
    group.add_argument("--mode", help="whose scores count: fused, clip or generator (fused)")
    for name, of in (("alpha", "seen classes"), ("beta", "unseen classes")):
        key = PANOPTIC_KEYS[name]
        group.add_argument(f"--{name}", type=float, help=f"CLIP's exponent for {of} ({key})")


@report_input_errors
def main(arguments: list[str] | None = None) -> int:
    """Segment, and say where the results are."""
    args = parser().parse_args(arguments)
    _refuse(args, SEMANTIC_ONLY if args.panoptic else PANOPTIC_ONLY)
    from clipself_seg.prediction.files import find_images, predict_files

    files = find_images(args.input, args.output)
    if files.others:
        named = ", ".join(path.name for path in files.others[:5])
        sys.stderr.write(f"{len(files.others)} file(s) are no images by their endings: {named}\n")
    results = _panoptic(args, files) if args.panoptic else _semantic(args)
    failed = predict_files(results, files)
    total = len(files.images) + len(files.failed)
    sys.stdout.write(f"{total - len(failed)} of {total} segmented, in {args.output}\n")
    return 2 if len(failed) == total else 1 if failed else 0


def _refuse(args: argparse.Namespace, options: tuple[str, ...]) -> None:
    """Raises an error for an option of the other task."""
    for name in options:
        if getattr(args, name) is not None:
            why = "does not go with" if args.panoptic else "needs"
            raise InputError(f"--{name.replace('_', '-')} {why} --panoptic")


def _model(args: argparse.Namespace, default: tuple[str, str]) -> tuple[str | Path, str]:
    """Configuration and weights."""
    if args.config_file:
        return args.config_file, args.weights
    return PACKAGE / default[0], args.weights or default[1]


def _semantic(args: argparse.Namespace) -> Results:
    from clipself_seg.data.vocabulary import read_words
    from clipself_seg.prediction.semantic import load_predictor
    from clipself_seg.prediction.semantic_results import SemanticResults

    words = read_words(args.vocabulary)
    predictor = load_predictor(*_model(args, SEMANTIC), args.opts)
    predictor.set_vocabulary(words, args.background, args.threshold)
    return SemanticResults(predictor=predictor, folder=args.output, scores=bool(args.scores))


def _panoptic(args: argparse.Namespace, files: InputFiles) -> Results:
    from clipself_seg.prediction.panoptic import load_panoptic_predictor, panoptic_words
    from clipself_seg.prediction.panoptic_results import PanopticResults

    words = panoptic_words(args.vocabulary, args.stuff)
    mode, exponents = args.mode or "fused", (args.alpha, args.beta)
    if mode != "fused" and exponents != (None, None):
        raise InputError(f"--alpha and --beta belong to the mode fused, not {mode}: leave them out")
    opts = list(args.opts)
    for name, key in PANOPTIC_KEYS.items():
        if getattr(args, name) is not None:
            opts += [key, getattr(args, name)]
    predictor = load_panoptic_predictor(*_model(args, PANOPTIC), opts, args.trained)
    predictor.set_vocabulary(words)
    return PanopticResults(predictor=predictor, folder=args.output, images=files.images)
