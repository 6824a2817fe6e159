"""Segment photographs with words of your own.

    python tools/predict.py --vocabulary "red star, blue ring, grass" --input photo.jpg
    python tools/predict.py --config-file configs/semseg/catseg_cvpr_vitb16.yaml --weights model_base.pth \\
        --vocabulary "dog|puppy, grass, sky" --background --input photo.jpg folder/ --output out/

Commas separate classes, bars synonyms, which are averaged. Every pixel gets the best class; with
--background, those that no class reaches --threshold on get the background. "--background
background|wall|floor" adds words that compete for pixels, all of which are background.

Writes overlays/*.png with a legend, labels/*.png (8 bits, or 16 for more than 255 classes), with
--scores scores/*.npz (float16), and classes.json: what labels mean, their shares, what failed.
Exit status: 0, 1 if a picture failed and the others were done, 2 if nothing was done.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clipself_seg.errors import report_input_errors

CONFIG = "configs/mini/semseg.yaml"
WEIGHTS = "mini-cat-seg"  # shipped, of that configuration
ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", help=f"of a CATSeg ({CONFIG})")
    parser.add_argument(
        "--weights",
        help=f"checkpoint (MODEL.WEIGHTS of the configuration; of the mini one {WEIGHTS})",
    )
    parser.add_argument(
        "--vocabulary",
        required=True,
        help="words, a .txt with a class a line, a .json, or a built-in one such as ade20k_150",
    )
    parser.add_argument("--input", nargs="+", required=True, help="pictures, and folders of them")
    parser.add_argument("--output", default="output/predict", help="(output/predict)")
    parser.add_argument(
        "--background",
        nargs="?",
        const="background",
        metavar="NAME|WORD...",
        help="for what is none of the classes (background)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="score that a class needs against the background (0.5, or 0 if words compete for it)",
    )
    parser.add_argument("--scores", action="store_true", help="write the scores of all classes")
    parser.add_argument(
        "--semantic", action="store_true", help="give every pixel a class (the one task there is)"
    )
    parser.add_argument("--opts", nargs="*", default=[], help="further KEY VALUE of the config")
    return parser.parse_args()


@report_input_errors
def main() -> int:
    """Segment, and say where the results are."""
    arguments = parse_arguments()
    from clipself_seg.data.words import read_words
    from clipself_seg.engine.predict_files import find_photos, predict_files
    from clipself_seg.engine.predictor import load_predictor

    words = read_words(arguments.vocabulary)
    found = find_photos(arguments.input, arguments.output)
    if found.others:
        named = ", ".join(path.name for path in found.others[:5])
        sys.stderr.write(f"{len(found.others)} file(s) are no pictures by their endings: {named}\n")
    config = arguments.config_file or ROOT / CONFIG
    weights = arguments.weights or (None if arguments.config_file else WEIGHTS)
    predictor = load_predictor(config, weights, arguments.opts)
    predictor.set_vocabulary(words, arguments.background, arguments.threshold)
    failed = predict_files(predictor, found, arguments.output, arguments.scores)
    total = len(found.photos) + len(found.failed)
    sys.stdout.write(f"{total - len(failed)} of {total} segmented, in {arguments.output}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
