"""Writes the page as one HTML file: a template, style and scripts of `assets/`, and the content."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from clipself_seg import __version__
from clipself_seg.errors import InputError
from clipself_seg.explore.content import Content, button_of
from clipself_seg.files import atomic_path
from clipself_seg.pages import pieces

ASSETS = Path(__file__).resolve().parent / "assets"
# In the order in which they build on each other; the last one begins.
PARTS = (
    "blobs.js",
    "similarity.js",
    "heat.js",
    "fusion.js",
    "merge.js",
    "places.js",
    "panels.js",
    "segments.js",
    "chooser.js",
    "explorer.js",
)
SCRIPTS = (*PARTS, "start.js")
SERVER_SCRIPTS = (*PARTS, "masks.js", "serve.js")


def write_page(
    path: str | os.PathLike[str], content: Content, images: Iterable[tuple[str, np.ndarray]]
) -> int:
    """Writes a page that needs no server, whole or not at all; returns how many images it shows.

    Args:
        path: file of HTML.
        content: models and words.
        images: names and pixels (H, W, 3) uint8 RGB; taken one after another, so that no more than one is in
            memory.

    Raises:
        InputError: there is no image.
    """
    buttons = list[dict[str, str]]()

    def shown() -> Iterator[dict[str, object]]:
        for name, image in images:
            buttons.append(button_of(image, name))
            yield content.image(image, name)
        if not buttons:
            raise InputError(f"no image could be read: {path} is not written")

    # The buttons are written behind the images, when they are known.
    page = pieces(
        "explore.html",
        models=content.models(),
        images=shown(),
        buttons=buttons,
        **inlined(SCRIPTS),
        version=__version__,
    )
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(page)
    return len(buttons)


def inlined(scripts: Sequence[str]) -> dict[str, str]:
    """Style and script of a page, and the rule (CSP) that lets nothing else run or load.

    Args:
        scripts: names of files in `assets/`, in order.
    """
    style = read_asset("page.css")
    script = '"use strict";\n' + "\n".join(read_asset(name) for name in scripts)
    rule = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    # Files of the package, which are no input.
    return {"style": Markup(style), "script": Markup(script), "rule": rule}


@functools.cache
def read_asset(name: str) -> str:
    """Text of a file in `assets/`."""
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
