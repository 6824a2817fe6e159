"""Reads the YAML files of a configuration and their ``_BASE_`` files, from this machine's disk alone.

Detectron2's own reader also takes addresses, which it fetches, and falls back to an unsafe YAML loader,
which runs code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from fvcore.common.config import BASE_KEY

from clipself_seg.errors import InputError, nearest

# Far above what a configuration is; aliases of a few lines can stand for more than memory holds.
MAX_FILES = 100
MAX_VALUES = 100_000
MAX_DEPTH = 50
# The files that come with the package (in a checkout a link to its configs/).
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class Layer(NamedTuple):
    """The content of one file, without that of its ``_BASE_``.

    Attributes:
        path: the file.
        tree: its keys and values, nested, without ``_BASE_``.
    """

    path: Path
    tree: dict[str, Any]


def read_layers(file: str | os.PathLike[str]) -> list[Layer]:
    """A file and all files below it, in the order in which they count: the file itself is the last.

    Raises:
        InputError: an address, no such file, a broken one, one that leads back to itself, or files
            and values without end.
    """
    if "://" in os.fspath(file):
        raise InputError(f"{file} is an address, and configurations are files: fetch it first")
    path = find_file(file)
    layers: list[Layer] = []
    for layer in _layers(path, ()):
        layers.append(layer)
        if len(layers) > MAX_FILES:
            raise InputError(f"{path}: its _BASE_ leads to more than {MAX_FILES} files")
    return layers


def find_file(file: str | os.PathLike[str]) -> Path:
    """Finds the file of a name, on disk or else below `CONFIGS`, among those that come with the package.

    Args:
        file: such as "semseg/catseg_token_vitb16.yaml", with or without "configs/" before it.

    Raises:
        InputError: there is neither.
    """
    path = Path(file)
    below = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    for place in (path, CONFIGS / below):
        if place.is_file():
            return place
    near = [str(place) for place in sorted(path.parent.glob("*.yaml"))]
    near = near or [
        place.relative_to(CONFIGS).as_posix() for place in sorted(CONFIGS.rglob("*.yaml"))
    ]
    raise InputError(f"no config file {path}; {nearest(str(path), near)}")


def merge_layers(layers: Sequence[Layer]) -> dict[str, Any]:
    """Keys and values of all layers, nested; a later layer counts more.

    Raises:
        InputError: a section of one file is a value in another one below it.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(layer.tree, merged, layer.path)
    return merged


def setting_place(key: str, layers: Sequence[Layer]) -> int:
    """Position of the layer whose value of a key counts; -1 if none has it.

    Args:
        key: full name, such as "SOLVER.BASE_LR".
        layers: as `read_layers` gives them.
    """
    return max((place for place, layer in enumerate(layers) if _has(layer.tree, key)), default=-1)


def setting_file(key: str, layers: Sequence[Layer]) -> Path | None:
    """The file whose value of a key counts; None if none has it. The arguments are those of `setting_place`."""
    place = setting_place(key, layers)
    return layers[place].path if place >= 0 else None


def _has(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True


def _layers(path: Path, above: tuple[Path, ...]) -> Iterator[Layer]:
    """The layers below a file, and its own.

    Args:
        path: a file that is there.
        above: files that lead to it.
    """
    tree = read_tree(path)
    bases = tree.pop(BASE_KEY, [])
    for base in [bases] if isinstance(bases, str) else bases:
        file = _base_file(base, path)
        if file.resolve() in (known.resolve() for known in (*above, path)):
            raise InputError(f"{file}: its _BASE_ leads back to it: take it out of {path}")
        yield from _layers(file, (*above, path))
    yield Layer(path, tree)


def _base_file(base: str, path: Path) -> Path:
    """The file that the ``_BASE_`` of a file names, relative to it."""
    said = f"{path}: its _BASE_ {base}"
    if "://" in base:
        raise InputError(f"{said} is an address: fetch it, and name the file")
    file = path.parent / os.path.expanduser(base)
    if file.is_dir():
        raise InputError(f"{said} is a folder: name a file in it")
    if not file.is_file():
        raise InputError(f"{path}: its _BASE_ {file} is missing")
    return file


def read_tree(path: Path) -> dict[str, Any]:
    """What one file says itself, nested, with its ``_BASE_``.

    Raises:
        InputError: it is no YAML of plain values, holds no keys, or values without end.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise InputError(f"{path}: brackets in it are too deep; take them out") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a usable YAML file: {reason}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds no keys")
    _check_extent(tree, path)
    bases = tree.get(BASE_KEY, [])
    listed = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) for base in listed):
        raise InputError(f"{path} is not a usable YAML file: _BASE_ is {bases!r}, and not a file")
    return tree


def _check_extent(tree: dict[str, Any], path: Path) -> None:
    """Refuse a tree of more values than a configuration has, whatever lines stand for them."""
    values = 0
    pending: list[tuple[Any, int]] = [(tree, 0)]
    while pending:
        value, depth = pending.pop()
        values += 1
        if depth > MAX_DEPTH:
            raise InputError(f"{path}: brackets in it are too deep; take them out")
        if values > MAX_VALUES:
            raise InputError(f"{path}: more than {MAX_VALUES} values are no configuration")
        if isinstance(value, dict):
            pending += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list | tuple | set):
            pending += [(item, depth + 1) for item in value]


def _merge(tree: Mapping[str, Any], into: dict[str, Any], path: Path) -> None:
    for key, value in tree.items():
        if not isinstance(value, dict):
            into[key] = value
            continue
        below = into.setdefault(key, {})
        if not isinstance(below, dict):
            raise InputError(f"{path}: {key} is a section, and a value in its _BASE_: correct one")
        _merge(value, below, path)
