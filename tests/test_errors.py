"""What errors say: values in short, and what is true of an interrupted command the next time."""

from __future__ import annotations

import importlib

import pytest

from clipself_seg.errors import after_interrupt, report_input_errors, shown

GOES_ON = {
    "make_mini_world": "the same command goes on with the next world",
    "prepare": "the same command goes on, unless it says --overwrite",
    "predict": "the same command goes on with --skip-existing, and begins anew without",
    "quickstart": "the same command goes on, unless it says --fresh",
    "repeat_seeds": "the same command goes on",
    "train_rpn": "the training goes on with --resume, the proposals are written anew",
    "reproduce": "the same command goes on",
    "train": "a training goes on with --resume, an evaluation begins anew",
    "write_generator_outputs": "the same command goes on, unless it says --overwrite",
}
BEGIN_ANEW = (
    "benchmark check_datasets convert_clip panoptic_quality train_mini_clip write_proposals".split()
)


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", [*GOES_ON, *BEGIN_ANEW])
def test_an_interrupted_command_promises_what_it_keeps(monkeypatch, capsys, name):
    command = importlib.import_module(f"clipself_seg.commands.{name}")
    monkeypatch.setattr(command, "parser", interrupted)
    assert command.main([]) == 130
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
