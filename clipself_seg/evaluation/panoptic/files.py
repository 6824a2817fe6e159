"""Panoptic quality of files: prediction and ground truth are JSON and PNGs in COCO's format."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clipself_seg.data.annotations import coco_list, read_coco_json
from clipself_seg.data.masks import read_panoptic_png
from clipself_seg.data.parallel import run_in_parallel
from clipself_seg.data.vocabulary import load_vocabulary, seen_by_exact_spelling
from clipself_seg.errors import InputError
from clipself_seg.evaluation.coco_objects import Entry
from clipself_seg.evaluation.evaluator import ImageId
from clipself_seg.evaluation.panoptic.numbers import (
    ClassQuality,
    ImageMatches,
    PanopticMap,
    match_segments,
    panoptic_map,
    panoptic_quality,
)
from clipself_seg.evaluation.protocol import MeasuringProtocol, seen_text, words_text
from clipself_seg.evaluation.report import class_keys

if TYPE_CHECKING:
    from panopticapi.evaluation import PQStat

logger = logging.getLogger(__name__)


class PanopticFolder(NamedTuple):
    """Files of the ground truth, or of a prediction.

    Attributes:
        json: panoptic JSON with "annotations"; that of the ground truth also has "categories".
        folder: folder of the PNGs that the JSON names.
    """

    json: Path
    folder: Path


class Categories(NamedTuple):
    """The C classes of a panoptic JSON, in its order.

    Attributes:
        ids: category id of each class.
        names: name of each class.
        isthing: (C,) bool, which classes are things.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    isthing: np.ndarray


class _Pair(NamedTuple):
    truth: Entry
    predicted: Entry


def read_categories(json_file: str | os.PathLike[str]) -> Categories:
    """Reads the classes of a panoptic JSON.

    Raises:
        InputError: a missing or broken file; no categories; one without id, name or isthing; ids
            that are not unique; no thing or no stuff among them.
    """
    fields = {"id": int, "name": str, "isthing": int | float}
    entries = coco_list(read_coco_json(json_file), "categories", json_file, fields)
    for entry in entries:
        if entry["isthing"] not in (0, 1):
            raise InputError(
                f'{json_file}: "isthing" of a category is 0 or 1: {reprlib.repr(entry)}'
            )
    ids = tuple(entry["id"] for entry in entries)
    if len(set(ids)) < len(ids):
        raise InputError(f"{json_file}: a category id is listed twice: ids must be unique")
    isthing = np.array([entry["isthing"] == 1 for entry in entries], dtype=bool)
    check_things_and_stuff(isthing, str(json_file))
    return Categories(ids, tuple(entry["name"] for entry in entries), isthing)


def seen_categories(categories: Categories, vocabulary: str, trained: str) -> np.ndarray:
    """Bool (C,): which classes are seen by the rule of `seen_by_exact_spelling`.

    Args:
        categories: classes of the ground truth.
        vocabulary: name of the class list with the synonyms of these categories, under the same ids.
        trained: name of the class list that was trained on.

    Raises:
        InputError: no such class list, or one that lacks a category.
    """
    classes = load_vocabulary(vocabulary)
    missing = [i for i in categories.ids if i not in classes.dataset_id_to_index]
    if missing:
        raise InputError(
            f'vocabulary "{vocabulary}" lacks the categories {missing[:5]} of the ground truth: '
            "give the data set's own"
        )
    seen = seen_by_exact_spelling(classes, load_vocabulary(trained))
    return seen[[classes.dataset_id_to_index[i] for i in categories.ids]]


def files_protocol(
    truth: PanopticFolder,
    categories: Categories,
    seen: np.ndarray | None,
    split: Sequence[str] | None,
) -> MeasuringProtocol:
    """What the numbers of a prediction in files are measured with, of which the files say little.

    Args:
        truth: files of the ground truth.
        categories: its classes.
        seen: (C,) bool, see `seen_categories`; None splits nothing.
        split: the two vocabularies that tell.
    """
    unknown = "of whoever predicted, not stated by the files"
    rule = f"a name of {split[0]} as {split[1]} spells it" if split else ""
    return MeasuringProtocol(
        words=words_text(f"categories of {truth.json.name}", len(categories.ids)),
        synonyms=unknown,
        templates=unknown,
        background="void of the files",
        windows=unknown,
        size="own size of the images",
        seen=seen_text(seen, rule),
    )


def check_things_and_stuff(isthing: np.ndarray, source: str) -> None:
    """Refuse classes that are all things or all stuff.

    Args:
        isthing: (C,) bool, which classes are things.
        source: file or vocabulary that the classes come from, for the error.

    Raises:
        InputError: all classes are things, or all are stuff.
    """
    for kind, count in (("thing", isthing.sum()), ("stuff", (~isthing).sum())):
        if count == 0:
            raise InputError(
                f'{source}: none of the {len(isthing)} classes is {kind}: set "isthing" of each; '
                "without both kinds it is not a panoptic data set"
            )


def evaluate_files(
    truth: PanopticFolder, predicted: PanopticFolder, processes: int = 1
) -> tuple[ClassQuality, int]:
    """Quality of every class in the order of the ground truth's categories, and the number of images.

    Args:
        truth: files of the ground truth; every image that they annotate needs a prediction.
        predicted: files of the prediction; images that the ground truth does not have are left out,
            with a logged count.
        processes: number of processes to work in; the result does not depend on it.

    Raises:
        InputError: files that are missing, broken, or disagree (names both).
    """
    categories = read_categories(truth.json)
    index_of = {category: index for index, category in enumerate(categories.ids)}
    pairs = _pairs(truth, predicted)
    job = functools.partial(_match, truth=truth, predicted=predicted, index_of=index_of)
    matches = run_in_parallel(job, pairs, processes=processes, label="panoptic quality")
    return panoptic_quality(matches, len(index_of)), len(pairs)


def panopticapi_results(
    truth: PanopticFolder, predicted: PanopticFolder, processes: int = 1
) -> dict[str, float]:
    """The numbers that panopticapi's own code gives the same files: it matches, adds and averages.

    Args:
        truth: see `evaluate_files`.
        predicted: see `evaluate_files`.
        processes: to work in; a last digit may depend on them not being 1, since sums are of images.

    Returns:
        as `panoptic_results` without seen classes; a class that is nowhere has no numbers.

    Raises:
        InputError: see `evaluate_files`; files that panopticapi refuses.
    """
    from panopticapi.evaluation import PQStat

    listed = read_categories(truth.json)
    categories = {
        category: {"isthing": int(isthing)} for category, isthing in zip(listed.ids, listed.isthing)
    }
    job = functools.partial(_panopticapi_statistics, truth, predicted, categories)
    pairs = _pairs(truth, predicted)
    total = PQStat()
    for statistics in run_in_parallel(job, pairs, processes=processes, label="panopticapi"):
        total += statistics
    # Its average divides by the number of classes, which may be 0.
    present = {i: v for i, v in categories.items() if any(vars(total[i]).values())}
    results: dict[str, float] = {}
    for suffix, isthing in (("", None), ("_th", True), ("_st", False)):
        count = sum(isthing in (None, bool(entry["isthing"])) for entry in present.values())
        results[f"classes{suffix}"] = float(count)
        if count:
            means, _ = total.pq_average(present, isthing)
            results |= {f"{key}{suffix}": 100 * means[key.lower()] for key in ("PQ", "SQ", "RQ")}
    by_class = total.pq_average(present, None)[1] if present else {}
    for category, name in zip(listed.ids, class_keys(listed.names)):
        if category in by_class:
            numbers = by_class[category].items()
            results |= {f"{key.upper()}-{name}": 100 * number for key, number in numbers}
    return results


def _panopticapi_statistics(
    truth: PanopticFolder,
    predicted: PanopticFolder,
    categories: Mapping[int, Mapping[str, int]],
    pair: _Pair,
) -> PQStat:
    """The `PQStat` of one image."""
    from panopticapi.evaluation import pq_compute_single_core

    silence = io.StringIO()
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            return pq_compute_single_core(0, [pair], truth.folder, predicted.folder, categories)
    except KeyError as error:
        raise InputError(
            f"panopticapi refuses image {pair.truth['image_id']} of {truth.json} or {predicted.json}: "
            f"KeyError {error}; evaluate them without comparing"
        ) from None


def _pairs(truth: PanopticFolder, predicted: PanopticFolder) -> list[_Pair]:
    """Annotations of each image on both sides, in the order of the ground truth."""
    wanted = _annotations(truth.json)
    given = _annotations(predicted.json)
    missing = [image for image in wanted if image not in given]
    if missing and {str(image) for image in missing} <= {str(image) for image in given}:
        raise InputError(
            f"{predicted.json} has its image ids as {type(next(iter(given))).__name__}, {truth.json} "
            f"as {type(missing[0]).__name__}: write those of the ground truth"
        )
    if missing:
        raise InputError(
            f"{predicted.json} has no prediction for {len(missing)} of {len(wanted)} images of "
            f"{truth.json}, such as {missing[:3]}: an image without segments needs an entry too"
        )
    if len(given) > len(wanted):
        logger.warning(
            "%s: %d images are not in %s and are left out",
            predicted.json,
            len(given) - len(wanted),
            truth.json,
        )
    return [_Pair(annotation, given[image]) for image, annotation in wanted.items()]


def _annotations(json_file: Path) -> dict[ImageId, Entry]:
    by_image: dict[ImageId, Entry] = {}
    fields = {"image_id": int | str, "file_name": str, "segments_info": list}
    for entry in coco_list(read_coco_json(json_file), "annotations", json_file, fields):
        if entry["image_id"] in by_image:
            raise InputError(
                f"{json_file}: image {entry['image_id']} is annotated twice: keep one of them"
            )
        by_image[entry["image_id"]] = entry
    return by_image


def _match(
    pair: _Pair, truth: PanopticFolder, predicted: PanopticFolder, index_of: Mapping[int, int]
) -> ImageMatches:
    sides = _read(truth, pair.truth, index_of), _read(predicted, pair.predicted, index_of)
    return match_segments(*sides)


def _read(side: PanopticFolder, annotation: Entry, index_of: Mapping[int, int]) -> PanopticMap:
    png = os.path.join(side.folder, annotation["file_name"])
    source = f"{png} and the entry of image {annotation['image_id']} in {side.json}"
    return panoptic_map(read_panoptic_png(png), annotation["segments_info"], index_of, source)
