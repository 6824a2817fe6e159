"""Automatic annotation for CVAT, by its command line or an agent: masks, polygons or boxes of the labels of a task.

    pip install cvat-cli
    cvat-cli task auto-annotate 42 --function-file cvat_function.py -p "words=str:dog|puppy,grass" \\
        --conf-threshold 0.3 --allow-unmatched-labels

Further parameters are those of `create`, such as `-p task=str:panoptic`. CVAT joins labels by their names, which are
the first of each word: "dog" of "dog|puppy".
"""

import cv2
import cvat_sdk.auto_annotation as cvat
import numpy as np
from cvat_sdk.masks import encode_mask

import clipself_seg


class Function:
    """A function of CVAT: states the labels that it may give, and finds the shapes of an image."""

    def __init__(self, model):
        self.model = model
        labels = [cvat.label_spec(name, index) for index, name in enumerate(model.names)]
        self.spec = cvat.DetectionFunctionSpec(labels=labels)

    def detect(self, context, image):
        """The shapes of a PIL image, of the score that the user asked for and above."""
        boxes, labels, scores, masks = self.model(image).regions()
        shapes = []
        for index in np.flatnonzero(scores >= (context.conf_threshold or 0)).tolist():
            label = int(labels[index])
            if masks is None:
                shapes.append(cvat.rectangle(label, boxes[index].tolist()))
            elif context.conv_mask_to_poly:
                shapes += [cvat.polygon(label, points) for points in outlines(masks[index])]
            else:
                shapes.append(cvat.mask(label, encode_mask(masks[index])))
        return shapes


def outlines(mask):
    """The outer outline of each part of a mask (H, W) bool, as x1, y1, x2, y2, ...; a line or a point has none."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [outline.ravel().astype(float).tolist() for outline in found if len(outline) > 2]


def create(words: str, task: str = "semantic", model: str | None = None):
    """The function of a model of `clipself_seg.load`; None is the default of the task."""
    predictor = clipself_seg.load(model, task=task)
    predictor.set_vocabulary(words)
    return Function(predictor)
