"""Reads the YAML files of a configuration and their ``_BASE_`` files, from this machine's disk alone.

A name that is no file is looked up among those that come with the package: its files, and ``names.yaml``, which says
what a name stands for; "TASK+NAME" is a task's file and one of ``towers/`` or ``recipes/`` over it. Detectron2's own
reader also takes addresses, which it fetches, and falls back to an unsafe YAML loader, which runs code.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from clipself_seg.checkpoints.zoo import YAML_LOADER
from clipself_seg.errors import InputError, known, nearest
from clipself_seg.files import require_letters
from clipself_seg.schema import OBJECT, TEXT, Each, Kind, Schema, check, texts

Tree = dict[str, Any]  # keys and values of a file, nested
# Far above what a configuration is; aliases of a few lines can stand for more than memory holds.
MAX_FILES = 100
MAX_VALUES = 100_000
MAX_DEPTH = 50
# Keys of a file that somebody wrote: the config.yaml of a run, or of save_pretrained, states more.
MOST_TYPED = 100
# The files that come with the package (in a checkout a link to its configs/).
CONFIGS = Path(__file__).resolve().parent / "configs"
NAMES = CONFIGS / "names.yaml"
TOWERS = CONFIGS / "towers"
RECIPES = CONFIGS / "recipes"  # of fine-tuning; each has a section for every model that it is for
FRAGMENTS = (TOWERS, RECIPES)  # what "+" lays over a task's file
BASE_KEY = "_BASE_"  # as fvcore has it, whose import takes a while
# Sections of a file that are read with one MODEL.META_ARCHITECTURE or MODEL.CLIP.NAME alone: what a tower changes in a
# task, and the paper in a tower.
SECTIONS_KEY = "_FOR_"
SECTIONS_OF = ("MODEL.META_ARCHITECTURE", "MODEL.CLIP.NAME")
FILES = Kind(
    "a file, or a list of files", lambda value: isinstance(value, str) or texts().test(value)
)
FILE: Schema = {f"{BASE_KEY}?": FILES, f"{SECTIONS_KEY}?": Each(TEXT, OBJECT)}


class Layer(NamedTuple):
    """The content of one file, without that of its ``_BASE_``.

    Attributes:
        path: the file, or where it would be if a name of ``names.yaml`` was one.
        tree: its keys and values, nested, without ``_BASE_``.
    """

    path: Path
    tree: Tree


def read_layers(file: str | os.PathLike[str]) -> list[Layer]:
    """A file and all files below it, in the order in which they count: the file itself is the last.

    Raises:
        InputError: no such file, a broken one, one that leads back to itself, or files and values without end.
    """
    return _with_sections(list(_layers(find_file(file), [])))


def find_file(file: str | os.PathLike[str]) -> Path:
    """Finds the file of a name, on disk or else among those that come with the package.

    Args:
        file: such as "semseg/catseg_token+openai_vitb16.yaml", with or without "configs/" before it.

    Returns:
        Its path; of a name that is no file, that which it would have below `CONFIGS`.

    Raises:
        InputError: there is none.
    """
    path = Path(file)
    if place := _find(path):
        return place
    folder = str(path).removesuffix(".yaml").removesuffix(_name(path))
    near = [str(place) for place in sorted(path.parent.glob("*.yaml"))]
    towers = ["", *(f"+{path.stem}" for path in TOWERS.glob("*.yaml"))]
    near += [f"{folder}{name}{tower}.yaml" for name in names() for tower in towers]
    raise InputError(f"no config file {path}; {nearest(str(path), near)}")


def names() -> list[str]:
    """Every name of a configuration that comes with the package, such as "distill/coco_patches", without "+"."""
    others = {NAMES, *FRAGMENTS}
    files = [file for file in CONFIGS.rglob("*.yaml") if others.isdisjoint((file, file.parent))]
    return sorted([*_named(), *(_name(file) for file in files)])


def with_recipes(file: str, recipes: str) -> str:
    """The name of a configuration with recipes of fine-tuning over it.

    Args:
        file: name or path of the configuration.
        recipes: a recipe, such as "low_rank", or several that "+" joins.

    Raises:
        InputError: there is no such recipe; names the nearest one.
    """
    there = [path.stem for path in RECIPES.glob("*.yaml")]
    for name in recipes.split("+"):
        known(name, there, "recipe")
    return f"{file.removesuffix('.yaml')}+{recipes}.yaml"


def shipped_name(path: Path) -> str | None:
    """The name of a configuration that comes with the package; None of any other file, and of a tower or recipe."""
    place = path.resolve()
    shipped = place.is_relative_to(CONFIGS.resolve())
    fragments = [folder.resolve() for folder in FRAGMENTS]
    return _name(path) if shipped and place.parent not in fragments else None


def is_typed(layer: Layer) -> bool:
    """True for a layer that somebody wrote by hand: it does not come with the package, and is no dump of all keys."""
    if layer.path.resolve().is_relative_to(CONFIGS.resolve()):
        return False
    if "configs" in layer.path.parts and _find(CONFIGS / f"{_name(layer.path)}.yaml"):
        return False  # of another checkout
    return sum(1 for _ in leaves(layer.tree)) < MOST_TYPED


def leaves(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full key and value of every leaf, in the order of the tree."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merge_layers(layers: Sequence[Layer]) -> Tree:
    """Keys and values of all layers, nested; a later layer counts more.

    Raises:
        InputError: a section of one file is a value in another one below it.
    """
    merged: Tree = {}
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


def _has(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True


def _layers(path: Path, opened: list[Path]) -> Iterator[Layer]:
    """The layers below a file, and its own.

    Args:
        path: as `_find` gives it.
        opened: all files so far, to which it is added.
    """
    opened.append(path)
    if len(opened) > MAX_FILES:
        raise InputError(
            f"{opened[0]}: its _BASE_ leads to more than {MAX_FILES} files, or back to itself: take it out"
        )
    tree = _tree(path)
    bases = tree.pop(BASE_KEY, [])
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _layers(_base_file(base, path), opened)
    yield Layer(path, tree)


def _find(path: Path) -> Path | None:
    """The file at a path, or that of the package of this name, which ``names.yaml`` or "+" may stand for."""
    if path.is_file():
        return path
    name = _name(path)
    shipped = CONFIGS / f"{name}.yaml"
    if name in _named() or (shipped.is_file() and ".." not in shipped.parts):
        return shipped
    task, _, fragment = path.stem.rpartition("+")
    if task and _fragment(fragment):
        below = _find(path.with_name(f"{task}.yaml"))
        return below and below.with_name(f"{path.stem}.yaml")
    return None


def _fragment(name: str) -> Path | None:
    """The file of a tower or of a recipe."""
    files = (folder / f"{name}.yaml" for folder in FRAGMENTS)
    return next((file for file in files if file.is_file()), None)


def _name(path: Path) -> str:
    """The part behind "configs/" in a path, or all of it, without its suffix."""
    parts = path.with_suffix("").parts if path.suffix == ".yaml" else path.parts
    after = len(parts) - parts[::-1].index("configs") if "configs" in parts else 0
    return "/".join(parts[after:])


@functools.cache
def _named() -> Tree:
    """Content of ``names.yaml``: name -> what a file of that name would say."""
    tree: Tree = yaml.load(NAMES.read_text(encoding="utf-8"), Loader=YAML_LOADER)
    return tree


def _tree(path: Path) -> Tree:
    """Content of a file, or of a name that stands for one; a ``_BASE_`` of the package's is a whole path then."""
    if path.is_file():
        return read_tree(path)
    name = _name(path)
    if name not in _named():
        task, _, fragment = path.stem.rpartition("+")
        return {BASE_KEY: [f"{task}.yaml", str(_fragment(fragment))]}
    tree: Tree = _named()[name]
    return tree | {BASE_KEY: str(CONFIGS / f"{tree[BASE_KEY]}.yaml")}


def _with_sections(layers: Sequence[Layer]) -> list[Layer]:
    """Layers without sections, in place of which those of the architecture and the CLIP that all files name are layers
    of their own."""
    places = {key: setting_place(key, layers) for key in SECTIONS_OF}
    chosen = [dict(leaves(layers[place].tree))[key] for key, place in places.items() if place >= 0]
    whole: list[Layer] = []
    for path, tree in layers:
        sections = tree.pop(SECTIONS_KEY, {})
        whole.append(Layer(path, tree))
        whole += [Layer(path, tree) for name, tree in sections.items() if name in chosen]
        if path.parent == RECIPES and not sections.keys() & {*chosen}:
            model = next(iter(chosen), "a configuration without a model")
            raise InputError(
                f"the recipe {path.stem} is for {' and '.join(sections)}, not for {model}: leave it out"
            )
    return whole


def _base_file(base: str, path: Path) -> Path:
    """The file that the ``_BASE_`` of a file names, relative to it or to those of the package."""
    file = path.parent / os.path.expanduser(base)
    place = None if "://" in base else _find(file) or _find(Path(base))
    if place is None:
        raise InputError(
            f"{path}: its _BASE_ {base} is no file on this machine, and no name of the package: correct it, and fetch "
            "what is an address"
        )
    return place


def read_tree(path: Path) -> Tree:
    """Keys and values of one file, nested, with its ``_BASE_``.

    Raises:
        InputError: it is no YAML of plain values, holds no keys, or values without end.
    """
    try:
        text = path.read_text(encoding="utf-8")
        try:
            tree = yaml.load(text, Loader=YAML_LOADER)
        except yaml.YAMLError:
            tree = yaml.safe_load(text)  # its errors show the line and the character
    except (RecursionError, yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        deep = isinstance(error, RecursionError)
        reason = "brackets in it are too deep" if deep else " ".join(str(error).split())
        raise InputError(f"{path} is not a usable YAML file: {reason}") from None
    _check_extent(tree, path)
    require_letters(text, tree, path)
    check(tree, FILE, path, "give a YAML file of lines `KEY: value`")
    return cast(Tree, tree)


def _check_extent(tree: Tree, path: Path) -> None:
    """Refuses a tree of more values than a configuration has, whatever lines stand for them."""
    values = 0
    pending: list[tuple[Any, int]] = [(tree, 0)]
    while pending:
        value, depth = pending.pop()
        values += 1
        if depth > MAX_DEPTH or values > MAX_VALUES:
            raise InputError(
                f"{path}: a configuration has at most {MAX_VALUES} values, in {MAX_DEPTH} brackets: take some out"
            )
        if isinstance(value, dict):
            pending += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list | tuple | set):
            pending += [(item, depth + 1) for item in value]


def _merge(tree: Mapping[str, object], into: Tree, path: Path) -> None:
    for key, value in tree.items():
        if not isinstance(value, dict):
            into[key] = value
            continue
        below = into.setdefault(key, {})
        if not isinstance(below, dict):
            raise InputError(f"{path}: {key} is a section, and a value in its _BASE_: correct one")
        _merge(value, below, path)


def lists_for_tuples(value: object) -> object:
    """A value with lists for tuples, also inside, as YAML and JSON give it back: they have no tuples."""
    if isinstance(value, list | tuple):
        return [lists_for_tuples(item) for item in value]
    return value


def option_pairs(opts: Sequence[str]) -> dict[str, str]:
    """Keys and values of the words of a command line.

    Raises:
        InputError: an odd number of words; names the last one, or an option that stands among them.
    """
    odd = len(opts) % 2
    keys = opts if odd else opts[::2]
    if option := next((word for word in keys if str(word).startswith("--")), ""):
        raise InputError(f"{option} stands behind a KEY VALUE pair: put it before the first one")
    if odd:
        raise InputError(f'give options as KEY VALUE pairs; "{opts[-1]}" has no value')
    return dict(zip(opts[::2], opts[1::2]))
