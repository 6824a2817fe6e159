"""Pages: one file each, and whatever they are given is text in them."""

import base64
import io
import re

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from clipself_seg.pages import bold_parts, image_address, render, write_page
from tests.conftest import ROOT

NAME = "<script>alert('a & b')</script>"


def test_what_stands_between_two_marks_is_bold_and_the_rest_is_text():
    assert bold_parts("**71.6** / 96.5") == [("71.6", True), (" / 96.5", False)]
    html = render("table.html", headings=[NAME], body=[[f"**{NAME}**"], ["1.0"]], left=1)
    assert "<script" not in html and html.count("&lt;script&gt;") == 2
    assert "<b>&lt;script&gt;" in html and '<td class="left">1.0</td>' in html


def test_an_image_is_in_its_address():
    pixels = np.full((6, 8, 3), (200, 30, 40), np.uint8)
    head, content = image_address(pixels).split(",")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == "data:image/webp;base64" and image.size == (8, 6)
    assert np.abs(np.asarray(image).astype(int) - pixels).max() < 12


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(UndefinedError):
        write_page(tmp_path / "index.html", "demo.html", questions=[])
    assert list(tmp_path.iterdir()) == []
    write_page(tmp_path / "index.html", "demo.html", questions=[], segments=[], explore="")
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>") and 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert re.search(r"td:first-child \{ position: sticky; left: 0", html)  # names of rows


def test_there_is_no_markup_in_code():
    tag = re.compile(
        r"</?(a|b|body|div|h\d|html|img|li|p|span|style|table|t[dhr]|tbody|thead|ul)\b"
    )
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "clipself_seg").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if tag.search(line)
    ]
    assert wrong == []
