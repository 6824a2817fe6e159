"""What errors say: values in short, and what is true of an interrupted command the next time."""

from __future__ import annotations

import pytest

from clipself_seg.__main__ import COMMANDS, body
from clipself_seg.commands import prepare
from clipself_seg.errors import after_interrupt, report_input_errors, shown

GOES_ON = {
    "data mini-world": "the same command goes on with the next world",
    "data prepare": "the same command goes on, unless it says --overwrite",
    "data region-text": "the same command goes on, unless it says --overwrite",
    "eval": "a training goes on with --resume, an evaluation begins anew",
    "install-detectron2": "the same command goes on with what is missing",
    "predict": "the same command goes on with --skip-existing, and begins anew without",
    "quickstart": "the same command goes on, unless it says --fresh",
    "reproduce": "the same command goes on",
    "tools generator-outputs": "the same command goes on, unless it says --overwrite",
    "tools repeat-seeds": "the same command goes on",
    "tools train-rpn": "the training goes on with --resume, the proposals are written anew",
    "train": "a training goes on with --resume, an evaluation begins anew",
}


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_promises_what_it_keeps(monkeypatch, capsys, name):
    command = body(COMMANDS[name])
    if name == "data prepare":
        command = prepare._command("voc20")
    monkeypatch.setattr(command, "parser", interrupted)
    assert command([]) == 130
    again = GOES_ON.get(name, "the same command begins anew")
    assert capsys.readouterr().err == f"interrupted; what is complete stays: {again}\n"


def test_a_command_says_what_happens_the_next_time(capsys):
    assert report_input_errors(after_interrupt("it goes on at noon")(interrupted))() == 130
    assert "stays: it goes on at noon\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value, text",
    [
        ("a", "'a'"),
        ("a" * 100, f"'{'a' * 60}...'"),
        (1.5, "1.5"),
        (None, "None"),
        (True, "True"),
        (7, "7"),
        (1 << 100_000, "of type int"),
        ([1] * 1000, "of type list"),
    ],
    ids=[str(number) for number in range(8)],
)
def test_a_value_of_a_file_is_shown_in_short(value, text):
    assert shown(value) == text
