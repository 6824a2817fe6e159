"""The file that says where a user's own data are: a YAML file, a folder with the usual names in it, or a COCO JSON.

The YAML file:

    path: /data/screws            # relative to this file; default: the file's folder
    train: images/train           # a folder, a COCO JSON, or {images: ...} with masks, annotations (a COCO JSON) or
                                  # labels (YOLO's text files)
    val: images/val               # missing: every tenth image of train
    names: {3: "dog|puppy", 7: grass}   # value of the label map, category id or YOLO's number -> names; or a list
    ignore: 255
    others: [mini_val_sem_seg, other.yaml]   # data sets with other classes, evaluated too
    held_out: [grass]             # of `names`: labelled in val, not shown in training

Nothing in it is executed or fetched, whoever wrote it.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipself_seg.data.annotations import JsonObject, category_names, coco_list, read_coco_json
from clipself_seg.data.images import ENDINGS
from clipself_seg.data.vocabulary import Vocabulary, synonyms
from clipself_seg.errors import InputError, MissingFiles, check_keys, known
from clipself_seg.files import home_expanded, read_text
from clipself_seg.schema import ANYTHING, TEXT, Each, Kind, Schema, check, texts
from clipself_seg.yaml_files import read_tree

VAL_FOLDERS = ("val", "valid", "validation")
ROBOFLOW = "_annotations.coco.json"
NAME_FILES = ("classes.txt", "names.txt", "obj.names")
NO_TRAIN = 'has no "train": name the folder of its training images'
# Names of a file that say nothing about the data, so that its folder gives the name.
PLAIN_NAMES = ("data", "dataset", "")
EVERY = 10
"""Every so many images of `train` are `val`, where the data have none."""
MAPS = (".png", ".tif", ".tiff", ".bmp")
"""Endings of label maps: of formats that keep each value, as JPEG does not."""
SPARE = 255, 65535
"""Labels of pixels without ground truth, of maps of 8 and of 16 bits."""

PATH = Kind(
    "a path on this machine",
    lambda value: isinstance(value, str) and "://" not in value and "\0" not in value,
)
NUMBER = Kind("a whole number from 0 on", lambda value: type(value) is int and 0 <= value < 1 << 31)
LABEL = Kind(
    f"a whole number from 0 to {SPARE[1]}",
    lambda value: type(value) is int and 0 <= value <= SPARE[1],
)
NOTHING = Kind("left out: nothing in a file is fetched or run", lambda value: False)
SPLIT: dict[str, Schema] = {"images?": PATH, "masks?": PATH, "annotations?": PATH, "labels?": PATH}
FILE: dict[str, Schema] = {
    "path?": PATH,
    "train?": ANYTHING,
    "val?": ANYTHING,
    "names?": Each(NUMBER, TEXT),
    "ignore?": LABEL,
    "others?": texts("names"),
    "held_out?": texts("names"),
    # Keys of the same files of other programs, of which nothing is needed here.
    "download?": NOTHING,
    "nc?": ANYTHING,
    "roboflow?": ANYTHING,
    "test?": ANYTHING,
}

WHERE = {
    "semantic": "Give {images: ..., masks: ...} with a folder of label maps, or {images: ..., annotations: ...} with a "
    "COCO JSON",
    "panoptic": "Give {images: ..., annotations: ..., masks: ...} with a panoptic JSON and the folder of its PNGs",
    "detection": "Give {images: ..., annotations: ...} with a COCO JSON, or labels: ... with YOLO's text files",
}


@dataclass(frozen=True)
class Split:
    """Place of the images of a part of the data, and of their ground truth.

    Attributes:
        images: folder; None where a COCO JSON alone says where.
        masks: folder of label maps, or of panoptic PNGs.
        annotations: COCO JSON, or folder of YOLO's text files.
        tenth: None for all images; True for every tenth one, False for all others.
    """

    images: Path | None = None
    masks: Path | None = None
    annotations: Path | None = None
    tenth: bool | None = None

    @property
    def json(self) -> Path | None:
        """The COCO JSON, if there is one."""
        return self.annotations if self.annotations and self.annotations.is_file() else None

    @property
    def pngs(self) -> Path:
        """Folder of the PNGs of a panoptic JSON: `masks`, or one called as the file."""
        if self.masks or not self.json:
            return self.masks or Path()
        places = [parent / self.json.stem for parent in self.json.parents[:2]]
        return next((place for place in places if place.is_dir()), places[0])

    def chosen(self, items: Sequence[Any]) -> Sequence[Any]:
        """The part of the images that belongs to the split, in their order.

        Args:
            items: all images of the file or folder.

        Raises:
            InputError: there is one image for two splits.
        """
        if self.tenth is None:
            return items
        if len(items) == 1:
            raise InputError(
                f"{self.images or self.json}: one image cannot be both trained and evaluated: give more, or a file "
                'with "val"'
            )
        return [item for index, item in enumerate(items) if (index % EVERY == 0) == self.tenth]


@dataclass(frozen=True)
class DataFile:
    """Content of a YAML file, a folder or a JSON.

    Attributes:
        origin: its path.
        train: images that are trained on.
        val: images that are evaluated.
        names: names by value of a label map, category id or number of YOLO's; None where it says nothing.
        things: True for each of these that is a thing, where a panoptic JSON says so.
        listed: `names` is a list of all classes, so that a larger number of YOLO's is a mistake.
        ignore: value of a label map that stands for no class.
        others: names and files of other data sets that are evaluated too.
        held_out: first names of classes that training does not show.
    """

    origin: Path
    train: Split
    val: Split
    names: Mapping[int, str | tuple[str]] | None = None
    things: Mapping[int, bool] | None = None
    listed: bool = False
    ignore: int = SPARE[0]
    others: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()

    def vocabulary(self, *, training: bool = False) -> Vocabulary:
        """Classes of the data; with `training` without the held-out ones."""
        if self.names is None:
            raise InputError(
                f'{self.origin} has no "names": say which number of the labels is which class, such as '
                'names: {3: "dog|puppy", 7: grass}'
            )
        entries: list[dict[str, object]] = []
        for number, given in self.names.items():
            names = synonyms(given, f'class {number} of "names" of {self.origin}')
            entries.append({"dataset_id": number, "names": list(names)})
        if self.things is not None:
            entries = [e | {"isthing": self.things[n]} for e, n in zip(entries, self.names)]
        whole = Vocabulary.of({"name": self.name, "classes": entries}, origin=str(self.origin))
        firsts = [entry.names[0] for entry in whole.classes]
        for name in self.held_out:
            known(name, firsts, "class", origin=f'{self.origin}: "held_out"')
        if not training or not self.held_out:
            return whole
        kept = tuple(entry for entry in whole.classes if entry.names[0] not in self.held_out)
        if not kept:
            raise InputError(f'{self.origin}: all of "names" are "held_out": leave some to train')
        return Vocabulary(f"{self.name}, without {', '.join(self.held_out)}", kept)

    @property
    def name(self) -> str:
        """Name of the data: that of the file, or of its folder."""
        stem = self.origin.stem if self.origin.is_file() else self.origin.name
        stem = re.sub(r"(^|_)train\d*$", "", stem)
        if stem.lower() in PLAIN_NAMES:
            stem = self.origin.parent.name
        return "own_" + (re.sub(r"\W+", "_", stem).strip("_") or "data")


def read_data(path: str | os.PathLike[str], task: str) -> DataFile:
    """Reads where the data are; no image is opened.

    Args:
        path: YAML file, folder or COCO JSON.
        task: decides which ground truth is looked for, and where.

    Raises:
        InputError: no such file, an unknown key, `download`, values of another type; no ground truth of the task.
    """
    place = Path(os.path.abspath(home_expanded(path, "give a whole path")))
    kind = place.suffix.lower()
    if place.is_dir():
        names = [f"{name}.{ending}" for name in PLAIN_NAMES[:2] for ending in ("yaml", "yml")]
        files = [place / name for name in names if (place / name).is_file()]
        data = _read_yaml(files[0]) if files else _read_folder(place)
    elif not place.exists():
        raise MissingFiles(
            f"data {path}: give a YAML file, a folder or a COCO JSON; this does not exist"
        )
    elif kind not in (".yaml", ".yml", ".json"):
        raise InputError(f"data {path}: give a YAML file, a folder or a COCO JSON; this is none")
    elif kind == ".json":
        data = DataFile(place, Split(annotations=place), Split())
    else:
        data = _read_yaml(place)
    if task in ("distillation", "whole_images"):
        return data
    train, val = data.train, data.val
    if val == Split():
        train, val = replace(train, tenth=False), replace(train, tenth=True)
    train, val = (_located(data, split, task) for split in (train, val))
    return _named(replace(data, train=train, val=val), task)


def _read_yaml(path: Path) -> DataFile:
    tree = read_tree(path)
    check_keys(tree, [key.removesuffix("?") for key in FILE], path)
    names = tree.get("names")
    if isinstance(names, list):
        tree["names"] = dict(enumerate(names))
    for key in ("others", "held_out"):
        if isinstance(tree.get(key), str):
            tree[key] = [tree[key]]
    advice = "correct it; a path, a name or a word like no and on stands in quotation marks"
    check(tree, FILE, path, advice)
    if not (tree.get("train") or tree.get("val")):
        raise InputError(f"{path} {NO_TRAIN}")
    if tree.get("ignore") in tree.get("names", ()):
        raise InputError(f'{path}: "ignore" is {tree["ignore"]}, and "names" names it: leave one')
    root = path.parent / home_expanded(tree.get("path", "."), "write it out")
    return DataFile(
        origin=path,
        train=_split(tree.get("train"), "train", root, path),
        val=_split(tree.get("val"), "val", root, path),
        names=tree.get("names"),
        listed=isinstance(names, list),
        ignore=tree.get("ignore", SPARE[0]),
        others=tuple(tree.get("others", ())),
        held_out=tuple(tree.get("held_out", ())),
    )


def _split(value: object, key: str, root: Path, path: Path) -> Split:
    """The part of the data that "train" or "val" of a YAML file describes."""
    if not value:
        return Split()
    if not isinstance(value, dict):
        check(value, PATH, path, place=key)
        place = _existing(value, key, root, path)
        return Split(annotations=place) if place.suffix.lower() == ".json" else Split(place)
    check_keys(value, [name.removesuffix("?") for name in SPLIT], f'{path}, "{key}"')
    check(value, SPLIT, path, place=key)
    paths = {name: _existing(one, f"{key}: {name}", root, path) for name, one in value.items()}
    truth = paths.get("annotations", paths.get("labels"))
    alone = "images" not in paths and not (truth and truth.is_file())
    if alone or {"annotations", "labels"} <= paths.keys():
        raise InputError(f'{path}: "{key}" needs images, and one file or folder of labels')
    if truth and truth.is_dir() and "masks" not in paths and _has(truth, MAPS):
        return Split(paths.get("images"), truth)
    return Split(paths.get("images"), paths.get("masks"), truth)


def _existing(given: Any, key: str, root: Path, path: Path) -> Path:
    place = root / home_expanded(given, "write it out")
    if not place.exists() and given.startswith("../"):
        place = root / given[3:]  # Roboflow writes so what lies beside its file
    if not place.exists():
        raise MissingFiles(f'{path}: its "{key}" {place} is missing: correct it, or "path"')
    return place


def _read_folder(folder: Path) -> DataFile:
    """A folder without a YAML file: its parts by the usual names."""
    train = _part_of(folder, ("train", "training"))
    if train == Split():
        train = Split(folder / "images" if (folder / "images").is_dir() else folder)
    names = None
    for file in [folder / name for name in NAME_FILES if (folder / name).is_file()][:1]:
        text = read_text(file, "list of names").rstrip()
        names = dict(enumerate(map(str.strip, text.splitlines())))
    return DataFile(folder, train, _part_of(folder, VAL_FOLDERS), names, listed=True)


def _part_of(folder: Path, names: Iterable[str]) -> Split:
    for name in names:
        for images in (folder / name / "images", folder / "images" / name, folder / name):
            if images.is_dir():
                return Split(images)
    return Split()


def _located(data: DataFile, split: Split, task: str) -> Split:
    """The part with its ground truth, which is looked for beside the images where nothing says where it is."""
    if split == Split():
        return split
    if split.images and not (split.json or split.masks or split.annotations):
        split = _with_labels_beside(split, split.images, task)
    fits = {
        "semantic": split.masks or split.annotations,
        "detection": split.annotations,
        "panoptic": split.json and split.pngs.is_dir(),
    }
    if not fits[task]:
        place = split.images or split.json
        raise InputError(f"{data.origin}: where are the labels of {place}? {WHERE[task]}")
    return split


def _with_labels_beside(split: Split, images: Path, task: str) -> Split:
    """The part with the labels in a folder beside that of its images; unchanged where there are none."""
    if (json := images / ROBOFLOW).is_file():
        return replace(split, annotations=json)
    parts = images.parts
    places = [index for index, part in enumerate(parts) if part.lower() == "images"]
    for name in ("masks", "labels", "annotations") if places else ():
        folder = Path(*parts[: places[-1]], name, *parts[places[-1] + 1 :])
        if folder.is_dir() and task == "semantic" and _has(folder, MAPS):
            return replace(split, masks=folder)
        if folder.is_dir() and task != "panoptic" and _has(folder, (".txt",)):
            return replace(split, annotations=folder)
    return split


def _named(data: DataFile, task: str) -> DataFile:
    """The data with the classes of their COCO JSON, where they name none, and with its things."""
    json = data.train.json or data.val.json
    if json is None or (data.names is not None and task != "panoptic"):
        return data
    content = read_json_once(json)
    stated = category_names(content, json)
    categories = coco_list(content, "categories", json)
    # Roboflow lists the group of all classes as if it was one.
    groups = {str(entry.get("supercategory")) for entry in categories}
    chosen = data.names or {
        entry["id"]: (entry["name"],)  # which is never split
        for entry in categories
        if entry.get("supercategory") != "none" or entry["name"] not in groups
    }
    if task != "panoptic":
        return replace(data, names=chosen)
    things = {entry["id"]: bool(entry.get("isthing")) for entry in categories if "isthing" in entry}
    for number in chosen.keys() - things.keys():
        lacks = 'lacks "isthing"' if number in stated else 'is not among its "categories"'
        raise InputError(
            f"{json}: category {number} {lacks}: give a panoptic JSON, or correct the number"
        )
    return replace(data, names=chosen, things=things)


def read_json_once(path: Path) -> JsonObject:
    """Content of a COCO JSON, read once for all who ask before `forget_files`; none of them changes it."""
    stat = path.stat()
    return _content_of(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _content_of(path: Path, *_: int) -> JsonObject:
    return read_coco_json(path)


def forget_files() -> None:
    """Frees the memory of COCO JSONs that were read, once nobody needs more of them than records."""
    _content_of.cache_clear()


def image_files(folder: Path) -> list[Path]:
    """Images below a folder, sorted.

    Raises:
        InputError: there is none.
    """
    files = [path for path in files_below(folder) if path.suffix.lower() in ENDINGS]
    if not files:
        raise InputError(f"{folder} has no image: an image ends in {' '.join(ENDINGS)}")
    return sorted(files)


def files_below(folder: Path) -> Iterator[Path]:
    """Files below a folder but hidden ones; links to folders are not followed."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield Path(place, name)


def _has(folder: Path, endings: Iterable[str]) -> bool:
    return any(path.suffix.lower() in endings for path in files_below(folder))
