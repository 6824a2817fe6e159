"""What a command is: a function of its options, made by `command`, with a help text and a promise for Ctrl-C.

`flag` and `value` add options whose help text names the default; those that several commands have come after them.
Imports nothing heavy, so that --help is quick, and refuses wrong names and paths as quickly (`refuse_early`).
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from clipself_seg.errors import InputError, after_interrupt, report_input_errors
from clipself_seg.imports import HELP, OPTION, take_imports

Options = argparse._ActionsContainer  # a parser, or a group of one
Body = Callable[[argparse.Namespace], int | None]
AddOptions = Callable[[argparse.ArgumentParser], None]


class Command:
    """A command: called with the words of a command line it runs, and returns the exit status.

    Args:
        body: does the work with what was typed; returns the exit status, or None for 0.
        add_options: adds the options to a parser.
        text: help text; that of `body`'s docstring if None.
        again: what the same command does after Ctrl-C; without it, it begins anew.
    """

    def __init__(
        self, body: Body, add_options: AddOptions, text: str | None = None, again: str = ""
    ) -> None:
        self.body = body
        self.add_options = add_options
        self.text = inspect.getdoc(body) if text is None else text
        self.again = again

    def parser(self) -> argparse.ArgumentParser:
        """The command line, under the name in ``sys.argv[0]``."""
        parser = argparse.ArgumentParser(
            description=self.text,
            epilog=f"{OPTION} MODULE_OR_FILE, with any command: {HELP}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_options(parser)
        return parser

    def __call__(self, words: Sequence[str] | None = None) -> int:
        """Run with these words, or those of ``sys.argv``; an `InputError` is one line and status 2."""
        return report_input_errors(self._run)(words)

    def _run(self, words: Sequence[str] | None) -> int | None:
        with after_interrupt(self.again):
            typed = take_imports(sys.argv[1:] if words is None else words)
            args = self.parser().parse_args(typed)
            refuse_early(args, typed)
            return self.body(args)


def command(
    add_options: AddOptions, text: str | None = None, again: str = ""
) -> Callable[[Body], Command]:
    """Decorator that makes a `Command` of a function of the options."""
    return lambda body: Command(body, add_options, text, again)


def refuse_early(args: argparse.Namespace, typed: Sequence[str]) -> None:
    """Refuse what is misspelt among names and paths before the body imports torch, which takes seconds.

    Args:
        args: the options.
        typed: all words, for those that are keys and values of the configuration.

    Raises:
        InputError: a configuration, inputs or weights that are not there, or class names that cannot be used.
    """
    config, weights = getattr(args, "config_file", None), getattr(args, "weights", None)
    inputs = getattr(args, "input", None) or getattr(args, "images", None)
    words = getattr(args, "vocabulary", None) or getattr(args, "words", None)
    if config:
        from clipself_seg.yaml_files import find_file

        find_file(config)
    if inputs and not any(map(os.path.exists, inputs)):
        raise InputError(f"no such file or folder: {', '.join(inputs)}")
    if words:
        from clipself_seg.data.vocabulary import read_words

        read_words(words)
    from clipself_seg.checkpoints.locate import WEIGHTS, refuse_lost

    pairs = dict(zip(typed, typed[1:]))  # of a key that is typed twice the last value counts
    for given in (weights, *map(pairs.get, WEIGHTS)):
        refuse_lost(given or "")


def flag(options: Options, name: str, text: str) -> None:
    """Add an option without a value."""
    options.add_argument(name, action="store_true", help=text)


def value(
    options: Options,
    name: str,
    text: str = "",
    default: object = None,
    *,
    kind: Callable[[str], object] | None = None,
    count: str | None = None,
    metavar: str | None = None,
    choices: Iterable[str] | None = None,
) -> None:
    """Add an option with a value, or a positional argument.

    Args:
        options: to add to.
        name: "--name", or "name" of a positional one.
        text: help text, without the default, which is put at its end.
        default: value where nothing is typed.
        kind: what makes a value of a word; the type of the default unless it is None or a list.
        count: "+" or "*" for several values.
        metavar: what stands for the value in the help text.
        choices: the words that may be typed.
    """
    if kind is None:
        kind = type(default) if isinstance(default, (int, float, os.PathLike)) else str
    if default is not None:
        text = f"{text} ({_in_words(default)})".lstrip()
    options.add_argument(
        name, default=default, type=kind, nargs=count, metavar=metavar, choices=choices, help=text
    )


def _in_words(default: object) -> str:
    """A default as it would be typed."""
    if isinstance(default, (list, tuple)):
        return " ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def required(options: Options, name: str, text: str, kind: Callable[[str], object] = str) -> None:
    """Add an option that has to be typed."""
    options.add_argument(name, required=True, type=kind, help=text)


def weights(options: Options) -> None:
    """Add --weights of a command that has --config-file."""
    value(options, "--weights", "checkpoint (MODEL.WEIGHTS of the configuration)")


def further_keys(options: Options, of: str = "the config") -> None:
    """Add --opts: keys and values of the configuration, in turn."""
    options.add_argument("--opts", nargs="*", default=[], help=f"further KEY VALUE of {of}")


def keys_at_the_end(options: Options) -> None:
    """Add the keys and values of the configuration that end a command line."""
    options.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change"
    )


def resume(options: Options) -> None:
    """Add --resume of a training."""
    flag(options, "--resume", "go on from the newest checkpoint in OUTPUT_DIR")


def processes(options: Options, purpose: str = "to work in") -> None:
    """Add --processes, which are as many as cores."""
    options.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help=f"{purpose} (one a core)"
    )
