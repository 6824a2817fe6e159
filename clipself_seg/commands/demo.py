"""See what the weights that come with the project see: less than a minute on two cores, without training.

    clipself-seg demo

Draws a few generated scenes, asks a CLIP for words in them, before and after CLIPSelf, lets both name the
segments of a mask generator, and writes a page, with one to click beside it (clipself-seg explore). The page is
opened if there is a screen; its path is printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from pathlib import Path

from clipself_seg.errors import after_interrupt, report_input_errors


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--output", default="output/demo", help="(output/demo)")
    options.add_argument("--no-open", action="store_true", help="print the page's path only")
    return options


@report_input_errors
@after_interrupt("the same command begins anew")
def main(arguments: list[str] | None = None) -> None:
    """Write the page, and show it."""
    args = parser().parse_args(arguments)
    from clipself_seg.quickstart.demo import run_demo

    page = run_demo(Path(args.output).absolute())
    sys.stdout.write(f"\n{page}\n")
    if not args.no_open and has_screen():
        webbrowser.open(page.as_uri())


def has_screen() -> bool:
    """Whether a browser would have somewhere to show a page; in a terminal's browser it would fill the terminal."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in screens)
