"""What README and docs tell a user to type is accepted, and every file that they name exists."""

from __future__ import annotations

import re
import shlex

import pytest

from clipself_seg.clip import TextBank, load_clip
from clipself_seg.commands import train
from clipself_seg.config import load_config
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(program: str) -> list[list[str]]:
    """Arguments of every indented line (continued lines joined) that calls a program."""
    found = []
    for page in PAGES:
        joined = page.read_text().replace("\\\n", " ")
        for line in re.findall(rf"^    python {re.escape(program)} (.*)$", joined, re.MULTILINE):
            found.append(shlex.split(line))
    return found


@pytest.mark.parametrize("words", commands("train_net.py"), ids=" ".join)
def test_training_and_evaluation_commands_are_accepted(words):
    args = train.parse(words)
    assert load_config(ROOT / args.config_file, args.opts).MODEL.CLIP.NAME


def test_there_are_such_commands():
    assert len(commands("train_net.py")) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:configs|tools|tests|clipself_seg|docs)/[\w./-]+)`", text)
    for name in [*links, *named]:
        places = (page.parent / name, ROOT / name)
        assert any(place.exists() for place in places), name


@pytest.mark.parametrize("target", ["quickstart", "test", "lint"])
def test_make_has_the_targets(target):
    assert re.search(rf"^[\w ]*\b{target}\b.*:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("tag", ["mini", "mini-clipself", "mini-clipself-proposals"])
def test_shipped_weights_load_and_know_their_words(tag, tmp_path):
    clip = load_clip("ViT-Mini-8", tag)
    words = TextBank(clip, cache_dir=tmp_path).embed(["red star", "grass"])
    assert words.shape == (2, clip.embed_dim) and float(words[0] @ words[1]) < 0.9
