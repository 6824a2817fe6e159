"""OV-COCO: COCO's instances with 48 base classes to train on, and 17 novel ones besides to evaluate.

The recipe and the names of the files are those of OVR-CNN and of the detectors that followed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipself_seg.data.datasets.table import COCO
from clipself_seg.data.instances import category_counts, category_names
from clipself_seg.data.prepare.annotations import Content, Count, Rewriting, rewrite
from clipself_seg.data.prepare.common import Options, Prepared
from clipself_seg.data.records import annotated_image, listed_records
from clipself_seg.data.vocabulary import Vocabulary, load_vocabulary
from clipself_seg.errors import InputError

TARGETS = {
    "train2017": "instances_train2017_seen_2_65_cat.json",
    "val2017": "instances_val2017_all_2.json",
}
"""Name of the file that is written, by split."""


def prepare_ov_coco(options: Options, splits: Sequence[str] = tuple(TARGETS)) -> list[Prepared]:
    """Write coco/zero-shot/{file of `TARGETS`} from coco/annotations/instances_{split}.json.

    Annotations of the wanted classes stay, crowds included, and images that have one. All 65 classes stay
    in the list of categories, with COCO's ids.

    Args:
        options: root folder, and whether files are written again.
        splits: splits of `TARGETS`.

    Raises:
        InputError: an official file is missing or broken.
    """
    folder = options.root / "coco"
    return [
        rewrite(
            Rewriting(
                folder / f"annotations/instances_{split}.json",
                folder / "zero-shot" / TARGETS[split],
                COCO,
                keep_base if split == "train2017" else keep_all,
            ),
            options,
        )
        for split in splits
    ]


def keep_base(content: Content, source: Path) -> list[Count]:
    """Keep the annotations of the base classes, and count images and objects."""
    vocabulary = load_vocabulary("ov_coco_65")
    base, _ = _ids(vocabulary)
    _keep(content, base, vocabulary, source)
    counts = category_counts(content, source)
    return [
        Count("images", len(content["images"]), 107_761),
        Count("objects of base classes", counts.total(), 665_387),
    ]


def keep_all(content: Content, source: Path) -> list[Count]:
    """Keep the annotations of base and novel classes, and count images and objects."""
    vocabulary = load_vocabulary("ov_coco_65")
    base, novel = _ids(vocabulary)
    _keep(content, base | novel, vocabulary, source)
    counts = category_counts(content, source)
    return [
        Count("images", len(content["images"]), 4_836),
        Count("objects of base classes", sum(counts[number] for number in base), 28_538),
        Count("objects of novel classes", sum(counts[number] for number in novel), 4_614),
    ]


def _ids(vocabulary: Vocabulary) -> tuple[set[int], set[int]]:
    """Category ids of the base classes, and of the novel ones."""
    base = {entry.dataset_id for entry in vocabulary.classes if entry.seen}
    return base, set(vocabulary.dataset_id_to_index) - base


def _keep(content: Content, wanted: set[int], vocabulary: Vocabulary, source: Path) -> None:
    """Keep annotations of some categories, images that have one, and the categories of the vocabulary."""
    names = category_names(content, source)
    for entry in vocabulary.classes:
        if names.get(entry.dataset_id) != entry.names[0]:
            raise InputError(
                f'{source}: category {entry.dataset_id} is "{names.get(entry.dataset_id)}" where COCO has '
                f'"{entry.names[0]}": unpack annotations_trainval2017.zip again'
            )
    category_counts(content, source)
    listed = {record["image_id"] for record in listed_records(content, source, "", 1)}
    kept = [entry for entry in content["annotations"] if entry["category_id"] in wanted]
    images = {annotated_image(annotation, listed, source) for annotation in kept}
    content["annotations"] = kept
    content["images"] = [image for image in content["images"] if image["id"] in images]
    known = vocabulary.dataset_id_to_index
    content["categories"] = [entry for entry in content["categories"] if entry["id"] in known]
