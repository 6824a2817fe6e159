"""What is asked of prepared label maps."""

from __future__ import annotations

import numpy as np
from PIL import Image

from clipself_seg.data.datasets.records import find_dataset, sem_seg_records
from clipself_seg.data.datasets.table import SemSegSet
from clipself_seg.data.masks import read_label_map
from clipself_seg.data.vocabulary import load_vocabulary


def pixels(path):
    """Values of an image file."""
    return np.asarray(Image.open(path))


def check_registered(name, count):
    """The data set has so many records, and each label map is of its image and its classes."""
    files = find_dataset(name, SemSegSet)
    records, classes = sem_seg_records(name), len(load_vocabulary(files.vocabulary))
    assert len(records) == count
    for record in records:
        read_label_map(
            record["sem_seg_file_name"],
            num_classes=files.label_count(classes),
            ignore_label=files.ignore_label,
            size=Image.open(record["file_name"]).size,
        )
