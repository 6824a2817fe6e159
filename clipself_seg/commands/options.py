"""Command lines: `command` makes a `Command` of a function, with options, a help text and one line for each mistake.

`flag` and `value` add options whose help text names the default; those that several commands have come after them.
A command's --help lists what most calls need and --help-all everything: `group` says which options are which.
Imports nothing heavy, so that --help is quick, and refuses wrong names and paths as quickly (`refuse_early`).
"""

from __future__ import annotations

import argparse
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

from clipself_seg.errors import InputError, after_interrupt, known, report_input_errors, shown
from clipself_seg.imports import HELP, OPTION, take_imports

Body = Callable[[argparse.Namespace], int | None]
RARE = "rarely needed"  # in titles of groups
WORDS = 'class names such as "dog|puppy, grass", a .txt or .json file, or a built-in vocabulary (ade20k_150)'


class Options(Protocol):
    """A command line, or a group of its options."""

    def add_argument(self, *names: str, **how: Any) -> argparse.Action:
        """Adds an option; the arguments are argparse's."""


class Option(NamedTuple):
    """An option of a `CommandLine`, and which help texts list it.

    Attributes:
        action: argparse's description of it.
        task: the only task that has it; "" for all.
        rare: True if --help-all alone lists it.
    """

    action: argparse.Action
    task: str = ""
    rare: bool = False


class CommandLine(argparse.ArgumentParser):
    """A parser that raises an InputError for a mistake, and knows which options --help lists."""

    def __init__(self, text: str) -> None:
        """
        Args:
            text: help text of the command.
        """
        self.options: list[Option] = []
        super().__init__(
            description=text,
            epilog=f"{OPTION} MODULE_OR_FILE, with any command: {HELP}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
        )
        self.add_argument("-h", "--help", action=_Help, help="show this help")

    def add_argument(self, *names: Any, **how: Any) -> argparse.Action:
        """Adds an option that every task has."""
        action = super().add_argument(*names, **how)
        self.options.append(Option(action))
        return action

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Reads the words of a command line.

        Raises:
            InputError: an unknown option, a missing or wrong value, or words that belong to no option.
        """
        args, left = self.parse_known_args(words)
        if not left:
            return args
        for word in left:
            if word.startswith("-"):
                names = [name for option in self.options for name in option.action.option_strings]
                known(word.partition("=")[0], names, "option", hint=f" ({self.prog} --help)")
        typed = ""
        values: list[str] = []
        for word in words[: words.index(left[0])]:
            if word.startswith("-"):
                typed, values = word, []
            else:
                values.append(word)
        if not typed:
            raise InputError(f"{self.prog} takes no {shown(left[0])} ({self.prog} --help)")
        quoted = f'{typed} "{", ".join([*values, *left])}"'
        raise InputError(f"quotes are missing: {typed} takes one value, such as {quoted}")

    def error(self, message: str) -> NoReturn:
        """Raises what argparse says of a mistake as an InputError."""
        raise InputError(f"{message.removeprefix('argument ')} ({self.prog} --help)")


class _Help(argparse.Action):
    """The options --help and --help-all: print the help text and end the program."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given, nargs=0, default=argparse.SUPPRESS)

    def __call__(
        self, parser: argparse.ArgumentParser, args: argparse.Namespace, *_: object
    ) -> None:
        """Prints the help text: with --help, without the rare options and those of tasks that were not typed."""
        assert isinstance(parser, CommandLine)
        if "--help-all" not in self.option_strings:
            task = getattr(args, "task", None) or "semantic"
            for option in parser.options:
                if option.rare or option.task not in ("", task):
                    option.action.help = argparse.SUPPRESS
        parser.print_help()
        parser.exit()


class Command:
    """A command: called with the words of a command line it runs, and returns the exit status.

    Args:
        body: does the work with what was typed; returns the exit status, or None for 0.
        add_options: adds the options to a command line.
        text: help text; that of `body`'s docstring if None.
        again: effect of the same command after Ctrl-C; without it, it begins anew.
    """

    def __init__(
        self,
        body: Body,
        add_options: Callable[[CommandLine], None],
        text: str | None = None,
        again: str = "",
    ) -> None:
        self.body = body
        self.add_options = add_options
        self.text = (inspect.getdoc(body) or "") if text is None else text
        self.again = again

    def parser(self) -> CommandLine:
        """The command line, under the name in ``sys.argv[0]``."""
        parser = CommandLine(self.text)
        self.add_options(parser)
        rare = any(option.rare for option in parser.options)
        text = "show all options" if rare else argparse.SUPPRESS
        parser.add_argument("--help-all", action=_Help, help=text)
        return parser

    def __call__(self, words: Sequence[str] | None = None) -> int:
        """Runs with these words, or those of ``sys.argv``; an `InputError` is one line and status 2."""
        return report_input_errors(self._run)(words)

    def _run(self, words: Sequence[str] | None) -> int | None:
        with after_interrupt(self.again):
            typed = take_imports(sys.argv[1:] if words is None else words)
            args = self.parser().parse(typed)
            refuse_early(args, typed)
            return self.body(args)


def command(
    add_options: Callable[[CommandLine], None], text: str | None = None, again: str = ""
) -> Callable[[Body], Command]:
    """Decorator that makes a `Command` of a function of the options."""
    return lambda body: Command(body, add_options, text, again)


class _Group:
    """`Options` under a title of their own in the help text."""

    def __init__(self, parser: CommandLine, task: str, rare: bool) -> None:
        titles = [f"with --task {task}"] if task else []
        self._parser = parser
        self._titled = parser.add_argument_group(", ".join([*titles, RARE] if rare else titles))
        self._task = task
        self._rare = rare

    def add_argument(self, *names: str, **how: Any) -> argparse.Action:
        """Adds an option to the group."""
        action = self._titled.add_argument(*names, **how)
        self._parser.options.append(Option(action, self._task, self._rare))
        return action


def group(parser: CommandLine, task: str = "", rare: bool = False) -> Options:
    """Adds a group of options.

    Args:
        parser: command line.
        task: task whose --help lists them; empty for any.
        rare: True if --help-all alone lists them.
    """
    return _Group(parser, task, rare)


def refuse_other_tasks(parser: CommandLine, args: argparse.Namespace, task: str) -> None:
    """Refuses options that belong to another task.

    Raises:
        InputError: names the first of them.
    """
    for option in parser.options:
        typed = getattr(args, option.action.dest, None) is not None
        if typed and option.task not in ("", task):
            name = option.action.option_strings[0]
            why = f"does not go with --task {task}: it " if args.task else ""
            raise InputError(f"{name} {why}needs --task {option.task}")


def refuse_early(args: argparse.Namespace, typed: Sequence[str]) -> None:
    """Refuses what is misspelt among names and paths before the body imports torch, which takes seconds.

    Args:
        args: the options.
        typed: all words, for those that are keys and values of the configuration.

    Raises:
        InputError: a configuration, inputs or weights that are not there, class names that cannot be used, or a key
            without a value.
    """
    config, inputs = getattr(args, "config_file", None), getattr(args, "images", None)
    words = getattr(args, "words", None)
    weights = getattr(args, "weights", None) or getattr(args, "model", None)
    if config:
        from clipself_seg.yaml_files import find_file

        find_file(config)
    from clipself_seg.checkpoints.download import is_address

    ray = getattr(args, "ray", False)  # which reads addresses, too
    if inputs and not any(os.path.exists(one) or (ray and is_address(one)) for one in inputs):
        raise InputError(f"no such file or folder: {', '.join(inputs)}")
    if words:
        from clipself_seg.data.vocabulary import Vocabulary

        Vocabulary.of(words)
    if opts := getattr(args, "opts", None):
        from clipself_seg.yaml_files import option_pairs

        option_pairs(opts)  # before keys of options are put beside those that were typed
    from clipself_seg.checkpoints.locate import refuse_lost
    from clipself_seg.choice import is_repository

    pairs = dict(zip(typed, typed[1:]))  # of a key that is typed twice the last value counts
    files = [given for key, given in pairs.items() if key.endswith(("WEIGHTS", "VISUAL_INIT"))]
    for given in (weights, *files):
        if isinstance(given, str) and not (given == weights and is_repository(given)):
            refuse_lost(given)


def flag(options: Options, name: str, text: str) -> None:
    """Adds an option without a value."""
    options.add_argument(name, action="store_true", help=text)


def value(
    options: Options,
    name: str,
    text: str = "",
    default: object = None,
    *,
    kind: Callable[[str], object] | None = None,
    count: str | int | None = None,
    metavar: str | tuple[str, ...] | None = None,
    choices: Iterable[str] | None = None,
) -> None:
    """Adds an option with a value, or a positional argument.

    Args:
        options: to add to.
        name: "--name", or "name" of a positional one.
        text: help text, without the default, which is put at its end.
        default: value where nothing is typed.
        kind: function that makes a value of a word; the type of the default unless it is None or a list.
        count: "+" or "*" for several values, or their number.
        metavar: placeholder of the value in the help text.
        choices: the words that may be typed.
    """
    if kind is None:
        kind = type(default) if isinstance(default, (int, float, os.PathLike)) else str
    if default not in (None, "", []):
        text = f"{text} ({_in_words(default)})".lstrip()
    options.add_argument(
        name, default=default, type=kind, nargs=count, metavar=metavar, choices=choices, help=text
    )


def within(
    kind: type[int] | type[float], least: float, most: float = math.inf
) -> Callable[[str], float]:
    """Reader of a number from `least` to `most`, for `kind` of `value`.

    Args:
        kind: int or float.
        least: smallest number that may be typed.
        most: largest one; infinity itself is refused.
    """

    def read(word: str) -> float:
        number = kind(word)
        if not (least <= number <= most and math.isfinite(number)):
            bounds = f"at least {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
            raise argparse.ArgumentTypeError(f"has to be {bounds}, got {word}")
        return number

    read.__name__ = "number"  # in argparse's message about a word that is none
    return read


def _in_words(default: object) -> str:
    """A default as it would be typed."""
    if isinstance(default, (list, tuple)):
        return " ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def required(options: Options, name: str, text: str, **how: Any) -> None:
    """Adds an option that has to be typed; `how` is argparse's."""
    options.add_argument(name, required=True, help=text, **how)


def images(options: Options, text: str = "images and folders of them", count: str = "+") -> None:
    """Adds the images that a command reads, which are positional."""
    options.add_argument("images", nargs=count, action="extend", metavar="IMAGE", help=text)


def task(options: Options, text: str = "semantic, panoptic or detection (the model's)") -> None:
    """Adds --task, which `find_model` checks."""
    options.add_argument("--task", help=text)


def say_model(name: str, reason: str, option: str = "--model") -> None:
    """Says on the terminal which model of the zoo is taken where nobody names one, its licence, and why."""
    from clipself_seg.checkpoints.zoo import zoo

    licence = zoo()[name].licence
    sys.stderr.write(
        f"no {option}: {name}, licence {licence}; {reason}. --model mini is for generated scenes\n"
    )


def output(options: Options, default: str, text: str = "folder for the results") -> None:
    """Adds -o and --output."""
    options.add_argument("-o", "--output", default=default, help=f"{text} ({default})")


def further_keys(options: Options, of: str = "the config") -> None:
    """Adds --opts: keys and values of the configuration, in turn."""
    options.add_argument("--opts", nargs="*", default=[], help=f"KEY VALUE pairs to set in {of}")


def keys_at_the_end(options: Options) -> None:
    """Adds the keys and values of the configuration that end a command line."""
    options.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys to change"
    )


def device(options: Options, default: str = "cuda where there is one") -> None:
    """Adds --device."""
    value(options, "--device", f'"cpu", "cuda", "cuda:1", "mps" or "auto" ({default})')


def precision(options: Options) -> None:
    """Adds --precision of evaluation and prediction, see `take_device`."""
    text = "of evaluation: float32, bfloat16, or float16 on a GPU (TEST.PRECISION: float32)"
    value(options, "--precision", text, choices=("float32", "bfloat16", "float16"))


def take_device(args: argparse.Namespace) -> None:
    """Makes --device and --precision, if they were typed, MODEL.DEVICE and TEST.PRECISION, the last of `args.opts`.

    Raises:
        InputError: the device is not on this machine.
    """
    if getattr(args, "precision", None) is not None:
        args.opts = [*getattr(args, "opts", ()), "TEST.PRECISION", args.precision]
    if args.device is not None:
        from clipself_seg.device import require_device

        require_device(args.device)
        args.opts = [*getattr(args, "opts", ()), "MODEL.DEVICE", args.device]


def resume(options: Options) -> None:
    """Adds --resume of a training."""
    flag(options, "--resume", "go on from the newest checkpoint in OUTPUT_DIR")


def processes(options: Options, purpose: str = "to work in") -> None:
    """Adds --processes, which are as many as cores."""
    value(options, "--processes", purpose, os.cpu_count() or 1, kind=within(int, 1))
