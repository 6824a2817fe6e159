"""What README and docs tell a user to type is accepted, and every file that they name exists."""

from __future__ import annotations

import argparse
import configparser
import importlib
import re
import shlex

import pytest

import setup_env
from bench import command as benchmark
from clipself_seg.__main__ import COMMANDS, body, split
from clipself_seg.clip import TextBank, load_clip
from clipself_seg.commands import prepare, train
from clipself_seg.config import load_config
from clipself_seg.config.yaml_files import find_file
from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "clipself_seg/mini/CARD.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PROGRAM = re.compile(r"(?:python3?|torchrun|srun|make|clipself-seg)\b.*")


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


def typed(pattern: str) -> set[tuple[str, ...]]:
    """Words of every command of every page that stands where `pattern` says; comments are left out."""
    texts = [page.read_text().replace("\\\n", " ") for page in PAGES]
    lines = [line for text in texts for line in re.findall(pattern, text, re.MULTILINE)]
    return {tuple(shlex.split(line, comments=True)) for line in lines if PROGRAM.match(line)}


BLOCKS = typed(r"^    ([a-z].*)$")
SPANS = typed(r"`([a-z][^`\n]*)`")


def program_of(words: tuple[str, ...]) -> tuple[argparse.ArgumentParser, list[str]] | None:
    """The parser of a command of this project, and the words that it gets."""
    if "train_net.py" in words:
        return train.main.parser(), list(words[words.index("train_net.py") + 1 :])
    if "tools/benchmark.py" in words:
        return benchmark.parser(), list(words[words.index("tools/benchmark.py") + 1 :])
    if words[1:2] == ("-m",) and words[2].startswith("tests."):
        return importlib.import_module(words[2]).parser(), list(words[3:])
    name, rest = split(list(words[1:])) if words[0] == "clipself-seg" else ("", [])
    if name == "data prepare":
        return (prepare._command(rest[0]).parser(), rest[1:]) if rest else None
    return (body(COMMANDS[name]).parser(), rest) if name else None


def test_there_are_commands_in_blocks_and_in_lines():
    assert len(BLOCKS) > 60 and len(SPANS) > 20


@pytest.mark.parametrize("words", sorted(BLOCKS), ids=" ".join)
def test_a_command_is_accepted_by_its_program(words):
    if (program := program_of(words)) and "--help" not in words:
        parser, rest = program
        parser.parse_args(rest)


@pytest.mark.parametrize("words", sorted(SPANS), ids=" ".join)
def test_a_command_within_a_line_has_options_that_exist(words):
    if program := program_of(words):
        parser, rest = program
        named = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert not named - parser._option_string_actions.keys()


def test_targets_of_make_and_of_the_set_up_exist():
    for words in BLOCKS | SPANS:
        if words[0] == "make" and words[1:]:
            test_make_has_the_targets(words[1])
        elif "tools/setup_env.py" in words[:2]:
            setup_env.parse(words[2:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:configs|tools|tests|clipself_seg|docs)/[\w./-]+)`", text)
    for name in [*links, *named]:
        places = (page.parent / name, ROOT / name)
        assert any(place.exists() for place in places) or find_file(name), name


@pytest.mark.parametrize("target", ["quickstart", "test", "lint", "docs"])
def test_make_has_the_targets(target):
    assert re.search(rf"^[\w ]*\b{target}\b.*:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_extra_is_explained():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    rows = (ROOT / "README.md").read_text().partition("| extra | brings |")[2].partition("\n\n")[0]
    cells = [row.split("|")[1] for row in rows.splitlines()[2:]]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(setup["options.extras_require"])


@pytest.mark.parametrize("tag", ["mini", "mini-clipself", "mini-clipself-proposals"])
def test_shipped_weights_load_and_know_their_words(tag, tmp_path):
    clip = load_clip("ViT-Mini-8", tag)
    words = TextBank(clip, cache_dir=tmp_path).embed(["red star", "grass"])
    assert words.shape == (2, clip.embed_dim) and float(words[0] @ words[1]) < 0.9
