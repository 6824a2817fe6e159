"""The data sets in COCO's formats: one table of files, vocabulary and evaluator."""

from __future__ import annotations

from typing import NamedTuple

from clipself_seg.data.datasets.roots import COCO, LVIS, MINI, PROPOSALS, DataRoot

COUNTS = {"train": 118287, "val": 5000}
"""Pictures of COCO's splits of 2017."""


class DatasetFiles(NamedTuple):
    """Where one data set lies and what it is for. Paths are relative to the root.

    Attributes:
        images: folder to which the file names of `annotations` are relative.
        annotations: COCO-format JSON (instances, LVIS, proposals or panoptic).
        panoptic: folder of the panoptic PNGs; then `annotations` is the panoptic JSON.
        vocabulary: name of the class list, for `vocabulary.load_vocabulary`.
        evaluator: Detectron2's evaluator_type; None for what is only trained on.
        official_count: pictures of the official split; None for a data set that has none.
    """

    root: DataRoot
    images: str
    annotations: str
    panoptic: str | None = None
    vocabulary: str | None = None
    evaluator: str | None = None
    official_count: int | None = None


def _coco(split: str) -> dict[str, DatasetFiles]:
    images, words, count = f"coco/{split}2017", "coco_panoptic_133", COUNTS[split]
    return {
        f"coco_2017_{split}": DatasetFiles(
            COCO, images, f"coco/annotations/instances_{split}2017.json", None, None, "coco", count
        ),
        f"coco_2017_{split}_panoptic": DatasetFiles(
            COCO,
            images,
            f"coco/annotations/panoptic_{split}2017.json",
            f"coco/panoptic_{split}2017",
            words,
            "coco_panoptic_seg",
            count,
        ),
    }


def _mini(world: str, split: str) -> dict[str, DatasetFiles]:
    name, images, annotations = (f"{world}_{split}", f"{world}/{split}", f"{world}/annotations")
    return {
        name: DatasetFiles(
            MINI, images, f"{annotations}/instances_{split}.json", None, world, "coco"
        ),
        f"{name}_panoptic": DatasetFiles(
            MINI,
            images,
            f"{annotations}/panoptic_{split}.json",
            f"{world}/panoptic_{split}",
            world,
            "coco_panoptic_seg",
        ),
        f"{name}_proposals": DatasetFiles(MINI, images, f"{annotations}/proposals_{split}.json"),
    }


DATASETS: dict[str, DatasetFiles] = {
    **_coco("train"),
    **_coco("val"),
    "coco_2017_train_proposals": DatasetFiles(
        PROPOSALS,
        "coco/train2017",
        "coco/annotations/coco_proposals.json",
        official_count=COUNTS["train"],
    ),
    # The authors published no proposals for LVIS: boxes of a class-agnostic detector of your own.
    "lvis_v1_train_proposals": DatasetFiles(
        PROPOSALS, "coco/", "lvis/lvis_v1_train_proposals.json", None, None, None, 100170
    ),
    "lvis_v1_train": DatasetFiles(
        LVIS, "coco/", "lvis/lvis_v1_train.json", None, "lvis_v1_1203", "lvis", 100170
    ),
    **_mini("mini", "train"),
    **_mini("mini", "val"),
    **_mini("mini2", "train"),
    **_mini("mini2", "val"),
}
