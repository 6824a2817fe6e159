"""Imports modules of somebody else's, which enter backbones, models or data sets in the registries.

A user types them, ``--import MODULE_OR_FILE`` on a command line or the variable CLIPSELF_SEG_IMPORT; nothing that a
configuration, a checkpoint or a folder of weights says leads here. The variable takes them to all processes of a run.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipself_seg.errors import InputError

OPTION = "--import"
OR_IMPORT = f" (or import the module that registers it with {OPTION})"
VARIABLE = "CLIPSELF_SEG_IMPORT"
HELP = "your module or file, which registers backbones, data sets, ... (CLIPSELF_SEG_IMPORT)"


def take_imports(words: Sequence[str]) -> list[str]:
    """Takes ``--import`` and its values out of a command line, into the variable.

    Args:
        words: of the command line, without the program's name.

    Returns:
        The other words.

    Raises:
        InputError: the option is the last word, or names a file that is not there.
    """
    others: list[str] = []
    typed: list[str] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option != OPTION:
            others.append(word)
            continue
        value = value if equals else next(rest, "")
        if not value:
            raise InputError(f"{OPTION} takes a module or a file, such as {OPTION} my_backbone.py")
        typed.append(_absolute(value))
    if typed:
        known = os.environ.get(VARIABLE, "")
        os.environ[VARIABLE] = os.pathsep.join([*([known] if known else []), *typed])
    return others


def typed_environment() -> dict[str, str]:
    """The variable, for processes that do not inherit it; nothing if it is not set."""
    return {VARIABLE: os.environ[VARIABLE]} if os.environ.get(VARIABLE) else {}


def import_typed_modules() -> None:
    """Imports all modules of the variable, each once in a process.

    Raises:
        InputError: there is no such module or file, or its name is another module's.
    """
    for named, module in typed_modules():
        if module in sys.modules:
            continue
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module.partition(".")[0] and error.name != module:
                raise
            raise InputError(
                f"{OPTION} {named}: there is no such module; give a file, or install it"
            ) from None


def typed_modules() -> Iterator[tuple[str, str]]:
    """The word typed for each module of the variable (of a file its full path), and the module's name.

    Raises:
        InputError: a file is not there, or its name is another module's.
    """
    for named in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        yield named, _of_file(Path(_absolute(named))) if _is_file_name(named) else named


def _is_file_name(named: str) -> bool:
    return named.endswith(".py") or os.sep in named


def _absolute(named: str) -> str:
    """A module's name as it is, a file by its full path, also one of this folder without its suffix."""
    path = Path(named if _is_file_name(named) else f"{named}.py").resolve()
    if not (_is_file_name(named) or path.is_file()):
        return named
    if not path.is_file():
        raise InputError(f"{OPTION} {named}: there is no such file")
    return str(path)


def _of_file(path: Path) -> str:
    """The name by which a file is imported, here and in processes that are started later."""
    name = path.stem
    # At the end, so that no other file of the folder stands for a module that is installed.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
        raise InputError(
            f"{OPTION} {path}: {name} is another module's name, or none of a module: rename the file to such as "
            "my_backbone.py"
        )
    return name
