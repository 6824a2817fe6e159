"""Data of one's own without Python: a YAML file, a folder or a COCO JSON becomes data sets of Detectron2's catalogs.

`own_file` says how such data are described. `register_data` registers; it reads no image, so that a prediction may ask
it for the classes of a training; `check_data` looks at some images before a training.

A line of YOLO's text files is `class cx cy width height` or `class x1 y1 x2 y2 x3 y3 ...`, in fractions of the image's
sides. An image without a file has no object.
"""

from __future__ import annotations

import functools
import logging
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_seg.data import annotations as coco
from clipself_seg.data.annotations import JsonObject, MadeAnnotations, Record
from clipself_seg.data.datasets import own_file, table
from clipself_seg.data.datasets.records import standard_records
from clipself_seg.data.images import MAX_PIXELS, image_size, read_image
from clipself_seg.data.masks import read_indices, read_labels_of, read_panoptic_ids
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError, known, require_unique, shown
from clipself_seg.files import home_expanded, read_text
from clipself_seg.memory import no_collection

logger = logging.getLogger(__name__)

SAMPLE = 50
"""Number of images, evenly spread, that are read before a training."""
ENOUGH = (
    (50, "are few to train on: see first what predict does with these words, then label more"),
    (20, "measure little, since each moves the numbers by points: name more of them as `val`"),
)
"""Number of images, of training and of evaluation, below which advice is given: rules of thumb."""
ONLY = "is the only class, so every pixel gets it: name the rest, too (0: background), or train detection"
VOID = -1
"""Category id of masks whose pixels are ignored."""
LOWEST, HIGHEST = -0.01, 1.01
"""Corners of YOLO's in fractions of a side: what lies beyond the image is rounding, and cut off."""
Pairs = Mapping[str, tuple[Path, Path | None]]
"""Images by name, each with its file of labels or None."""


class OwnData(NamedTuple):
    """Names under which data are registered.

    Attributes:
        train: of the images that are trained on; "" where a file has `val` alone.
        test: of the data sets that are evaluated: its own first, then `others`.
    """

    train: str
    test: tuple[str, ...]


def register_data(path: str | os.PathLike[str], task: str) -> OwnData:
    """Registers data for a task; the same path again replaces what was registered.

    Args:
        path: YAML file, folder or COCO JSON.
        task: semantic, panoptic, detection, distillation or whole_images.

    Raises:
        InputError: nothing usable is there, or it is not for this task; other data are registered by this name.
    """
    known(task, KINDS, "task")
    data = own_file.read_data(path, task)
    if task == "whole_images":  # nothing trains on them
        whole = own_file.Split(data.origin) if data.origin.is_dir() else data.train
        data = replace(data, val=data.val if data.val.images else whole)
        return OwnData("", (_register(data, "val", task),))
    train = _register(data, "train", task) if data.train != own_file.Split() else ""
    if task == "distillation":  # regions are recognised in panoptic data alone
        if data.others:
            wrong = 'a distillation does not evaluate "others": name panoptic data in DATASETS.TEST'
            logger.warning("%s: %s", data.origin, wrong)
        return OwnData(train, ())
    others = [_other(other, data, task) for other in data.others]
    return OwnData(train, (_register(data, "val", task), *others))


def _other(other: str, data: own_file.DataFile, task: str) -> str:
    """Name of the data set that an entry of `others` stands for."""
    place = data.origin.parent / home_expanded(other, "give a whole path")
    names = DatasetCatalog.list()
    if other not in names and place.exists():
        return _register(own_file.read_data(place, task), "val", task)
    return known(other, names, "data set or file", origin=f'{data.origin}: "others"')


def _by_stem(files: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Files by their path below a folder without its ending.

    Raises:
        InputError: two files of one stem.
    """
    stems = [file.relative_to(folder).with_suffix("").as_posix() for file in files]
    require_unique(stems, "name without its ending", folder)
    return dict(zip(stems, files))


@dataclass(frozen=True)
class Part:
    """The images of a split with ground truth for a task.

    Attributes:
        data: the data that it is a part of.
        split: where its files are.
        root: folder to which the file names of its images are relative.
        classes: classes of its ground truth; pixels or objects of none of them are ignored.
    """

    data: own_file.DataFile
    split: own_file.Split
    root: Path
    classes: Vocabulary

    def pairs(self, labels: Path, endings: Iterable[str]) -> Pairs:
        """Images by name, sorted, each with its file of labels in a folder, or None where it has none."""
        source = self.split.images
        assert source is not None
        images = _by_stem(own_file.image_files(source), source)
        files = [path for path in own_file.files_below(labels) if path.suffix.lower() in endings]
        labelled = _by_stem(files, labels)
        both = images.keys() & labelled.keys()
        if not both:
            raise InputError(
                f"{self.data.origin}: no image of {source} has a file of its name in {labels} that ends in "
                f"{' '.join(endings)}: rename them"
            )
        if len(both) < max(len(images), len(labelled)):
            logger.warning(
                "%s: %d images of %s have no labels, and %d files of labels have no image",
                *(self.data.origin, len(images) - len(both), source, len(labelled) - len(both)),
            )
        chosen = self.split.chosen(sorted(images))
        return {stem: (images[stem], labelled.get(stem)) for stem in chosen}

    @no_collection()
    def content(self) -> JsonObject:
        """Images and annotations of the split in COCO's format; those of classes without a name are left out.

        "left_out" counts these by the name that the file has for them, "unnamed" has those that are no segments.
        """
        source, named = self.split.annotations, self.classes.dataset_id_to_index
        names = self.data.names or {}
        assert source is not None
        if self.split.json:
            content = own_file.read_json_once(source)
            coco.require_same_classes(content, self.data.vocabulary(), source)
            images = self.split.chosen(coco.coco_list(content, "images", source))
        else:
            content = yolo_content(self.pairs(source, (".txt",)), names, self.data.listed)
            images = content["images"]
        listed = {
            record["image_id"] for record in coco.listed_records(content, source, self.root, 1)
        }
        own = {image["id"] for image in images}
        kept, unnamed, left_out = list[JsonObject](), list[JsonObject](), Counter[int]()
        annotations, segmented = content["annotations"], False
        if self.split.json:
            segmented = "segments_info" in coco.coco_list(content, "annotations", source)[0]
            schema = coco.SEGMENTS if segmented else coco.OBJECT_IN_BOX
            annotations = coco.coco_list(content, "annotations", source, schema)
        for annotation in annotations:
            if coco.annotated_image(annotation, listed, source) not in own:
                continue
            if segmented:
                segments = annotation["segments_info"]
                others = [s for s in segments if s["category_id"] not in named]
                left_out.update(s["category_id"] for s in others)
                annotation = annotation | {
                    "segments_info": [s for s in segments if s["category_id"] in named],
                    "void_segments": tuple(s["id"] for s in others),
                }
            elif annotation["category_id"] not in named:
                left_out[annotation["category_id"]] += 1
                unnamed.append(annotation)
                continue
            elif "area" not in annotation and coco.is_box(annotation.get("bbox")):
                _, _, width, height = annotation["bbox"]
                annotation = {"area": width * height} | annotation
            kept.append(annotation)
        if not kept:
            reason = f"no object in these {len(images)} images is of a class of {self.data.origin}"
            raise InputError(f'{source}: {reason}: correct the numbers of "names", or give a "val"')
        stated = coco.category_names(content, source)
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
                for stem, (image, labels) in self.pairs(self.split.masks, own_file.MAPS).items()
                if labels
            ]
        index_of, content = self.classes.dataset_id_to_index, made.make()
        if "segments_info" in content["annotations"][0]:
            records = coco.panoptic_records(made, self.root, self.split.pngs)
            for record in records:
                record["sem_seg_file_name"] = record.pop("pan_seg_file_name")
                segments = record.pop("segments_info")
                record["painted"] = [(s["id"], index_of[s["category_id"]]) for s in segments]
        else:
            if self.split.masks:
                raise InputError(
                    f"{self.data.origin}: give masks or annotations for semantic, not both"
                )
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
            records = coco.instance_records(content, made, self.root, indices, masks=True)
            for record in records:
                record["sem_seg_file_name"] = str(made)
                # The largest first, so that none hides another.
                objects = sorted(record.pop("annotations"), key=_extent, reverse=True)
                record["painted"] = [(entry["segmentation"], entry["label"]) for entry in objects]
        named = {*index_of.values()}
        kept = [r for r in records if any(label in named for _, label in r["painted"])]
        coco.log_left_out(made, records, kept, "no object of a class")
        return kept


def _images_alone(split: own_file.Split) -> JsonObject:
    if split.json:
        images = coco.coco_list(own_file.read_json_once(split.json), "images", split.json)
        return {"images": split.chosen(images)}
    assert split.images is not None
    files = map(str, split.chosen(own_file.image_files(split.images)))
    return {"images": [{"id": file, "file_name": file} for file in files]}


def _image_root(split: own_file.Split) -> Path:
    """Folder to which the file names of a COCO JSON are relative: the first of the usual ones that has some."""
    if split.images or not split.json:
        assert split.images is not None
        return split.images
    first = coco.coco_list(own_file.read_json_once(split.json), "images", split.json)[:50]
    folder, part = split.json.parent, split.json.stem.rpartition("_")[2]
    below = ("", "images", part, f"images/{part}")
    places = [place / name for name in below for place in (folder, folder.parent)]
    roots = (p for one in first for p in places if os.path.isfile(p / str(one.get("file_name"))))
    return next(roots, folder)


def _ignored(classes: Vocabulary) -> int:
    """Label of pixels without ground truth beside these classes."""
    return own_file.SPARE[len(classes) > own_file.SPARE[0]]


def _extent(entry: Record) -> float:
    x0, y0, x1, y1 = entry["bbox"]
    return float((x1 - x0) * (y1 - y0))


# Task -> ending of the names of its data sets, their kind, key of their annotations and evaluator_type.
KINDS: dict[str, tuple[str, type[table.DataSet], str, str]] = {
    "semantic": ("sem_seg", table.SemSegSet, "source", "sem_seg"),
    "panoptic": ("panoptic", table.PanopticSet, "panoptic_json", "coco_panoptic_seg"),
    "detection": ("boxes", table.DetectionSet, "json_file", "coco"),
    "distillation": ("images", table.CocoSet, "json_file", ""),
    "whole_images": ("whole_images", table.ImageSet, "annotations", "whole_images"),
}


def _register(data: own_file.DataFile, which: str, task: str) -> str:
    """Registers the split "train" or "val" of the data for a task; returns its name."""
    ending, kind, key, evaluator = KINDS[task]
    split: own_file.Split = getattr(data, which)
    name, root = f"{data.name}_{which}_{ending}", _image_root(split)
    metadata: dict[str, Any] = {"origin": str(data.origin), "image_root": str(root)}
    read: functools.partial[list[Record]]
    made: MadeAnnotations | None
    if task == "distillation":
        alone = functools.partial(_images_alone, split)
        made = MadeAnnotations(str(split.json or split.images), alone)
        read = functools.partial(coco.image_records, made, root)
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
        elif task == "panoptic":
            metadata["panoptic_root"] = str(split.pngs)
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


def yolo_content(pairs: Pairs, names: Mapping[int, Any], listed: bool) -> JsonObject:
    """Content of an annotation file in COCO's format, with the sizes of the images in their headers.

    Args:
        pairs: id of each image -> its file, and the file of its labels or None.
        names: names by number.
        listed: there is no class beside these.

    Raises:
        InputError: an image or a file that cannot be read; a line that is neither box nor polygon, or of a class that
            is none. Names file and line.
    """
    images, annotations = list[JsonObject](), list[JsonObject]()
    classes = len(names) if listed else 1 << 31
    for image_id, (image, path) in pairs.items():
        width, height = image_size(image)
        images.append({"id": image_id, "file_name": str(image), "width": width, "height": height})
        for entry in _yolo_objects(path, classes, width, height) if path else ():
            annotations.append(entry | {"id": len(annotations) + 1, "image_id": image_id})
    categories = [{"id": number, "name": name} for number, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _yolo_objects(path: Path, classes: int, width: int, height: int) -> list[JsonObject]:
    """The objects of a file of YOLO's, each with its box and, of a polygon, its segmentation in pixels."""
    lines, values, ends = list[tuple[int, Sequence[str]]](), array("d"), [0]
    line: tuple[int, Sequence[str]]
    for line in enumerate(map(str.split, read_text(path, "label file").splitlines()), 1):
        if not (words := line[1]):
            continue
        try:
            category = int(words[0])
            values.extend(map(float, words[1:]))
        except ValueError:
            category = -1
        if category < 0 or len(words) < 5 or not len(words) % 2:
            wrong = (
                "is no box, `class cx cy width height`, and no polygon, `class x1 y1 x2 y2 x3 y3 ...`, whose class is "
                "a whole number from 0 on"
            )
            raise _wrong_line(path, line, wrong)
        if category >= classes:
            raise _wrong_line(
                path, line, f'is of class {category}, and "names" has 0 to {classes - 1}'
            )
        lines.append(line)
        ends.append(len(values) // 2)
    if not lines:
        return []
    points, starts = np.array(values).reshape(-1, 2), np.array(ends[:-1])
    boxes = starts[np.diff(ends) == 2]  # of a centre and sides
    centres, halves = points[boxes], points[boxes + 1] / 2
    points[boxes], points[boxes + 1] = centres - halves, centres + halves
    beyond = ~((points >= LOWEST) & (points <= HIGHEST)).all(axis=1)
    if beyond.any():
        line = lines[np.searchsorted(starts, beyond.argmax(), side="right") - 1]
        wrong = "reaches beyond the image: fractions of its sides are from 0 to 1"
        raise _wrong_line(path, line, wrong)
    points = points.clip(0, 1) * (width, height)
    corners = np.minimum.reduceat(points, starts)
    sides = np.maximum.reduceat(points, starts) - corners
    flat, objects = points.ravel().tolist(), list[JsonObject]()
    for line, box, start, end in zip(lines, np.hstack([corners, sides]).tolist(), ends, ends[1:]):
        entry = {"category_id": int(line[1][0]), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        if end - start > 2:
            entry["segmentation"] = [flat[2 * start : 2 * end]]
        objects.append(entry)
    return objects


def _wrong_line(path: Path, line: tuple[int, Sequence[str]], wrong: str) -> InputError:
    return InputError(f"{path}, line {line[0]}: {shown(' '.join(line[1]))} {wrong}: correct it")


def read_files(
    record: Record, label_count: int, ignore_label: int, max_pixels: int = MAX_PIXELS
) -> bool:
    """Reads an image with its panoptic PNG or label map.

    Args:
        record: of the image.
        label_count: number of labels that a label map may hold.
        ignore_label: value of its pixels without ground truth.
        max_pixels: largest number of pixels of an image that is decoded.

    Returns:
        True if no pixel has a label.

    Raises:
        InputError: a file cannot be used.
    """
    size = (record["width"], record["height"]) if "width" in record else None
    ids = labels = None
    if "pan_seg_file_name" in record:
        ids = read_panoptic_ids(record, max_pixels)
        size = (ids.shape[1], ids.shape[0])
    height, width = read_image(record["file_name"], size, max_pixels).shape[:2]
    if "sem_seg_file_name" in record:
        labels = read_labels_of(
            record, num_classes=label_count, ignore_label=ignore_label, size=(width, height)
        )
    if ids is not None:
        return not ids.any()
    return labels is not None and bool((labels == ignore_label).all())


def check_data(names: Sequence[str], max_pixels: int = MAX_PIXELS) -> list[str]:
    """Refuses data of one's own of which an image or label cannot be used, before the first step.

    Args:
        names: data sets as `register_data` registers them.
        max_pixels: ``INPUT.MAX_PIXELS``.

    Returns:
        What is to be said: numbers of images and classes, and what has no name and is ignored.

    Raises:
        InputError: no images; some are missing; one of those that are read is broken, or its labels are.
    """
    said, few, earlier = list[str](), list[str](), set[str]()
    for name, (enough, advice) in zip(names, ENOUGH):
        metadata = MetadataCatalog.get(name)
        records = DatasetCatalog.get(name)
        if not records:
            raise InputError(f"{metadata.origin}: {name} has no image with labels: add some")
        coco.require_files(name, records, f"correct {metadata.origin}")
        vocabulary = metadata.get("vocabulary") or ()
        classes = f", {len(vocabulary)} classes" if vocabulary else ""
        said.append(f"{name}: {len(records)} images{classes}")
        if len(vocabulary) == 1 and metadata.evaluator_type == KINDS["semantic"][3]:
            said.append(f'{name}: "{metadata.vocabulary.first_names[0]}" {ONLY}')
        if vocabulary and len(records) < enough:  # the advice is about words and labels
            few.append(f"{name}: {len(records)} images {advice}, at least {enough}")
        files = {os.path.abspath(record["file_name"]) for record in records}
        if both := files & earlier:
            said.append(f"{name}: {len(both)} of these images are trained on, too")
        earlier |= files
        count = min(SAMPLE, len(records))
        values = {"label_values": metadata.get("label_values")}
        sample = [records[i * len(records) // count] | values for i in range(count)]
        ignored = metadata.get("ignore_label", 255)
        try:
            blank = [read_files(record, len(vocabulary), ignored, max_pixels) for record in sample]
        except InputError as error:
            raise InputError(f"{metadata.origin}: {error}") from None
        if all(blank):
            wrong = f"{name}: none of {count} label maps has a pixel of a class"
            raise InputError(f'{metadata.origin}: {wrong}: correct the numbers of "names"')
        if values["label_values"] and "painted" not in records[0]:
            said += [f"{name}: {text}" for text in _values_of(sample, metadata, max_pixels)]
        source = metadata.get("source")
        if source and source.left_out:
            wrong = "annotations of classes without a name, which are ignored"
            said.append(f"{name}: {wrong}: {_listed(source.left_out)}")
        if metadata.evaluator_type == KINDS["detection"][3]:
            objects = sum(len(record["annotations"]) for record in records)
            if others := source.count - objects:
                why = "crowds, or boxes outside of their images or narrower than a pixel"
                said.append(f"{name}: {others} annotations are left out: {why}")
    return said + few


def _values_of(records: Sequence[Record], metadata: Any, max_pixels: int) -> Iterator[str]:
    """Sentences about the values of label maps: those without a name, and names without a pixel."""
    pixels = Counter[int]()
    for record in records:
        indices = read_indices(record["sem_seg_file_name"], max_pixels=max_pixels)
        values, counts = np.unique(indices, return_counts=True)
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
