"""COCO's captions: the same with their noun phrases, for training on captions."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence

from clipself_seg.data.captions import add_phrases, nltk_tagger, noun_phrases
from clipself_seg.data.datasets.table import COCO
from clipself_seg.data.parallel import run_in_parallel
from clipself_seg.data.prepare.common import Options, Prepared, require, written_whole
from clipself_seg.data.records import coco_list, read_coco_json
from clipself_seg.errors import InputError

SPLITS = ("train2017", "val2017")
AT_ONCE = 1000
"""Number of captions of a job."""


def prepare_coco_captions(options: Options, splits: Sequence[str] = SPLITS) -> list[Prepared]:
    """Write coco/annotations/panoptic_caption_{split}.json from captions_{split}.json.

    Captions without a phrase are kept, with an empty list.

    Args:
        options: root folder, number of processes, and whether files are written again.
        splits: splits of `SPLITS`.

    Raises:
        InputError: the archive is not there or broken, or NLTK or its tagger is not installed.
    """
    return [_prepare_split(options, split) for split in splits]


def _prepare_split(options: Options, split: str) -> Prepared:
    folder = options.root / "coco/annotations"
    target = folder / f"panoptic_caption_{split}.json"
    source = folder / f"captions_{split}.json"
    entries = coco_list(read_coco_json(require(source, COCO)), "annotations", source)
    if target.exists() and not options.overwrite:
        return Prepared(target, 0, len(entries), 0)
    for entry in entries:
        known = isinstance(entry.get("image_id"), int | str)
        if not known or not isinstance(entry.get("caption"), str):
            raise InputError(
                f'{source}: a caption needs "image_id", a number or text, and "caption", text; got '
                f"{reprlib.repr(entry)}"
            )
    nltk_tagger()  # refuses here what would fail in every process
    captions = [entry["caption"] for entry in entries]
    jobs = [captions[start : start + AT_ONCE] for start in range(0, len(captions), AT_ONCE)]
    label = f"captions_{split}"
    done = run_in_parallel(_phrases, jobs, processes=options.processes, label=label)
    phrases = [listed for part in done for listed in part]
    with written_whole(target) as temporary:
        temporary.write_text(json.dumps({"annotations": add_phrases(entries, phrases)}))
    return Prepared(target, len(entries), 0, 0)


def _phrases(captions: list[str]) -> list[list[str]]:
    return [noun_phrases(caption, nltk_tagger()) for caption in captions]
