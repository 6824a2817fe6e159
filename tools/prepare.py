#!/usr/bin/env python3
"""Label maps, annotation files and captions in training layout, made from the archives of data sets.

    python tools/prepare.py NAME

Each module of `lab.prepare` declares what it prepares; the command line of a data set is made of its declaration.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys

from clipself_seg.commands.options import Command, flag, processes, value
from clipself_seg.errors import GOES_ON, InputError, nearest, report_input_errors
from clipself_seg.files import home_expanded
from lab.prepare import CONTENTS


def _command(data_set: str) -> Command:
    """The command of one data set of `CONTENTS`."""
    module = next(module for module, names in CONTENTS.items() if data_set in names)
    importlib.import_module(f"lab.prepare.{module}")
    from lab.prepare.common import PREPARATIONS

    prepare, splits, flags = PREPARATIONS[data_set]
    defaults = {p.name: p.default for p in inspect.signature(prepare).parameters.values()}

    def add_options(parser: argparse.ArgumentParser) -> None:
        root = os.environ.get("DETECTRON2_DATASETS") or "datasets"
        value(parser, "--root", "folder of the data sets, $DETECTRON2_DATASETS", root)
        processes(parser)
        flag(parser, "--overwrite", "write files again that are there already")
        if splits:
            chosen = list(defaults["splits"])
            value(parser, "--splits", "to prepare", chosen, count="+", choices=splits)
        for parameter, text in flags.items():
            flag(parser, f"--{parameter.replace('_', '-')}", text)

    def body(args: argparse.Namespace) -> None:
        if args.processes < 1:
            raise InputError(f"--processes {args.processes}: at least 1 is needed")
        from lab.prepare.common import Options

        root = home_expanded(args.root, "give --root without ~")
        named = {parameter: getattr(args, parameter) for parameter in flags}
        if splits:
            named["splits"] = args.splits
        for done in prepare(Options(root, args.processes, args.overwrite), **named):
            sys.stdout.write(f"{done}\n")

    again = f"{GOES_ON}, unless it says --overwrite"
    return Command(body, add_options, inspect.getdoc(prepare), again)


def main(data_set: str, arguments: list[str] | None = None) -> int:
    """Prepare one data set of `CONTENTS`, and say what was done."""
    return _command(data_set)(arguments)


@report_input_errors
def by_name(arguments: list[str] | None = None) -> int:
    """`main` of the data set that the first word of a command line names.

    Raises:
        InputError: it names none.
    """
    words = sys.argv[1:] if arguments is None else arguments
    names = {name: text for of_module in CONTENTS.values() for name, text in of_module.items()}
    if words[:1] in ([], ["-h"], ["--help"]):
        width = max(map(len, names))
        lines = [f"usage: {os.path.basename(sys.argv[0])} NAME [options]", ""]
        lines += [f"  {name:{width}}  {text}" for name, text in names.items()]
        sys.stdout.write("\n".join([*lines, ""]))
        return 0 if words else 2
    if words[0] not in names:
        raise InputError(f'no data set "{words[0]}" to prepare; {nearest(words[0], names)}')
    sys.argv[0] = f"{sys.argv[0]} {words[0]}"
    return main(words[0], words[1:])


if __name__ == "__main__":
    sys.exit(by_name())
