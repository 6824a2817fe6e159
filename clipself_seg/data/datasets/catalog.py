"""Lookup of the vocabulary of any data set for regions, semantic segmentation or detection, by its name.

The tables are in `coco`, `sem_seg` and `detection`, which this module imports and thereby registers. Their files
lie below `$DETECTRON2_DATASETS` (default `datasets`), those of the mini worlds below
`$CLIPSELF_SEG_MINI` (default `output/mini_world`).
"""

from __future__ import annotations

from clipself_seg.data.datasets.coco import COCO_DATASETS, panoptic_hint, registered_metadata
from clipself_seg.data.datasets.detection import DETECTION_DATASETS
from clipself_seg.data.datasets.sem_seg import SEM_SEG_DATASETS
from clipself_seg.errors import InputError


def vocabulary_name(name: str) -> str:
    """Name or file of the vocabulary of a data set, for `load_vocabulary`.

    For a data set of your own it is the entry "vocabulary" of its metadata in Detectron2's catalogue.

    Raises:
        InputError: the data set is unknown or has no vocabulary here.
    """
    vocabulary: str | None
    if name in SEM_SEG_DATASETS:
        vocabulary = SEM_SEG_DATASETS[name].vocabulary
    elif name in DETECTION_DATASETS:
        vocabulary = DETECTION_DATASETS[name].vocabulary
    elif name in COCO_DATASETS:
        vocabulary = COCO_DATASETS[name].vocabulary
        if vocabulary is None:
            raise InputError(f'data set "{name}" has no vocabulary here: {panoptic_hint(name)}')
    else:
        vocabulary = registered_metadata(name).get("vocabulary")
    if vocabulary is None:
        raise InputError(
            f'data set "{name}" has no vocabulary: '
            f'set MetadataCatalog.get("{name}").vocabulary to a name or a .json file'
        )
    return vocabulary
