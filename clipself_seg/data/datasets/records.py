"""Data sets by name: their entry, and the records of their images for each task.

Names are those of the table, or of Detectron2's catalogue. The table is added to that catalogue when this module is
imported, with records and metadata of Detectron2's standard, but for names that Detectron2 has already. This project
itself reads the records of the functions here, which have the category ids of the files where those have any.

A data set of your own works under its name if it is registered with Detectron2's `register_coco_instances`,
`register_coco_panoptic` or `register_coco_panoptic_separated`, or for semantic segmentation with records that have
"file_name" and "sem_seg_file_name". Its classes are "vocabulary" in its metadata, else "stuff_classes" or "classes" for
semantic segmentation and "thing_classes" for detection; distillation needs none.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from clipself_seg.data import annotations as coco
from clipself_seg.data.annotations import Record, RegionText
from clipself_seg.data.datasets import table
from clipself_seg.data.images import ENDINGS
from clipself_seg.data.vocabulary import NamedVocabulary, Vocabulary
from clipself_seg.errors import InputError, MissingFiles, known, nearest
from clipself_seg.imports import OR_IMPORT
from clipself_seg.memory import no_collection

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=table.DataSet)
RegionSource = Literal["grid", "proposals"]

IMAGE_SUFFIX = ".jpg"
TRAINING_MIN_SIDE = 32
"""Smallest side in pixels of an image that detection is trained on, as in the official code."""


def find_dataset(name: str, kind: type[Kind]) -> Kind:
    """Entry of a data set of one kind, in the table or in Detectron2's catalogue.

    Raises:
        InputError: the data set is unknown or of another kind, or its metadata lacks an entry.
    """
    entry = table.DATASETS.get(name)
    if isinstance(entry, kind):
        return entry
    known_elsewhere = entry is None and name in DatasetCatalog.list()
    metadata = MetadataCatalog.get(name).as_dict() if known_elsewhere else {}
    if classes := _registered_classes(name, metadata, kind):
        metadata["vocabulary"] = classes
    panoptic = bool(metadata.get("panoptic_json"))
    fits = {
        table.PanopticSet: panoptic,
        table.DetectionSet: bool(metadata.get("json_file")) and not panoptic,
    }
    if not fits.get(kind, known_elsewhere):
        names = [other for other, files in table.DATASETS.items() if isinstance(files, kind)]
        if name not in DatasetCatalog.list():
            # Those that a user registered are not in the table.
            names += {*DatasetCatalog.list()} - {*table.DATASETS}
        hint = f"{nearest(name, names)}{OR_IMPORT}"
        if known_elsewhere:
            hint = (
                "register_coco_instances or register_coco_panoptic has to name its annotation file"
            )
        raise InputError(f'no data set "{name}" for {kind.purpose}: {hint}')
    for key in kind.required:
        _require_stated(name, key, metadata.get(key))
    values = {field: metadata.get(key) for key, field in kind.fields.items()}
    given = {field: value for field, value in values.items() if value not in (None, "")}
    labels = set((given.get("label_values") or {}).values())
    if given.get("ignore_label") in labels:
        # It is a value of the maps, such as 0, where classes count from 0, too.
        given["ignore_label"] = min({table.IGNORE_LABEL, 65535} - labels)
    return kind(root=table.REGISTERED, **{"images": "", "annotations": ""} | given)


def _require_stated(name: str, key: str, value: object) -> None:
    """Refuses a data set of Detectron2's catalogue whose metadata lack an entry."""
    if value in (None, ""):
        raise InputError(
            f'data set "{name}" has no "{key}" in its metadata: set MetadataCatalog.get("{name}").{key}'
        )


def _registered_classes(
    name: str, metadata: Mapping[str, Any], kind: type[table.DataSet]
) -> NamedVocabulary | None:
    """Classes of a data set in Detectron2's catalogue, by its metadata; None where that has none.

    They are "vocabulary", or the lists of names that Detectron2's own evaluators read. In a semantic data set a class
    is numbered by its place, in one with boxes by "thing_dataset_id_to_contiguous_id".
    """
    keys = ("stuff_classes", "classes") if kind is table.SemSegSet else ("thing_classes",)
    names = next((metadata[key] for key in keys if metadata.get(key)), None)
    if metadata.get("vocabulary") or not names or kind is table.PanopticSet:
        return metadata.get("vocabulary")
    origin = f'the classes of data set "{name}"'
    listed = Vocabulary.of(list(names), name=name, origin=origin, repeats=True)
    if kind is table.SemSegSet:
        return listed
    ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
    numbers = {index: number for number, index in ids.items()}
    numbered = [replace(c, dataset_id=numbers.get(i, i)) for i, c in enumerate(listed.classes)]
    return replace(listed, classes=tuple(numbered))


def find_annotated(name: str, *contents: str) -> table.DataSet:
    """Entry of a data set of any kind that has an annotation file, for distillation and regions.

    Args:
        name: name of the data set.
        contents: its annotations are one of these, see `_content`; none for any.

    Raises:
        InputError: the data set is unknown, or has no such file or annotations.
    """
    entry = table.DATASETS.get(name)
    if entry is None or isinstance(entry, table.SemSegSet):
        known(name, DatasetCatalog.list(), "data set", hint=OR_IMPORT)
        metadata = MetadataCatalog.get(name).as_dict()
        panoptic = metadata.get("panoptic_json")
        annotations: Any = panoptic or metadata.get("json_file")
        _require_stated(name, "image_root", metadata.get("image_root"))
        _require_stated(name, "json_file", annotations)
        entry = table.CocoSet(
            root=table.REGISTERED,
            images=metadata["image_root"],
            annotations=annotations,
            panoptic_root=metadata.get("panoptic_root", "") if panoptic else "",
            vocabulary=metadata.get("vocabulary", ""),
        )
    content = _content(entry)
    if content and contents and content not in contents:
        of_regions = [n for n, e in table.DATASETS.items() if isinstance(e, table.CocoSet)]
        suited = [n for n in of_regions if _content(table.DATASETS[n]) in contents]
        reads = " or ".join(contents)
        raise InputError(
            f'data set "{name}" has {content}, and {reads} are read here: {nearest(name, suited)}'
        )
    return entry


def train_vocabulary_name(cfg: CfgNode, kind: type[table.DataSet]) -> NamedVocabulary:
    """The class list whose classes count as seen by a model that trains on data sets of a kind, or its name.

    It is TEST.TRAIN_VOCABULARY, else the vocabulary of the first training data set, else "".
    """
    stated: str = cfg.TEST.TRAIN_VOCABULARY
    if stated or not cfg.DATASETS.TRAIN:
        return stated
    return find_dataset(cfg.DATASETS.TRAIN[0], kind).vocabulary


def _content(entry: table.DataSet) -> str:
    """Plural noun for the annotations of a data set of the table; of a registered one "segments" or ""."""
    if entry.panoptic_root:
        return "segments"
    if entry.root is table.REGISTERED or not isinstance(entry, table.CocoSet):
        return ""
    return "classes" if entry.evaluator else entry.content


def require_files(name: str, entry: Kind, tasks: Collection[str] = (), otherwise: str = "") -> Kind:
    """Refuses a data set of which a file or folder that is read is missing, and says what to do, or `otherwise`."""
    for need in entry.needed(tasks):
        if not need.relative and entry.root is table.REGISTERED:
            _require_stated(name, need.key, "")
        if not need.relative:
            raise InputError(f'data set "{name}" has no files for "{need.task}": do without')
        path = entry.path(need.relative)
        if not path.exists():
            raise MissingFiles(
                f'data set "{name}": {path} is missing; {entry.advice(need.command)}{otherwise}'
            )
    if entry.root.shipped:
        _log_once(f"data: {table.SHIPPED}, are read")
    return entry


@functools.cache
def _log_once(text: str) -> None:
    logger.info(text)


def annotated_dataset(name: str, *contents: str) -> table.DataSet:
    """Result of `find_annotated`, whose files are there.

    Raises:
        InputError: as `find_annotated`; files that are missing.
    """
    return require_files(name, find_annotated(name, *contents))


def distillation_records(names: Sequence[str], source: RegionSource) -> list[Record]:
    """Records of the images of some data sets, one data set after the other, for distillation.

    Args:
        names: data sets with an annotation file.
        source: "grid" reads the list of images only; "proposals" also the box of each annotation.

    Raises:
        InputError: as `annotated_dataset`; files that are broken; proposals of a panoptic data set, whose
            annotations are segments.
    """
    contents = ("boxes", "nouns", "classes") if source == "proposals" else ()
    read = {"grid": coco.image_records, "proposals": coco.proposal_records}[source]
    return [record for name in names for record in _read(name, read, *contents)]


def captioned_records(names: Sequence[str]) -> list[Record]:
    """Records of the images of some data sets with their captions, one data set after the other.

    Args:
        names: data sets of captions.

    Raises:
        InputError: as `annotated_dataset`; a data set for regions without captions; files that are broken,
            see `caption_records`.
    """
    return [record for name in names for record in _read(name, coco.caption_records, "captions")]


def region_text_records(names: Sequence[str]) -> RegionText:
    """Images of some data sets, one data set after the other, with boxes and their nouns.

    Args:
        names: data sets whose categories are the nouns.

    Raises:
        InputError: as `annotated_dataset`; a data set for regions whose boxes have neither nouns nor classes;
            files that are broken; data sets whose nouns differ.
    """
    read = []
    for name in names:
        # Classes are nouns; the one category of boxes that are proposals is none.
        entry = annotated_dataset(name, "nouns", "classes")
        read.append(coco.read_region_text(entry.path(entry.annotations), entry.path(entry.images)))
        if read[-1].nouns != read[0].nouns:
            raise InputError(
                f'the nouns of "{name}" are not those of "{names[0]}", or in another order: label all '
                "with one list (python tools/precompute.py region-text --nouns)"
            )
    nouns = read[0].nouns if read else ()
    return RegionText([record for content in read for record in content.records], nouns)


def region_records(name: str) -> tuple[Vocabulary, list[Record]]:
    """Classes of a panoptic data set, and records of its images with their segments, for region recognition.

    Args:
        name: data set with panoptic PNGs; the dataset ids of its classes are the category ids of its file.

    Raises:
        InputError: as `annotated_dataset`; files that are broken; a data set without panoptic PNGs or a vocabulary;
            a category that the vocabulary does not have.
    """
    entry = annotated_dataset(name, "segments")
    _require_stated(name, "panoptic_root", entry.panoptic_root)
    _require_stated(name, "vocabulary", entry.vocabulary)
    vocabulary = Vocabulary.load(entry.vocabulary)
    return vocabulary, _panoptic_records(entry, vocabulary)


def _panoptic_records(entry: table.DataSet, vocabulary: Vocabulary) -> list[Record]:
    """Records with segments, once it is known that the vocabulary has all their categories."""
    json_file = entry.path(entry.annotations)
    pngs = entry.path(entry.panoptic_root)
    records = _placed(entry, coco.panoptic_records(json_file, entry.path(entry.images), pngs))
    categories = [info["category_id"] for record in records for info in record["segments_info"]]
    coco.category_labels(np.unique(categories), vocabulary.dataset_id_to_index, json_file)
    return records


def _read(name: str, read: Callable[[Path, Path], list[Record]], *contents: str) -> list[Record]:
    entry = annotated_dataset(name, *contents)
    return _placed(entry, read(entry.path(entry.annotations), entry.path(entry.images)))


def _placed(entry: table.DataSet, records: list[Record]) -> list[Record]:
    """The records with their images where they are, and "covered_stuff", where a panoptic file has neither."""
    if not isinstance(entry, table.PanopticSet):
        return records
    for record in records:
        record["covered_stuff"] = entry.covered_stuff
        if entry.image_name:
            name = _named(entry.image_name, record["image_id"])
            record["file_name"] = str(entry.path(entry.images) / name)
    return records


def sem_seg_records(name: str) -> list[Record]:
    """Images and label maps of a data set for semantic segmentation, sorted by file name.

    Returns:
        Records with "file_name", "sem_seg_file_name" and "image_id", the file's stem, and "label_values" where
        the data set has them.

    Raises:
        InputError: as `find_dataset`; files are missing (the message names the command that prepares them).
    """
    entry = require_files(name, find_dataset(name, table.SemSegSet))
    if entry.root is not table.REGISTERED:
        return pair_files(name, entry)
    try:
        records: list[Record] = list(DatasetCatalog.get(name))
    except OSError as error:
        raise MissingFiles(f'data set "{name}": {error}; {entry.advice()}') from None
    if not records or any("sem_seg_file_name" not in record for record in records):
        raise InputError(
            f'data set "{name}": its {len(records)} records need "file_name" and "sem_seg_file_name": '
            "register a function that gives them, such as Detectron2's load_sem_seg"
        )
    for key in ("file_name", "sem_seg_file_name"):
        coco.require_files(name, records, entry.advice(), key)
    return sorted(
        (
            {"image_id": Path(record["file_name"]).stem, **record, **_values_of(entry)}
            for record in records
        ),
        key=lambda record: record["file_name"],
    )


def pair_files(name: str, entry: table.SemSegSet) -> list[Record]:
    """Images of a data set that have a label map, sorted by file name.

    Images without a map and maps without an image are left out, with a logged count.

    Args:
        name: name of the data set, for messages.
        entry: its entry in the table.

    Returns:
        Records as of `sem_seg_records`.

    Raises:
        InputError: no image has a map; the message names the command to run.
    """
    images, labels = files_by_stem(entry)
    both = sorted(images.keys() & labels.keys())
    if not both:
        raise InputError(
            f'data set "{name}": no *{IMAGE_SUFFIX} of {entry.path(entry.images)} has a label map '
            f"*{entry.label_suffix} in {entry.path(entry.annotations)}; {entry.advice(entry.prepare)}"
        )
    without = len(images) - len(both)
    if len(labels) > len(both) or (without and not entry.images_without_labels):
        logger.warning(
            'data set "%s": %d images have no label map and %d label maps no image; %d pairs remain',
            name,
            without,
            len(labels) - len(both),
            len(both),
        )
    return [
        {"file_name": images[stem], "sem_seg_file_name": labels[stem], "image_id": stem}
        | _values_of(entry)
        for stem in both
    ]


def _values_of(entry: table.SemSegSet) -> Record:
    """The entry of a record about the values of its label map, where they are not labels."""
    return {} if entry.label_values is None else {"label_values": entry.label_values}


def files_by_stem(entry: table.SemSegSet) -> tuple[dict[str, str], dict[str, str]]:
    """Paths by stem of all images and of all label maps; empty where there is no such folder."""
    return (
        _files_with(entry.path(entry.images), IMAGE_SUFFIX),
        _files_with(entry.path(entry.annotations), entry.label_suffix),
    )


def _files_with(folder: Path, suffix: str) -> dict[str, str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return {}
    # Hidden files are leftovers of an interrupted preparation.
    return {
        name.removesuffix(suffix): str(folder / name)
        for name in names
        if name.endswith(suffix) and not name.startswith(".")
    }


def panoptic_set_records(name: str, tasks: Collection[str] = ("panoptic",)) -> list[Record]:
    """Records of the images of a data set for panoptic segmentation with their segments, in the order of its file.

    Args:
        name: name of the data set.
        tasks: tasks of `table.TASKS`; their files have to be there.

    Returns:
        Records with "file_name", "image_id", "pan_seg_file_name", "panoptic_json", "segments_info"
        (category ids as in the file), where the file states them "height" and "width" in pixels, and
        where the data set has label maps "sem_seg_file_name". "covered_stuff" is true where stuff
        without a pixel may be listed; Cityscapes' have "instance_map_file_name". For the task
        "captions": "captions", the noun phrases of each of the image's captions.

    Raises:
        InputError: as `find_dataset`; files are missing (the message names the command that writes them)
            or broken; a category that the vocabulary does not have.
    """
    entry = require_files(name, find_dataset(name, table.PanopticSet), tasks)
    records = _panoptic_records(entry, Vocabulary.load(entry.vocabulary))
    phrases = coco.read_phrases(entry.path(entry.captions_json)) if "captions" in tasks else {}
    maps = entry.path(entry.sem_seg_root)
    for record in records:
        image_id = record["image_id"]
        if "captions" in tasks:
            record["captions"] = phrases.get(image_id, [])
        if entry.sem_seg_root:
            label_map = f"{Path(record['pan_seg_file_name']).stem}.png"
            if entry.label_map_name:
                label_map = _named(entry.label_map_name, image_id)
            record["sem_seg_file_name"] = str(maps / label_map)
        if entry.instance_map_name:
            record["instance_map_file_name"] = str(maps / _named(entry.instance_map_name, image_id))
    return records


def _named(pattern: str, image_id: object) -> str:
    """A pattern of `PanopticSet` with the id of an image, and its city, put in."""
    return pattern.replace("{city}", str(image_id).partition("_")[0]).replace("{id}", str(image_id))


def detection_records(
    name: str, *, training: bool = False, masks: bool | None = False
) -> list[Record]:
    """Records of the images of a data set for detection with their objects, in the order of its file.

    Args:
        name: name of the data set.
        training: leave out images with a side below `TRAINING_MIN_SIDE`, and those without an annotation
            of a class; one that has only crowds stays, and has no objects.
        masks: objects have a "segmentation"; None for those that have one in the file.

    Returns:
        Records as of `annotations.instance_records`.

    Raises:
        InputError: as `find_dataset`; files are missing (the message names the command that writes them)
            or broken; in training, annotations of classes that are not base.
    """
    entry = require_files(name, find_dataset(name, table.DetectionSet))
    path = entry.path(entry.annotations)
    vocabulary = Vocabulary.load(entry.vocabulary)
    content = coco.read_coco_json(path)
    if entry.root is table.REGISTERED:
        coco.require_same_classes(content, vocabulary, path)
    index_of = coco.category_indices(content, vocabulary, path, entry.by_order)
    if training or entry.evaluator is None:
        remedy = "train on a file without them"
        if entry.prepare:
            remedy = f"run `{entry.prepare} --overwrite`, which leaves them out"
        coco.require_base_classes(content, index_of, vocabulary, path, remedy)
    records = coco.instance_records(
        content,
        path,
        entry.path(entry.images),
        index_of,
        masks=masks,
        min_side=TRAINING_MIN_SIDE if training else 1,
        # LVIS's URLs say train2017 or val2017, which a "file_name" that others added does not.
        by_url=entry.root is table.ROOTS["LVIS"],
    )
    if not training:
        return records
    entries = content["annotations"]
    annotated = {one["image_id"] for one in entries if one["category_id"] in index_of}
    kept = [record for record in records if record["image_id"] in annotated]
    coco.log_left_out(path, records, kept, "no annotation", logging.INFO)
    return kept


def is_of_whole_images(name: str) -> bool:
    """True for a data set of whole images, as its evaluator_type in Detectron2's catalogue says."""
    return MetadataCatalog.get(name).get("evaluator_type") == table.ImageSet.evaluator


def whole_image_records(name: str) -> tuple[Vocabulary, list[Record]]:
    """Classes and images of a data set with a folder for each class, in the order of the folders.

    Folders are in the order of their names, but "9" comes before "10". Without a vocabulary of the
    data set's own they name the classes ("_" is a blank); where all are WordNet ids of ImageNet-1k, classes have the
    names that open_clip has for them.

    Returns:
        The vocabulary, and records with "file_name", "image_id" (the same path) and "label".

    Raises:
        InputError: as `find_dataset`; no folder of a class, or one without an image; another number of classes than of
            folders.
    """
    from torchvision.datasets.folder import find_classes, make_dataset

    entry = require_files(name, find_dataset(name, table.ImageSet))
    root = entry.path(entry.images)

    def counts(file: str) -> bool:
        hidden = any(part.startswith(".") for part in Path(file).relative_to(root).parts)
        return file.lower().endswith(ENDINGS) and not hidden

    try:
        folders = [name for name in find_classes(root)[0] if not name.startswith(".")]
        folders.sort(key=lambda f: (not f.isdecimal(), f.isdecimal() and int(f), f))
        if not folders:
            raise FileNotFoundError("its folders are all hidden")
        label_of = {folder: label for label, folder in enumerate(folders)}
        files = make_dataset(root, label_of, is_valid_file=counts)
    except FileNotFoundError as error:
        raise InputError(f"{root} has to have a folder of images for each class: {error}") from None
    vocabulary = Vocabulary.load(entry.vocabulary or _named_after(folders, name))
    if len(vocabulary) != len(folders):
        classes = f"{vocabulary.name} has {len(vocabulary)} classes"
        raise InputError(f"{root} has {len(folders)} folders, {classes}: name each folder once")
    keys = "file_name", "image_id", "label"
    return vocabulary, [dict(zip(keys, (file, file, label))) for file, label in files]


def _named_after(folders: Sequence[str], name: str) -> Vocabulary:
    """Classes named as folders, ImageNet's as open_clip names them; two of its names stand for two classes each."""
    known = dict[str, str]()
    if all(re.fullmatch("n[0-9]{8}", folder) for folder in folders):
        from open_clip import IMAGENET_CLASSNAMES
        from timm.data import ImageNetInfo

        known = dict(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True))
    classes = [[known.get(folder, folder.replace("_", " "))] for folder in folders]
    origin = f'the classes of data set "{name}"'
    return Vocabulary.of(classes, name=name, origin=origin, repeats=True)


@no_collection()
def standard_records(name: str, kind: type[table.DataSet] = table.DataSet) -> list[Record]:
    """Records of a data set in Detectron2's standard, for its tools and the mappers of others.

    Args:
        name: of the table; or of a `kind` that is not in it.
        kind: PanopticSet or DetectionSet.

    Category ids are indices into the vocabulary. Those for distillation and regions have all that their file is for.

    Raises:
        InputError: as the function that reads the task's records.
    """
    match table.DATASETS[name] if name in table.DATASETS else find_dataset(name, kind):
        case table.ImageSet():
            return whole_image_records(name)[1]
        case table.SemSegSet():
            return sem_seg_records(name)
        case table.PanopticSet(vocabulary=vocabulary):
            return _standard_segments(panoptic_set_records(name), Vocabulary.load(vocabulary))
        case table.DetectionSet():
            records = detection_records(name, masks=None)
            for record in records:
                record["annotations"] = [_standard_object(entry) for entry in record["annotations"]]
            return records
        case table.CocoSet(content="nouns"):
            return region_text_records([name]).records
        case table.CocoSet(content="captions"):
            return _read(name, coco.caption_records)
    entry = annotated_dataset(name)
    paths = (entry.path(entry.annotations), entry.path(entry.images))
    if not entry.panoptic_root:
        return coco.proposal_records(*paths)
    return coco.panoptic_records(*paths, entry.path(entry.panoptic_root))


def _standard_segments(records: list[Record], vocabulary: Vocabulary) -> list[Record]:
    """The same records, where each segment has its index into the vocabulary as "category_id", and "isthing"."""
    thing = vocabulary.thing.tolist()
    index_of = vocabulary.dataset_id_to_index
    for record in records:
        labels = [index_of[info["category_id"]] for info in record["segments_info"]]
        record["segments_info"] = [
            {**info, "category_id": label, "isthing": thing[label]}
            for info, label in zip(record["segments_info"], labels)
        ]
    return records


def _standard_object(entry: Record) -> Record:
    mask = {"segmentation": entry["segmentation"]} if "segmentation" in entry else {}
    return {
        "bbox": list(entry["bbox"]),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": entry["label"],
        "iscrowd": 0,
        **mask,
    }


def register_datasets() -> None:
    """Adds the table to Detectron2's catalogue, except for names that it has already."""
    known = set(DatasetCatalog.list())
    for name, entry in table.DATASETS.items():
        if name not in known:
            DatasetCatalog.register(name, functools.partial(standard_records, name))
            MetadataCatalog.get(name).set(**entry.metadata())


register_datasets()
