"""The demo: what the weights that come with the project see, without any training."""

from __future__ import annotations

from pathlib import Path

from clipself_seg.checkpoints.shipped import MINI_CLIP
from clipself_seg.clip import load_clip
from clipself_seg.files import alone_in
from clipself_seg.mini.writer import WorldSize, make_worlds
from clipself_seg.pages import write_page
from clipself_seg.quickstart.heat_maps import SHOWN, ask, heat_sheet
from clipself_seg.quickstart.quickstart import show_segments
from clipself_seg.quickstart.steps import IMAGES, PROGRAM, call_together, first_images, say
from clipself_seg.visualization.overlays import save_jpeg

WORLD = "mini"
EXPLORE = "explore.html"
SIZE = WorldSize(
    train=1, val=IMAGES, base=1
)  # only the scenes that are shown, and those that a world needs


def run_demo(output: Path) -> Path:
    """Write `heat_maps.jpg`, `panoptic_mini.png`, `explore.html` and `index.html`, the page that has them.

    Args:
        output: folder for them, the scenes and what is predicted of them.

    Returns:
        The page.

    Raises:
        InputError: a step failed; its command is named. Or another demo is at work there.
    """
    with alone_in(output):
        say("heat maps: where a CLIP finds a word, as it is and after CLIPSelf")
        questions = ask({title: load_clip(MINI_CLIP, tag) for title, tag in SHOWN.items()})
        save_jpeg(heat_sheet(questions), output / "heat_maps.jpg")
        say("segments of generated scenes, named by both CLIPs")
        worlds = output / "worlds"
        make_worlds(worlds, SIZE)
        segments = show_segments(output, worlds, (WORLD,))[WORLD]
        say("a page to click")
        images = [str(image) for image in first_images(worlds, WORLD)]
        models = ["--models", "original", "clipself-proposals", "--words", WORLD]
        words = [*PROGRAM, "explore", *images, *models, "-o", str(output / EXPLORE)]
        call_together({"explore": words}, worlds)
        path = output / "index.html"
        write_page(path, "demo.html", questions=questions, segments=segments, explore=EXPLORE)
    return path
