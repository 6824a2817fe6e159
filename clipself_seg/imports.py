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
    for named, module in _typed_modules():
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


def typed_sources() -> dict[str, list[Path]]:
    """Files of the modules of the variable: the module's file, or all Python files of the package that it is in.

    Returns:
        Name of the module or package -> its files, sorted; none for what is not a file.

    Raises:
        InputError: as `import_typed_modules`.
    """
    sources: dict[str, list[Path]] = {}
    for _, module in _typed_modules():
        name = module.partition(".")[0]
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            folders = map(Path, spec.submodule_search_locations)
            sources[name] = sorted(file for folder in folders for file in folder.rglob("*.py"))
        elif spec is not None and spec.has_location:
            sources[name] = [Path(str(spec.origin))]
    return sources


def typed_names() -> dict[str, str]:
    """Name of a module of the variable, or of its package -> what was typed for it, of a file its full path."""
    return {module.partition(".")[0]: named for named, module in _typed_modules()}


def _typed_modules() -> Iterator[tuple[str, str]]:
    """What was typed, and the module that it is."""
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
    if not name.isidentifier():
        raise InputError(
            f"{OPTION} {path}: a module has a plain name: rename it to such as my_backbone.py"
        )
    # At the end, so that no other file of the folder stands for a module that is installed.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
        raise InputError(f"{OPTION} {path}: another module is called {name}: rename the file")
    return name
