"""What commands have in common: spellings of before go on to work, and --help lists what most calls need."""

from __future__ import annotations

import re

import pytest

from clipself_seg.__main__ import COMMANDS, body
from clipself_seg.commands.options import ALIASES

# Command, words as they were typed before, and those of today.
SPELLINGS = [
    ("predict", "--vocabulary dog --weights m --input a b", "a b --words dog --model m"),
    (
        "predict",
        "--input a --vocabulary dog --save masks --semantic",
        "a --words dog --save masks --task semantic",
    ),
    (
        "predict",
        "--panoptic --vocabulary=dog --input a --output o",
        "a --task panoptic --words dog -o o",
    ),
    (
        "predict",
        "--boxes --vocabulary dog --save yolo --input a",
        "a --task detection --words dog --save yolo",
    ),
    (
        "explore",
        "a --words dog --models m n --panoptic --weights w",
        "a --words dog --model m n --panoptic --panoptic-model w",
    ),
    ("dense-maps", "a --models t=m --output o", "a --model t=m -o o"),
    (
        "serve",
        "--models m --tasks boxes --boxes w --boxes-config c",
        "--model m --tasks detection --detection w --detection-config c",
    ),
    ("export", "--clip-name n --weights w --output o", "--clip-name n --model w -o o"),
    ("reproduce", "--only 2 5", "--table 2 5"),
]
LISTED = [
    ("predict", "semantic", "--background", "--stuff"),
    ("predict", "panoptic", "--masks", "--background"),
    ("predict", "detection", "--score-threshold", "--every"),
    ("explore", "", "--panoptic-model", "--config-file"),
    ("serve", "", "--port", "--max-words"),
    ("dense-maps", "", "--clusters", "--help-all"),
    ("export", "", "--clip-name", "--opts"),
]


@pytest.mark.parametrize(("name", "before", "today"), SPELLINGS)
def test_a_spelling_of_before_means_what_that_of_today_does(name, before, today):
    parser = body(COMMANDS[name]).parser()
    assert parser.parse_args(before.split()) == parser.parse_args(today.split())
    assert not {word for word in before.split() if word[0] == "-"} <= set(today.split())


def test_every_alias_is_tried():
    tried = {word.partition("=")[0] for _, before, _ in SPELLINGS for word in before.split()}
    of_others = {"--model", "-o"}  # of `convert`, and of commands whose --output is no other one
    assert {old for old, _ in ALIASES} - of_others <= tried


def help_of(capsys, name: str, *words: str) -> list[str]:
    """The options that a help text lists."""
    with pytest.raises(SystemExit) as end:
        body(COMMANDS[name])([*words])
    assert not end.value.code
    return re.findall(r"^  (?:-\w(?: [A-Z]+)?, )?(--[\w-]+)", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(("name", "task", "shown", "hidden"), LISTED)
def test_help_lists_fifteen_options_at_most_and_help_all_the_others(
    capsys, name, task, shown, hidden
):
    few = help_of(capsys, name, *(("--task", task) if task else ()), "--help")
    assert len(few) <= 15 and shown in few and hidden not in few
    if "--help-all" in few:
        every = help_of(capsys, name, "--help-all")
        assert set(few) < set(every) and hidden in every
        assert not {"--vocabulary", "--weights", "--input", "--boxes"} & set(every)


def test_a_command_without_rare_options_takes_help_all_too(capsys):
    assert help_of(capsys, "compare", "--help-all") == help_of(capsys, "compare", "--help")
