"""The data sets for panoptic segmentation: one table of files, vocabulary and evaluator.

Names and folders are Mask2Former's and ODISE's. What the names with a prepare command read is
written by that command from the official archives.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from clipself_seg.data.datasets.coco import COUNTS
from clipself_seg.data.datasets.roots import ADE_150, COCO, MINI, DataRoot

TASKS = ("panoptic", "instances", "semantic", "captions")
"""What can be done with a data set: evaluation, and training on captions."""

OWN = DataRoot("", "", "correct its registration or restore the files")
"""Of a data set of Detectron2's catalogue, whose paths are complete."""


class NeededPath(NamedTuple):
    """A file or folder that a task reads.

    Attributes:
        task: of `TASKS`.
        relative: path from the root, "" if the data set has none.
        command: that writes it; "" if it is an archive's own.
    """

    task: str
    relative: str
    command: str = ""


class PanopticFiles(NamedTuple):
    """Where one data set lies and how it is read. Paths are relative to the root.

    Attributes:
        images: folder to which the file names of `panoptic_json` are relative.
        panoptic_json: COCO's panoptic format.
        panoptic_root: folder of the PNGs that it names.
        vocabulary: name of the class list, for `vocabulary.load_vocabulary`; its dataset ids are
            the category ids of the file.
        sem_seg_root: folder of label maps with indices into the vocabulary, 255 elsewhere, named as
            the PNGs; "" if there are none.
        instances_json: COCO's instances format with the same category ids; "" if there is none.
        captions_json: captions and their noun phrases, as `captions.py` writes them; "" likewise.
        prepare: command that writes the panoptic files; "" if they are an archive's own.
        prepare_sem_seg: command that writes the label maps; "" likewise.
        prepare_captions: command that writes the captions; "" likewise.
        evaluator: Detectron2's evaluator_type.
        official_count: pictures of the official split; None for a data set that has none.
        covered_stuff: whether the file may list stuff that things cover entirely, as ADE20K's does.
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

    def path(self, relative: str) -> Path:
        """One of its paths, as the environment says now."""
        return self.root.path / relative

    def needed(self, tasks: Collection[str]) -> list[NeededPath]:
        """What some tasks read, in the order in which it comes to be there.

        Args:
            tasks: of `TASKS`.
        """
        found = [
            NeededPath("panoptic", self.images),
            NeededPath("panoptic", self.panoptic_json, self.prepare),
            NeededPath("panoptic", self.panoptic_root, self.prepare),
        ]
        others = (
            NeededPath("instances", self.instances_json, self.prepare),
            NeededPath("semantic", self.sem_seg_root, self.prepare_sem_seg),
            NeededPath("captions", self.captions_json, self.prepare_captions),
        )
        return found + [needed for needed in others if needed.task in tasks]


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
        prepare_sem_seg=f"python tools/prepare_coco_panoptic_semseg.py --splits {split}2017",
        prepare_captions=f"python tools/prepare_coco_captions.py --splits {split}2017",
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
        prepare=f"python tools/prepare_ade20k_panoptic.py --splits {folder}",
        prepare_sem_seg=f"python tools/prepare_ade150.py --splits {folder}",
        evaluator="ade20k_panoptic_seg",
        official_count=count,
        covered_stuff=True,
    )


def _mini(world: str, split: str, vocabulary: str) -> PanopticFiles:
    command = "python tools/make_mini_world.py"
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
    **{
        f"{world}_{split}_panoptic_with_sem_seg": _mini(world, split, world)
        for world in ("mini", "mini2")
        for split in ("train", "val")
    },
    # Pictures that show no class that training must not show.
    "mini_train_base_panoptic": _mini("mini", "base", "mini_base"),
}
