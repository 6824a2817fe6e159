"""The site of the documentation: built strictly, whole, and of nothing that lies elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IMPORT = r"^(?:from|import) (clipself_seg\.[\w.]+)"

# Attributes whose address a browser fetches by itself; links that a reader follows are others.
FETCHED = {"src", "srcset", "poster", "data"}
FETCHED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "manifest"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(
            package, reason="needs mkdocs-material and mkdocstrings (the extra [docs])"
        )
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Addresses(HTMLParser):
    """Collects what a page fetches, and its links to other files."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        """One element."""
        values = dict(attrs)
        self.fetched += [value for name, value in attrs if name in FETCHED and value]
        if tag == "link" and FETCHED_LINKS & set((values.get("rel") or "").split()):
            self.fetched.append(values["href"])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])


def addresses(page: Path) -> Addresses:
    """What a page fetches and links."""
    parser = Addresses()
    parser.feed(page.read_text())
    return parser


def test_nothing_is_loaded_from_elsewhere(site):
    pages = {page: addresses(page).fetched for page in site.rglob("*.html")}
    assert len(pages) > 30 and all(pages.values())
    urls = [(page.name, url) for page, fetched in pages.items() for url in fetched]
    # What is in the page itself is not fetched.
    assert not [u for u in urls if "//" in u[1] and not u[1].startswith("data:")]
    styles = "\n".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]*", styles)


def test_whatever_a_page_shows_or_links_is_there(site):
    wrong = []
    for page in site.rglob("*.html"):
        found = addresses(page)
        for url in found.fetched + found.links:
            name = url.partition("#")[0].partition("?")[0]
            outside = "//" in name or name.startswith(("mailto:", "data:"))
            if (
                name
                and not outside
                and not (page.parent / name).exists()
                and page.name != "404.html"
            ):
                wrong.append(f"{page.relative_to(site)}: {url}")
    assert not wrong, wrong


def test_the_reference_has_what_snippets_import(site):
    reference = "\n".join(path.read_text() for path in (site / "api").glob("*.html"))
    modules = {
        name for page in PAGES for name in re.findall(IMPORT, page.read_text(), re.MULTILINE)
    }
    assert len(modules) >= 8
    for name in ("clipself_seg.clip.model.load_clip", "clipself_seg.clip.text_bank.TextBank.embed"):
        assert f'id="{name}"' in reference
    packages = {
        name for name in modules if (ROOT / name.replace(".", "/") / "__init__.py").exists()
    }
    assert not [name for name in modules - packages if f'id="{name}"' not in reference]


def test_every_page_is_a_page_of_the_site(site):
    names = {page.stem for page in PAGES if page.parent.name == "docs"}
    assert not names - {path.stem for path in site.glob("*.html")}
