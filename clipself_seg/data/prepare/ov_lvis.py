"""OV-LVIS: LVIS v1 without the annotations of its 337 rare classes, to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clipself_seg.data.datasets.table import LVIS
from clipself_seg.data.instances import category_counts
from clipself_seg.data.prepare.annotations import Content, Count, Rewriting, rewrite
from clipself_seg.data.prepare.common import Options, Prepared
from clipself_seg.data.records import category_labels, coco_list
from clipself_seg.data.vocabulary import load_vocabulary


def prepare_ov_lvis(options: Options) -> list[Prepared]:
    """Write lvis/lvis_v1_train_seen_1203_cat.json from lvis/lvis_v1_train.json.

    All images and all 1203 categories stay.

    Args:
        options: root folder, and whether a file is written again.

    Raises:
        InputError: the official file is missing or broken, or is not of LVIS v1.
    """
    folder = options.root / "lvis"
    target = folder / "lvis_v1_train_seen_1203_cat.json"
    return [rewrite(Rewriting(folder / "lvis_v1_train.json", target, LVIS, drop_rare), options)]


def drop_rare(content: Content, source: Path) -> list[Count]:
    """Take the annotations of rare classes out, and count images, categories and annotated classes."""
    vocabulary = load_vocabulary("lvis_v1_1203")
    index_of = vocabulary.dataset_id_to_index
    counts = category_counts(content, source)
    category_labels(np.array(list(counts)), index_of, source)
    seen = {number for number in counts if vocabulary.classes[index_of[number]].seen}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in seen]
    return [
        Count("images", len(coco_list(content, "images", source)), 100_170),
        Count("categories", len(coco_list(content, "categories", source)), 1203),
        Count("annotated classes", len(seen), 866),
    ]
