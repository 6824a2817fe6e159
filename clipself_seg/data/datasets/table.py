"""The table of data sets, ``datasets.yaml``: where the files of each lie, how they are read, and how to get them.

First what is known of a root folder, then of a data set of each kind, then the table is read.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import yaml

from clipself_seg.checkpoints.zoo import YAML_LOADER
from clipself_seg.data.annotations import MadeAnnotations
from clipself_seg.data.vocabulary import NamedVocabulary, Vocabulary
from clipself_seg.files import home_expanded

PACKAGE = Path(__file__).resolve().parent.parent.parent
TABLE = PACKAGE / "datasets.yaml"
SHIPPED_WORLD = PACKAGE / "mini" / "world"
"""Folder of the small mini worlds that come with the package."""
SHIPPED = (
    "the small worlds that come with the package, scenes of mini (32 train, 13 val, 12 base) and mini2 (0 train, 13 "
    "val, 0 base)"
)


class DataRoot(NamedTuple):
    """Root folder of a family of data sets.

    Attributes:
        advice: the way to get the files, for messages.
        variable: environment variable that names the folder.
        default: folder where the variable is not set.
        title: name of the family.
        licence: terms of the files as their publisher states them.
        gigabytes: size of what is fetched, as far as it is known; else 0.
    """

    advice: str
    variable: str = "DETECTRON2_DATASETS"
    default: str = "datasets"
    title: str = ""
    licence: str = "not stated"
    gigabytes: float = 0

    @property
    def path(self) -> Path:
        """Folder that the environment names now."""
        folder = os.environ.get(self.variable) or self.default
        return home_expanded(folder, f"set {self.variable} to a path without ~")

    @property
    def shipped(self) -> bool:
        """True where data of the package are read in place of the user's."""
        return self.path == SHIPPED_WORLD


class MiniRoot(DataRoot):
    """Root folder of the mini worlds: of those that were drawn, else of the small ones that come with the package."""

    @property
    def drawn(self) -> Path:
        """Folder of the worlds that are drawn, whether or not it has any yet."""
        return super().path

    @property
    def path(self) -> Path:
        named = os.environ.get(self.variable) or (self.drawn / "mini").is_dir()
        return self.drawn if named else SHIPPED_WORLD


REGISTERED = DataRoot("correct its registration or restore the files", "", "")
"""Root of a data set in Detectron2's catalogue, whose paths are complete."""

IGNORE_LABEL = 255
LABEL_DIVISOR = 1000
TASKS = ("panoptic", "instances", "semantic", "captions")
"""Tasks that a panoptic data set may have files for: three kinds of evaluation, and training on captions."""


class NeededPath(NamedTuple):
    """A file or folder that is read.

    Attributes:
        relative: path relative to the root; "" if the data set has no such file.
        command: command that writes it; "" if it is part of an archive.
        task: the task of `TASKS` that reads it.
        key: its entry in the metadata of Detectron2's catalogue.
    """

    relative: str | MadeAnnotations
    command: str = ""
    task: str = ""
    key: str = ""


@dataclass(frozen=True)
class DataSet:
    """Base of all kinds of data sets. Paths are relative to the root.

    Attributes:
        root: folder of the data set's family, with advice how to get its files.
        images: folder of the images, to which the file names of `annotations` are relative.
        annotations: annotation file, or folder of label maps.
        vocabulary: its vocabulary, or the name of that, for `Vocabulary.load`; "" if it has none here. The
            dataset ids of that are the category ids of an annotation file.
        panoptic_root: folder of the panoptic PNGs that `annotations` then names; "" if there are none.
        evaluator: Detectron2's evaluator_type; None for a data set that is only trained on.
        official_count: number of images of the official split; None where there is none, or it is not certain.
        official_annotations: number of annotations in the official file of COCO's format; None likewise.
        prepare: command that writes the annotations or label maps; "" if they are part of an archive.
        archive: official file or folder that is prepared, where that is not `images`; "" if there is none.

    What a kind says of itself:
        fields: field by entry of a registered data set's metadata in Detectron2's catalogue.
        required: entries that have to be there.
        purpose: its use, in a message.
    """

    fields: ClassVar[Mapping[str, str]]
    required: ClassVar[tuple[str, ...]]
    purpose: ClassVar[str]

    root: DataRoot
    images: str
    annotations: str | MadeAnnotations
    vocabulary: NamedVocabulary = ""
    panoptic_root: str = ""
    evaluator: str | None = None
    official_count: int | None = None
    official_annotations: int | None = None
    prepare: str = ""
    archive: str = ""

    def path(self, relative: str | MadeAnnotations) -> Path:
        """Path on this machine of one of the paths above, with the root that the environment names now."""
        if isinstance(relative, MadeAnnotations):
            return cast(Path, relative)  # is used as one: read, asked whether it exists, and named
        return self.root.path / relative

    def needed(self, tasks: Collection[str] = ()) -> list[NeededPath]:
        """Paths that are read, in the order in which they are unpacked and written.

        Args:
            tasks: tasks of `TASKS` that read more of a panoptic data set; "panoptic" is always among them.
        """
        prepared = [path for path in (self.annotations, self.panoptic_root) if path]
        return [NeededPath(self.images), *(NeededPath(path, self.prepare) for path in prepared)]

    def missing(self, tasks: Collection[str] = ()) -> list[NeededPath]:
        """The needed paths that are not on this machine."""
        return [need for need in self.needed(tasks) if not self.path(need.relative).exists()]

    def advice(self, command: str = "") -> str:
        """The way to get files of the data set, for a message.

        Args:
            command: command that writes them; "" for those of an archive.
        """
        if self.root is REGISTERED:
            return self.root.advice
        where = f"set {self.root.variable} (now {self.root.path}), or: {self.root.advice}"
        if not command or self.root is MINI:  # drawn, not unpacked
            return where
        archive = self.path(self.archive) if self.archive else "the archive"
        return f"run `{command}` once {archive} is there (in a clone of the repository)\nTo get that, {where}"

    def metadata(self) -> dict[str, object]:
        """Metadata in Detectron2's catalogue, of its standard."""
        return {"evaluator_type": self.evaluator}


@dataclass(frozen=True)
class CocoSet(DataSet):
    """A data set in one of COCO's formats, for distillation and for the recognition of regions.

    Attributes:
        content: what the annotations say of an image where they are not panoptic: boxes of objects or proposals, boxes
            whose categories are nouns (see `annotations.read_region_text`), or captions.
    """

    content: Literal["boxes", "nouns", "captions"] = "boxes"


@dataclass(frozen=True)
class ImageSet(DataSet):
    """A folder of whole images with a folder for each class (torchvision's ImageFolder), for their classification.

    Without a vocabulary the folders are called after the classes, see `records.whole_image_records`.
    """

    fields = {"image_root": "images", "vocabulary": "vocabulary"}
    required = ("image_root",)
    purpose = "whole images"

    evaluator: str | None = "whole_images"


@dataclass(frozen=True)
class SemSegSet(DataSet):
    """A data set of images with label maps of the same stem, for semantic segmentation.

    Labels are indices into the vocabulary.

    Attributes:
        ignore_label: value of pixels without ground truth.
        label_values: label by value in the label maps, whose other values are ignored; None where the values are
            labels.
        background: None, or the label of the background: then the classes of the vocabulary from this index on are
            names for background, evaluation counts a prediction of any of them as background and has
            `background` + 1 classes.
        label_suffix: suffix of the label maps; that of images is .jpg.
        images_without_labels: the folder of the images is meant to hold other images, too.
    """

    fields = {
        "image_root": "images",
        "sem_seg_root": "annotations",
        "ignore_label": "ignore_label",
        "vocabulary": "vocabulary",
        "background": "background",
        "label_values": "label_values",
    }
    required = ("vocabulary",)  # the records have whole paths
    purpose = "semantic segmentation"

    ignore_label: int = IGNORE_LABEL
    label_values: Mapping[int, int] | None = None
    background: int | None = None
    label_suffix: str = ".png"
    images_without_labels: bool = False

    def needed(self, tasks: Collection[str] = ()) -> list[NeededPath]:
        paths = self.images, self.annotations
        registered = self.root is REGISTERED
        return [NeededPath(path, self.prepare) for path in paths if path or not registered]

    def metadata(self) -> dict[str, object]:
        classes = list(Vocabulary.load(self.vocabulary).first_names)
        if self.background is not None:
            classes = [*classes[: self.background], "background"]
        return {
            "evaluator_type": "sem_seg" if self.background is None else "sem_seg_background",
            "image_root": str(self.path(self.images)),
            "sem_seg_root": str(self.path(self.annotations)),
            "ignore_label": self.ignore_label,
            "stuff_classes": classes,
        }


@dataclass(frozen=True)
class PanopticSet(DataSet):
    """A data set for panoptic segmentation.

    Attributes:
        sem_seg_root: folder of label maps with indices into the vocabulary, 255 elsewhere, named as the PNGs; "" if
            there are none.
        instances_json: file in COCO's instances format with the same category ids; "" if there is none.
        captions_json: file of captions and their noun phrases, see `annotations.read_phrases`; "" if there is none.
        prepare_sem_seg: command that writes the label maps; "" if they are part of an archive.
        prepare_captions: command that writes the captions; "" if they are part of an archive.
        covered_stuff: the file may list stuff that things cover entirely, as ADE20K's does.
        image_name: name of an image below `images`, with {id} for its id and {city} for the part of that before
            the first "_"; "" where `annotations` has the names.
        label_map_name: name of a label map below `sem_seg_root`, likewise; "" where it is that of the PNG.
        instance_map_name: name of Cityscapes' map of instance ids there, likewise; "" for another data set.
    """

    fields = {
        "image_root": "images",
        "panoptic_json": "annotations",
        "panoptic_root": "panoptic_root",
        "vocabulary": "vocabulary",
        "sem_seg_root": "sem_seg_root",
        "json_file": "instances_json",
        "captions_json": "captions_json",
        "evaluator_type": "evaluator",
    }
    required = ("image_root", "panoptic_root", "vocabulary")
    purpose = "panoptic segmentation"

    evaluator: str | None = "coco_panoptic_seg"
    sem_seg_root: str = ""
    instances_json: str = ""
    captions_json: str = ""
    prepare_sem_seg: str = ""
    prepare_captions: str = ""
    covered_stuff: bool = False
    image_name: str = ""
    label_map_name: str = ""
    instance_map_name: str = ""

    def needed(self, tasks: Collection[str] = ()) -> list[NeededPath]:
        of_tasks = (
            NeededPath(self.instances_json, self.prepare, "instances", "json_file"),
            NeededPath(self.sem_seg_root, self.prepare_sem_seg, "semantic", "sem_seg_root"),
            NeededPath(self.captions_json, self.prepare_captions, "captions", "captions_json"),
        )
        return super().needed() + [need for need in of_tasks if need.task in tasks]

    def metadata(self) -> dict[str, object]:
        """Metadata of Detectron2's panoptic, semantic and instance evaluators.

        Every class is in "stuff_classes", things are in "thing_classes" as well, and both maps lead to indices into
        the vocabulary, which for things in ADE20K are not 0 ... n - 1.
        """
        vocabulary = Vocabulary.load(self.vocabulary)
        index_of = vocabulary.dataset_id_to_index
        things = set(np.flatnonzero(vocabulary.thing).tolist())
        return super().metadata() | {
            "image_root": str(self.path(self.images)),
            "panoptic_root": str(self.path(self.panoptic_root)),
            "panoptic_json": str(self.path(self.annotations)),
            "sem_seg_root": str(self.path(self.sem_seg_root)),
            "json_file": str(self.path(self.instances_json)),
            "ignore_label": IGNORE_LABEL,
            "label_divisor": LABEL_DIVISOR,
            "stuff_classes": list(vocabulary.first_names),
            "thing_classes": [vocabulary.first_names[index] for index in sorted(things)],
            "thing_dataset_id_to_contiguous_id": {
                number: index for number, index in index_of.items() if index in things
            },
            "stuff_dataset_id_to_contiguous_id": dict(index_of),
        }


@dataclass(frozen=True)
class DetectionSet(DataSet):
    """A data set in COCO's instances format, or LVIS's, for open-vocabulary detection.

    One that is only trained on may annotate base classes alone.

    Attributes:
        by_order: the classes are the categories of the file by ascending id, see
            `annotations.category_indices`.
    """

    fields = {
        "image_root": "images",
        "json_file": "annotations",
        "vocabulary": "vocabulary",
        "evaluator_type": "evaluator",
    }
    required = ("image_root", "vocabulary")
    purpose = "detection"

    evaluator: str | None = "coco"
    by_order: bool = False

    def metadata(self) -> dict[str, object]:
        vocabulary = Vocabulary.load(self.vocabulary)
        metadata = super().metadata() | {
            "image_root": str(self.path(self.images)),
            "json_file": str(self.path(self.annotations)),
            "thing_classes": list(vocabulary.first_names),
        }
        if not self.by_order:  # only the file knows its ids
            metadata["thing_dataset_id_to_contiguous_id"] = dict(vocabulary.dataset_id_to_index)
        return metadata


KINDS: dict[str, type[DataSet]] = {
    "regions": CocoSet,
    "whole_images": ImageSet,
    "semantic": SemSegSet,
    "panoptic": PanopticSet,
    "detection": DetectionSet,
}


def _data_set(about: Mapping[str, Any], words: Mapping[str, Any]) -> DataSet:
    """A data set of the file, with words in the place of {WORD}."""
    fields = {key: _filled(value, words) for key, value in about.items()}
    return KINDS[fields.pop("kind")](**fields | {"root": ROOTS[fields["root"]]})


def _filled(value: Any, words: Mapping[str, Any]) -> Any:
    """A value of the file with words in the place of {WORD}; one that is {WORD} alone is the word itself."""
    if not isinstance(value, str):
        return value
    for name, word in words.items():
        if value == (place := f"{{{name}}}"):
            return word
        value = value.replace(place, str(word))
    return value


_TREE = yaml.load(TABLE.read_text(encoding="utf-8"), Loader=YAML_LOADER)


def _gigabytes(archives: list[dict[str, Any]]) -> float:
    sizes = (one.get("size", 0) / 1e9 + one.get("megabytes", 0) / 1e3 for one in archives)
    return round(sum(sizes), 1)


ROOTS: dict[str, DataRoot] = {
    name: (MiniRoot if name in ("MINI", "MINI_REGION_TEXT") else DataRoot)(
        gigabytes=_gigabytes(about.pop("archives", [])), **about
    )
    for name, about in _TREE["roots"].items()
}
COCO, MINI = ROOTS["COCO"], cast(MiniRoot, ROOTS["MINI"])
DATASETS: dict[str, DataSet] = {
    _filled(name, words): _data_set({"root": family.get("root"), **about}, words)
    for family in _TREE["families"]
    for words in family.get("each", [{}])
    for name, about in family["sets"].items()
}
