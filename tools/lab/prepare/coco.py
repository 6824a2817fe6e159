"""COCO: label maps of COCO-Stuff and of the panoptic classes, and the noun phrases of captions."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipself_seg.data.annotations import (
    ID,
    Record,
    category_labels,
    coco_list,
    panoptic_records,
    read_coco_json,
)
from clipself_seg.data.datasets.table import COCO, ROOTS
from clipself_seg.data.masks import read_indices, read_panoptic_ids
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import atomic_path
from clipself_seg.schema import TEXT, Schema
from lab.prepare.common import (
    MapJob,
    Options,
    Prepared,
    convert_files,
    lookup_table,
    preparation,
    require,
    save_png,
    split_jobs,
)
from lab.prepare.nouns import add_phrases, noun_phrases, tagged_captions

SPLITS = ("train2017", "val2017")
IGNORED = 255


@preparation("coco_stuff", SPLITS)
def prepare_coco_stuff(options: Options, splits: Sequence[str] = SPLITS) -> list[Prepared]:
    """Label maps of COCO-Stuff's 171 classes.

        python tools/prepare.py coco_stuff
        python tools/prepare.py coco_stuff --root /data/datasets --processes 8 --splits val2017

    Reads coco-stuff/annotations/{train2017,val2017}, the PNGs of stuffthingmaps_trainval2017.zip,
    and writes coco-stuff/annotations_detectron2.
    What is there already is kept; an interrupted run is completed by the next.
    """
    return [
        convert_files(_convert_stuff, coco_stuff_jobs(options.root, s), options) for s in splits
    ]


def coco_stuff_jobs(root: Path, split: str) -> list[MapJob]:
    """Jobs of `prepare_coco_stuff` for a split.

    Raises:
        InputError: the archive is not there.
    """
    return split_jobs(root / "coco-stuff", split, ROOTS["COCO_STUFF"])


def _convert_stuff(job: MapJob) -> bool:
    values = read_indices(job.source)
    if values.dtype != np.uint8:
        raise InputError(f"{job.source} is not one of the archive's 8-bit maps: unpack it again")
    save_png(job.target, _stuff_table()[values])
    return True


@functools.cache
def _stuff_table() -> np.ndarray:
    # A pixel is the official category id less 1; ids that no class has, and 255, are ignored.
    index_of = Vocabulary.load("coco_stuff_171").dataset_id_to_index
    return lookup_table({number - 1: i for number, i in index_of.items()}, 256, 255, np.uint8)


@dataclasses.dataclass(frozen=True)
class _PanopticJob(MapJob):
    record: Record


@preparation("coco_panoptic_semseg", SPLITS)
def prepare_coco_panoptic_semseg(
    options: Options, splits: Sequence[str] = SPLITS
) -> list[Prepared]:
    """Label maps of COCO's 133 panoptic classes, for the mean IoU of panoptic segmentation.

        python tools/prepare.py coco_panoptic_semseg
        python tools/prepare.py coco_panoptic_semseg --root /data/datasets --processes 8 --splits val2017

    Reads coco/annotations/panoptic_{train2017,val2017}.json and coco/panoptic_{train2017,val2017},
    and writes coco/panoptic_semseg_{train2017,val2017}.
    What is there already is kept; an interrupted run is completed by the next.
    """
    return [_panoptic_split(options, split) for split in splits]


def _panoptic_split(options: Options, split: str) -> Prepared:
    folder = options.root / "coco"
    json_file = require(folder / f"annotations/panoptic_{split}.json", COCO)
    pngs = require(folder / f"panoptic_{split}", COCO)
    target = folder / f"panoptic_semseg_{split}"
    records = panoptic_records(json_file, folder / split, pngs)
    sources = [Path(record["pan_seg_file_name"]) for record in records]
    jobs = [
        _PanopticJob(source, target / f"{source.stem}.png", record)
        for source, record in zip(sources, records)
    ]
    return convert_files(_convert_panoptic, jobs, options)


def _convert_panoptic(job: _PanopticJob) -> bool:
    ids = read_panoptic_ids(job.record)
    infos = job.record["segments_info"]
    categories = np.array([info["category_id"] for info in infos], dtype=np.int64)
    index_of = Vocabulary.load("coco_panoptic_133").dataset_id_to_index
    labels = category_labels(categories, index_of, job.record["pan_seg_file_name"])
    # Segment ids sorted, with void, so that a binary search leads from a pixel to its label.
    segment_ids = np.array([0] + [info["id"] for info in infos], dtype=np.int64)
    order = np.argsort(segment_ids)
    positions = np.searchsorted(segment_ids[order], ids)
    save_png(job.target, np.append(IGNORED, labels).astype(np.uint8)[order][positions])
    return True


@preparation("coco_captions", SPLITS)
def prepare_coco_captions(options: Options, splits: Sequence[str] = SPLITS) -> list[Prepared]:
    """Noun phrases of COCO's captions, for training the caption model.

        python tools/prepare.py coco_captions
        python tools/prepare.py coco_captions --root /data/datasets --processes 8 --splits train2017

    Reads coco/annotations/captions_{train2017,val2017}.json and writes
    coco/annotations/panoptic_caption_{train2017,val2017}.json. It needs the package nltk and its
    English tagger: pip install nltk; python -m nltk.downloader averaged_perceptron_tagger_eng
    What is there already is kept.
    """
    return [_captions_split(options, split) for split in splits]


def _captions_split(options: Options, split: str) -> Prepared:
    folder = options.root / "coco/annotations"
    target = folder / f"panoptic_caption_{split}.json"
    source = folder / f"captions_{split}.json"
    schema: Schema = {"image_id": ID, "caption": TEXT}
    entries = coco_list(read_coco_json(require(source, COCO)), "annotations", source, schema)
    if target.exists() and not options.overwrite:
        return Prepared(target, 0, len(entries), 0)
    captions = [entry["caption"] for entry in entries]
    label = f"captions_{split}"
    phrases = tagged_captions(noun_phrases, captions, options.processes, label)
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps({"annotations": add_phrases(entries, phrases)}))
    return Prepared(target, len(entries), 0, 0)
