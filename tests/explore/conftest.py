"""A page of two generated scenes, with words and names that it has to escape, and a browser."""

from pathlib import Path

import numpy as np
import pytest

from clipself_seg.commands import explore
from clipself_seg.explore.content import Content
from clipself_seg.explore.page import write_page
from lab.mini.concepts import WORLDS
from lab.mini.scenes import draw_scene
from tests.explore.browser import Browser, chromium

# Words and names of files that a page has to escape, and a word from right to left.
STRANGE = ("</script><b>", "\"'&lt;", 60 * "w", "كلب")
NAMES = ("</script> \"one'.png", "two.png")


def scene(number: int) -> np.ndarray:
    """Pixels of a generated scene."""
    return draw_scene(np.random.default_rng(number), WORLDS["mini"]).image


def content_of(words: list[str], *typed: str) -> Content:
    """Content with the mini panoptic model, as the command line gives it."""
    line = ["image", "--words", ", ".join(words), "--panoptic", *typed]
    args = explore.explore.parser().parse_args(line)
    explore.choose_clips(args)
    return explore.content_of(args)


@pytest.fixture(scope="session")
def content() -> Content:
    """The words of the mini world and `STRANGE` ones, and two models."""
    names = [concept.names[0] for concept in WORLDS["mini"].concepts]
    models = ("--model", *explore.MINI[:2])
    return content_of([*names, *STRANGE], *models, "--stuff", "grass, sand")


@pytest.fixture(scope="session")
def page(content: Content, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two scenes."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert write_page(path, content, ((name, scene(i)) for i, name in enumerate(NAMES))) == 2
    return path


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """A headless Chromium; without one its tests skip."""
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    """The browser with the page anew, 1280 pixels wide, and nothing asked or complained of before."""
    browser.size(1280, 900)
    browser.colours("light")
    browser.complaints.clear()
    browser.requests.clear()
    browser.go(page.as_uri())
    return browser
