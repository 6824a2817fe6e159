"""The table of data sets: where the files of each lie, how they are read, and how to get them.

First the root folders of the families, then what is known of a data set of each kind, then the table. Names and folders
are those of Detectron2, CAT-Seg, Mask2Former, ODISE and the published detectors' configurations. Files with a command
in the table are written by it from the official archives.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np

from clipself_seg.data.annotations import MadeAnnotations
from clipself_seg.data.vocabulary import NamedVocabulary, class_entries, load_vocabulary
from clipself_seg.files import home_expanded


class DataRoot(NamedTuple):
    """Root folder of a family of data sets.

    Attributes:
        variable: environment variable that names the folder.
        default: folder where the variable is not set.
        advice: how to get the files, for messages.
    """

    variable: str
    default: str
    advice: str

    @property
    def path(self) -> Path:
        """Folder that the environment names now."""
        folder = os.environ.get(self.variable) or self.default
        return home_expanded(folder, f"set {self.variable} to a path without ~")


class AdeRoot(DataRoot):
    """Root folder of ADE20K's 150 classes, or ODISE's folder `ade` in it if they are only there."""

    @property
    def path(self) -> Path:
        """Folder that holds `ADEChallengeData2016`."""
        return ade_parent(super().path)


def ade_parent(root: Path) -> Path:
    """Folder that holds ADEChallengeData2016: `root` or, if it is only there, its folder `ade`."""
    name = "ADEChallengeData2016"
    prefixed = not (root / name).exists() and (root / "ade" / name).exists()
    return root / "ade" if prefixed else root


def _benchmark(advice: str) -> DataRoot:
    return DataRoot("DETECTRON2_DATASETS", "datasets", advice)


COCO = _benchmark("unpack images and annotations from https://cocodataset.org there")
LVIS = _benchmark("LVIS v1 is at https://www.lvisdataset.org, its images are COCO's")
PROPOSALS = _benchmark(
    "CLIPSelf's authors give coco_proposals.json, clipself-seg train-rpn writes those of an RPN, and "
    "any COCO-format JSON with boxes will do"
)
REGION_TEXT = _benchmark(
    "clipself-seg data region-text writes the nouns of proposals; CLIPSelf's authors give "
    "coco_pseudo_4764.json, and instances in COCO's format are such a file too"
)
OBJECTS365 = _benchmark(
    "Objects365 v1 (v2 has other classes) is at https://www.objects365.org: objects365_val.json and "
    "the folder val go to Objects365v1"
)
COCO_STUFF = _benchmark(
    "train2017.zip and val2017.zip of https://cocodataset.org go to coco-stuff/images, "
    "stuffthingmaps_trainval2017.zip of https://github.com/nightrome/cocostuff to "
    "coco-stuff/annotations"
)
ADE_150 = AdeRoot(
    *_benchmark("unpack ADEChallengeData2016.zip of http://sceneparsing.csail.mit.edu there")
)
ADE_847 = _benchmark(
    "unpack the full data set ADE20K_2021_17_01 of https://ade20k.csail.mit.edu there"
)
CITYSCAPES = _benchmark(
    "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of https://www.cityscapes-dataset.com, "
    "which asks for an account, into the folder cityscapes there"
)
VISTAS = _benchmark(
    "unpack Mapillary Vistas v1.2 of https://www.mapillary.com/dataset/vistas, which asks for an account, into "
    "the folder mapillary_vistas there, so that it has training and validation"
)
PASCAL_CONTEXT = _benchmark(
    "unpack VOCtrainval_03-May-2010.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2010 there, "
    "and PASCAL Context's files into VOCdevkit/VOC2010"
)
VOC_2012 = _benchmark(
    "unpack VOCtrainval_11-May-2012.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2012 there, "
    "and the augmented labels (SBD) as VOCdevkit/VOC2012/SegmentationClassAug"
)
MINI = DataRoot(
    "CLIPSELF_SEG_MINI",
    "output/mini_world",
    "`clipself-seg data mini-world` writes the mini worlds",
)
MINI_REGION_TEXT = MINI._replace(
    advice="clipself-seg data region-text writes it, once `clipself-seg data mini-world` has written the mini worlds"
)
REGISTERED = DataRoot("", "", "correct its registration or restore the files")
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
    """What all kinds of data sets have in common. Paths are relative to the root.

    Attributes:
        root: folder of the data set's family, with advice how to get its files.
        images: folder of the images, to which the file names of `annotations` are relative.
        annotations: annotation file, or folder of label maps.
        vocabulary: its vocabulary, or the name of that, for `vocabulary.load_vocabulary`; "" if it has none here. The
            dataset ids of that are the category ids of an annotation file.
        panoptic_root: folder of the panoptic PNGs that `annotations` then names; "" if there are none.
        evaluator: Detectron2's evaluator_type; None for a data set that is only trained on.
        official_count: number of images of the official split; None where there is none, or it is not certain.
        prepare: command that writes the annotations or label maps; "" if they are part of an archive.
        archive: official file or folder that is prepared, where that is not `images`; "" if there is none.

    What a kind says of itself:
        fields: field by entry of a registered data set's metadata in Detectron2's catalogue.
        required: entries that have to be there.
        purpose: what it is for, in a message.
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
        """Those of the needed paths that are not on this machine."""
        return [need for need in self.needed(tasks) if not self.path(need.relative).exists()]

    def advice(self, command: str = "") -> str:
        """How to get files of the data set, for a message.

        Args:
            command: command that writes them; "" for those of an archive.
        """
        if self.root is REGISTERED:
            return self.root.advice
        where = f"set {self.root.variable} (now {self.root.path}), or: {self.root.advice}"
        if not command or self.root is MINI:  # drawn, not unpacked
            return where
        archive = self.path(self.archive) if self.archive else "the archive"
        return f"run `{command}` once {archive} is there\nTo get that, {where}"

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
        images_without_labels: whether the folder of the images is meant to hold other images, too.
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

    @property
    def prepares_images(self) -> bool:
        """Whether `prepare` writes the images, too."""
        return bool(self.archive)

    def needed(self, tasks: Collection[str] = ()) -> list[NeededPath]:
        paths = self.images, self.annotations
        registered = self.root is REGISTERED
        return [NeededPath(path, self.prepare) for path in paths if path or not registered]

    def label_count(self, vocabulary_size: int) -> int:
        """Number of labels that the maps may hold besides `ignore_label`."""
        return vocabulary_size if self.background is None else self.background + 1

    def metadata(self) -> dict[str, object]:
        classes = [entry["names"][0] for entry in class_entries(self.vocabulary)]
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
        captions_json: file of captions and their noun phrases, see `captions.py`; "" if there is none.
        prepare_sem_seg: command that writes the label maps; "" if they are part of an archive.
        prepare_captions: command that writes the captions; "" if they are part of an archive.
        covered_stuff: whether the file may list stuff that things cover entirely, as ADE20K's does.
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
        vocabulary = load_vocabulary(self.vocabulary)
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
            "stuff_classes": list(vocabulary.names),
            "thing_classes": [vocabulary.names[index] for index in sorted(things)],
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
        from_urls: whether file names follow from "coco_url", as in LVIS.
        by_order: whether the classes are the categories of the file by ascending id, see
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
    from_urls: bool = False
    by_order: bool = False

    def metadata(self) -> dict[str, object]:
        vocabulary = load_vocabulary(self.vocabulary)
        metadata = super().metadata() | {
            "image_root": str(self.path(self.images)),
            "json_file": str(self.path(self.annotations)),
            "thing_classes": list(vocabulary.names),
        }
        if not self.by_order:  # only the file knows its ids
            metadata["thing_dataset_id_to_contiguous_id"] = dict(vocabulary.dataset_id_to_index)
        return metadata


COUNTS = {"train": 118287, "val": 5000}
"""Number of images of COCO's splits of 2017."""

PREPARE = "clipself-seg data prepare"
WRITE_MINI = "clipself-seg data mini-world"
WRITE_FADED = "python -m clipself_seg.mini.faded"


def _coco(split: str) -> dict[str, DataSet]:
    images, count = f"coco/{split}2017", COUNTS[split]
    instances, panoptic, captions = (
        f"coco/annotations/{kind}_{split}2017.json"
        for kind in ("instances", "panoptic", "panoptic_caption")
    )
    pngs = f"coco/panoptic_{split}2017"
    return {
        f"coco_2017_{split}": CocoSet(
            COCO, images, instances, evaluator="coco", official_count=count
        ),
        f"coco_2017_{split}_panoptic": CocoSet(
            *(COCO, images, panoptic, "coco_panoptic_133", pngs),
            evaluator="coco_panoptic_seg",
            official_count=count,
        ),
        f"coco_2017_{split}_panoptic_with_sem_seg": PanopticSet(
            *(COCO, images, panoptic, "openseg_coco_panoptic_133", pngs),
            sem_seg_root=f"coco/panoptic_semseg_{split}2017",
            instances_json=instances,
            captions_json=captions,
            prepare_sem_seg=f"{PREPARE} coco_panoptic_semseg --splits {split}2017",
            prepare_captions=f"{PREPARE} coco_captions --splits {split}2017",
            official_count=count,
        ),
    }


def _ov_coco(split: str, file: str, evaluator: str | None) -> DetectionSet:
    return DetectionSet(
        *(COCO, f"coco/{split}2017", f"coco/zero-shot/{file}", "ov_coco_65"),
        evaluator=evaluator,
        archive=f"coco/annotations/instances_{split}2017.json",
        prepare=f"{PREPARE} ov_coco --splits {split}2017",
    )


def _coco_stuff(split: str) -> SemSegSet:
    labels = f"coco-stuff/annotations_detectron2/{split}2017"
    return SemSegSet(
        *(COCO_STUFF, f"coco-stuff/images/{split}2017", labels, "coco_stuff_171"),
        prepare=f"{PREPARE} coco_stuff --splits {split}2017",
        official_count=COUNTS[split],
    )


def _context(classes: int, suffix: str, ignore_label: int) -> SemSegSet:
    labels = f"VOCdevkit/VOC2010/annotations_detectron2/pc{classes}_val"
    vocabulary = f"pascal_context_{classes}"
    return SemSegSet(
        *(PASCAL_CONTEXT, "VOCdevkit/VOC2010/JPEGImages", labels, vocabulary),
        ignore_label=ignore_label,
        label_suffix=suffix,
        prepare=f"{PREPARE} {vocabulary}",
        images_without_labels=True,
        official_count=5104,
    )


def _voc(labels: str, vocabulary: str, background: int | None = None) -> SemSegSet:
    return SemSegSet(
        *(VOC_2012, "VOCdevkit/VOC2012/JPEGImages", f"VOCdevkit/VOC2012/{labels}/val", vocabulary),
        background=background,
        prepare=f"{PREPARE} voc20",
        images_without_labels=True,
        official_count=1449,
    )


def _ade(split: str, folder: str, count: int) -> PanopticSet:
    ade = "ADEChallengeData2016"
    pngs = f"{ade}/ade20k_panoptic_{split}"
    return PanopticSet(
        *(ADE_150, f"{ade}/images/{folder}", f"{pngs}.json", "openseg_ade20k_150", pngs),
        sem_seg_root=f"{ade}/annotations_detectron2/{folder}",
        instances_json=f"{ade}/ade20k_instance_{split}.json",
        prepare=f"{PREPARE} ade20k_panoptic --splits {folder}",
        prepare_sem_seg=f"{PREPARE} ade150 --splits {folder}",
        evaluator="ade20k_panoptic_seg",
        official_count=count,
        covered_stuff=True,
    )


def _cityscapes(split: str, count: int) -> PanopticSet:
    images, truth = f"cityscapes/leftImg8bit/{split}", "cityscapes/gtFine"
    pngs = f"{truth}/cityscapes_panoptic_{split}"
    command = f"{PREPARE} cityscapes_panoptic --splits {split}"
    return PanopticSet(
        *(CITYSCAPES, images, f"{pngs}.json", "openseg_cityscapes_19", pngs),
        sem_seg_root=f"{truth}/{split}",
        instances_json=f"{truth}/cityscapes_instances_{split}.json",
        prepare=command,
        prepare_sem_seg=command,
        evaluator="cityscapes_panoptic_seg",
        official_count=count,
        # The JSON that cityscapesscripts writes has names that no image has.
        image_name="{city}/{id}_leftImg8bit.png",
        label_map_name="{city}/{id}_gtFine_labelTrainIds.png",
        instance_map_name="{city}/{id}_gtFine_instanceIds.png",
    )


def _vistas(folder: str, count: int) -> PanopticSet:
    vistas = f"mapillary_vistas/{folder}"
    pngs = f"{vistas}/panoptic"
    command = f"{PREPARE} mapillary_vistas --splits {folder}"
    return PanopticSet(
        *(VISTAS, f"{vistas}/images", f"{pngs}/panoptic_2018.json", "mapillary_vistas_65", pngs),
        sem_seg_root=f"{vistas}/labels_detectron2",
        instances_json=f"{vistas}/instances_detectron2.json",
        prepare=command,
        prepare_sem_seg=command,
        evaluator="mapillary_vistas_panoptic_seg",
        official_count=count,
        image_name="{id}.jpg",
        label_map_name="{id}.png",
    )


def _mini(world: str, split: str) -> dict[str, DataSet]:
    images, pngs = f"{world}/{split}", f"{world}/panoptic_{split}"
    instances, panoptic, captions, proposals = (
        f"{world}/annotations/{kind}_{split}.json"
        for kind in ("instances", "panoptic", "captions", "proposals")
    )
    return {
        f"{world}_{split}": CocoSet(MINI, images, instances, world, evaluator="coco"),
        f"{world}_{split}_panoptic": CocoSet(
            MINI, images, panoptic, world, pngs, evaluator="coco_panoptic_seg"
        ),
        f"{world}_{split}_proposals": CocoSet(MINI, images, proposals),
        f"{world}_{split}_captions": CocoSet(MINI, images, captions, content="captions"),
        f"{world}_{split}_sem_seg": _mini_sem_seg(world, split, split, world),
        f"{world}_{split}_panoptic_with_sem_seg": _mini_panoptic(world, split, world),
    }


def _mini_sem_seg(
    world: str, images: str, labels: str, vocabulary: str, **further: Any
) -> SemSegSet:
    folder = f"{world}/stuffthingmaps/{labels}"
    return SemSegSet(MINI, f"{world}/{images}", folder, vocabulary, prepare=WRITE_MINI, **further)


def _mini_panoptic(world: str, split: str, vocabulary: str) -> PanopticSet:
    panoptic, pngs = f"{world}/annotations/panoptic_{split}.json", f"{world}/panoptic_{split}"
    return PanopticSet(
        *(MINI, f"{world}/{split}", panoptic, vocabulary, pngs),
        sem_seg_root=f"{world}/stuffthingmaps/{split}",
        instances_json=f"{world}/annotations/instances_{split}.json",
        captions_json=f"{world}/annotations/captions_{split}.json",
        prepare=WRITE_MINI,
        prepare_sem_seg=WRITE_MINI,
        prepare_captions=WRITE_MINI,
    )


def _mini_boxes(world: str, split: str, evaluator: str | None = "coco") -> DetectionSet:
    instances = f"{world}/annotations/instances_{split}.json"
    return DetectionSet(MINI, f"{world}/{split}", instances, f"{world}_things", evaluator=evaluator)


def _faded(split: str, evaluator: str | None) -> dict[str, DataSet]:
    """Ten classes of mini on photographs of faded colours, which stand for a user's own data."""
    images, labels = f"faded/{split}", f"faded/stuffthingmaps/{split}"
    instances, prepare = f"faded/annotations/instances_{split}.json", WRITE_FADED
    return {
        f"mini_faded_{split}_sem_seg": SemSegSet(MINI, images, labels, "mini_ten", prepare=prepare),
        f"mini_faded_{split}_boxes": DetectionSet(
            *(MINI, images, instances, "mini_ten"), evaluator=evaluator, prepare=prepare
        ),
    }


MINI_SHAPES = 6
# Class among the shapes and textures of each class of mini: 36 things, six colours of one shape side by side, and 8
# textures.
MINI_SMALL = {label: label // 6 if label < 36 else label - 30 for label in range(44)}

DATASETS: dict[str, DataSet] = {
    **_coco("train"),
    **_coco("val"),
    "coco_2017_train_proposals": CocoSet(
        *(PROPOSALS, "coco/train2017", "coco/annotations/coco_proposals.json"),
        official_count=COUNTS["train"],
    ),
    "coco_2017_train_captions": CocoSet(
        *(COCO, "coco/train2017", "coco/annotations/captions_train2017.json"),
        content="captions",
        official_count=COUNTS["train"],
    ),
    "coco_2017_train_region_text": CocoSet(
        REGION_TEXT, "coco/train2017", "coco/annotations/coco_pseudo_4764.json", content="nouns"
    ),
    # The authors published no proposals for LVIS: boxes of a class-agnostic detector of your own.
    "lvis_v1_train_proposals": CocoSet(
        PROPOSALS, "coco/", "lvis/lvis_v1_train_proposals.json", official_count=100170
    ),
    "lvis_v1_train": CocoSet(
        *(LVIS, "coco/", "lvis/lvis_v1_train.json", "lvis_v1_1203"),
        evaluator="lvis",
        official_count=100170,
    ),
    "ov_coco_train": _ov_coco("train", "instances_train2017_seen_2_65_cat.json", None),
    "ov_coco_val": _ov_coco("val", "instances_val2017_all_2.json", "coco"),
    "ov_lvis_train": DetectionSet(
        *(LVIS, "coco/", "lvis/lvis_v1_train_seen_1203_cat.json", "lvis_v1_1203"),
        evaluator=None,
        archive="lvis/lvis_v1_train.json",
        prepare=f"{PREPARE} ov_lvis",
        from_urls=True,
        official_count=100170,
    ),
    "ov_lvis_val": DetectionSet(
        *(LVIS, "coco/", "lvis/lvis_v1_val.json", "lvis_v1_1203"),
        evaluator="lvis",
        from_urls=True,
        official_count=19809,
    ),
    "transfer_coco_val": DetectionSet(
        *(COCO, "coco/val2017", "coco/annotations/instances_val2017.json", "coco_80"),
        official_count=COUNTS["val"],
    ),
    "transfer_objects365_val": DetectionSet(
        *(OBJECTS365, "Objects365v1/val", "Objects365v1/objects365_reorder_val.json"),
        vocabulary="objects365_v1",
        archive="Objects365v1/objects365_val.json",
        prepare=f"{PREPARE} objects365",
        by_order=True,
    ),
    "coco_2017_train_stuff_all_sem_seg": _coco_stuff("train"),
    "coco_2017_test_stuff_all_sem_seg": _coco_stuff("val"),
    "ade20k_150_test_sem_seg": SemSegSet(
        ADE_150,
        "ADEChallengeData2016/images/validation",
        "ADEChallengeData2016/annotations_detectron2/validation",
        "ade20k_150",
        prepare=f"{PREPARE} ade150",
        official_count=2000,
    ),
    "ade20k_full_sem_seg_freq_val_all": SemSegSet(
        ADE_847,
        "ADE20K_2021_17_01/images_detectron2/validation",
        "ADE20K_2021_17_01/annotations_detectron2/validation",
        "ade20k_847",
        ignore_label=65535,
        label_suffix=".tif",
        archive="ADE20K_2021_17_01/images/ADE/validation",
        prepare=f"{PREPARE} ade847",
        official_count=2000,
    ),
    "context_59_test_sem_seg": _context(59, ".png", 255),
    "context_459_test_sem_seg": _context(459, ".tif", 459),
    "voc_2012_test_sem_seg": _voc("annotations_detectron2", "voc_20"),
    "voc_2012_test_background_sem_seg": _voc("annotations_detectron2_bg", "voc_20b_prompts", 20),
    "ade20k_panoptic_train": _ade("train", "training", 20210),
    "ade20k_panoptic_val": _ade("val", "validation", 2000),
    # Detectron2's own name, which its catalogue has already, and Mask2Former's.
    "cityscapes_fine_panoptic_train": _cityscapes("train", 2975),
    "cityscapes_fine_panoptic_val": _cityscapes("val", 500),
    "mapillary_vistas_panoptic_train": _vistas("training", 18000),
    "mapillary_vistas_panoptic_val": _vistas("validation", 2000),
    **_mini("mini", "train"),
    **_mini("mini", "val"),
    **_mini("mini2", "train"),
    **_mini("mini2", "val"),
    "mini_train_region_text": CocoSet(
        *(MINI_REGION_TEXT, "mini/train", "mini/annotations/region_text_train.json"),
        content="nouns",
    ),
    # Boxes of an RPN, see docs/detection.md; mini_train_proposals has those that the world came with.
    "mini_train_rpn_proposals": CocoSet(
        MINI, "mini/train", "mini/annotations/rpn_proposals_train.json"
    ),
    # Classes as in ADE20K-847, which are mostly absent; PASCAL Context-59, few; and VOC, objects before a background.
    "mini_val_large_sem_seg": _mini_sem_seg("mini", "val", "val", "mini_large"),
    "mini_val_small_sem_seg": _mini_sem_seg(
        *("mini", "val", "val", "mini_small"), label_values=MINI_SMALL
    ),
    "mini_val_background_sem_seg": _mini_sem_seg(
        *("mini", "val", "val", "mini_small"),
        label_values={value: min(label, MINI_SHAPES) for value, label in MINI_SMALL.items()},
        background=MINI_SHAPES,
    ),
    # Pixels of unseen classes are ignored, so that training does not show them.
    "mini_train_base_sem_seg": _mini_sem_seg("mini", "train", "train_base", "mini_base"),
    # Images that show seen classes only; those of the split val show all.
    "mini_train_base_panoptic": _mini_panoptic("mini", "base", "mini_base"),
    "mini_base_boxes": _mini_boxes("mini", "base", None),
    "mini_val_boxes": _mini_boxes("mini", "val"),
    "mini2_val_boxes": _mini_boxes("mini2", "val"),
    **_faded("train", None),
    **_faded("val", "coco"),
}
