"""What commands have in common: --help lists what most calls need, and a mistake is one line."""

import argparse
import re

import pytest

from clipself_seg.__main__ import COMMANDS, body, main
from clipself_seg.commands import options
from clipself_seg.errors import InputError

LISTED = [
    ("predict", "semantic", "--background", "--stuff"),
    ("predict", "panoptic", "--masks", "--background"),
    ("predict", "detection", "--score-threshold", "--every"),
    ("explore", "", "--panoptic-model", "--help-all"),
    ("serve", "", "--port", "--allow-host"),
    ("dense-maps", "", "--clusters", "--help-all"),
    ("export", "", "--text-tower", "--opts"),
]


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


def test_a_command_without_rare_options_takes_help_all_too(capsys):
    assert help_of(capsys, "compare", "--help-all") == help_of(capsys, "compare", "--help")


MISTAKES = [
    ("predict a.jpg --wrods dog", 'unknown option "--wrods": did you mean "--words"?'),
    (
        "predict a.jpg --words dog grass sky",
        'quotes are missing: --words takes one value, such as --words "dog, grass, sky"',
    ),
    ("compare", "the following arguments are required: "),
    ("predict a.jpg --words", "--words: expected one argument"),
    ("predict a.jpg --batch-size many --words dog", "--batch-size: invalid number value: 'many'"),
    ("predict a.jpg --save ovrlays", "--save: invalid choice: 'ovrlays'"),
    ("train --confg-file mini/patches", '"--confg-file": did you mean "--config-file"?'),
    ("train --task semantic --data a.yaml SEED", '"SEED" has no value'),
    ("doctor now", "doctor takes no 'now'"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES)
def test_a_mistake_is_one_line_with_the_nearest_option(capsys, monkeypatch, words, said):
    monkeypatch.setattr("sys.argv", [])
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_an_address_is_taken_with_ray_alone():
    options.refuse_early(argparse.Namespace(images=["s3://bucket/photos"], ray=True), [])
    with pytest.raises(InputError, match="no such file or folder: s3://bucket/photos"):
        options.refuse_early(argparse.Namespace(images=["s3://bucket/photos"]), [])
