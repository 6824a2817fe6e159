"""Draw photographs beside what official models say of them: pixels, segments and boxes, a row for each photograph.

    python tools/photograph_strip.py --output docs/pictures/photographs.jpg
    python tools/photograph_strip.py a.jpg b.jpg --words "dog, grass" --model mini --output strip.jpg

Without photographs it takes scikit-image's cat and coffee, which are in the public domain (CC0). Weights are fetched
by name; the message about one that only a browser gets says where it is, and into which folder it belongs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import clipself_seg
from clipself_seg.data.images import read_image
from clipself_seg.errors import report_input_errors
from clipself_seg.visualization.overlays import FAINT, INK, PAPER, save_jpeg
from clipself_seg.visualization.text import write_text

# Name in skimage.data -> words of things, and of stuff.
EXAMPLES = {"cat": ("cat", "blanket"), "coffee": ("cup, spoon, saucer", "table")}
TASKS = {"pixels": "semantic", "segments": "panoptic", "boxes": "detection"}
KEYS = {"detection": ("MODEL.FVIT.SCORE_THRESHOLD", "0.5")}  # boxes to look at
TILE, TEXT, GAP = 320, 22, 10  # pixels
LINE = TEXT + 2 * GAP


def tiles_of(image: np.ndarray, things: str, stuff: str, model: str | None) -> list[Image.Image]:
    """The photograph and the overlay of each task, `TILE` pixels wide."""
    tiles, words = [Image.fromarray(image)], ", ".join(filter(None, (things, stuff)))
    for task in TASKS.values():
        further = {"stuff": stuff} if task == "panoptic" and stuff else {}
        predictor = clipself_seg.load(model, task=task, opts=KEYS.get(task, ()))
        tiles.append(predictor(image, words, **further).overlay())
    return [t.convert("RGB").resize((TILE, round(TILE * t.height / t.width))) for t in tiles]


def strip(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """The rows below the titles of the columns, each below its words."""
    heights = [LINE + max(tile.height for tile in tiles) for _, tiles in rows]
    titles = ["photograph", *TASKS]
    lefts = [GAP + column * (TILE + GAP) for column in range(len(titles))]
    canvas = Image.new("RGB", (lefts[-1] + TILE + GAP, LINE + sum(heights) + GAP), PAPER)
    draw, top = ImageDraw.Draw(canvas), LINE
    for left, title in zip(lefts, titles):
        write_text(draw, (left + TILE / 2, LINE / 2), title, TEXT, FAINT, "mm")
    for (words, tiles), height in zip(rows, heights):
        write_text(draw, (GAP, top + LINE / 2), f"“{words}”", TEXT, INK)
        for left, tile in zip(lefts, tiles):
            canvas.paste(tile, (left, top + LINE))
        top += height
    return canvas


@report_input_errors
def main() -> int:
    """Read the command line, predict and write the strip."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--words", default="", help="of all photographs, each a thing")
    parser.add_argument("--model", help="for all tasks, such as mini (default: that of each task)")
    parser.add_argument("--output", type=Path, default="output/photographs.jpg")
    args = parser.parse_args()
    given = [(read_image(p), args.words, "") for p in args.images]
    if not given:
        from skimage import data  # scikit-image; no extra brings it

        given = [(getattr(data, name)(), *words) for name, words in EXAMPLES.items()]
    rows = [(", ".join(filter(None, e[1:])), tiles_of(*e, args.model)) for e in given]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_jpeg(strip(rows), args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
