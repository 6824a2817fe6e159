"""Pairs predicted and true instances of each image, as Open AP of instance masks needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from clipself_seg.data.rle import encode_segmentation
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.evaluation.instances.ground_truth import InstanceGroundTruth
from clipself_seg.evaluation.instances.numbers import ImageInstances
from clipself_seg.evaluation.open_ap import OpenImage, overlaps


def instance_images(
    truth: InstanceGroundTruth, predicted: Mapping[Any, ImageInstances], vocabulary: Vocabulary
) -> Iterator[OpenImage]:
    """The images of a data set, one after the other; instances of stuff are left out.

    Args:
        truth: instances of the data set, whose sizes are those of the predicted masks.
        predicted: image id -> predicted instances, for every image.
        vocabulary: K classes of the data set; it says which are things.
    """
    index_of = vocabulary.dataset_id_to_index
    by_image: list[list[dict[str, Any]]] = [[] for _ in truth.images]
    for entry in truth.annotations:
        by_image[entry["image_id"]].append(entry)
    for image, image_id, objects in zip(truth.images, truth.image_ids, by_image):
        masks, scores, labels = predicted[image_id]
        classes = np.array(labels, dtype=np.int64)
        things = np.flatnonzero(vocabulary.thing[classes])
        size = image["height"], image["width"]
        crowds = [entry["iscrowd"] for entry in objects]
        true_masks = [encode_segmentation(entry["segmentation"], *size) for entry in objects]
        crowd = np.array(crowds, dtype=bool)
        yield OpenImage(
            classes[things],
            np.array(scores, dtype=np.float64)[things],
            np.ones(len(things), dtype=bool),
            np.array([index_of[entry["category_id"]] for entry in objects], dtype=np.int64),
            crowd,
            crowd,
            overlaps([masks[index] for index in things], true_masks, crowds),
        )
