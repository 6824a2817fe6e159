"""Label maps, annotation files and captions in training layout, made from the archives of data sets.

    clipself-seg data prepare NAME

A function for each data set; its docstring is the help text of its command.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clipself_seg.errors import GOES_ON, InputError, after_interrupt, nearest, report_input_errors
from clipself_seg.files import home_expanded

if TYPE_CHECKING:
    from clipself_seg.data.prepare.common import Options, Prepared

COCO = ("train2017", "val2017")
ADE = ("training", "validation")
CITYSCAPES = ("train", "val")
Prepare = Callable[["Options", argparse.Namespace], "list[Prepared]"]


class Preparation(NamedTuple):
    """What is special to the command of one data set.

    Attributes:
        prepare: is given the options that all commands have, and the whole command line; its
            docstring is the help text.
        splits: values of --splits; without any there is no such option.
        default: the splits that are prepared unless others are named; () is all.
        more: adds the options that the command has for itself.
    """

    prepare: Prepare
    splits: tuple[str, ...] = ()
    default: tuple[str, ...] = ()
    more: Callable[[argparse.ArgumentParser], object] | None = None


def coco_stuff(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Label maps of COCO-Stuff's 171 classes.

        clipself-seg data prepare coco_stuff
        clipself-seg data prepare coco_stuff --root /data/datasets --processes 8 --splits val2017

    Reads coco-stuff/annotations/{train2017,val2017}, the PNGs of stuffthingmaps_trainval2017.zip,
    and writes coco-stuff/annotations_detectron2.
    What is there already is kept; an interrupted run is completed by the next.
    """
    from clipself_seg.data.prepare.coco_stuff import prepare_coco_stuff

    return prepare_coco_stuff(options, args.splits)


def coco_panoptic_semseg(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Label maps of COCO's 133 panoptic classes, for the mean IoU of panoptic segmentation.

        clipself-seg data prepare coco_panoptic_semseg
        clipself-seg data prepare coco_panoptic_semseg --root /data/datasets --processes 8 --splits val2017

    Reads coco/annotations/panoptic_{train2017,val2017}.json and coco/panoptic_{train2017,val2017},
    and writes coco/panoptic_semseg_{train2017,val2017}.
    What is there already is kept; an interrupted run is completed by the next.
    """
    from clipself_seg.data.prepare.coco_panoptic_semseg import prepare_coco_panoptic_semseg

    return prepare_coco_panoptic_semseg(options, args.splits)


def coco_captions(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Noun phrases of COCO's captions, for training the caption model.

        clipself-seg data prepare coco_captions
        clipself-seg data prepare coco_captions --root /data/datasets --processes 8 --splits train2017

    Reads coco/annotations/captions_{train2017,val2017}.json and writes
    coco/annotations/panoptic_caption_{train2017,val2017}.json. It needs the package nltk and its
    English tagger: pip install nltk; python -m nltk.downloader averaged_perceptron_tagger_eng
    What is there already is kept.
    """
    from clipself_seg.data.prepare.coco_captions import prepare_coco_captions

    return prepare_coco_captions(options, args.splits)


def ade150(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Label maps of ADE20K's 150 classes.

        clipself-seg data prepare ade150
        clipself-seg data prepare ade150 --root /data/datasets --processes 8

    Reads ADEChallengeData2016/annotations and writes ADEChallengeData2016/annotations_detectron2.
    What is there already is kept; an interrupted run is completed by the next.
    """
    from clipself_seg.data.prepare.ade import prepare_ade150

    return prepare_ade150(options, args.splits)


def ade847(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Images and label maps of ADE20K's 847 classes.

        clipself-seg data prepare ade847
        clipself-seg data prepare ade847 --root /data/datasets --processes 8

    Reads ADE20K_2021_17_01/images/ADE (its index_ade20k.pkl is not needed) and writes
    images_detectron2 and annotations_detectron2 beside it.
    What is there already is kept; an interrupted run is completed by the next.
    """
    from clipself_seg.data.prepare.ade import prepare_ade847

    return prepare_ade847(options, args.splits, args.jpeg_quality)


def _add_quality(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--jpeg-quality",
        type=int,
        default=75,
        help="of the images, 1 to 100 (75, as published; the results.json of an evaluation names it)",
    )


def _add_areas(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--clean-areas",
        action="store_true",
        help="state the areas that stuff has in the end, which gives another panoptic quality",
    )


def ade20k_panoptic(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Panoptic and instance labels of ADE20K's 150 classes.

        clipself-seg data prepare ade20k_panoptic
        clipself-seg data prepare ade20k_panoptic --root /data/datasets --processes 8 --splits validation

    Reads images, annotations and annotations_instance of ADEChallengeData2016 and writes beside them
    ade20k_panoptic_{train,val}, its JSON and ade20k_instance_{train,val}.json. As in the files that
    published numbers come from, areas of stuff are those before things are pasted over it.
    What is there already is kept; an interrupted run is completed by the next.
    """
    from clipself_seg.data.prepare.ade_panoptic import prepare_ade_panoptic

    return prepare_ade_panoptic(options, args.splits, args.clean_areas)


def cityscapes_panoptic(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Panoptic and instance labels and label maps of Cityscapes' 19 classes.

        clipself-seg data prepare cityscapes_panoptic
        clipself-seg data prepare cityscapes_panoptic --root /data/datasets --processes 8 --splits val

    Reads cityscapes/leftImg8bit and cityscapes/gtFine ({instanceIds,labelIds}.png) and writes
    cityscapes/gtFine/cityscapes_panoptic_{train,val}, its JSON and cityscapes_instances_{train,val}.json, and
    labelTrainIds.png beside the archive's. Panoptic files that cityscapesscripts wrote are kept.
    What is there already is kept; an interrupted run is completed by the next.
    """
    from clipself_seg.data.prepare.cityscapes import prepare_cityscapes

    return prepare_cityscapes(options, args.splits)


def mapillary_vistas(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Panoptic and instance labels and label maps of Mapillary Vistas v1.2, 65 classes.

        clipself-seg data prepare mapillary_vistas
        clipself-seg data prepare mapillary_vistas --root /data/datasets --processes 8 --splits validation

    Reads images, labels and panoptic of mapillary_vistas/{training,validation} and writes labels_detectron2 and
    instances_detectron2.json beside them; without the archive's panoptic/panoptic_2018.json, panoptic is made of
    the folder instances.
    What is there already is kept; an interrupted run is completed by the next.
    """
    from clipself_seg.data.prepare.vistas import prepare_vistas

    return prepare_vistas(options, args.splits)


def pascal_context_59(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Label maps of PASCAL Context's 59 frequent classes.

        clipself-seg data prepare pascal_context_59
        clipself-seg data prepare pascal_context_59 --root /data/datasets --processes 8

    Reads VOCdevkit/VOC2010/trainval_merged.json and writes annotations_detectron2/pc59_val beside it.
    The JSON is read whole, which takes some gigabytes of memory.
    What is there already is kept; an interrupted run is completed by the next.
    """
    from clipself_seg.data.prepare.pascal_context import prepare_pascal_context_59

    return prepare_pascal_context_59(options)


def _add_list(options: argparse.ArgumentParser) -> None:
    options.add_argument("--list", type=Path, help="file with names of images, instead of that one")


def pascal_context_459(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Label maps of all 459 classes of PASCAL Context.

        clipself-seg data prepare pascal_context_459
        clipself-seg data prepare pascal_context_459 --root /data/datasets --processes 8

    Reads VOCdevkit/VOC2010/trainval/*.mat for the names in VOCdevkit/VOC2010/pascalcontext_val.txt
    and writes annotations_detectron2/pc459_val beside them.
    What is there already is kept; an interrupted run is completed by the next.
    """
    from clipself_seg.data.prepare.pascal_context import prepare_pascal_context_459

    return prepare_pascal_context_459(options, args.list)


def voc20(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Label maps of PASCAL VOC 2012: VOC-20 without background, and VOC-20b with it.

        clipself-seg data prepare voc20
        clipself-seg data prepare voc20 --root /data/datasets --processes 8

    Reads VOCdevkit/VOC2012/SegmentationClassAug for the names in ImageSets/Segmentation/val.txt and
    writes annotations_detectron2/val and annotations_detectron2_bg/val.
    What is there already is kept; an interrupted run is completed by the next.
    """
    from clipself_seg.data.prepare.voc import prepare_voc20

    return prepare_voc20(options)


def ov_coco(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Annotations of OV-COCO: 48 base classes to train on, with 17 novel ones to evaluate.

        clipself-seg data prepare ov_coco
        clipself-seg data prepare ov_coco --root /data/datasets --splits val2017

    Reads coco/annotations/instances_{train2017,val2017}.json and writes
    coco/zero-shot/instances_train2017_seen_2_65_cat.json and instances_val2017_all_2.json. Counts are
    printed beside the published ones.
    What is there already is kept.
    """
    from clipself_seg.data.prepare.ov_coco import prepare_ov_coco

    return prepare_ov_coco(options, args.splits)


def ov_lvis(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Annotations of OV-LVIS to train on: LVIS v1 without those of its 337 rare classes.

        clipself-seg data prepare ov_lvis
        clipself-seg data prepare ov_lvis --root /data/datasets

    Reads lvis/lvis_v1_train.json and writes lvis/lvis_v1_train_seen_1203_cat.json; the file is read
    whole, which takes some gigabytes of memory. Evaluation reads LVIS's own lvis_v1_val.json.
    What is there already is kept.
    """
    from clipself_seg.data.prepare.ov_lvis import prepare_ov_lvis

    return prepare_ov_lvis(options)


def objects365(options: Options, args: argparse.Namespace) -> list[Prepared]:
    """Annotations of Objects365 v1 with its categories in the order of their ids.

        clipself-seg data prepare objects365
        clipself-seg data prepare objects365 --root /data/datasets

    Reads Objects365v1/objects365_val.json and writes objects365_reorder_val.json beside it. The names
    have to be those of v1; v2 has others.
    What is there already is kept.
    """
    from clipself_seg.data.prepare.objects365 import prepare_objects365

    return prepare_objects365(options)


PREPARATIONS = {
    "coco_stuff": Preparation(coco_stuff, splits=COCO),
    "coco_panoptic_semseg": Preparation(coco_panoptic_semseg, splits=COCO),
    "coco_captions": Preparation(coco_captions, splits=COCO),
    "ade150": Preparation(ade150, splits=ADE, default=("validation",)),
    "ade847": Preparation(ade847, splits=ADE, default=("validation",), more=_add_quality),
    "ade20k_panoptic": Preparation(ade20k_panoptic, splits=ADE, more=_add_areas),
    "cityscapes_panoptic": Preparation(cityscapes_panoptic, splits=CITYSCAPES),
    "mapillary_vistas": Preparation(mapillary_vistas, splits=ADE, default=("validation",)),
    "pascal_context_59": Preparation(pascal_context_59),
    "pascal_context_459": Preparation(pascal_context_459, more=_add_list),
    "voc20": Preparation(voc20),
    "ov_coco": Preparation(ov_coco, splits=COCO),
    "ov_lvis": Preparation(ov_lvis),
    "objects365": Preparation(objects365),
}


def parser(data_set: str) -> argparse.ArgumentParser:
    """The command line of one data set: a key of `PREPARATIONS`."""
    special = PREPARATIONS[data_set]
    options = argparse.ArgumentParser(
        description=inspect.getdoc(special.prepare),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root = os.environ.get("DETECTRON2_DATASETS") or "datasets"
    options.add_argument(
        "--root", default=root, help=f"folder of the data sets, $DETECTRON2_DATASETS ({root})"
    )
    options.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="to work in (one a core)"
    )
    options.add_argument(
        "--overwrite", action="store_true", help="write files again that are there already"
    )
    if special.splits:
        chosen = list(special.default or special.splits)
        options.add_argument(
            "--splits",
            nargs="+",
            default=chosen,
            choices=special.splits,
            help=f"to prepare ({' '.join(chosen)})",
        )
    if special.more is not None:
        special.more(options)
    return options


@report_input_errors
@after_interrupt(f"{GOES_ON}, unless it says --overwrite")
def main(data_set: str, arguments: list[str] | None = None) -> None:
    """Prepare one data set, a key of `PREPARATIONS`, and say what was done."""
    args = parser(data_set).parse_args(arguments)
    if args.processes < 1:
        raise InputError(f"--processes {args.processes}: at least 1 is needed")
    from clipself_seg.data.prepare.common import Options

    options = Options(
        home_expanded(args.root, "give --root without ~"), args.processes, args.overwrite
    )
    for done in PREPARATIONS[data_set].prepare(options, args):
        sys.stdout.write(f"{done}\n")


@report_input_errors
def by_name(arguments: list[str] | None = None) -> int:
    """`main` of the data set that the first word of a command line names.

    Raises:
        InputError: it names none.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] in ([], ["-h"], ["--help"]):
        summaries = {name: _summary(name) for name in PREPARATIONS}
        lines = [f"  {name:{max(map(len, summaries))}}  {text}" for name, text in summaries.items()]
        sys.stdout.write(
            "\n".join(["usage: clipself-seg data prepare NAME [options]", "", *lines, ""])
        )
        return 0 if words else 2
    if words[0] not in PREPARATIONS:
        raise InputError(f'no data set "{words[0]}" to prepare; {nearest(words[0], PREPARATIONS)}')
    sys.argv[0] = f"{sys.argv[0]} {words[0]}"
    return main(words[0], words[1:])


def _summary(data_set: str) -> str:
    return str(inspect.getdoc(PREPARATIONS[data_set].prepare)).partition("\n")[0]
