"""The page is one file that escapes what it shows and runs nothing but its own script."""

import base64
import hashlib
import json
import re

import pytest

from clipself_seg.explore.page import ASSETS, SCRIPTS, SERVER_SCRIPTS, write_page
from tests.explore.conftest import NAMES, STRANGE, content_of, scene


@pytest.fixture(scope="module")
def content():
    return content_of([*STRANGE], "--model", "mini-clipself")


@pytest.fixture(scope="module")
def text(content, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, content, ((name, scene(i)) for i, name in enumerate(NAMES)))
    return path.read_text()


SCRIPT = re.compile(r"<script\b[^>]*>(.*?)</script>", re.DOTALL)


def test_every_script_is_part_of_a_page_and_none_can_end_it_early():
    assert {*SCRIPTS, *SERVER_SCRIPTS} == {path.name for path in ASSETS.glob("*.js")}
    assert not [p.name for p in ASSETS.glob("*.[jc]s*") if "</s" in p.read_text().lower()]


def test_words_and_names_are_escaped(text):
    blocks = SCRIPT.findall(text)
    assert text.count("</script>") == text.count("<script") == len(blocks) == 5
    assert "<b>" not in text
    models, *images, buttons = [json.loads(block) for block in blocks[:-1]]
    assert tuple(names[0] for names in models["words"]) == STRANGE
    assert tuple(image["name"] for image in images) == NAMES
    assert [button["name"] for button in buttons] == list(NAMES)


def test_a_page_shows_what_a_mini_model_does_not_know(text):
    first, _ = [json.loads(block) for block in SCRIPT.findall(text)[1:-2]]
    assert "its answers mean little" in first["warning"] and 'id="warning"' in text
    assert 'byId("warning").textContent = image.warning' in text


def test_the_rule_of_the_page_allows_its_own_script_and_style_alone(text):
    rule = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    assert rule.startswith("default-src 'none'; img-src data:;") and "http" not in rule
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    for part in (SCRIPT.findall(text)[-1], style):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rule
    assert not re.search(r'(src|href)="(?!data:|")', text)
