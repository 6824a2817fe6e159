"""Writes HTML pages from the templates in `templates/`, each a single file with its images embedded.

Whatever a template is given is text: jinja2 escapes it. The pages of reports extend `page.html`, which has the style;
those that the server writes beside its own extend `plain.html`.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from clipself_seg.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
# A tenth of the PNG's bytes, and text stays sharp.
IMAGE_FORMAT = "webp"
QUALITY = 88


def render(template: str | Path, **values: Any) -> str:
    """A page, or a part of one.

    Args:
        template: name of a file in `templates/`, or the path of one elsewhere, which may extend those.
        values: values that the template shows.
    """
    environment = _environment()
    if isinstance(template, Path):
        return environment.from_string(template.read_text(encoding="utf-8")).render(values)
    return environment.get_template(template).render(values)


def pieces(template: str, **values: Any) -> Iterator[str]:
    """A page piece by piece, for one that is too large to be in memory as a whole; the arguments are `render`'s."""
    return _environment().get_template(template).generate(values)


def write_page(path: str | os.PathLike[str], template: str | Path, **values: Any) -> None:
    """Writes a page, atomically.

    Args:
        path: the HTML file.
        template: as `render`.
        values: values that the template shows.
    """
    write_text(path, render(template, **values))


def image_address(image: np.ndarray | Image.Image) -> str:
    """Address of an image that is the image itself (a data URL), for ``src``.

    Args:
        image: (H, W, 3) uint8 RGB, or an RGB image.
    """
    content = io.BytesIO()
    drawn = image if isinstance(image, Image.Image) else Image.fromarray(image)
    drawn.save(content, format=IMAGE_FORMAT, quality=QUALITY)
    text = base64.b64encode(content.getvalue()).decode()
    return f"data:image/{IMAGE_FORMAT};base64,{text}"


def bold_parts(text: str) -> list[tuple[str, bool]]:
    """Parts of a cell with whether they are bold, which is what stands between two times "**".

    Args:
        text: such as "**71.6** / 96.5".
    """
    return [(part, number % 2 == 1) for number, part in enumerate(text.split("**")) if part]


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bold_parts": bold_parts, "image_address": image_address}
    return environment
