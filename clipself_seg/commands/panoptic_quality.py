"""Panoptic quality of a prediction in files, such as that of another project."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clipself_seg.commands.options import CommandLine, command, processes, required, value
from clipself_seg.errors import InputError, require_unique, shown
from clipself_seg.schema import LIST, TEXT, WHOLE, Schema, one_of

if TYPE_CHECKING:
    import numpy as np

    from clipself_seg.evaluation.coco_objects import Entry
    from clipself_seg.evaluation.panoptic.quality import ClassQuality, ImageMatches


class Side(NamedTuple):
    """Files of the ground truth, or of a prediction: a panoptic JSON, and the folder of the PNGs that it names."""

    json: Path
    folder: Path


def _options(parser: CommandLine) -> None:
    for side, what in (("truth", "ground truth"), ("prediction", "prediction")):
        text = f"panoptic JSON of the {what} and the folder of its PNGs"
        required(parser, f"--{side}", text, nargs=2, type=Path, metavar=("JSON", "FOLDER"))
    split = "names or files of the class lists that tell seen from unseen classes"
    value(parser, "--split", split, count=2, metavar=("VOCABULARY", "TRAINED"))
    value(parser, "--json", "file for the numbers", kind=Path)
    value(parser, "--csv", "file for the numbers of each class", kind=Path)
    processes(parser)


@command(_options)
def main(args: argparse.Namespace) -> None:
    """Panoptic quality (PQ, SQ, RQ) of a prediction in COCO's format: a JSON and a folder of PNGs.

        clipself-seg panoptic-quality --truth panoptic_val2017.json panoptic_val2017 \\
            --prediction pred.json pred --json quality.json --csv quality.csv
        clipself-seg panoptic-quality --truth ade20k_panoptic_val.json ade20k_panoptic_val \\
            --prediction pred.json pred --split openseg_ade20k_150 openseg_coco_panoptic_133

    --split also gives the numbers of seen and of unseen classes: a class of the first vocabulary, the data set's own,
    is seen if one of its names is a name in the second, the one trained on. The numbers are panopticapi's, and those of
    clipself-seg eval, which needs no files.
    """
    import numpy as np

    from clipself_seg.evaluation.panoptic.quality import panoptic_results, write_quality_csv
    from clipself_seg.evaluation.protocol import MeasuringProtocol, seen_text, words_text
    from clipself_seg.evaluation.report import quality_table
    from clipself_seg.provenance import provenance, write_results

    truth, predicted = Side(*args.truth), Side(*args.prediction)
    classes = read_classes(truth.json)
    ids, names = ([entry[key] for entry in classes] for key in ("id", "name"))
    isthing = np.array([entry["isthing"] == 1 for entry in classes])
    seen = _seen(ids, *args.split) if args.split else None
    quality, images = evaluate_files(truth, predicted, ids, max(1, args.processes))
    results = {"images": float(images)} | panoptic_results(quality, names, isthing, seen)
    unknown = "of whoever predicted, not stated by the files"
    rule = "a name of {0} as {1} spells it".format(*args.split) if args.split else ""
    protocol = MeasuringProtocol(
        words=words_text(f"categories of {truth.json.name}", len(ids)),
        synonyms=unknown,
        templates=unknown,
        background="void of the files",
        windows=unknown,
        size="own size of the images",
        seen=seen_text(seen, rule),
    )
    sys.stdout.write(f"{quality_table(results)}\nProtocol: {protocol.line()}\n{images} images\n")
    if args.json:
        # Without NaN, which JSON lacks: a class that is nowhere has no number.
        known = {key: number for key, number in results.items() if number == number}
        protocols = {"panoptic_seg": protocol.as_dict()}
        write_results(args.json, {"panoptic_seg": known}, provenance(), protocols)
    if args.csv:
        write_quality_csv(args.csv, names, isthing, quality, seen)


def read_classes(json: Path) -> list[Entry]:
    """The categories of a panoptic JSON, each with "id", "name" and "isthing".

    Raises:
        InputError: a missing or broken file; no categories, one that lacks any of these, or one id twice.
    """
    from clipself_seg.data.annotations import coco_list, read_coco_json

    schema: Schema = {"id": WHOLE, "name": TEXT, "isthing": one_of(0, 1)}
    classes = coco_list(read_coco_json(json), "categories", json, schema)
    require_unique((entry["id"] for entry in classes), "category id", json)
    return classes


def _seen(ids: Sequence[int], vocabulary: str, trained: str) -> np.ndarray:
    """Bool (C,): which categories of these ids are seen, by the vocabulary that has them under the same ids."""
    from clipself_seg.data.vocabulary import Vocabulary

    words = Vocabulary.load(vocabulary)
    if missing := [number for number in ids if number not in words.dataset_id_to_index]:
        raise InputError(
            f'vocabulary "{vocabulary}" lacks the categories {missing[:5]} of the ground truth: '
            "give the data set's own"
        )
    seen = words.seen_in(Vocabulary.load(trained), exact=True)
    return seen[[words.dataset_id_to_index[number] for number in ids]]


def evaluate_files(
    truth: Side, predicted: Side, ids: Sequence[int], threads: int = 1
) -> tuple[ClassQuality, int]:
    """Quality of the classes with these category ids, and the number of images, those of the ground truth.

    Raises:
        InputError: files that are missing, broken, or disagree.
    """
    from tqdm.contrib.concurrent import thread_map

    from clipself_seg.evaluation.panoptic.quality import panoptic_quality

    wanted, given = _entries(truth.json), _entries(predicted.json)
    if missing := [image for image in wanted if image not in given]:
        raise InputError(
            f"{predicted.json} has no prediction for {len(missing)} of {len(wanted)} images of {truth.json}, such as "
            f"{shown(missing[0])}: give an entry for each, under the same id, and one without segments too"
        )
    pairs = [(entry, given[image]) for image, entry in wanted.items()]
    index_of = {number: index for index, number in enumerate(ids)}
    job = functools.partial(_matches, truth, predicted, index_of)
    images = thread_map(job, pairs, max_workers=threads, desc="panoptic quality")
    return panoptic_quality(images, len(ids)), len(pairs)


def _entries(json: Path) -> dict[int | str, Entry]:
    """The entry of each image by its id."""
    from clipself_seg.data.annotations import ID, coco_list, read_coco_json

    schema: Schema = {"image_id": ID, "file_name": TEXT, "segments_info": LIST}
    entries = coco_list(read_coco_json(json), "annotations", json, schema)
    return {entry["image_id"]: entry for entry in entries}


def _matches(
    truth: Side, predicted: Side, index_of: Mapping[int, int], pair: tuple[Entry, Entry]
) -> ImageMatches:
    """Matched and unmatched segments of an image, whose two entries are given."""
    from clipself_seg.data.masks import read_panoptic_png
    from clipself_seg.evaluation.panoptic.quality import match_segments, panoptic_map

    maps = []
    for side, entry in zip((truth, predicted), pair):
        png = side.folder / entry["file_name"]
        source = f"{png} and the entry of image {shown(entry['image_id'])} in {side.json}"
        maps.append(panoptic_map(read_panoptic_png(png), entry["segments_info"], index_of, source))
    return match_segments(*maps)
