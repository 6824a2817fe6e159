"""Links between pages of the repository and pages of the site."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("mkdocs", reason="needs mkdocs (the extra [docs])")

import docs_pages  # noqa: E402

from tests.conftest import ROOT  # noqa: E402


def as_in_site(name: str, markdown: str) -> str:
    """Markdown of a page of that name as the site has it."""
    return docs_pages.on_page_markdown(
        markdown, SimpleNamespace(file=SimpleNamespace(src_uri=name))
    )


def test_links_to_pages_elsewhere_lead_to_their_names_in_the_site():
    text = "[a](../README.md#speed) [b](tables.md#x) [c](#here) ![d](pictures/a.png) [e](https://x.org/a.md)"
    assert as_in_site("hub.md", text) == text.replace("../README.md", "readme.md")


def test_links_of_pages_elsewhere_lead_into_the_site():
    text = "[a](docs/hub.md#x) [b](CONTRIBUTING.md) ![c](docs/pictures/a.png) [d](clipself_seg/mini/CARD.md)"
    linked = "[a](hub.md#x) [b](contributing.md) ![c](pictures/a.png) [d](card.md)"
    assert as_in_site("readme.md", text) == linked


def test_links_to_notebooks_lead_to_their_pages():
    assert as_in_site("index.md", "[a](notebooks/1_x.ipynb)") == "[a](notebooks/1_x.md)"
    assert (
        as_in_site("notebooks/1_x.md", "[a](2_y.ipynb) [b](../hub.md)")
        == "[a](2_y.md) [b](../hub.md)"
    )


def test_code_is_left_as_it_is():
    code = "    values[0](x)\n\n```python\nparts['a'](README.md)\n```"
    assert as_in_site("hub.md", code) == code


def test_pages_elsewhere_and_the_reference_are_added():
    pages = docs_pages.added_pages()  # which `on_files` hands to mkdocs
    assert pages["readme.md"] == (ROOT / "README.md").read_text()
    assert "::: clipself_seg.clip.model" in pages["api/features.md"]


def test_modules_of_the_reference_exist_and_are_listed_once():
    modules = [name for _, names in docs_pages.REFERENCE.values() for name in names.split()]
    files = [ROOT / "clipself_seg" / f"{name.replace('.', '/')}.py" for name in modules]
    assert all(file.is_file() for file in files) and len(set(modules)) == len(modules)


def test_a_notebook_is_a_page_with_its_outputs():
    image = {"data": {"image/png": "aGVsbG8=\n", "text/plain": ["<Figure>"]}}
    outputs = [{"text": ["a\n", "b"]}, image, {"data": {"text/plain": ["{1: 2}"]}}]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["x = 1"], "outputs": outputs},
    ]
    assert docs_pages.notebook_page(json.dumps({"cells": cells})).split("\n\n") == [
        "# Title\ntext",
        "```python\nx = 1\n```",
        "```text\na\nb\n```",
        "![output](data:image/png;base64,aGVsbG8=)",
        "```text\n{1: 2}\n```",
    ]
