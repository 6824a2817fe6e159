"""Data sets for panoptic segmentation.

First the table of their files, vocabularies and evaluators, then their records and their entries in
Detectron2's catalogue. Names and folders are Mask2Former's and ODISE's. Files with a command in the
table are written by it from the official archives.

`PANOPTIC_DATASETS` is registered when this module is imported, with records and metadata of
Detectron2's standard: every class is in "stuff_classes", things are in "thing_classes" as well, and
both maps lead to indices into the vocabulary. This project itself reads `panoptic_set_records`, with
the category ids of the file. A data set of your own works under its name if it is registered with
Detectron2's `register_coco_panoptic` or `register_coco_panoptic_separated` and has "vocabulary" in its
metadata.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_seg.data.captions import read_phrases
from clipself_seg.data.datasets.coco import COCO_DATASETS, COUNTS, require_entries
from clipself_seg.data.datasets.roots import ADE_150, CITYSCAPES, COCO, MINI, VISTAS, DataRoot
from clipself_seg.data.records import Record, category_labels, panoptic_records
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.errors import InputError, MissingFiles, nearest

TASKS = ("panoptic", "instances", "semantic", "captions")
"""Tasks that a data set may have files for: three kinds of evaluation, and training on captions."""

METADATA_KEYS = {
    "instances": "json_file",
    "semantic": "sem_seg_root",
    "captions": "captions_json",
}
"""Metadata entry of a data set in Detectron2's catalogue that holds a task's file or folder, by task."""

REGISTERED = DataRoot("", "", "correct its registration or restore the files")
"""Root of a data set in Detectron2's catalogue, whose paths are complete."""

IGNORE_LABEL = 255
LABEL_DIVISOR = 1000


class NeededPath(NamedTuple):
    """A file or folder that a task reads.

    Attributes:
        task: one of `TASKS`.
        relative: path relative to the root; "" if the data set has no such file.
        command: command that writes it; "" if it is part of an archive.
    """

    task: str
    relative: str
    command: str = ""


class PanopticFiles(NamedTuple):
    """Where the files of one data set lie, and how they are read. Paths are relative to the root.

    Attributes:
        root: folder of the data set's family, with advice how to get its files.
        images: folder to which the file names of `panoptic_json` are relative.
        panoptic_json: file in COCO's panoptic format.
        panoptic_root: folder of the PNGs that `panoptic_json` names.
        vocabulary: name of its vocabulary, for `vocabulary.load_vocabulary`; the dataset ids of that
            are the category ids of `panoptic_json`.
        sem_seg_root: folder of label maps with indices into the vocabulary, 255 elsewhere, named as
            the PNGs; "" if there are none.
        instances_json: file in COCO's instances format with the same category ids; "" if there is
            none.
        captions_json: file of captions and their noun phrases, see `captions.py`; "" if there is
            none.
        prepare: command that writes the panoptic files; "" if they are part of an archive.
        prepare_sem_seg: command that writes the label maps; "" if they are part of an archive.
        prepare_captions: command that writes the captions; "" if they are part of an archive.
        evaluator: Detectron2's evaluator_type.
        official_count: number of images of the official split; None where there is no official split.
        covered_stuff: whether the file may list stuff that things cover entirely, as ADE20K's does.
        image_name: name of an image below `images`, with {id} for its id and {city} for the part of that before
            the first "_"; "" where `panoptic_json` has the names.
        label_map_name: name of a label map below `sem_seg_root`, likewise; "" where it is that of the PNG.
        instance_map_name: name of Cityscapes' map of instance ids there, likewise; "" for another data set.
    """

    root: DataRoot
    images: str
    panoptic_json: str
    panoptic_root: str
    vocabulary: str
    sem_seg_root: str = ""
    instances_json: str = ""
    captions_json: str = ""
    prepare: str = ""
    prepare_sem_seg: str = ""
    prepare_captions: str = ""
    evaluator: str = "coco_panoptic_seg"
    official_count: int | None = None
    covered_stuff: bool = False
    image_name: str = ""
    label_map_name: str = ""
    instance_map_name: str = ""

    def path(self, relative: str) -> Path:
        """Path on this machine of one of the paths above, with the root that the environment names now."""
        return self.root.path / relative

    def needed(self, tasks: Collection[str]) -> list[NeededPath]:
        """Paths that some tasks read, in the order in which they are unpacked and written.

        Args:
            tasks: tasks of `TASKS`; "panoptic" is always among them.
        """
        paths = [
            NeededPath("panoptic", self.images),
            NeededPath("panoptic", self.panoptic_json, self.prepare),
            NeededPath("panoptic", self.panoptic_root, self.prepare),
        ]
        others = (
            NeededPath("instances", self.instances_json, self.prepare),
            NeededPath("semantic", self.sem_seg_root, self.prepare_sem_seg),
            NeededPath("captions", self.captions_json, self.prepare_captions),
        )
        return paths + [needed for needed in others if needed.task in tasks]


def _coco(split: str) -> PanopticFiles:
    return PanopticFiles(
        COCO,
        f"coco/{split}2017",
        f"coco/annotations/panoptic_{split}2017.json",
        f"coco/panoptic_{split}2017",
        "openseg_coco_panoptic_133",
        f"coco/panoptic_semseg_{split}2017",
        f"coco/annotations/instances_{split}2017.json",
        f"coco/annotations/panoptic_caption_{split}2017.json",
        prepare_sem_seg=f"clipself-seg data prepare coco_panoptic_semseg --splits {split}2017",
        prepare_captions=f"clipself-seg data prepare coco_captions --splits {split}2017",
        official_count=COUNTS[split],
    )


def _ade(split: str, folder: str, count: int) -> PanopticFiles:
    ade = "ADEChallengeData2016"
    return PanopticFiles(
        ADE_150,
        f"{ade}/images/{folder}",
        f"{ade}/ade20k_panoptic_{split}.json",
        f"{ade}/ade20k_panoptic_{split}",
        "openseg_ade20k_150",
        f"{ade}/annotations_detectron2/{folder}",
        f"{ade}/ade20k_instance_{split}.json",
        prepare=f"clipself-seg data prepare ade20k_panoptic --splits {folder}",
        prepare_sem_seg=f"clipself-seg data prepare ade150 --splits {folder}",
        evaluator="ade20k_panoptic_seg",
        official_count=count,
        covered_stuff=True,
    )


def _cityscapes(split: str, count: int) -> PanopticFiles:
    truth = "cityscapes/gtFine"
    command = f"clipself-seg data prepare cityscapes_panoptic --splits {split}"
    return PanopticFiles(
        CITYSCAPES,
        f"cityscapes/leftImg8bit/{split}",
        f"{truth}/cityscapes_panoptic_{split}.json",
        f"{truth}/cityscapes_panoptic_{split}",
        "openseg_cityscapes_19",
        f"{truth}/{split}",
        f"{truth}/cityscapes_instances_{split}.json",
        prepare=command,
        prepare_sem_seg=command,
        evaluator="cityscapes_panoptic_seg",
        official_count=count,
        # The JSON that cityscapesscripts writes has names that no image has.
        image_name="{city}/{id}_leftImg8bit.png",
        label_map_name="{city}/{id}_gtFine_labelTrainIds.png",
        instance_map_name="{city}/{id}_gtFine_instanceIds.png",
    )


def _vistas(folder: str, count: int) -> PanopticFiles:
    vistas = f"mapillary_vistas/{folder}"
    command = f"clipself-seg data prepare mapillary_vistas --splits {folder}"
    return PanopticFiles(
        VISTAS,
        f"{vistas}/images",
        f"{vistas}/panoptic/panoptic_2018.json",
        f"{vistas}/panoptic",
        "mapillary_vistas_65",
        f"{vistas}/labels_detectron2",
        f"{vistas}/instances_detectron2.json",
        prepare=command,
        prepare_sem_seg=command,
        evaluator="mapillary_vistas_panoptic_seg",
        official_count=count,
        image_name="{id}.jpg",
        label_map_name="{id}.png",
    )


def _mini(world: str, split: str, vocabulary: str) -> PanopticFiles:
    command = "clipself-seg data mini-world"
    return PanopticFiles(
        MINI,
        f"{world}/{split}",
        f"{world}/annotations/panoptic_{split}.json",
        f"{world}/panoptic_{split}",
        vocabulary,
        f"{world}/stuffthingmaps/{split}",
        f"{world}/annotations/instances_{split}.json",
        f"{world}/annotations/captions_{split}.json",
        prepare=command,
        prepare_sem_seg=command,
        prepare_captions=command,
    )


PANOPTIC_DATASETS: dict[str, PanopticFiles] = {
    **{f"coco_2017_{split}_panoptic_with_sem_seg": _coco(split) for split in ("train", "val")},
    "ade20k_panoptic_train": _ade("train", "training", 20210),
    "ade20k_panoptic_val": _ade("val", "validation", 2000),
    # Detectron2's own name, which its catalogue has already, and Mask2Former's.
    "cityscapes_fine_panoptic_train": _cityscapes("train", 2975),
    "cityscapes_fine_panoptic_val": _cityscapes("val", 500),
    "mapillary_vistas_panoptic_train": _vistas("training", 18000),
    "mapillary_vistas_panoptic_val": _vistas("validation", 2000),
    **{
        f"{world}_{split}_panoptic_with_sem_seg": _mini(world, split, world)
        for world in ("mini", "mini2")
        for split in ("train", "val")
    },
    # Images that show seen classes only.
    "mini_train_base_panoptic": _mini("mini", "base", "mini_base"),
}


def panoptic_dataset(name: str) -> PanopticFiles:
    """Files, vocabulary and evaluator of a data set for panoptic segmentation.

    Args:
        name: data set of `PANOPTIC_DATASETS` or of Detectron2's catalogue.

    Raises:
        InputError: the data set is unknown, or its metadata lacks an entry.
    """
    if name in PANOPTIC_DATASETS:
        return PANOPTIC_DATASETS[name]
    metadata = MetadataCatalog.get(name).as_dict() if name in DatasetCatalog.list() else {}
    if name in COCO_DATASETS or not metadata.get("panoptic_json"):
        raise InputError(
            f'no data set "{name}" for panoptic segmentation: {nearest(name, PANOPTIC_DATASETS)}'
        )
    require_entries(name, metadata, ("image_root", "panoptic_root", "vocabulary"))
    return PanopticFiles(
        REGISTERED,
        str(metadata["image_root"]),
        str(metadata["panoptic_json"]),
        str(metadata["panoptic_root"]),
        str(metadata["vocabulary"]),
        str(metadata.get("sem_seg_root") or ""),
        str(metadata.get("json_file") or ""),
        str(metadata.get("captions_json") or ""),
        evaluator=str(metadata.get("evaluator_type") or "coco_panoptic_seg"),
    )


def panoptic_set_records(name: str, tasks: Collection[str] = ("panoptic",)) -> list[Record]:
    """Records of the images of a data set with their segments, in the order of its file.

    Args:
        name: data set of `PANOPTIC_DATASETS` or of Detectron2's catalogue.
        tasks: tasks of `TASKS`; their files have to be there.

    Returns:
        Records with "file_name", "image_id", "pan_seg_file_name", "panoptic_json", "segments_info"
        (category ids as in the file), where the file states them "height" and "width" in pixels, and
        where the data set has label maps "sem_seg_file_name". "covered_stuff" is true where stuff
        without a pixel may be listed; Cityscapes' have "instance_map_file_name". For the task
        "captions": "captions", the noun phrases of each of the image's captions.

    Raises:
        InputError: as `panoptic_dataset`; files are missing (the message names the command that
            writes them) or broken; a category that the vocabulary does not have.
    """
    files = panoptic_dataset(name)
    _check_files(name, files, tasks)
    json_file = files.path(files.panoptic_json)
    records = panoptic_records(json_file, files.path(files.images), files.path(files.panoptic_root))
    index_of = load_vocabulary(files.vocabulary).dataset_id_to_index
    categories = [info["category_id"] for record in records for info in record["segments_info"]]
    category_labels(np.unique(categories), index_of, json_file)
    phrases = read_phrases(files.path(files.captions_json)) if "captions" in tasks else {}
    for record in records:
        if "captions" in tasks:
            record["captions"] = phrases.get(record["image_id"], [])
        record["covered_stuff"] = files.covered_stuff
        if files.image_name:
            name_of_image = _named(files.image_name, record["image_id"])
            record["file_name"] = str(files.path(files.images) / name_of_image)
        if files.sem_seg_root:
            label_map = f"{Path(record['pan_seg_file_name']).stem}.png"
            if files.label_map_name:
                label_map = _named(files.label_map_name, record["image_id"])
            record["sem_seg_file_name"] = str(files.path(files.sem_seg_root) / label_map)
        if files.instance_map_name:
            instance_map = _named(files.instance_map_name, record["image_id"])
            record["instance_map_file_name"] = str(files.path(files.sem_seg_root) / instance_map)
    return records


def _named(pattern: str, image_id: Any) -> str:
    """A pattern of `PanopticFiles` with the id of an image, and its city, put in."""
    city = str(image_id).partition("_")[0]
    return pattern.replace("{city}", city).replace("{id}", str(image_id))


def _check_files(name: str, files: PanopticFiles, tasks: Collection[str]) -> None:
    """Refuse a data set of which a file or folder that some tasks read is missing, and say what to do."""
    for needed in files.needed(tasks):
        if not needed.relative:
            key = METADATA_KEYS[needed.task]
            registered = files.root is REGISTERED
            remedy = f'set MetadataCatalog.get("{name}").{key}' if registered else "do without"
            raise InputError(f'data set "{name}" has no files for "{needed.task}": {remedy}')
        path = files.path(needed.relative)
        if not path.exists():
            raise MissingFiles(
                f'data set "{name}": {path} is missing; {_advice(files, needed.command)}'
            )


def _advice(files: PanopticFiles, command: str) -> str:
    if files.root is REGISTERED:
        return files.root.advice
    where = f"set {files.root.variable} (now {files.root.path}), or: {files.root.advice}"
    if not command:
        return where
    return f"run `{command}` once the archive is unpacked\nTo get that, {where}"


def standard_records(name: str) -> list[Record]:
    """Records of `panoptic_set_records` in Detectron2's standard, for its tools and the mappers of others.

    Every segment has its index into the vocabulary as "category_id", and "isthing".

    Raises:
        InputError: as `panoptic_set_records`.
    """
    records = panoptic_set_records(name)
    vocabulary = load_vocabulary(panoptic_dataset(name).vocabulary)
    thing = vocabulary.thing.tolist()
    index_of = vocabulary.dataset_id_to_index
    for record in records:
        labels = [index_of[info["category_id"]] for info in record["segments_info"]]
        record["segments_info"] = [
            {**info, "category_id": label, "isthing": thing[label]}
            for info, label in zip(record["segments_info"], labels)
        ]
    return records


def register_panoptic_datasets() -> None:
    """Add `PANOPTIC_DATASETS` to Detectron2's catalogue, except for names that it has already."""
    known = set(DatasetCatalog.list())
    for name, files in PANOPTIC_DATASETS.items():
        if name not in known:
            DatasetCatalog.register(name, functools.partial(standard_records, name))
            MetadataCatalog.get(name).set(
                image_root=str(files.path(files.images)),
                panoptic_root=str(files.path(files.panoptic_root)),
                panoptic_json=str(files.path(files.panoptic_json)),
                sem_seg_root=str(files.path(files.sem_seg_root)),
                json_file=str(files.path(files.instances_json)),
                evaluator_type=files.evaluator,
                ignore_label=IGNORE_LABEL,
                label_divisor=LABEL_DIVISOR,
                **class_metadata(load_vocabulary(files.vocabulary)),
            )


def class_metadata(vocabulary: Vocabulary) -> dict[str, list[str] | dict[int, int]]:
    """Metadata of the classes that Detectron2's panoptic, semantic and instance evaluators read.

    Indices of things are those of the vocabulary, which in ADE20K are not 0 ... n - 1.

    Raises:
        InputError: the vocabulary does not say which classes are things.
    """
    index_of = vocabulary.dataset_id_to_index
    things = set(np.flatnonzero(vocabulary.thing).tolist())
    return {
        "stuff_classes": list(vocabulary.names),
        "thing_classes": [vocabulary.names[index] for index in sorted(things)],
        "thing_dataset_id_to_contiguous_id": {
            number: index for number, index in index_of.items() if index in things
        },
        "stuff_dataset_id_to_contiguous_id": dict(index_of),
    }


register_panoptic_datasets()
