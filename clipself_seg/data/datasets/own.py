"""Data of one's own without Python: a YAML file, a folder or a COCO JSON becomes data sets of Detectron2's catalogs.

The YAML file:

    path: /data/screws            # relative to this file; default: the file's folder
    train: images/train           # a folder, a list of images (.txt), a COCO JSON, or {images: ...} with masks,
                                  # annotations (a COCO JSON) or labels (YOLO's text files)
    val: images/val               # missing: every tenth image of train
    names: {3: "dog|puppy", 7: grass}   # value of the label map, category id or YOLO's number -> names; or a list
    ignore: 255
    others: [mini_val_sem_seg, other.yaml]   # data sets with other classes, evaluated too
    held_out: [grass]             # of `names`: labelled in val, not shown in training

`register_data` registers; it reads no image, so that a prediction may ask it for the classes of a training;
`check_data` looks at some images before a training. Nothing here is executed or fetched, whoever wrote the file.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_seg.data.annotations import (
    JsonObject,
    MadeAnnotations,
    Record,
    annotated_image,
    category_names,
    category_of,
    check_segments,
    coco_list,
    image_records,
    instance_records,
    is_box,
    listed_records,
    panoptic_records,
    read_coco_json,
    require_files,
    require_same_classes,
)
from clipself_seg.data.datasets.records import standard_records
from clipself_seg.data.datasets.table import (
    CocoSet,
    DataSet,
    DetectionSet,
    ImageSet,
    PanopticSet,
    SemSegSet,
)
from clipself_seg.data.images import ENDINGS, read_image
from clipself_seg.data.masks import read_indices, read_labels_of, read_panoptic_ids
from clipself_seg.data.vocabulary import Vocabulary, synonyms
from clipself_seg.data.yolo import Pairs, yolo_content
from clipself_seg.errors import InputError, check_keys, known, nearest, shown
from clipself_seg.files import home_expanded, read_text
from clipself_seg.yaml_files import read_tree

logger = logging.getLogger(__name__)

KEYS = ("path", "train", "val", "names", "ignore", "others", "held_out")
# Keys of the same files of other programs, which say nothing that is needed here.
PASSING = ("nc", "roboflow", "test")
SPLIT_KEYS = ("images", "masks", "annotations", "labels")
VAL_FOLDERS = ("val", "valid", "validation")
ROBOFLOW = "_annotations.coco.json"
NAME_FILES = ("classes.txt", "names.txt", "obj.names")
NO_TRAIN = 'has no "train": name the folder of its training images'
# Names of a file that say nothing about the data, so that its folder gives the name.
PLAIN_NAMES = ("data", "dataset", "")
EVERY = 10
"""Every so many images of `train` are `val`, where the data have none."""
MOST_FILES = 5_000_000
SAMPLE = 50
"""Number of images, evenly spread, that are read before a training."""
MAPS = (".png", ".tif", ".tiff", ".bmp")
"""Endings of label maps: of formats that keep each value, as JPEG does not."""
SPARE = 255, 65535
"""Labels of pixels without ground truth, of maps of 8 and of 16 bits."""
VOID = -1
"""Category id of masks whose pixels are ignored."""


@dataclass(frozen=True)
class Split:
    """Where the images of a part of the data are, and their ground truth.

    Attributes:
        images: folder, or list (.txt); None where a COCO JSON alone says where.
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

    def chosen(self, items: Sequence[Any]) -> Sequence[Any]:
        """Those of its images that belong to it, in their order."""
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
    """What a YAML file, a folder or a JSON says.

    Attributes:
        origin: its path.
        train: images that are trained on.
        val: images that are evaluated.
        names: names by value of a label map, category id or number of YOLO's; None where it says nothing.
        things: which of these are things, where a panoptic JSON says so.
        listed: whether `names` is a list of all classes, so that a larger number of YOLO's is a mistake.
        ignore: value of a label map that stands for no class.
        others: names and files of other data sets that are evaluated too.
        held_out: first names of classes that training does not show.
    """

    origin: Path
    train: Split
    val: Split
    names: Mapping[int, str] | None = None
    things: Mapping[int, bool] | None = None
    listed: bool = False
    ignore: int = SPARE[0]
    others: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()

    def vocabulary(self, *, training: bool = False) -> Vocabulary:
        """Its classes; with `training` those that training shows."""
        if self.names is None:
            raise InputError(
                f'{self.origin} has no "names": say which number of the labels is which class, such as '
                'names: {3: "dog|puppy", 7: grass}'
            )
        entries: list[dict[str, object]] = [
            {
                "dataset_id": n,
                "names": list(synonyms(given, f'class {n} of "names" of {self.origin}')),
            }
            for n, given in self.names.items()
        ]
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


class OwnData(NamedTuple):
    """Names under which data are registered.

    Attributes:
        train: of the images that are trained on; "" where a file has `val` alone.
        test: of the data sets that are evaluated: its own first, then `others`.
    """

    train: str
    test: tuple[str, ...]


def register_data(path: str | os.PathLike[str], task: str) -> OwnData:
    """Register data for a task; the same path again replaces what was registered.

    Args:
        path: YAML file, folder or COCO JSON.
        task: semantic, panoptic, detection, distillation or whole_images.

    Raises:
        InputError: nothing usable is there, or it is not for this task; other data are registered by this name.
    """
    known(task, KINDS, "task")
    data = read_data(path, task)
    if task == "whole_images":  # nothing trains on them
        whole = Split(data.origin) if data.origin.is_dir() else data.train
        data = replace(data, val=data.val if data.val.images else whole)
        return OwnData("", (_register(data, "val", task),))
    train = _register(data, "train", task) if data.train != Split() else ""
    if task == "distillation":  # regions are recognised in panoptic data alone
        if data.others:
            wrong = 'a distillation does not evaluate "others": name panoptic data in DATASETS.TEST'
            logger.warning("%s: %s", data.origin, wrong)
        return OwnData(train, ())
    others = [_other(other, data, task) for other in data.others]
    return OwnData(train, (_register(data, "val", task), *others))


def _other(other: str, data: DataFile, task: str) -> str:
    """Name of the data set that an entry of `others` stands for."""
    if other in DatasetCatalog.list():
        return other
    place = data.origin.parent / home_expanded(other, "give a whole path")
    if not place.exists():
        near = [name for name in DatasetCatalog.list() if name.startswith(("mini", "own_"))]
        raise InputError(
            f'{data.origin}: "others" has "{other}", which is no registered data set and no file {place}: '
            f"{nearest(other, near)}"
        )
    return _register(read_data(place, task), "val", task)


def read_data(path: str | os.PathLike[str], task: str) -> DataFile:
    """Read what says where the data are; no image is opened.

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
    elif not place.exists() or kind not in (".yaml", ".yml", ".json"):
        lacks = "is none" if place.exists() else "does not exist"
        raise InputError(f"data {path}: give a YAML file, a folder or a COCO JSON; this {lacks}")
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
    if "download" in tree:
        said = "nothing in a file is fetched or run: fetch the data yourself, and take the key out"
        raise InputError(f'{path} has "download", which is not followed: {said}')
    check_keys(tree, (*KEYS, *PASSING), str(path))
    if not (tree.get("train") or tree.get("val")):
        raise InputError(f"{path} {NO_TRAIN}")
    root = path.parent / home_expanded(_text(tree.get("path", "."), "path", path), "write it out")
    ignore = tree.get("ignore", SPARE[0])
    if type(ignore) is not int or not 0 <= ignore <= SPARE[1]:
        raise InputError(f'{path}: "ignore" is {shown(ignore)}: give a value from 0 to {SPARE[1]}')
    names = _names(tree["names"], path) if "names" in tree else None
    if names and "ignore" in tree and ignore in names:
        raise InputError(f'{path}: "ignore" is {ignore}, and "names" names it: leave one out')
    return DataFile(
        origin=path,
        train=_split(tree.get("train"), "train", root, path),
        val=_split(tree.get("val"), "val", root, path),
        names=names,
        listed=isinstance(tree.get("names"), list),
        ignore=ignore,
        others=_texts(tree.get("others", []), "others", path),
        held_out=_texts(tree.get("held_out", []), "held_out", path),
    )


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
            hint = 'give such as 3: "dog|puppy"'
            raise InputError(f'{path}: "names" has {shown(number)} where a number stands: {hint}')
        if not isinstance(name, str):
            wrong = f"the name of {number} is {shown(name)}, and no text"
            raise InputError(f"{path}: {wrong}: put it in quotation marks")
    return entries


def _split(value: object, key: str, root: Path, path: Path) -> Split:
    if not value:
        return Split()
    if isinstance(value, dict):
        check_keys(value, SPLIT_KEYS, f'{path}, "{key}"')
        paths = {p: _existing(one, f"{key}: {p}", root, path) for p, one in value.items()}
        truth = paths.get("annotations", paths.get("labels"))
        alone = "images" not in paths and not (truth and truth.is_file())
        if alone or {"annotations", "labels"} <= paths.keys():
            raise InputError(f'{path}: "{key}" needs images, and one file or folder of labels')
        if truth and truth.is_dir() and "masks" not in paths and _has(truth, MAPS):
            return Split(paths.get("images"), truth)
        return Split(paths.get("images"), paths.get("masks"), truth)
    place = _existing(value, key, root, path)
    return Split(annotations=place) if place.suffix.lower() == ".json" else Split(place)


def _existing(value: object, key: str, root: Path, path: Path) -> Path:
    given = _text(value, key, path)
    place = root / home_expanded(given, "write it out")
    if not place.exists() and given.startswith("../"):
        place = root / given[3:]  # Roboflow writes so what lies beside its file
    if not place.exists():
        raise InputError(f'{path}: its "{key}" {place} is missing: correct it, or "path"')
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


def _has(folder: Path, endings: Iterable[str]) -> bool:
    return any(path.suffix.lower() in endings for path in _files(folder))


def _located(data: DataFile, split: Split, task: str) -> Split:
    """The part with its ground truth, which is looked for beside the images where nothing says where it is."""
    if split.images is None or split.json or split.masks or split.annotations:
        return split
    if (json := split.images / ROBOFLOW).is_file():
        return replace(split, annotations=json)
    parts = split.images.parts
    places = [index for index, part in enumerate(parts) if part.lower() == "images"]
    for name in ("masks", "labels", "annotations") if places else ():
        folder = Path(*parts[: places[-1]], name, *parts[places[-1] + 1 :])
        if folder.is_dir() and task == "semantic" and _has(folder, MAPS):
            return replace(split, masks=folder)
        if folder.is_dir() and task != "panoptic" and _has(folder, (".txt",)):
            return replace(split, annotations=folder)
    raise InputError(f"{data.origin}: where are the labels of {split.images}? {WHERE[task]}")


WHERE = {
    "semantic": "Give {images: ..., masks: ...} with a folder of label maps, or {images: ..., annotations: ...} with a "
    "COCO JSON",
    "panoptic": "Give {images: ..., annotations: ..., masks: ...} with a panoptic JSON and the folder of its PNGs",
    "detection": "Give {images: ..., annotations: ...} with a COCO JSON, or labels: ... with YOLO's text files",
}


def _named(data: DataFile, task: str) -> DataFile:
    """The data with the classes of their COCO JSON, where they name none, and with its things."""
    json = data.train.json or data.val.json
    if json is None or (data.names is not None and task != "panoptic"):
        return data
    categories = coco_list(_read_json(json), "categories", json)
    category_names({"categories": categories}, json)  # refuses what is none
    # Roboflow lists the group of all classes as if it was one.
    groups = {str(entry.get("supercategory")) for entry in categories}
    chosen = data.names or {
        entry["id"]: entry["name"].replace("|", " ")
        for entry in categories
        if entry.get("supercategory") != "none" or entry["name"] not in groups
    }
    if task != "panoptic":
        return replace(data, names=chosen)
    things = {entry["id"]: bool(entry.get("isthing")) for entry in categories if "isthing" in entry}
    for number in chosen.keys() - things.keys():
        raise InputError(
            f'{json}: category {number} is not among its "categories", or lacks "isthing": give a panoptic JSON, or '
            "correct the number"
        )
    return replace(data, names=chosen, things=things)


def _read_json(path: Path) -> JsonObject:
    """As `read_coco_json`, once for all who ask before `forget_files`; none of them changes what is in it."""
    stat = path.stat()
    return _content_of(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _content_of(path: Path, *_: int) -> JsonObject:
    return read_coco_json(path)


def forget_files() -> None:
    """Free the memory of COCO JSONs that were read, once nobody needs more of them than records."""
    _content_of.cache_clear()


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
        lines = map(str.strip, read_text(source, "list of images").splitlines())
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


def _by_stem(files: Sequence[Path], folder: Path | None) -> dict[str, Path]:
    """Files by their path below a folder without its ending, or by their stem where there is no folder.

    Raises:
        InputError: two files of one stem.
    """
    stems: dict[str, Path] = {}
    for file in files:
        stem = (file.relative_to(folder) if folder else Path(file.name)).with_suffix("").as_posix()
        if stem in stems:
            raise InputError(f"{stems[stem]} and {file} have one name, {stem}: rename one")
        stems[stem] = file
    return stems


@dataclass(frozen=True)
class Part:
    """The images of a split with ground truth for a task.

    Attributes:
        data: what it is a part of.
        split: where its files are.
        root: folder to which the file names of its images are relative.
        classes: those of its ground truth; what has none of them is ignored.
    """

    data: DataFile
    split: Split
    root: Path
    classes: Vocabulary

    def pairs(self, labels: Path, endings: Iterable[str]) -> Pairs:
        """Images by name, sorted, each with its file of labels in a folder, or None where it has none."""
        source = self.split.images
        assert source is not None
        folder = source if source.is_dir() else None
        images = _by_stem(image_files(source), folder)
        if gone := [path for path in images.values() if not path.is_file()]:
            raise InputError(
                f"{len(gone)} of {len(images)} images are missing, such as {gone[0]}; correct {source}"
            )
        files = [path for path in _files(labels) if path.suffix.lower() in endings]
        labelled = _by_stem(files, folder and labels)
        both = images.keys() & labelled.keys()
        if not both:
            other = (
                labelled[min(labelled)].name
                if labelled
                else f"no file that ends in {' '.join(endings)}"
            )
            raise InputError(
                f"{self.data.origin}: no image of {source} has a file of its name in {labels}: there are "
                f"{images[min(images)].name} and {other}"
            )
        if len(both) < max(len(images), len(labelled)):
            logger.warning(
                "%s: %d images of %s have no labels, and %d files of labels have no image",
                *(self.data.origin, len(images) - len(both), source, len(labelled) - len(both)),
            )
        chosen = self.split.chosen(sorted(images))
        return {stem: (images[stem], labelled.get(stem)) for stem in chosen}

    def content(self) -> JsonObject:
        """Its images and annotations in COCO's format; those of classes without a name are left out.

        "left_out" counts these by the name that the file has for them, "unnamed" has those that are no segments.
        """
        source, named = self.split.annotations, self.classes.dataset_id_to_index
        names = self.data.names or {}
        assert source is not None
        if self.split.json:
            content = _read_json(source)
            require_same_classes(content, self.data.vocabulary(), source)
            images = _listed_images(content, self.split, self.root)
        else:
            content = yolo_content(self.pairs(source, (".txt",)), names, self.data.listed)
            images = content["images"]
        listed = {record["image_id"] for record in listed_records(content, source, self.root, 1)}
        own = {image["id"] for image in images}
        kept, unnamed, left_out = list[JsonObject](), list[JsonObject](), Counter[int]()
        for annotation in coco_list(content, "annotations", source):
            image_id = annotated_image(annotation, listed, source)
            if image_id not in own:
                continue
            if "segments_info" in annotation:
                check_segments(annotation, image_id, source)
                segments = annotation["segments_info"]
                others = [s for s in segments if s["category_id"] not in named]
                left_out.update(s["category_id"] for s in others)
                annotation = annotation | {
                    "segments_info": [s for s in segments if s["category_id"] in named],
                    "void_segments": tuple(s["id"] for s in others),
                }
            elif (category := category_of(annotation, source)) not in named:
                left_out[category] += 1
                unnamed.append(annotation)
                continue
            elif is_box(box := annotation.get("bbox")):
                annotation = {"area": box[2] * box[3]} | annotation
            kept.append(annotation)
        if not kept:
            reason = f"none of its annotations is of a class of {self.data.origin}"
            raise InputError(f'{source}: {reason}: correct the numbers of "names"')
        stated = category_names(content, source)
        said = {str(stated.get(n, n)): count for n, count in left_out.items() if n not in names}
        parts = {"images": images, "annotations": kept, "unnamed": unnamed, "left_out": said}
        return content | parts

    def label_maps(self, made: MadeAnnotations | None) -> list[Record]:
        """Records with label maps, or with what one is painted of ("painted").

        Args:
            made: of `content`; None where there are label maps.
        """
        if made is None:
            assert self.split.masks is not None
            return [
                {"file_name": str(image), "sem_seg_file_name": str(labels), "image_id": stem}
                for stem, (image, labels) in self.pairs(self.split.masks, MAPS).items()
                if labels
            ]
        index_of, content = self.classes.dataset_id_to_index, made.make()
        if "segments_info" in content["annotations"][0]:
            records = panoptic_records(made, self.root, self.png_folder())
            for record in records:
                record["sem_seg_file_name"] = record.pop("pan_seg_file_name")
                segments = record.pop("segments_info")
                record["painted"] = [(s["id"], index_of[s["category_id"]]) for s in segments]
        else:
            # Pixels of crowds and of classes without a name are ignored, whatever is below them.
            void = {"category_id": VOID, "iscrowd": 0, "ignore": 0}
            objects = [
                entry | void if entry.get("iscrowd") or entry.get("ignore") else entry
                for entry in content["annotations"]
            ]
            objects += [entry | void for entry in content["unnamed"]]
            content["annotations"] = [
                e for e in objects if e["category_id"] != VOID or e.get("segmentation")
            ]
            indices = index_of | {VOID: _ignored(self.classes)}
            records = instance_records(content, made, self.root, indices, masks=True)
            for record in records:
                record["sem_seg_file_name"] = str(made)
                # The largest first, so that none hides another.
                objects = sorted(record.pop("annotations"), key=_extent, reverse=True)
                record["painted"] = [(entry["segmentation"], entry["label"]) for entry in objects]
        named = {*index_of.values()}
        return [r for r in records if any(label in named for _, label in r["painted"])]

    def png_folder(self) -> Path:
        """Folder of the PNGs of a panoptic JSON: that which is named, or one called as the file."""
        json, masks = self.split.json, self.split.masks
        assert json is not None
        places = [masks] if masks else [parent / json.stem for parent in json.parents[:2]]
        if folders := [place for place in places if place.is_dir()]:
            return folders[0]
        raise InputError(f"{self.data.origin}: where are the PNGs of {json}? {WHERE['panoptic']}")


def _listed_images(content: JsonObject, split: Split, root: Path) -> Sequence[JsonObject]:
    """Images of a COCO JSON that belong to a split: those of its list, if it has one, and of its tenths."""
    assert split.json is not None
    images = coco_list(content, "images", split.json)
    if split.images and split.images.is_file():
        by_file = {os.path.abspath(root / str(image.get("file_name"))): image for image in images}
        listed = [os.path.abspath(file) for file in image_files(split.images)]
        if lost := [file for file in listed if file not in by_file]:
            wrong = f"lists {len(lost)} images that {split.json} does not have, such as {lost[0]}"
            raise InputError(f"{split.images} {wrong}: take them out")
        images = [by_file[file] for file in listed]
    return split.chosen(images)


def _images_alone(split: Split, root: Path) -> JsonObject:
    if split.json:
        return {"images": _listed_images(_read_json(split.json), split, root)}
    assert split.images is not None
    files = map(str, split.chosen(image_files(split.images)))
    return {"images": [{"id": file, "file_name": file} for file in files]}


def _image_root(split: Split) -> Path:
    """Folder to which the file names of a COCO JSON are relative: the first of the usual ones that has some."""
    if split.json is None or (split.images and split.images.is_dir()):
        assert split.images is not None
        return split.images
    first = coco_list(_read_json(split.json), "images", split.json)[:50]
    folder, part = split.json.parent, split.json.stem.rpartition("_")[2]
    below = ("", "images", part, f"images/{part}")
    places = [place / name for name in below for place in (folder, folder.parent)]
    roots = (p for one in first for p in places if (p / str(one.get("file_name"))).is_file())
    return next(roots, folder)


def _ignored(classes: Vocabulary) -> int:
    """Label of pixels without ground truth beside these classes."""
    return SPARE[len(classes) > SPARE[0]]


def _extent(entry: Record) -> float:
    x0, y0, x1, y1 = entry["bbox"]
    return float((x1 - x0) * (y1 - y0))


# Task -> ending of the names of its data sets, their kind, key of their annotations and evaluator_type.
KINDS: dict[str, tuple[str, type[DataSet], str, str]] = {
    "semantic": ("sem_seg", SemSegSet, "source", "sem_seg"),
    "panoptic": ("panoptic", PanopticSet, "panoptic_json", "coco_panoptic_seg"),
    "detection": ("boxes", DetectionSet, "json_file", "coco"),
    "distillation": ("images", CocoSet, "json_file", ""),
    "whole_images": ("whole_images", ImageSet, "annotations", "whole_images"),
}


def _register(data: DataFile, which: str, task: str) -> str:
    """Register the split "train" or "val" of the data for a task; returns its name."""
    ending, kind, key, evaluator = KINDS[task]
    split: Split = getattr(data, which)
    name, root = f"{data.name}_{which}_{ending}", _image_root(split)
    metadata: dict[str, Any] = {"origin": str(data.origin), "image_root": str(root)}
    read: functools.partial[list[Record]]
    made: MadeAnnotations | None
    if task == "distillation":
        alone = functools.partial(_images_alone, split, root)
        made = MadeAnnotations(str(split.json or split.images), alone)
        read = functools.partial(image_records, made, root)
    elif task == "whole_images":
        made, read = None, functools.partial(standard_records, name, kind)
        metadata |= {"vocabulary": data.vocabulary()} if data.names else {}
    else:
        part = Part(data, split, root, data.vocabulary(training=which == "train"))
        classes = list(part.classes.first_names)
        metadata |= {"vocabulary": part.classes, "stuff_classes": classes, "thing_classes": classes}
        source = split.annotations
        made = MadeAnnotations(str(source), part.content) if source else None
        read = functools.partial(standard_records, name, kind)
        if task == "semantic":
            read = functools.partial(part.label_maps, made)
            metadata |= {
                "sem_seg_root": str(split.masks or source),
                "ignore_label": _ignored(part.classes),
                "label_values": part.classes.dataset_id_to_index,
                "known_values": (*(data.names or ()), data.ignore),
            }
        elif made is None or (task == "panoptic" and not split.json):
            raise InputError(f"{data.origin}: there is no annotation file: {WHERE[task]}")
        elif task == "panoptic":
            metadata["panoptic_root"] = str(part.png_folder())
    metadata |= {key: made, "source": made, "evaluator_type": evaluator}
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name).get("origin")
        if known != str(data.origin):
            wrong = f'would be registered as "{name}", which {known or "another data set"} is'
            raise InputError(f"{data.origin} {wrong}: rename the file or its folder")
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    DatasetCatalog.register(name, read)
    MetadataCatalog.get(name).set(**metadata)
    return name


class FileFinding(NamedTuple):
    """Result of the check of an image and its ground truth.

    Attributes:
        problem: message of the error; "" if the files are in order.
        file: the file that it is about, by its entry in a record; "" if the files are in order.
        blank: whether no pixel has a label.
        image_id: id of the image.
    """

    problem: str
    file: str = ""
    blank: bool = False
    image_id: int | str = ""


class ImageJob(NamedTuple):
    """A record of an image, with the labels that its label map may hold, if it has one."""

    record: Record
    label_count: int = 0
    ignore_label: int = 255


def check_image(job: ImageJob) -> FileFinding:
    """Read an image, and its panoptic PNG and label map if it has them."""
    record = job.record
    size = (record["width"], record["height"]) if "width" in record else None
    blank = False
    file = "pan_seg_file_name"
    try:
        if file in record:
            ids = read_panoptic_ids(record)
            size = (ids.shape[1], ids.shape[0])
            blank = not ids.any()
        file = "file_name"
        image = read_image(record["file_name"], size)
        file = "sem_seg_file_name"
        if file in record:
            labels = read_labels_of(
                record,
                num_classes=job.label_count,
                ignore_label=job.ignore_label,
                size=(image.shape[1], image.shape[0]),
            )
            if "pan_seg_file_name" not in record:
                blank = bool((labels == job.ignore_label).all())
    except InputError as error:
        return FileFinding(str(error), file, image_id=record["image_id"])
    return FileFinding("", blank=blank, image_id=record["image_id"])


def check_data(names: Sequence[str]) -> list[str]:
    """Refuse data of one's own of which an image or label cannot be used, before the first step.

    Args:
        names: data sets as `register_data` registers them.

    Returns:
        What is to be said: numbers of images and classes, and what has no name and is ignored.

    Raises:
        InputError: no images; some are missing; one of those that are read is broken, or its labels are.
    """
    said, earlier = list[str](), set[str]()
    for name in names:
        metadata = MetadataCatalog.get(name)
        records = DatasetCatalog.get(name)
        if not records:
            raise InputError(f"{metadata.origin}: {name} has no image with labels: add some")
        require_files(name, records, f"correct {metadata.origin}")
        vocabulary = metadata.get("vocabulary") or ()
        said.append(f"{name}: {len(records)} images, {len(vocabulary)} classes")
        files = {os.path.abspath(record["file_name"]) for record in records}
        if both := files & earlier:
            said.append(f"{name}: {len(both)} of these images are trained on, too")
        earlier |= files
        count = min(SAMPLE, len(records))
        values = {"label_values": metadata.get("label_values")}
        sample = [records[i * len(records) // count] | values for i in range(count)]
        ignored = metadata.get("ignore_label", 255)
        findings = [check_image(ImageJob(r, len(vocabulary), ignored)) for r in sample]
        if problem := next((finding.problem for finding in findings if finding.problem), ""):
            raise InputError(f"{metadata.origin}: {problem}")
        if all(finding.blank for finding in findings):
            wrong = f"{name}: none of {count} label maps has a pixel of a class"
            raise InputError(f'{metadata.origin}: {wrong}: correct the numbers of "names"')
        if values["label_values"] and "painted" not in records[0]:
            said += [f"{name}: {text}" for text in _values_of(sample, metadata)]
        content = metadata.source.make() if metadata.get("source") else {}
        if left_out := content.get("left_out"):
            wrong = "annotations of classes without a name, which are ignored"
            said.append(f"{name}: {wrong}: {_listed(left_out)}")
        if outside := _outside(content):
            wrong = f"{len(outside)} boxes lie outside of their images and are left out, such as"
            first = outside[0]
            said.append(f"{name}: {wrong} that of annotation {first.get('id')}: {first['bbox']}")
    return said


def _values_of(records: Sequence[Record], metadata: Any) -> Iterator[str]:
    """What is to be said of the values of label maps: those without a name, and names without a pixel."""
    pixels = Counter[int]()
    for record in records:
        values, counts = np.unique(read_indices(record["sem_seg_file_name"]), return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist())))
    unnamed = {value: pixels[value] for value in pixels.keys() - {*metadata.known_values}}
    if unnamed:
        wrong = f"values of label maps without a name, which are ignored, in {len(records)} maps"
        yield f"{wrong}: {_listed(unnamed, ' pixels')}"
    classes = metadata.vocabulary.classes
    if absent := {c.names[0]: c.dataset_id for c in classes if c.dataset_id not in pixels}:
        wrong = f"{len(absent)} of {len(classes)} classes have no pixel in {len(records)} maps"
        yield f"{wrong}: {_listed(absent)}"


def _listed(counts: Mapping[Any, int], unit: str = "") -> str:
    most = Counter(counts).most_common(8)
    listed = [f"{value} ({count}{unit})" for value, count in most]
    return ", ".join(listed) + ", ..." * (len(counts) > len(most))


def _outside(content: Mapping[str, Any]) -> list[JsonObject]:
    """Annotations whose boxes do not overlap their images, of a content that was read without an error."""
    images = {image["id"]: image for image in content.get("images", ())}
    outside = []
    for annotation in content.get("annotations", ()):
        image, box = images.get(annotation.get("image_id"), {}), annotation.get("bbox")
        if image.get("width") and image.get("height") and is_box(box):
            x, y, w, h = box
            if min(x + w, image["width"]) <= max(x, 0) or min(y + h, image["height"]) <= max(y, 0):
                outside.append(annotation)
    return outside
