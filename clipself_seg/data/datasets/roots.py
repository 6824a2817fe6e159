"""Root folders of the families of data sets, and advice how to get the files of each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

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
    "CLIPSelf's authors give coco_proposals.json, clipself-seg tools train-rpn writes those of an RPN, and "
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
