"""Data of one's own without Python: a YAML file, a folder or a COCO JSON becomes data sets of Detectron2's catalogs.

The YAML file:

    path: /data/screws            # relative to this file; default: the file's folder
    train: images/train           # a folder, a list of images (.txt), a JSON, or {images: ..., masks: ...}
    val: images/val               # missing: every tenth image of train
    names: {3: "dog|puppy", 7: grass}   # value of the label map, category id or YOLO's number -> names; or a list
    ignore: 255
    others: [mini_val_sem_seg, other.yaml]   # data sets with other classes, evaluated too
    held_out: [grass]             # of `names`: labelled in val, not shown in training

`register_data` registers; it reads no image, so that a prediction may ask it for the classes of a training. Nothing
here is executed or fetched, whoever wrote the file.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_seg.data.annotations import Record
from clipself_seg.data.images import ENDINGS
from clipself_seg.data.vocabulary import Vocabulary, class_names, parse_vocabulary
from clipself_seg.errors import InputError, nearest, shown
from clipself_seg.files import home_expanded, read_text
from clipself_seg.yaml_files import read_tree

logger = logging.getLogger(__name__)

TASKS = ("semantic",)
KEYS = ("path", "train", "val", "names", "ignore", "others", "held_out")
# Keys of the same files of other programs, which say nothing that is needed here.
PASSING = ("nc", "roboflow", "test")
SPLIT_KEYS = ("images", "masks", "annotations", "labels")
VAL_FOLDERS = ("val", "valid", "validation")
# Names of a file that say nothing about the data, so that its folder gives the name.
PLAIN_NAMES = ("data", "dataset")
EVERY = 10
"""Every so many images of `train` are `val`, where the data have none."""
MOST_FILES = 5_000_000
SPARE = 255, 65535
"""Labels of pixels without ground truth, of maps of 8 and of 16 bits."""


@dataclass(frozen=True)
class Split:
    """Where the images of a part of the data are, and their ground truth.

    Attributes:
        images: folder, or list (.txt); None where an annotation file alone says where.
        truth: folder of label maps or of YOLO's text files, or a JSON; None for the usual places.
        tenth: None for all images; True for every tenth one, False for all others.
    """

    images: Path | None
    truth: Path | None = None
    tenth: bool | None = None


@dataclass(frozen=True)
class DataFile:
    """What a YAML file, a folder or a JSON says.

    Attributes:
        origin: its path.
        root: folder to which its paths are relative.
        train: images that are trained on.
        val: images that are evaluated.
        names: names by value of a label map, category id or number of YOLO's; None where it says nothing.
        ignore: value of a label map that stands for no class.
        others: names and files of other data sets that are evaluated too.
        held_out: first names of classes that training does not show.
    """

    origin: Path
    root: Path
    train: Split
    val: Split
    names: Mapping[int, str] | None = None
    ignore: int = SPARE[0]
    others: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()

    def vocabulary(self, *, training: bool = False) -> Vocabulary:
        """Its classes; with `training` those that training shows."""
        if self.names is None:
            raise InputError(
                f'{self.origin} has no "names": say which value of the label maps is which class, such as '
                'names: {3: "dog|puppy", 7: grass}'
            )
        classes = class_names(list(self.names.values()), origin=f'"names" of {self.origin}')
        entries = [{"dataset_id": n, "names": list(c)} for n, c in zip(self.names, classes)]
        whole = parse_vocabulary({"name": self.name, "classes": entries}, str(self.origin))
        firsts = [entry.names[0] for entry in whole.classes]
        for name in self.held_out:
            if name not in firsts:
                hint = nearest(name, firsts)
                raise InputError(f'{self.origin}: "held_out" has {shown(name)}: {hint}')
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
        if stem.lower() in PLAIN_NAMES:
            stem = self.origin.parent.name
        return "own_" + (re.sub(r"\W+", "_", stem).strip("_") or "data")


class OwnData(NamedTuple):
    """Names under which data are registered.

    Attributes:
        train: of the images that are trained on.
        test: of the data sets that are evaluated: its own first, then `others`.
    """

    train: str
    test: tuple[str, ...]


def register_data(path: str | os.PathLike[str], task: str) -> OwnData:
    """Register data for a task; the same path again replaces what was registered.

    Args:
        path: YAML file, folder or COCO JSON.
        task: one of `TASKS`.

    Raises:
        InputError: nothing usable is there, or it is not for this task; other data are registered by this name.
    """
    if task not in TASKS:
        raise InputError(f'no task "{task}": {nearest(task, TASKS)}')
    data = read_data(path)
    train, val = (REGISTER[task](data, part) for part in ("train", "val"))
    return OwnData(train, (val, *(_other(other, data, task) for other in data.others)))


def _other(other: str, data: DataFile, task: str) -> str:
    """Name of the data set that an entry of `others` stands for."""
    if other in DatasetCatalog.list():
        return other
    place = data.origin.parent / home_expanded(other, "give a whole path")
    if not place.exists():
        known = [name for name in DatasetCatalog.list() if name.startswith(("mini", "own_"))]
        raise InputError(
            f'{data.origin}: "others" has "{other}", which is no registered data set and no file {place}: '
            f"{nearest(other, known)}"
        )
    return REGISTER[task](read_data(place), "val")


def read_data(path: str | os.PathLike[str]) -> DataFile:
    """Read what says where the data are; no image is opened.

    Raises:
        InputError: no such file, an unknown key, `download`, or values of another type.
    """
    place = Path(os.path.abspath(home_expanded(path, "give a whole path")))
    if place.is_dir():
        for name in PLAIN_NAMES:
            for file in (place / f"{name}.yaml", place / f"{name}.yml"):
                if file.is_file():
                    return _read_yaml(file)
        return _read_folder(place)
    if not place.exists():
        raise InputError(
            f"data {path}: there is no such file: give a YAML file, a folder or a COCO JSON"
        )
    if place.suffix.lower() in (".yaml", ".yml"):
        return _read_yaml(place)
    if place.suffix.lower() == ".json":
        return _with_val(DataFile(place, place.parent, Split(None, place), Split(None)))
    raise InputError(f"data {path}: give a YAML file, a folder or a COCO JSON")


def _read_yaml(path: Path) -> DataFile:
    tree = read_tree(path)
    if "download" in tree:
        raise InputError(
            f'{path} has "download", which is not followed, for nothing in a file is fetched or run: fetch the data '
            "yourself, and take the key out"
        )
    for key in tree:
        if key not in (*KEYS, *PASSING):
            raise InputError(f'{path}: unknown key "{key}": {nearest(str(key), KEYS)}')
    if "train" not in tree:
        raise InputError(f'{path} has no "train": name the folder of its training images')
    root = path.parent / home_expanded(_text(tree.get("path", "."), "path", path), "write it out")
    if not root.is_dir():
        raise InputError(f'{path}: its "path" {root} is no folder: correct it')
    ignore = tree.get("ignore", SPARE[0])
    if type(ignore) is not int or not 0 <= ignore <= SPARE[1]:
        raise InputError(f'{path}: "ignore" is {shown(ignore)}: give a value from 0 to {SPARE[1]}')
    names = _names(tree["names"], path) if "names" in tree else None
    if names and "ignore" in tree and ignore in names:
        raise InputError(f'{path}: "ignore" is {ignore}, and "names" names it: leave one out')
    data = DataFile(
        origin=path,
        root=root,
        train=_split(tree["train"], "train", root, path),
        val=_split(tree["val"], "val", root, path) if tree.get("val") else Split(None),
        names=names,
        ignore=ignore,
        others=_texts(tree.get("others", []), "others", path),
        held_out=_texts(tree.get("held_out", []), "held_out", path),
    )
    return _with_val(data)


def _with_val(data: DataFile) -> DataFile:
    """The data with every tenth image of `train` as `val`, if they have none."""
    if data.val != Split(None):
        return data
    train = data.train
    return replace(data, train=replace(train, tenth=False), val=replace(train, tenth=True))


def _text(value: object, key: str, path: Path) -> str:
    if not isinstance(value, str) or "://" in value or "\0" in value:
        raise InputError(f'{path}: "{key}" is {shown(value)}: give a path on this machine')
    return value


def _texts(value: object, key: str, path: Path) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise InputError(f'{path}: "{key}" is {shown(value)}: give a list of names')
    return tuple(values)


def _names(value: object, path: Path) -> dict[int, str]:
    """Names by number; a list counts from 0."""
    entries = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(entries, dict) or not entries:
        raise InputError(f'{path}: "names" is {shown(value)}: give {{number: name}}, or a list')
    for number, name in entries.items():
        if type(number) is not int or not 0 <= number < 1 << 31:
            raise InputError(
                f'{path}: "names" has {shown(number)} where a number stands: give such as 3: "dog|puppy"'
            )
        if not isinstance(name, str):
            raise InputError(
                f"{path}: the name of {number} is {shown(name)}, and no text: put it in quotation marks"
            )
    return entries


def _split(value: object, key: str, root: Path, path: Path) -> Split:
    if isinstance(value, dict):
        for part in value:
            if part not in SPLIT_KEYS:
                hint = nearest(str(part), SPLIT_KEYS)
                raise InputError(f'{path}: unknown key "{part}" in "{key}": {hint}')
        paths = {p: _existing(one, f"{key}: {p}", root, path) for p, one in value.items()}
        truth = [paths[part] for part in SPLIT_KEYS[1:] if part in paths]
        if len(truth) > 1 or not paths:
            raise InputError(
                f'{path}: "{key}" has {", ".join(value) or "nothing"}: give images, and one of masks, annotations and '
                "labels"
            )
        return Split(paths.get("images"), truth[0] if truth else None)
    place = _existing(value, key, root, path)
    if place.suffix.lower() == ".json":
        return Split(None, place)
    return Split(place)


def _existing(value: object, key: str, root: Path, path: Path) -> Path:
    place = root / home_expanded(_text(value, key, path), "write it out")
    if not place.exists():
        raise InputError(f'{path}: its "{key}" {place} is missing: correct it, or "path"')
    return place


def _read_folder(folder: Path) -> DataFile:
    raise InputError(f"{folder} has no data.yaml: write one")


def image_files(source: Path) -> list[Path]:
    """Images below a folder, or of a list, sorted.

    Args:
        source: folder; or text file with a path a line, relative to it.

    Raises:
        InputError: none; too many files.
    """
    if source.is_dir():
        files = [path for path in _files(source) if path.suffix.lower() in ENDINGS]
        missing = f"{source} has no image: an image ends in {' '.join(ENDINGS)}"
    else:
        lines = map(str.strip, read_text(source, "list of images", "utf-8-sig").splitlines())
        files = [source.parent / line for line in lines if line and "\0" not in line]
        missing = f"{source} lists no image: give a path a line"
    if not files:
        raise InputError(missing)
    return sorted(files)


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder but hidden ones; links to folders are not followed."""
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            count += 1
            if count > MOST_FILES:
                raise InputError(f"{folder} has more than {MOST_FILES} files: name a folder below")
            if not name.startswith("."):
                yield Path(place, name)


def by_stem(files: Sequence[Path], folder: Path | None) -> dict[str, Path]:
    """Files by their path below a folder without its ending, or by their stem where there is no folder.

    Raises:
        InputError: two files of one stem.
    """
    stems: dict[str, Path] = {}
    for file in files:
        stem = (file.relative_to(folder) if folder else Path(file.name)).with_suffix("").as_posix()
        if stem in stems:
            raise InputError(
                f"{stems[stem]} and {file} have one name, {stem}, by which images and their labels are paired: rename "
                "one"
            )
        stems[stem] = file
    return stems


def beside(images: Path, names: Sequence[str]) -> Path | None:
    """The folder of the ground truth of a folder of images by the usual rule: .../images/... -> .../masks/..."""
    parts = images.parts
    places = [index for index, part in enumerate(parts) if part.lower() == "images"]
    for name in names if places else ():
        folder = Path(*parts[: places[-1]], name, *parts[places[-1] + 1 :])
        if folder.is_dir():
            return folder
    return None


def _pairs(data: DataFile, split: Split, maps: Path) -> list[tuple[Path, Path]]:
    """Images with their label maps, sorted; what lacks the other is left out, and counted in the log.

    Raises:
        InputError: no pair; two files of one stem.
    """
    assert split.images is not None
    folder = split.images if split.images.is_dir() else None
    images = by_stem(image_files(split.images), folder)
    labels = by_stem(
        [path for path in _files(maps) if path.suffix.lower() in ENDINGS], folder and maps
    )
    both = sorted(images.keys() & labels.keys())
    if not both:
        raise InputError(
            f"{data.origin}: no image of {split.images} has a label map of its name in {maps}: there are "
            f"{images[min(images)].name} and {labels[min(labels)].name if labels else 'no map'}"
        )
    lacking = len(images) - len(both), len(labels) - len(both)
    if any(lacking):
        logger.warning(
            "%s: %d images have no label map and %d label maps no image; %d pairs remain",
            *(data.origin, *lacking, len(both)),
        )
    return [(images[stem], labels[stem]) for stem in _part(both, split)]


def _part(items: Sequence[Any], split: Split) -> Sequence[Any]:
    if split.tenth is None:
        return items
    return [item for index, item in enumerate(items) if (index % EVERY == 0) == split.tenth]


def _register(
    data: DataFile, part: str, kind: str, records: Callable[[], list[Record]], **metadata: object
) -> str:
    """Register a part of the data; returns its name."""
    name = f"{data.name}_{part}_{kind}"
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name).get("origin")
        if known != str(data.origin):
            raise InputError(
                f'{data.origin} would be registered as "{name}", which {known or "another data set"} is: rename the '
                "file or its folder"
            )
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    DatasetCatalog.register(name, records)
    MetadataCatalog.get(name).set(origin=str(data.origin), **metadata)
    return name


def _semantic(data: DataFile, part: str) -> str:
    split: Split = getattr(data, part)
    if split.images is None:
        raise InputError(f"{data.origin}: {split.truth} has no label maps: give images and masks")
    maps = split.truth or beside(split.images, ("masks", "labels", "annotations"))
    if maps is None or not maps.is_dir():
        raise InputError(
            f"{data.origin}: where are the label maps of {split.images}? Give {{images: ..., masks: ...}}"
        )
    vocabulary = data.vocabulary(training=part == "train")
    return _register(
        *(data, part, "sem_seg", functools.partial(_semantic_records, data, split, maps)),
        image_root=str(split.images),
        sem_seg_root=str(maps),
        ignore_label=SPARE[len(vocabulary) > SPARE[0]],
        label_values=vocabulary.dataset_id_to_index,
        vocabulary=vocabulary,
        evaluator_type="sem_seg",
        stuff_classes=list(vocabulary.names),
    )


def _semantic_records(data: DataFile, split: Split, maps: Path) -> list[Record]:
    return [
        {"file_name": str(image), "sem_seg_file_name": str(labels), "image_id": image.stem}
        for image, labels in _pairs(data, split, maps)
    ]


# Task -> what registers the part "train" or "val" of data, and returns its name.
REGISTER: dict[str, Callable[[DataFile, str], str]] = {"semantic": _semantic}
