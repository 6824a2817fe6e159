"""Whole images of `mini`: one thing each, near the middle and before stuff, for the classification of whole images.

    python -m clipself_seg.mini.subjects [output/mini_world]

draws {root}/subjects/val/<name of the class>/00.jpg, 20 of each of the 36 things, unless they are there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from clipself_seg.data.datasets.table import MINI
from clipself_seg.errors import report_input_errors
from clipself_seg.files import atomic_path
from clipself_seg.mini.concepts import WORLDS
from clipself_seg.mini.scenes import draw_subject

IMAGES = 20  # of each thing
SEED = 36  # of no split of the worlds


def draw_subjects(root: Path, count: int = IMAGES) -> None:
    """Draw the images; the same ones each time.

    Args:
        root: folder of the mini worlds.
        count: images of each thing.
    """
    for label, thing in enumerate(WORLDS["mini"].things):
        folder = root / "subjects" / "val" / thing.names[0].replace(" ", "_")
        for number in range(count):
            path = folder / f"{number:02d}.jpg"
            if not path.exists():
                rng = np.random.default_rng([SEED, label, number])
                image = Image.fromarray(draw_subject(rng, WORLDS["mini"], thing))
                with atomic_path(path) as temporary:
                    image.save(temporary, format="JPEG", quality=95)


if __name__ == "__main__":
    root = Path(sys.argv[1]) if sys.argv[1:] else MINI.drawn
    sys.exit(report_input_errors(draw_subjects)(root))
