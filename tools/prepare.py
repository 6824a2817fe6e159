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
from clipself_seg.errors import GOES_ON
from clipself_seg.files import home_expanded
from lab.prepare import CONTENTS
from lab.scripts import run_named


def prepared(data_set: str) -> Command:
    """The command of one data set of `CONTENTS`."""
    module = next(module for module, names in CONTENTS.items() if data_set in names)
    importlib.import_module(f"lab.prepare.{module}")
    from lab.prepare.common import PREPARATIONS

    prepare, splits = PREPARATIONS[data_set]

    def add_options(parser: argparse.ArgumentParser) -> None:
        root = os.environ.get("DETECTRON2_DATASETS") or "datasets"
        value(parser, "--root", "folder of the data sets, $DETECTRON2_DATASETS", root)
        processes(parser)
        flag(parser, "--overwrite", "write files again that are there already")
        if splits:
            chosen = list(inspect.signature(prepare).parameters["splits"].default)
            value(parser, "--splits", "to prepare", chosen, count="+", choices=splits)

    def body(args: argparse.Namespace) -> None:
        from lab.prepare.common import Options

        root = home_expanded(args.root, "give --root without ~")
        named = {"splits": args.splits} if splits else {}
        for done in prepare(Options(root, args.processes, args.overwrite), **named):
            sys.stdout.write(f"{done}\n")

    again = f"{GOES_ON}, unless it says --overwrite"
    return Command(body, add_options, inspect.getdoc(prepare), again)


if __name__ == "__main__":
    texts = {name: text for names in CONTENTS.values() for name, text in names.items()}
    sys.exit(run_named("Data sets in training layout, made from their archives.", texts, prepared))
