"""The site of the documentation: built strictly, whole, of nothing that lies elsewhere, and what its hook makes of
links, of pages that lie elsewhere in the repository and of notebooks."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT

for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
    pytest.importorskip(package, reason="needs mkdocs-material and mkdocstrings (the extra [docs])")
import docs_pages  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IMPORT = r"^(?:from|import) (clipself_seg\.[\w.]+)"
# Attributes whose address a browser fetches by itself; links that a reader follows are others.
FETCHED = {"src", "srcset", "poster", "data"}
FETCHED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "manifest"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Addresses(HTMLParser):
    """Collects what a page fetches, and its links to other files."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        """One element."""
        values = dict(attrs)
        self.fetched += [value for name, value in attrs if name in FETCHED and value]
        if tag == "link" and FETCHED_LINKS & set((values.get("rel") or "").split()):
            self.fetched.append(values["href"])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])


def test_nothing_is_loaded_from_elsewhere(site):
    pages = {page: Addresses(page).fetched for page in site.rglob("*.html")}
    assert len(pages) > 30 and all(pages.values())
    urls = [(page.name, url) for page, fetched in pages.items() for url in fetched]
    # What is in the page itself is not fetched.
    assert not [u for u in urls if "//" in u[1] and not u[1].startswith("data:")]
    styles = "\n".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]*", styles)


def test_whatever_a_page_shows_or_links_is_there(site):
    wrong = []
    for page in {*site.rglob("*.html")} - {*site.rglob("404.html")}:
        addresses = Addresses(page)
        for url in addresses.fetched + addresses.links:
            name = url.partition("#")[0].partition("?")[0]
            outside = "//" in name or name.startswith(("mailto:", "data:"))
            if name and not outside and not (page.parent / name).exists():
                wrong.append(f"{page.relative_to(site)}: {url}")
    assert not wrong, wrong


def test_the_reference_has_what_snippets_import(site):
    reference = "\n".join(path.read_text() for path in (site / "api").glob("*.html"))
    texts = [page.read_text() for page in PAGES]
    modules = {name for text in texts for name in re.findall(IMPORT, text, re.MULTILINE)}
    assert len(modules) >= 8
    for name in ("clipself_seg.clip.model.load_clip", "clipself_seg.clip.text_bank.TextBank.embed"):
        assert f'id="{name}"' in reference
    packages = {
        name for name in modules if (ROOT / name.replace(".", "/") / "__init__.py").exists()
    }
    assert not [name for name in modules - packages if f'id="{name}"' not in reference]


def test_every_page_is_a_page_of_the_site(site):
    names = {page.stem for page in PAGES if page.parent == ROOT / "docs"}
    assert not names - {path.stem for path in site.glob("*.html")}


@pytest.mark.parametrize(
    "page, links, in_site",
    [
        (
            "hub.md",
            "[a](../README.md#speed) [b](tables.md#x)",
            "[a](readme.md#speed) [b](tables.md#x)",
        ),
        ("hub.md", "    values[0](x)\n\n```python\nparts['a'](README.md)\n```", None),
        (
            "readme.md",
            "[a](docs/hub.md#x) [b](CONTRIBUTING.md)",
            "[a](hub.md#x) [b](contributing.md)",
        ),
        ("notebooks/1_x.md", "[a](2_y.ipynb) [b](../hub.md)", "[a](2_y.md) [b](../hub.md)"),
    ],
)
def test_links_lead_to_the_names_of_pages_in_the_site_and_code_stays_as_it_is(page, links, in_site):
    file = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert docs_pages.on_page_markdown(links, file) == (in_site or links)


def test_a_live_page_of_both_models_is_there_and_pages_for_readers_link_it(site):
    page = (site / docs_pages.LIVE).read_text()
    (models,) = re.findall(r'id="models">(.*?)</script>', page)
    assert [model["title"] for model in json.loads(models)["models"]] == ["original", "CLIPSelf"]
    assert page.count('class="image">') == len(docs_pages.SCENES)
    assert len(page) < 5_000_000
    for name in ("index", "readme", "student", "explore"):
        article = (site / f"{name}.html").read_text().partition("<article")[2]
        assert f'<a href="{docs_pages.LIVE}"><strong>' in article


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
